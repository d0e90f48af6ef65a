"""Pickles read without running anything that they name.

A pickle is a program: ``GLOBAL`` looks up a function by name and ``REDUCE`` calls it. Here ``GLOBAL`` looks up nothing;
it yields the bare name. Names in ``REBUILT`` (plain containers, tensors) are built by this module's own code, every
other one becomes a ``Stub`` that keeps what the pickle gave it. No callable of any library ever lies on the stack.
"""

import pickle
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, Optional

import numpy as np
import torch

DTYPES = {str(v): v for v in vars(torch).values() if isinstance(v, torch.dtype)}
# The class of a storage names its elements' type; an untyped one counts bytes.
STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "QInt8Storage": torch.qint8,
    "QUInt8Storage": torch.quint8,
    "QInt32Storage": torch.qint32,
    "QUInt4x2Storage": torch.quint4x2,
    "QUInt2x4Storage": torch.quint2x4,
    "UntypedStorage": torch.uint8,
    "_UntypedStorage": torch.uint8,
}
STORAGE_MODULES = ("torch", "torch.cuda", "torch.storage")
PYTHON2_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}
# Elements that containers may copy whatever the pickle's length.
MIN_COPIES = 1 << 20
# Longest text of a NumPy array or scalar, in bytes, and longest list of texts: a pickle repeats one for 2 bytes.
MAX_TEXT_BYTES = 1 << 12
MAX_TEXTS = 1 << 16
SCALARS = (str, bytes, int, float, bool, type(None))


@dataclass(frozen=True)
class Global:
    """A name that the pickle refers to, ``module.name``; nothing is imported for it."""

    name: str


class Stub:
    """An object that only code of another project could rebuild, with what the pickle holds of it.

    Attributes:
        name: of the class or function, ``module.name``.
        args: what it would have been called with.
        state: what ``__setstate__`` would have got, or None.
        items: of a dictionary's subclass, or None.
        values: of a list's subclass, or None.
    """

    __slots__ = ("args", "items", "name", "state", "values")

    def __init__(self, name: str, args: tuple = ()) -> None:
        self.name = name
        self.args = args
        self.state: Any = None
        self.items: Optional[dict] = None
        self.values: Optional[list] = None


@dataclass(frozen=True)
class StorageRef:
    """Where a tensor's elements lie.

    Attributes:
        key: of the storage in its file.
        dtype: of its elements.
        num_elements: of the whole storage.
        start: of a legacy file's view into the storage, in elements.
    """

    key: str
    dtype: torch.dtype
    num_elements: int
    start: int = 0


@dataclass(frozen=True)
class TensorRecord:
    """A tensor that is still in its file: offset and strides in elements of ``dtype``."""

    storage: StorageRef
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class UnusableTensor:
    """A tensor that is no dense array of numbers, and what it is instead."""

    what: str


