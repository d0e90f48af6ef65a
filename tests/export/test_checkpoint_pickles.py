"""Pickles of training runs and of attackers: what is read, what is left out, and that nothing of it runs."""

import argparse
import collections
import contextlib
import copyreg
import datetime
import io
import os
import pathlib
import pickle
import struct
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from export.checkpoint import load_weights, read_checkpoint
from export.restricted_pickle import RestrictedUnpickler, Stub

WEIGHTS = collections.OrderedDict(
    [("0.weight", torch.arange(6.0).view(2, 3)), ("0.bias", torch.tensor([1.0, 2.0]))]
)


def assert_same(weights: dict, expected: dict) -> None:
    assert list(weights) == list(expected)
    for key, value in expected.items():
        assert weights[key].dtype == value.dtype, key
        assert weights[key].shape == value.shape, key
        assert torch.equal(weights[key], value.detach()), key


def save(content, path: Path, **options) -> Path:
    torch.save(content, path, **options)
    return path


def their_module(name: str, **members) -> types.ModuleType:
    """A project that is there when the checkpoint is saved, and gone when it is read."""
    module = types.ModuleType(name)
    for key, value in members.items():
        value.__module__, value.__qualname__ = name, key
        setattr(module, key, value)
    return module


# --- objects beside the weights ------------------------------------------------------------------------------------


class Plain:
    """An object with a __dict__."""


class Slotted:
    __slots__ = ("a",)


class WithState:
    def __getstate__(self) -> dict:
        return {"a": 1}

    def __setstate__(self, state: dict) -> None:
        raise RuntimeError("ran")


class DictOfTheirs(dict):
    """A subclass of dict."""


class ListOfTheirs(list):
    """A subclass of list."""


class WithNewArgs:
    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __getnewargs_ex__(self) -> tuple:
        return (1, 2), {"three": 3}


class Reduced:
    """A pickle of this calls what it is given."""

    def __init__(self, function, *args, **parts) -> None:
        self.function, self.args, self.parts = function, args, parts

    def __call__(self) -> None:
        """Pickle asks for something callable where a call's result is called."""

    def __reduce__(self) -> tuple:
        p = self.parts
        return (self.function, self.args, p.get("state"), p.get("values"), p.get("items"))


Pair = collections.namedtuple("Pair", "a b")


def made(kind: type, **attributes):
    built = kind()
    for key, value in attributes.items():
        setattr(built, key, value)
    return built


def history():
    from mmengine.logging import HistoryBuffer

    return HistoryBuffer([1.0, 2.0], [1, 1])


def config_dict():
    from mmengine.config import ConfigDict

    return ConfigDict(a=1, b=dict(c=[2]))


