"""ONNX files: read, written, asked for our metadata. The one place that does."""

import os
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, Union

from runtime.contract import EXPORT_COMMAND, Tensor, check_model_file
from runtime.files import whole_file, withdraw, working_folder
from runtime.interrupts import check, held
from runtime.messages import said
from runtime.metadata import KEY, ModelMetadata
from runtime.reading import bounded_bytes

if TYPE_CHECKING:
    import onnx

# A protobuf file ends at 2 GiB; what is not weights has a tenth.
LARGE_BYTES = 2**31 * 9 // 10
_MOST_BYTES = 2**31 - 1


def import_onnx() -> Any:
    """Return the package ``onnx``.

    Raises:
        RuntimeError: it is not installed.
    """
    try:
        import onnx
        import onnx.inliner
    except ImportError as error:
        raise RuntimeError(
            f"onnx: expected the Python package, found none ({error}); building an engine, and OpenVINO, need it: "
            "`pip install onnx`"
        ) from error
    return onnx


def load_onnx(path: Union[str, Path]) -> Any:
    """Read an ONNX file. Nodes without a name of their own get one, since precision plans go by names.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not an ONNX.
    """
    return OnnxFile(path).model


class OnnxFile:
    """An ONNX file that is read once; it is parsed when its model is asked for.

    Attributes:
        path: of the file.
        sha256: of its bytes.
    """

    def __init__(self, path: Union[str, Path]) -> None:
        """Read the file.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it is larger than any ONNX.
        """
        self.path = check_model_file(path)
        try:
            self._data = bounded_bytes(
                self.path, _MOST_BYTES, "weights beyond that go to a file of their own"
            )
        except ValueError as error:
            raise ValueError(f"model {self.path}: {error}") from error
        self.sha256 = sha256(self._data).hexdigest()

    @cached_property
    def model(self) -> Any:
        """The ``onnx.ModelProto``; see ``load_onnx``."""
        model = _parsed(self.path, self._data)
        self._data = b""  # the model has it
        return model


def _parsed(path: Path, data: bytes) -> Any:
    onnx = import_onnx()
    try:
        model = onnx.load_model_from_string(data)
        onnx.load_external_data_for_model(model, str(path.parent))
    except Exception as error:  # protobuf's DecodeError has no public place
        raise ValueError(
            f"model {path}: expected an ONNX file, found something else ({error}); make one with `{EXPORT_COMMAND}`"
        ) from error
    if not model.graph.node:
        raise ValueError(
            f"model {path}: expected an ONNX file, found one without nodes; it may be truncated, make it again with "
            f"`{EXPORT_COMMAND}`"
        )
    try:
        for text in _texts(model):
            if isinstance(text, bytes):
                text.decode("utf-8")
        name_nodes(model)
    except UnicodeDecodeError as error:
        raise invalid_names(path, error) from error
    return model


def _texts(message: Any) -> Iterator[Union[str, bytes]]:
    """Yield the texts of a message of protobuf, which gives what is not UTF-8 as bytes; comments are left out."""
    for field, value in message.ListFields():
        if field.type == field.TYPE_STRING and field.name != "doc_string":
            yield from [value] if isinstance(value, (str, bytes)) else value
        elif field.type == field.TYPE_MESSAGE:
            for part in [value] if hasattr(value, "ListFields") else value:
                yield from _texts(part)


def metadata_of(model: Any, path: Union[str, Path] = "in memory") -> Optional[ModelMetadata]:
    """Return the metadata of a model of ours, None for any other ONNX.

    Raises:
        ValueError: there is metadata, and it is malformed; names the path.
    """
    try:
        texts = [p.value for p in model.metadata_props if p.key == KEY]
        return ModelMetadata.from_json(texts[0]) if texts else None
    except UnicodeDecodeError as error:
        raise invalid_names(path, error) from error
    except ValueError as error:
        raise ValueError(f"model {path}: {error}") from error