class RestrictedUnpickler(pickle._Unpickler):
    """Python's own unpickler with every opcode overridden that would look up, call or hash what the pickle names.

    The C implementation cannot be used: its opcodes call without asking, and a memo index reserves memory.

    Attributes:
        left_out: name -> how many objects became stubs.
    """

    dispatch = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: BinaryIO) -> None:
        reader = _ExactReader(file)
        # Python 2 wrote text and bytes alike; surrogateescape keeps what is no UTF-8.
        super().__init__(reader, encoding="utf-8", errors="surrogateescape")
        self.left_out: Counter[str] = Counter()
        self._copies_left = max(MIN_COPIES, 2 * reader.num_bytes)

    def find_class(self, module: str, name: str) -> Any:
        module = PYTHON2_MODULES.get(module, module)
        if f"{module}.{name}" in DTYPES:
            return DTYPES[f"{module}.{name}"]
        return Global(f"{module}.{name}")

    def get_extension(self, code: int) -> None:
        self.append(Global(f"copyreg.extension_{code}"))

    def persistent_load(self, pid: Any) -> Any:
        """Return the storage, or the class with whose source code a legacy file names it.

        Raises:
            pickle.UnpicklingError: neither of the two.
        """
        kind = pid[0] if isinstance(pid, tuple) and pid else None
        kind = kind.decode("latin1") if isinstance(kind, bytes) else kind
        if kind == "module" and len(pid) > 1:
            return pid[1]
        if kind != "storage" or len(pid) < 5:
            raise pickle.UnpicklingError("a persistent id that is no storage")
        return _storage(*pid[1:6])

    def call(self, function: Any, args: Any) -> Any:
        """Build what ``function(*args)`` stands for, by this module's code or as a stub."""
        if not isinstance(args, (tuple, list)):
            raise pickle.UnpicklingError("arguments that are no tuple")
        name = function.name if isinstance(function, (Global, Stub)) else type(function).__name__
        rebuild = REBUILT.get(name) if isinstance(function, Global) else None
        if rebuild is not None:
            return rebuild(self, *args)
        self.left_out[name] += 1
        return Stub(name, tuple(args))

    def spend(self, count: int) -> None:
        """Account for a copy of ``count`` elements: a short pickle can ask for the same long one without end.

        Raises:
            pickle.UnpicklingError: more copies than any file's content needs.
        """
        self._copies_left -= count
        if self._copies_left < 0:
            raise pickle.UnpicklingError("it copies its own content without end")

    def _instantiate(self, klass: Any, args: Any) -> None:
        self.append(self.call(klass, args))

    def load_reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self.call(self.stack[-1], args)

    def load_newobj(self) -> None:
        args = self.stack.pop()
        self.append(self.call(self.stack.pop(), args))

    def load_newobj_ex(self) -> None:
        self.stack.pop()  # keyword arguments
        self.load_newobj()

    def load_build(self) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Stub):
            self.stack[-1].state = state

    def load_append(self) -> None:
        value = self.stack.pop()
        self._extend(self.stack[-1], [value])

    def load_appends(self) -> None:
        values = self.pop_mark()
        self._extend(self.stack[-1], values)

    def load_setitem(self) -> None:
        value = self.stack.pop()
        key = self.stack.pop()
        self._update(self.stack[-1], [key, value])

    def load_setitems(self) -> None:
        pairs = self.pop_mark()
        self._update(self.stack[-1], pairs)

    def load_dict(self) -> None:
        pairs = self.pop_mark()
        self.append({})
        self._update(self.stack[-1], pairs)

    def load_empty_set(self) -> None:
        self.append(Stub("builtins.set"))

    def load_frozenset(self) -> None:
        members = self.pop_mark()  # of the stack that append then belongs to
        self.append(Stub("builtins.frozenset", (members,)))

    def load_bytearray8(self) -> None:
        self.append(self.read(int.from_bytes(self.read(8), "little")))

    def _extend(self, target: Any, values: list) -> None:
        if isinstance(target, Stub):
            target.values = [] if target.values is None else target.values
            target.values.extend(values)
        elif isinstance(target, list):
            target.extend(values)
        else:
            raise pickle.UnpicklingError(f"values for a {type(target).__name__}")

    def _update(self, target: Any, pairs: list) -> None:
        if isinstance(target, Stub):
            target.items = {} if target.items is None else target.items
            target = target.items
        if not isinstance(target, dict) or len(pairs) % 2:
            raise pickle.UnpicklingError(f"items for a {type(target).__name__}")
        target.update((hashable(k), v) for k, v in zip(pairs[::2], pairs[1::2]))


RestrictedUnpickler.dispatch.update(
    {
        opcode[0]: getattr(RestrictedUnpickler, f"load_{name}")
        for name, opcode in (
            ("reduce", pickle.REDUCE),
            ("newobj", pickle.NEWOBJ),
            ("newobj_ex", pickle.NEWOBJ_EX),
            ("build", pickle.BUILD),
            ("append", pickle.APPEND),
            ("appends", pickle.APPENDS),
            ("additems", pickle.ADDITEMS),
            ("setitem", pickle.SETITEM),
            ("setitems", pickle.SETITEMS),
            ("dict", pickle.DICT),
            ("empty_set", pickle.EMPTY_SET),
            ("frozenset", pickle.FROZENSET),
            ("bytearray8", pickle.BYTEARRAY8),
        )
    }
)
# A set is a stub that takes its members as a list does: hashing them is not needed.
RestrictedUnpickler.dispatch[pickle.ADDITEMS[0]] = RestrictedUnpickler.load_appends


class _ExactReader:
    """A file that raises where it is too short: a declared length reserves no memory that the file does not fill."""

    def __init__(self, file: BinaryIO) -> None:
        start = file.tell()
        self._file = file
        self._end = file.seek(0, 2)
        file.seek(start)
        self.num_bytes = self._end - start

    def read(self, count: int) -> bytes:
        if count > self._end - self._file.tell():
            raise EOFError("the pickle ends early")
        return self._file.read(count)

    def readline(self) -> bytes:
        return self._file.readline()


