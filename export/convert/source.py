"""What is converted, what is asked for, and what a target makes of it."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, Union

from runtime.contract import EXPORT_COMMAND, GRAFT_COMMAND, NOT_OURS_REMEDY, Tensor, check_model_file
from runtime.engine.config import Range
from runtime.engine.sidecar import Sidecar
from runtime.graphs.load import graph_inputs, graph_outputs, load_onnx, metadata_of
from runtime.metadata import ModelMetadata

if TYPE_CHECKING:
    import onnx

ENGINES = (".engine", ".plan", ".trt")


@dataclass(frozen=True)
class Options:
    """What is asked for.

    Attributes:
        input: of the model, one of ``runtime.metadata.INPUTS``.
        name: of the model, where the target gives it one.
        batch: least, best and largest number of images at once.
        height, width: the same in px of an engine of any size; None: what the model's resize rule needs.
        tensorrt: the release that reads the files.
        precision: of engines, ``fp32`` or ``fp16``.
        plugins: where the plugin library is on the machine that runs the files.
        instances: copies of the model in Triton.
    """

    input: str = "float32"
    name: str = "maskrcnn"
    batch: Range = (1, 2, 8)
    height: Optional[Range] = None
    width: Optional[Range] = None
    tensorrt: str = "10.3"
    precision: str = "fp32"
    plugins: Path = Path("/path/to/libmaskrcnn_plugins.so")
    instances: int = 1


@dataclass(frozen=True, eq=False)
class Source:
    """A model of ours.

    Attributes:
        path: of the file.
        metadata: of it.
        model: the ONNX, None of an engine.
        sidecar: of an engine.
    """

    path: Path
    metadata: ModelMetadata
    model: "Optional[onnx.ModelProto]" = None
    sidecar: Optional[Sidecar] = None

    @property
    def inputs(self) -> dict[str, Tensor]:
        """The ONNX's inputs by name."""
        return graph_inputs(self.model)

    @property
    def outputs(self) -> dict[str, Tensor]:
        """The ONNX's outputs by name."""
        return graph_outputs(self.model)


@dataclass(frozen=True)
class Made:
    """What a target wrote, and how it is used.

    Attributes:
        files: paths relative to the folder, and what each is.
        commands: in the order in which they are given.
        notes: what is different there.
    """

    files: dict[str, str]
    commands: tuple[str, ...]
    notes: tuple[str, ...] = ()


def open_source(path: Union[str, Path]) -> Source:
    """Read a model.

    Raises:
        FileNotFoundError: no such file, or an engine without its sidecar.
        ValueError: not a model of ours.
    """
    path = check_model_file(path)
    if path.suffix.lower() in ENGINES:
        sidecar = Sidecar.load(path)
        return Source(path, _ours(path, sidecar.metadata), sidecar=sidecar)
    model = load_onnx(path)
    return Source(path, _ours(path, metadata_of(model, path)), model)


def need_onnx(source: Source, target: str) -> "onnx.ModelProto":
    """Return a source's ONNX.

    Raises:
        ValueError: it is an engine.
    """
    if source.model is None:
        raise ValueError(
            f"model {source.path}: expected an ONNX for {target}, found an engine; give the .onnx behind it"
        )
    return source.model


def word(value: Union[str, Path]) -> str:
    """Return a path as a shell takes it."""
    return shlex.quote(str(value))


def _ours(path: Path, metadata: Any) -> ModelMetadata:
    if metadata is None:
        raise ValueError(
            f"model {path}: expected one that `{EXPORT_COMMAND}` or `{GRAFT_COMMAND}` wrote, found none of its "
            f"metadata; {NOT_OURS_REMEDY}"
        )
    return metadata


def notes_on_keypoints(metadata: ModelMetadata, what: str) -> tuple[str, ...]:
    """Return the note that key points are left out; none for a model without.

    Args:
        metadata: of the model.
        what: leaves them out.
    """
    if not metadata.keypoints:
        return ()
    return (f"{what}: the model's {len(metadata.keypoints)} key points are left out.",)