BESIDE = {
    "an object": lambda: made(Plain, a=1),
    "an object with slots": lambda: made(Slotted, a=1),
    "an object with __setstate__": WithState,
    "a dictionary's subclass": lambda: DictOfTheirs(a=1),
    "a list's subclass": lambda: ListOfTheirs([1, 2]),
    "__getnewargs_ex__": WithNewArgs,
    "a named tuple": lambda: Pair(1, 2),
    "a Windows path": lambda: Reduced(pathlib.WindowsPath, "C:\\work"),
    "a path": lambda: pathlib.PurePosixPath("/work/x"),
    "argparse.Namespace": lambda: argparse.Namespace(lr=0.1),
    "a date": lambda: datetime.datetime(2024, 1, 1),
    "mmengine's history": history,
    "mmengine's config": config_dict,
    "a default dictionary": lambda: collections.defaultdict(list, a=[1]),
    "a counter": lambda: collections.Counter("abca"),
    "a deque": lambda: collections.deque([1, 2], maxlen=3),
    "a set": lambda: {1, 2},
    "a frozen set": lambda: frozenset([1, 2]),
    "a range": lambda: range(3),
    "a slice": lambda: slice(1, 2),
    "complex": lambda: 1j,
    "bytes": lambda: b"\0\xff",
    "a byte array": lambda: bytearray(b"\0\xff"),
    "a class": lambda: Plain,
    "a function": lambda: made,
    "a bound method": lambda: Reduced(getattr, Plain, "__init__"),
    "getattr's result, called": lambda: Reduced(Reduced(getattr, Reduced(__import__, "os"), "getpid")),
    "a NumPy array": lambda: np.arange(3.0),
    "a NumPy array of text": lambda: np.array(["a", "bc"]),
    "a NumPy array of objects": lambda: np.array([{}, None]),
    "a NumPy scalar": lambda: np.float64(3),
    "a NumPy generator": lambda: np.random.default_rng(0),
    "a NumPy structure": lambda: np.zeros(2, dtype=[("a", "f4")]),
    "a dtype": lambda: torch.float16,
    "a device": lambda: torch.device("cuda:1"),
    "a size": lambda: torch.Size([1, 2]),
    "an optimizer": lambda: torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1, momentum=0.9),
    "a scheduler": lambda: torch.optim.lr_scheduler.StepLR(torch.optim.SGD(nn.Linear(1, 1).parameters()), 1),
    "a layer": lambda: nn.Conv2d(1, 1, 1),
    "a sparse tensor": lambda: torch.eye(2).to_sparse(),
    "a quantized tensor": lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    "a meta tensor": lambda: torch.empty(2, device="meta"),
    "a complex tensor": lambda: torch.ones(2, dtype=torch.complex64),
    "an object as a key": lambda: {made(Plain): 1, (1, made(Plain)): 2, frozenset([1]): 3},
    "an object with items of its own": lambda: Reduced(Plain, items=iter([("a", 1)]), values=iter([1, 2])),
    "a namespace": lambda: types.SimpleNamespace(a=1),
    "an exception": lambda: ValueError("x"),
    "tensors inside": lambda: made(Plain, a=torch.ones(3), b=nn.Parameter(torch.ones(2))),
}
PROTOCOLS = (1, 2, 4, 5)


@pytest.mark.parametrize("name", BESIDE)
def test_objects_beside_the_weights(tmp_path, name):
    content = {
        "meta": {"x": BESIDE[name](), "CLASSES": ["a"]},
        "optimizer": BESIDE[name](),
        "state_dict": WEIGHTS,
    }
    for protocol in PROTOCOLS:
        for legacy in (False, True):
            options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": not legacy}
            try:
                path = save(content, tmp_path / f"{protocol}{legacy}.pth", **options)
            except (TypeError, pickle.PicklingError):  # protocols below 2 do not take all of them
                assert protocol < 2
                continue
            checkpoint = read_checkpoint(path)
            assert_same(checkpoint.weights, WEIGHTS)
            assert checkpoint.classes == ("a",)


def test_a_project_that_is_gone_is_noted(tmp_path, monkeypatch):
    class Hook:
        pass

    monkeypatch.setitem(sys.modules, "their_project", their_module("their_project", Hook=Hook))
    path = save({"meta": {"hooks": [Hook(), Hook()]}, "state_dict": WEIGHTS}, tmp_path / "c.pth")
    monkeypatch.delitem(sys.modules, "their_project")
    checkpoint = read_checkpoint(path)
    assert_same(checkpoint.weights, WEIGHTS)
    assert checkpoint.notes == (
        "left out 2 objects (of another project, whose code did not run): their_project.Hook",
    )
    assert_same(read_checkpoint(path, trust_pickle=True).weights, WEIGHTS)


def test_what_every_run_saves_is_not_noted(tmp_path):
    content = {"message_hub": {"loss": history()}, "meta": {"seed": np.int64(3)}, "state_dict": WEIGHTS}
    assert read_checkpoint(save(content, tmp_path / "c.pth")).notes == ()


# --- payloads ------------------------------------------------------------------------------------------------------