def hashable(key: Any) -> Any:
    """Return the key, or a stub for one that a weight or an entry of the metadata cannot have.

    Hashing deeply nested tuples recurses in C and would end the process.
    """
    flat = isinstance(key, tuple) and all(isinstance(k, SCALARS) for k in key)
    return key if flat or isinstance(key, (*SCALARS, Global)) else Stub("key")


def mapping_of(value: Any) -> Optional[Mapping]:
    """Return the dictionary that the value is, or that a stub of a dictionary's subclass holds; None for others."""
    if isinstance(value, Stub):
        return value.items
    return value if isinstance(value, Mapping) else None


def sequence_of(value: Any) -> Optional[list]:
    """Return the values of a list, a tuple or a NumPy array, stubs of these included; None for others."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [_text_scalar(v) for v in value] if len(value) <= MAX_TEXTS else None
    if not isinstance(value, Stub) or value.name == "builtins.set":  # whose order is none
        return None
    if value.name in ("numpy._core.numeric._frombuffer", "numpy.core.numeric._frombuffer"):
        return _numpy_text(*value.args[1::-1]) if len(value.args) > 1 else None
    if (
        value.name.endswith(".multiarray._reconstruct")
        and isinstance(value.state, tuple)
        and len(value.state) == 5
    ):
        data = value.state[4]
        return list(data) if isinstance(data, list) else _numpy_text(value.state[2], data)
    return value.values


def _text_scalar(value: Any) -> Any:
    if isinstance(value, Stub) and value.name.endswith(".multiarray.scalar") and len(value.args) == 2:
        text = _numpy_text(*value.args)
        return text[0] if text else value
    return value


def _numpy_text(dtype: Any, data: Any) -> Optional[list[str]]:
    """Decode NumPy's fixed-width text: dtype ``U12`` is 12 code points of 4 bytes each."""
    code = dtype.args[0] if isinstance(dtype, Stub) and dtype.args else None
    if not (isinstance(code, str) and code[:1] == "U" and code[1:].isdigit() and isinstance(data, bytes)):
        return None
    big_endian = isinstance(dtype.state, tuple) and dtype.state[1:2] == (">",)
    width = int(code[1:]) * 4
    if not 0 < width <= MAX_TEXT_BYTES or len(data) % width:
        return None
    encoding = "utf-32-be" if big_endian else "utf-32-le"
    texts = (data[i : i + width].decode(encoding, "replace") for i in range(0, len(data), width))
    return [text.rstrip("\0") for text in texts]


def _storage(storage_class: Any, key: Any, location: Any, count: Any, view: Any = None) -> Any:
    module, _, name = (
        storage_class.name.rpartition(".") if isinstance(storage_class, Global) else ("", "", "")
    )
    dtype = STORAGES.get(name) if module in STORAGE_MODULES else None
    if dtype is None:
        return UnusableTensor(f"a storage of type {name or 'unknown'}")
    if not _are_counts(count) or not isinstance(key, (str, int)):
        raise pickle.UnpicklingError("a storage without key or size")
    start = view[1] if isinstance(view, tuple) and len(view) == 3 else 0
    if not _are_counts(start):
        raise pickle.UnpicklingError("a view of a storage without offset")
    return StorageRef(str(key), dtype, count, start)


def _tensor(_: RestrictedUnpickler, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Any:
    if isinstance(storage, UnusableTensor):
        return storage
    if not isinstance(storage, StorageRef):
        return UnusableTensor("a tensor without storage")
    valid = isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride)
    if not valid or not _are_counts(offset, *size, *stride):
        raise pickle.UnpicklingError("a tensor without offset, size or strides")
    return TensorRecord(storage, storage.dtype, storage.start + offset, size, stride)


def _tensor_v3(unpickler: RestrictedUnpickler, *args: Any) -> Any:
    """Build the tensor whose dtype stands beside an untyped storage, which counts bytes."""
    record = _tensor(unpickler, *args)
    dtype = args[6] if len(args) > 6 else None
    if not isinstance(record, TensorRecord):
        return record
    return (
        replace(record, dtype=dtype)
        if isinstance(dtype, torch.dtype)
        else UnusableTensor("a tensor of no known dtype")
    )


def _are_counts(*values: Any) -> bool:
    return all(type(v) is int and 0 <= v < 2**62 for v in values)