@contextmanager
def graph_errors(path: Union[str, Path], model: Any) -> Iterator[None]:
    """Say of whatever fails on a model's graph that the graph is not valid, if onnx's checker finds it so.

    Not checked beforehand: converters leave graphs that the checker refuses and that run, nodes out of order for
    example.

    Raises:
        ValueError: the graph is not valid; names the path and what is wrong. Errors of a valid graph, and those that
            say themselves what is wrong, stay as they are.
    """
    try:
        yield
    except UnicodeDecodeError as error:
        raise invalid_names(path, error) from error
    except Exception as error:
        # onnx's own errors have no base but Exception, and a graph that is none fails anywhere.
        is_said = isinstance(error, (OSError, ValueError, RuntimeError)) and not _is_of_onnx(error)
        reason = "" if is_said else _invalidity(model)
        if not reason:
            raise
        raise ValueError(
            f"model {path}: expected a valid ONNX graph, found {reason}; make it again, or mend it until "
            "onnx.checker.check_model(path, full_check=True) takes it"
        ) from error


def _is_of_onnx(error: BaseException) -> bool:
    """Return whether onnx's code raised it: what its C++ raises becomes a ``ValueError`` as well."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__", "").partition(".")[0] == "onnx"


def _invalidity(model: Any) -> str:
    """Return what onnx's checker has against a model; empty if nothing."""
    try:
        import_onnx().checker.check_model(model, full_check=True)
    except Exception as error:
        return said(error)
    return ""


def invalid_names(path: Union[str, Path], error: UnicodeDecodeError) -> ValueError:
    """Return what a file is told whose names are not UTF-8."""
    return ValueError(
        f"model {path}: expected names in UTF-8, found other bytes ({error}); the file is damaged, make it again"
    )


def graph_inputs(model: Any) -> dict[str, Tensor]:
    """Return a model's inputs by name, in the file's order; what has a value in the file is none."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return _tensors(value for value in model.graph.input if value.name not in weights)


def graph_outputs(model: Any) -> dict[str, Tensor]:
    """Return a model's outputs by name, in the file's order."""
    return _tensors(model.graph.output)


def _tensors(values: "Iterable[onnx.ValueInfoProto]") -> dict[str, Tensor]:
    """Return name -> tensor; a dimension with a name, or none, is free."""
    dtype = import_onnx().helper.tensor_dtype_to_np_dtype
    return {
        value.name: Tensor(
            str(dtype(value.type.tensor_type.elem_type)),
            tuple(d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim),
        )
        for value in values
    }


def declared_tensors(model: Any) -> dict[str, dict[str, str]]:
    """Return ``inputs`` and ``outputs``: NumPy's dtype names by tensor name, in the file's order."""
    kinds = {"inputs": graph_inputs(model), "outputs": graph_outputs(model)}
    return {kind: {name: tensor.dtype for name, tensor in found.items()} for kind, found in kinds.items()}


def name_nodes(model: Any) -> None:
    """Call nodes without a name, or with the name of another one, after their first output."""
    names = Counter(node.name for node in model.graph.node)
    for node in model.graph.node:
        if node.name and names[node.name] == 1:
            continue
        name = next((output for output in node.output if output), node.op_type)
        while name in names:
            name += "_"
        names[name] = 1
        node.name = name


def save_model(model: "onnx.ModelProto", path: Union[str, Path]) -> None:
    """Write the model; a file that is there stays whole until the new one is.

    Weights of 2 GB, which one protobuf file cannot hold, go to ``<path>.data``, and are no longer in ``model`` then. At
    no moment is there an ONNX beside weights of another.

    Raises:
        OSError: it cannot be written.
    """
    onnx = import_onnx()
    path = Path(path)
    num_bytes = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    with ExitStack() as stack:
        file = stack.enter_context(whole_file(path))
        if num_bytes >= LARGE_BYTES:
            folder, data = stack.enter_context(working_folder(path)), path.with_name(f"{path.name}.data")
            onnx.external_data_helper.convert_model_to_external_data(model, location=data.name)
            onnx.external_data_helper.write_external_data_tensors(model, str(folder))
        file.write(model.SerializeToString())
        file.flush()
        os.fsync(file.fileno())
        with held():  # a signal waits: between the two there is neither model
            if num_bytes >= LARGE_BYTES:
                withdraw(path)
                os.replace(folder / data.name, data)
            stack.close()
    check()