def payloads(target: Path) -> dict[str, object]:
    """Pickles that would create the file ``target``."""
    code = f"open({str(target)!r}, 'w').close()"
    return {
        "os.system": Reduced(os.system, f"touch {target}"),
        "subprocess": Reduced(subprocess.check_call, ["touch", str(target)]),
        "Popen": Reduced(subprocess.Popen, ("touch", str(target))),
        "eval": Reduced(eval, code),
        "exec": Reduced(exec, code),
        "open": Reduced(open, str(target), "w"),
        "Path.touch": Reduced(pathlib.Path.touch, Path(target)),
        "getattr": Reduced(Reduced(getattr, Reduced(__import__, "builtins"), "eval"), code),
        "by state": Reduced(Setter, state={"path": str(target)}),
        "by items": Reduced(Setter, items=iter([("path", str(target))])),
        "by values": Reduced(Setter, values=iter([str(target)])),
        "by a key's hash": {Reduced(Setter, state={"path": str(target)}): 1},
        "torch's own loading": Reduced(torch.storage._load_from_bytes, torch_payload(target)),
        "the extension registry": Registered(str(target)),
        "map": Reduced(list, Reduced(map, Reduced(getattr, Reduced(__import__, "builtins"), "eval"), [code])),
        "numpy": Reduced(np.fromfunction, Reduced(getattr, Reduced(__import__, "builtins"), "eval"), (1,)),
        "the rebuilding of a tensor's subclass": Reduced(
            torch._tensor._rebuild_from_type_v2, eval, eval, (code,), {}
        ),
        "a reconstructor": Reduced(copyreg._reconstructor, Setter, object, None, state={"path": str(target)}),
        "a partial": Reduced(Reduced(__import__("functools").partial, eval, code)),
    }


class Setter:
    """Touches a file whichever way the pickle fills it."""

    def __setstate__(self, state: dict) -> None:
        Path(state["path"]).touch()

    def __setitem__(self, key: str, value: str) -> None:
        Path(value).touch()

    def extend(self, values: list) -> None:
        Path(values[0]).touch()

    def append(self, value: str) -> None:
        Path(value).touch()