def _first(_: RestrictedUnpickler, *args: Any) -> Any:
    """Return what a wrapper wraps: of ``nn.Parameter`` and of tensors copied from another device, the tensor."""
    return args[0] if args else Stub("torch.nn.parameter.Parameter")


def _subclass(unpickler: RestrictedUnpickler, function: Any, kind: Any, args: Any, *state: Any) -> Any:
    """Rebuild a tensor with attributes or of a subclass as the tensor; a wrapper holds none."""
    tensor = unpickler.call(function, args)
    named = kind.name if isinstance(kind, Global) else "unknown"
    return tensor if not isinstance(tensor, Stub) else UnusableTensor(f"a tensor of the class {named}")


def _wrapper(_: RestrictedUnpickler, *args: Any) -> UnusableTensor:
    named = args[0].name if args and isinstance(args[0], Global) else "unknown"
    return UnusableTensor(f"a tensor of the class {named}")


def _unusable(what: str) -> Callable[..., UnusableTensor]:
    return lambda *_: UnusableTensor(what)


def _mapping(unpickler: RestrictedUnpickler, *args: Any) -> dict:
    """Build a dictionary from a dictionary, from pairs, from nothing; a ``defaultdict``'s factory is dropped."""
    filled: dict = OrderedDict()
    for arg in args:
        if isinstance(arg, (dict, list, tuple)):
            unpickler.spend(len(arg))
            pairs = arg.items() if isinstance(arg, dict) else arg
            filled.update((hashable(k), v) for k, v in pairs)
    return filled


def _list(unpickler: RestrictedUnpickler, values: Any = ()) -> Any:
    if not isinstance(values, (list, tuple)):
        return Stub("builtins.list", (values,))
    unpickler.spend(len(values))
    return list(values)


def _tuple(unpickler: RestrictedUnpickler, values: Any = ()) -> Any:
    if not isinstance(values, (list, tuple)):
        return Stub("builtins.tuple", (values,))
    unpickler.spend(len(values))
    return tuple(values)


def _bytes(unpickler: RestrictedUnpickler, text: Any = "", encoding: Any = "latin1") -> Any:
    """Encode text as the bytes that it stands for in protocol 2, which knows no bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        return Stub("_codecs.encode")
    unpickler.spend(len(text))
    return text.encode("latin1")


def _reconstructor(unpickler: RestrictedUnpickler, kind: Any, base: Any = None, state: Any = None) -> Any:
    """Build an object of protocol 0 or 1: of a dictionary's subclass the base's value is its items."""
    built = unpickler.call(kind, ())
    if isinstance(state, dict) and isinstance(built, Stub):
        built.items = state
    if isinstance(state, dict) and isinstance(built, dict):
        built.update(state)
    if isinstance(state, list) and isinstance(built, Stub):
        built.values = state
    return built


def _newobj(unpickler: RestrictedUnpickler, kind: Any, *args: Any) -> Any:
    return unpickler.call(kind, args)


REBUILT: dict[str, Callable[..., Any]] = {
    "builtins.dict": _mapping,
    "builtins.list": _list,
    "builtins.tuple": _tuple,
    "collections.OrderedDict": _mapping,
    "collections.defaultdict": _mapping,
    "collections.Counter": _mapping,
    "mmengine.config.config.ConfigDict": _mapping,
    "mmcv.utils.config.ConfigDict": _mapping,
    "addict.addict.Dict": _mapping,
    "_codecs.encode": _bytes,
    "copyreg._reconstructor": _reconstructor,
    "copyreg.__newobj__": _newobj,
    "torch.Size": _tuple,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _first,
    "torch.nn.parameter.Parameter": _first,
    "torch._tensor._rebuild_from_type_v2": _subclass,
    "torch._tensor._rebuild_from_type": _subclass,
    "torch.tensor._rebuild_from_type": _subclass,
    "torch._utils._rebuild_wrapper_subclass": _wrapper,
    "torch._utils._rebuild_sparse_tensor": _unusable("a sparse tensor"),
    "torch._utils._rebuild_qtensor": _unusable("a quantized tensor"),
    "torch._utils._rebuild_nested_tensor": _unusable("a nested tensor"),
    "torch._utils._rebuild_meta_tensor_no_storage": _unusable("a meta tensor, which has no values"),
    "torch._utils._rebuild_device_tensor_from_numpy": _unusable(
        "a tensor of a device other than CPU and CUDA"
    ),
    "torch._utils._rebuild_xla_tensor": _unusable("a tensor of a device other than CPU and CUDA"),
}