class Registered:
    """Pickled by a code of the extension registry."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return registered, (self.path,)


def registered(path: str) -> None:
    Path(path).touch()


def torch_payload(target: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save(Reduced(os.system, f"touch {target}"), buffer)
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def _extension():
    copyreg.add_extension(__name__, "registered", 0x70)
    yield
    copyreg.remove_extension(__name__, "registered", 0x70)


@pytest.mark.parametrize("name", payloads(Path("x")))
@pytest.mark.parametrize("where", ["meta", "state_dict", "top", "weight"])
def test_nothing_runs(tmp_path, name, where):
    target = tmp_path / "ran"
    payload = payloads(target)[name]
    content = {
        "meta": {"meta": {"x": payload}, "state_dict": WEIGHTS},
        "state_dict": {"state_dict": payload},
        "top": payload,
        "weight": {"state_dict": {**WEIGHTS, "x": payload}},
    }[where]
    for protocol in (2, 4):
        for legacy in (False, True):
            path = save(
                content,
                tmp_path / "c.pth",
                pickle_protocol=protocol,
                _use_new_zipfile_serialization=not legacy,
            )
            read = (
                pytest.raises(ValueError, match="checkpoint") if where == "top" else contextlib.nullcontext()
            )
            # Of the state dict several are containers that are left empty, of the weights one is a tensor's class.
            with read if where in ("top", "meta") else contextlib.suppress(ValueError):
                assert_same(read_checkpoint(path).weights, WEIGHTS)
            assert not target.exists()


def test_the_payloads_do_run_in_a_plain_unpickler(tmp_path):
    """Of the names above the ones that a plain unpickler runs: the test of nothing running is not empty."""
    ran = []
    for name, payload in payloads(tmp_path / "ran").items():
        with contextlib.suppress(Exception):  # several fail after they ran
            pickle.loads(pickle.dumps(payload, 2))
        if (tmp_path / "ran").exists() or name in ("Popen",):
            ran.append(name)
            (tmp_path / "ran").unlink(missing_ok=True)
    assert len(ran) >= 14, ran


def test_a_payload_is_noted(tmp_path):
    path = save({"meta": Reduced(os.system, "true"), "state_dict": WEIGHTS}, tmp_path / "c.pth")
    assert read_checkpoint(path).notes == (
        "left out 1 object (of another project, whose code did not run): posix.system",
    )


# --- weights that only code can rebuild ----------------------------------------------------------------------------


def their_weights() -> dict:
    return dict(WEIGHTS)


NEEDS_CODE = {
    "the state dict": {"state_dict": Reduced(their_weights)},
    "the whole content": Reduced(their_weights),
}


@pytest.mark.parametrize("name", NEEDS_CODE)
def test_weights_that_only_code_rebuilds_need_trust(tmp_path, name):
    path = save(NEEDS_CODE[name], tmp_path / "c.pth")
    with pytest.raises(
        ValueError, match=r"found a pickle that wants to run code.*their_weights.*--trust-checkpoint"
    ):
        read_checkpoint(path)
    assert_same(read_checkpoint(path, trust_pickle=True).weights, WEIGHTS)


def raises(error: str) -> None:
    raise {"attribute": AttributeError, "runtime": RuntimeError, "os": OSError, "key": KeyError}[error](
        "boom"
    )


@pytest.mark.parametrize("error", ["attribute", "runtime", "os", "key"])
def test_trusted_code_that_fails(tmp_path, error):
    path = save({"state_dict": Reduced(raises, error)}, tmp_path / "c.pth")
    with pytest.raises(
        ValueError, match=r"c\.pth: expected a pickle that its code can load, found .*boom.*Install"
    ):
        read_checkpoint(path, trust_pickle=True)


def test_a_trusted_project_that_is_gone(tmp_path, monkeypatch):
    def weights() -> dict:
        return WEIGHTS

    monkeypatch.setitem(sys.modules, "their_project", their_module("their_project", weights=weights))
    path = save({"state_dict": Reduced(weights)}, tmp_path / "c.pth")
    monkeypatch.delitem(sys.modules, "their_project")
    with pytest.raises(
        ValueError, match=r"found ModuleNotFoundError: No module named 'their_project'\. Install"
    ):
        read_checkpoint(path, trust_pickle=True)


WHOLE = {
    "alone": lambda m: m,
    "as model": lambda m: {"model": m, "epoch": 3},
    "as state_dict": lambda m: {"state_dict": m},
    "as net": lambda m: {"net": m},
    "in the state dict": lambda m: {"state_dict": {"model": m}},
}


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("legacy", [False, True])
def test_a_whole_model(tmp_path, name, legacy):
    path = save(
        WHOLE[name](nn.Sequential(nn.Linear(2, 2))),
        tmp_path / "c.pth",
        _use_new_zipfile_serialization=not legacy,
    )
    for trust in (False, True):
        with pytest.raises(ValueError, match=r"found a whole model \(.*Sequential\)\. .*state_dict\(\)"):
            read_checkpoint(path, trust_pickle=trust)


# --- tensors of every kind -----------------------------------------------------------------------------------------


def shared() -> dict:
    base = torch.arange(12.0)
    return {"a": base[:6].view(2, 3), "b": base[6:], "c": base.view(3, 4).t(), "d": base}


TENSORS = {
    "types": lambda: {str(d): torch.arange(1, 5).to(d) for d in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
        torch.int8, torch.uint8, torch.bool,
    )},
    "float8": lambda: {"a": torch.ones(3).to(torch.float8_e4m3fn), "b": torch.ones(1)},
    "sixteen-bit integers": lambda: {"a": torch.ones(3).to(torch.uint16), "b": torch.ones(1)},
    "parameters": lambda: {"a": nn.Parameter(torch.ones(3)), "b": nn.Parameter(torch.ones(2), requires_grad=False)},
    "a parameter with an attribute": lambda: {"a": made_parameter()},
    "a tensor with an attribute": lambda: {"a": attributed()},
    "a tensor's subclass": lambda: {"a": torch.ones(3).as_subclass(TensorOfTheirs)},
    "requires grad": lambda: {"a": torch.ones(3, requires_grad=True)},
    "shared storages": shared,
    "views": lambda: {"a": torch.arange(24.0).view(2, 3, 4)[:, 1:, ::2], "b": torch.arange(9.0).view(3, 3).t()[1]},
    "channels last": lambda: {"a": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)},
    "expanded": lambda: {"a": torch.ones(1, 3).expand(4, 3)},
    "scalars and empty": lambda: {"a": torch.tensor(3.0), "b": torch.zeros(0, 3), "c": torch.tensor(7)},
    "negated view": lambda: {"a": torch.view_as_complex(torch.ones(3, 2)).conj().imag.clone()},
    "long keys": lambda: {"x" * 3000: torch.ones(2), "ü.weight": torch.ones(1), "": torch.ones(1)},
    "a module's own": lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).state_dict(),
    "many": lambda: {f"layer.{i}.weight": torch.full((3,), i + 1.0) for i in range(200)},
}  # fmt: skip


class TensorOfTheirs(torch.Tensor):
    """A subclass without state."""


def made_parameter() -> nn.Parameter:
    parameter = nn.Parameter(torch.ones(3))
    parameter.their_attribute = 3
    return parameter


def attributed() -> torch.Tensor:
    tensor = torch.ones(3)
    tensor.their_attribute = made(Plain)
    return tensor


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_equal_torch_load(tmp_path, name):
    for protocol in PROTOCOLS:
        for legacy in (False, True):
            options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": not legacy}
            path = tmp_path / f"{protocol}{legacy}.pth"
            try:
                save({"state_dict": TENSORS[name]()}, path, **options)
            except Exception:  # the legacy format has no float8, and no uint16
                assert legacy
                continue
            try:
                expected = torch.load(path, weights_only=False)["state_dict"]
            except AttributeError:  # torch writes untyped storages in the legacy format, and reads none
                assert legacy
                continue
            assert_same(read_checkpoint(path).weights, expected)


def test_tensors_of_one_storage_share_memory(tmp_path):
    weights = read_checkpoint(save(shared(), tmp_path / "c.pth")).weights
    assert len({w.untyped_storage().data_ptr() for w in weights.values()}) == 1


@pytest.mark.parametrize("location", [b"cuda:0", b"mps", b"xpu:1", b"hpu"])
def test_tensors_of_another_device(tmp_path, location):
    """A file of a GPU differs by its storages' location, which stands in the pickle as text."""
    plain = save({"a": torch.arange(1.0, 4)}, tmp_path / "c.pth")
    moved = repacked(plain, tmp_path / "moved.pth", lambda p: p.replace(b"X\3\0\0\0cpu", text(location)))
    assert_same(read_checkpoint(moved).weights, {"a": torch.arange(1.0, 4)})


def test_a_big_endian_file(tmp_path):
    plain = save({"a": torch.arange(1.0, 4), "b": torch.tensor([258])}, tmp_path / "c.pth")
    data = {
        "data/0": np.arange(1, 4, dtype=">f4").tobytes(),
        "data/1": np.array([258], ">i8").tobytes(),
        "byteorder": b"big",
    }
    moved = repacked(plain, tmp_path / "big.pth", lambda p: p, data)
    assert_same(read_checkpoint(moved).weights, {"a": torch.arange(1.0, 4), "b": torch.tensor([258])})


UNUSABLE = {
    "sparse": (lambda: torch.eye(3).to_sparse(), "a sparse tensor"),
    "CSR": (lambda: torch.eye(3).to_sparse_csr(), "a sparse tensor"),
    "quantized": (
        lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        "a quantized tensor",
    ),
    "meta": (lambda: torch.empty(2, device="meta"), "a meta tensor"),
    "complex": (lambda: torch.ones(2, dtype=torch.complex64), "a tensor of complex numbers"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "a nested tensor"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", UNUSABLE)
def test_a_weight_that_is_no_dense_tensor(tmp_path, name):
    make, what = UNUSABLE[name]
    path = save({"state_dict": {**WEIGHTS, "backbone.x": make()}}, tmp_path / "c.pth")
    with pytest.raises(
        ValueError, match=rf"found {what}.* as backbone\.x \(1 of 3 weights\).*plain CPU tensors"
    ):
        read_checkpoint(path)


# --- damaged and hostile files -------------------------------------------------------------------------------------


def text(data: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(data)) + data


def repacked(source: Path, target: Path, edit, records=(), compression=zipfile.ZIP_STORED) -> Path:
    """Write the archive anew with its pickle edited and some records replaced (None leaves one out)."""
    records = dict(records)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            folder, _, inner = name.partition("/")
            data = edit(old.read(name)) if inner == "data.pkl" else records.get(inner, old.read(name))
            if data is not None:
                new.writestr(f"{folder}/{inner}", data)
    return target


def archive_of(pickled: bytes, path: Path, records: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {"data.pkl": pickled, **records}.items():
            archive.writestr(f"archive/{name}", data)
    return path


def tensor_pickle(
    *, numel: int = 4, offset: int = 0, size: str = "K\4\x85", stride: str = "K\1\x85"
) -> bytes:
    """{"a": tensor} by hand: of a storage "0" with ``numel`` elements."""
    storage = (
        b"("
        + text(b"storage")
        + b"ctorch\nFloatStorage\n"
        + text(b"0")
        + text(b"cpu")
        + integer(numel)
        + b"tQ"
    )
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n("
    rest = integer(offset) + size.encode("latin1") + stride.encode("latin1") + b"\x89}tR"
    return b"\x80\2}" + text(b"a") + rebuild + storage + rest + b"s."


def integer(value: int) -> bytes:
    data = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


FOUR = np.arange(1, 5, dtype="<f4").tobytes()


def test_the_pickle_by_hand_is_read(tmp_path):
    path = archive_of(tensor_pickle(), tmp_path / "c.pth", {"data/0": FOUR})
    assert_same(read_checkpoint(path).weights, {"a": torch.arange(1.0, 5)})


HOSTILE_TENSORS = {
    "a storage larger than its record": {"numel": 5},
    "a storage of an exabyte": {"numel": 1 << 58},
    "a storage of a negative size": {"numel": -4},
    "a tensor beyond its storage": {"size": "K\5\x85"},
    "an offset beyond the storage": {"offset": 1},
    "a negative offset": {"offset": -1},
    "a stride beyond the storage": {"stride": "K\2\x85"},
    "an expansion to an exabyte": {"size": integer(1 << 58).decode("latin1") + "\x85", "stride": "K\0\x85"},
    "an expansion to gigabytes": {"size": integer(1 << 31).decode("latin1") + "\x85", "stride": "K\0\x85"},
    "more strides than sizes": {"stride": "K\1K\1\x86"},
    "a size that is text": {"size": "X\1\0\0\0a\x85"},
    "a size that is None": {"size": "N"},
    "a negative stride": {"stride": "J\xff\xff\xff\xff\x85"},
    "a size that is True": {"size": "\x88\x85"},
}


@pytest.mark.parametrize("name", HOSTILE_TENSORS)
def test_a_tensor_that_the_file_does_not_hold(tmp_path, name):
    path = archive_of(tensor_pickle(**HOSTILE_TENSORS[name]), tmp_path / "c.pth", {"data/0": FOUR})
    with pytest.raises(
        ValueError, match=r"c\.pth: expected a PyTorch checkpoint, found one that is truncated or damaged: "
    ):
        read_checkpoint(path)


HOSTILE = {
    "a byte array of gigabytes": b"\x80\2cbuiltins\nbytearray\n" + integer(10**10) + b"\x85R.",
    "bytes of an exabyte": b"\x80\4\x8e" + struct.pack("<Q", 1 << 60) + b"abc.",
    "a byte array of an exabyte": b"\x80\5\x96" + struct.pack("<Q", 1 << 60) + b"abc.",
    "text of gigabytes": b"\x80\2X" + struct.pack("<I", 0xFFFFFFFF) + b"abc.",
    "a frame of an exabyte": b"\x80\4\x95" + struct.pack("<Q", 1 << 60) + b"N.",
    "a memo index of 4 billion": b"\x80\2Nr\xff\xff\xff\xff.",
    "a list that doubles": b"\x80\2]q\0" + b"0h\0cbuiltins\nlist\nh\0\x85Rh\0e" * 3 + b".",
    "a long list copied again and again": b"\x80\2](" + b"N" * 50_000 + b"eq\0"
        + b"cbuiltins\nlist\nh\0\x85R" * 2000 + b".",
    "a dictionary copied again and again": b"\x80\2}(" + b"".join(integer(i) + b"N" for i in range(3000)) + b"uq\0"
        + b"cbuiltins\ndict\nh\0\x85R" * 3000 + b".",
    "text encoded again and again": b"\x80\2" + text(b"a" * 100_000) + b"q\0"
        + b"c_codecs\nencode\nh\0" + text(b"latin1") + b"\x86R" * 1
        + (b"c_codecs\nencode\nh\0" + text(b"latin1") + b"\x86R") * 1000 + b".",
    "a key of deeply nested tuples": b"\x80\2}N" + b"\x85" * 200_000 + b"Ns.",
    "a set of deeply nested tuples": b"\x80\4\x8f(N" + b"\x85" * 200_000 + b"\x90.",
    "deeply nested lists": b"\x80\2" + b"](" * 200_000 + b"N" + b"e" * 200_000 + b".",
    "deeply nested stubs": b"\x80\2cthem\nThing\nq\0" + b"h\0" * 100_000 + b")R" + b"\x85R" * 99_999 + b".",
    "deeply nested rebuilding": b"\x80\2" + b"ctorch._tensor\n_rebuild_from_type_v2\nq\0" + b"h\0N)Nt" * 0
        + b"(h\0N" * 20_000 + b")" + b"Nt" * 20_000 + b"R.",
    "a list that holds itself": b"\x80\2]q\0h\0a.",
    "a dictionary that holds itself as model": b"\x80\2}q\0" + text(b"model") + b"h\0s.",
    "no opcodes": b"",
    "an unknown opcode": b"\x80\2\xff.",
    "a protocol of the future": b"\x80\x63N.",
    "an empty stack": b"\x80\2R.",
    "a call of a list": b"\x80\2])R.",
    "a call of a number": b"\x80\2K\1)R.",
    "arguments that are no tuple": b"\x80\2cthem\nThing\nK\1R.",
    "values for a number": b"\x80\2K\1(K\2e.",
    "items for a list": b"\x80\2](K\1K\2u.",
    "an odd number of items": b"\x80\2}(K\1u.",
    "an item of an unhashable list": b"\x80\2}]Ns.",
    "a persistent id that is a number": b"\x80\2K\1Q.",
    "a persistent id of protocol 0": b"Pstorage\n.",
    "a persistent id of another kind": b"\x80\2" + text(b"module") + b"\x85Q.",
    "an unregistered extension": b"\x80\2\x82\xfe)R.",
    "out-of-band data": b"\x80\5\x97.",
    "a name of surrogates": b"\x80\4\x8c\3\xed\xb0\x80\x8c\1a\x93)R.",
    "a pair that is none": b"\x80\2ccollections\nOrderedDict\n]K\1a\x85R.",
    "a tensor without storage": b"\x80\2ctorch._utils\n_rebuild_tensor_v2\n(NK\0))\x89}tR.",
    "a tensor without arguments": b"\x80\2ctorch._utils\n_rebuild_tensor_v2\n)R.",
    "a subclass without arguments": b"\x80\2ctorch._tensor\n_rebuild_from_type_v2\n)R.",
    "a number": b"\x80\2K\3.",
    "a long number in digits": b"L" + b"9" * 100_000 + b"L\n.",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("legacy", [False, True])
def test_a_hostile_pickle(tmp_path, name, legacy):
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path = tmp_path / "c.pth"
    if legacy:
        head = b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
        path.write_bytes(head + HOSTILE[name] + pickle.dumps([], 2))
    else:
        archive_of(HOSTILE[name], path, {"data/0": FOUR})
    with pytest.raises(ValueError, match=r"checkpoint .*c\.pth: expected"):
        read_checkpoint(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 512 * 1024  # KiB


def test_stubs_keep_what_the_pickle_gave_them():
    data = pickle.dumps([DictOfTheirs(a=1), ListOfTheirs([1]), made(Plain, a=1), WithNewArgs()], 4)
    items, values, state, args = RestrictedUnpickler(io.BytesIO(data)).load()
    assert (items.items, values.values, state.state, args.args) == ({"a": 1}, [1], {"a": 1}, (1, 2))
    assert all(isinstance(v, Stub) for v in (items, values, state, args))


def test_storage_keys_that_double(tmp_path):
    """The text of a list that holds the list before it twice is longer than any memory."""
    head = b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {}, {"state_dict": {}}))
    keys = b"\x80\2]q\0" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(40)) + b"."
    (tmp_path / "c.pth").write_bytes(head + keys)
    with pytest.raises(ValueError, match="truncated or damaged: a storage's key is no text"):
        read_checkpoint(tmp_path / "c.pth")


def test_a_list_of_more_names_than_any_detector_has(tmp_path):
    save({"meta": {"CLASSES": [np.str_("a" * 1000)] * 100_000}, "state_dict": WEIGHTS}, tmp_path / "c.pth")
    checkpoint = read_checkpoint(tmp_path / "c.pth")
    assert checkpoint.classes is None
    assert "no list of names" in checkpoint.notes[0]


STORAGES = {
    "missing": ({"data/0": None}, "its record c/data/0 is missing"),
    "cut": ({"data/0": b"abc"}, "storage 0 has 3 bytes of 24"),
    "empty": ({"data/0": b""}, "storage 0 has 0 bytes of 24"),
}


@pytest.mark.parametrize("name", STORAGES)
def test_a_storage_that_is_not_there(tmp_path, name):
    records, message = STORAGES[name]
    path = save(WEIGHTS, tmp_path / "c.pth")
    repacked(path, tmp_path / "d.pth", lambda p: p, records)
    with pytest.raises(
        ValueError, match=rf"d\.pth: .*truncated or damaged: .*{message}.*Copy or download it again"
    ):
        read_checkpoint(tmp_path / "d.pth")


def test_an_archive_packed_anew_with_compression(tmp_path):
    path = save(WEIGHTS, tmp_path / "c.pth")
    repacked(path, tmp_path / "d.pth", lambda p: p, compression=zipfile.ZIP_DEFLATED)
    assert_same(read_checkpoint(tmp_path / "d.pth").weights, WEIGHTS)


def test_a_compressed_bomb(tmp_path):
    path = save({"a": torch.zeros(1 << 24)}, tmp_path / "c.pth")
    repacked(path, tmp_path / "d.pth", lambda p: p, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="it declares 67108864 bytes of weights and has"):
        read_checkpoint(tmp_path / "d.pth")


def test_an_archive_without_checksums(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        path = save(WEIGHTS, tmp_path / "c.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same(read_checkpoint(path).weights, WEIGHTS)


def test_a_changed_byte_of_a_weight(tmp_path):
    path = save({"a": torch.arange(1.0, 200)}, tmp_path / "c.pth")
    data = bytearray(path.read_bytes())
    data[data.index(np.arange(9, 12, dtype="<f4").tobytes())] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="truncated or damaged: BadZipFile: Bad CRC-32 for file 'c/data/0'"):
        read_checkpoint(path)


def test_the_state_of_an_optimizer_is_not_read(tmp_path):
    """Its storage may even be missing: what is not needed costs neither time nor memory."""
    path = save({"state_dict": WEIGHTS, "optimizer": {"momentum": torch.ones(1000)}}, tmp_path / "c.pth")
    repacked(path, tmp_path / "d.pth", lambda p: p, {"data/2": None})
    assert_same(read_checkpoint(tmp_path / "d.pth").weights, WEIGHTS)


def test_a_read_checkpoint_is_loaded(tmp_path):
    target = nn.Sequential(nn.Linear(3, 2))
    load_weights(target, read_checkpoint(save({"state_dict": WEIGHTS}, tmp_path / "c.pth")))
    assert torch.equal(target[0].weight, WEIGHTS["0.weight"])
