"""The graph's contract (README, *The graph*): its inputs and outputs, which every backend checks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Union

import numpy as np

from runtime.metadata import KEY, ModelMetadata

EXPORT_COMMAND = "python -m export.maskrcnn"
GRAFT_COMMAND = "python -m export.graft"
# Of a model file without our metadata.
NOT_OURS_REMEDY = (
    f"export the checkpoint of a Mask R-CNN with `{EXPORT_COMMAND}`; of another finished detector, `{GRAFT_COMMAND}` "
    "makes such a file"
)


# What NumPy computes in itself. Of ONNX's other types (bfloat16, float8, int4), onnxruntime makes no arrays, and
# OpenVINO arrays of others: of bfloat16 1, float16 1.875.
ARRAY_DTYPES = (
    "bool",
    *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
    *("float16", "float32", "float64"),
)
STRINGS = "object"


@dataclass(frozen=True)
class Tensor:
    """One input or output of the graph: NumPy dtype name, and shape with None for a free dimension."""

    dtype: str
    shape: tuple[Optional[int], ...]

    def __str__(self) -> str:
        return f"{self.dtype} ({', '.join('?' if v is None else str(v) for v in self.shape)})"


def contract_inputs(metadata: ModelMetadata) -> dict[str, Tensor]:
    """Return the inputs that a model with this metadata has. The batch is always free."""
    return {
        "images": Tensor(metadata.input.partition("_")[0], images_shape(metadata, metadata.size)),
        "image_sizes": Tensor("float32", (None, 2)),
    }


def images_shape(
    metadata: ModelMetadata, size: Optional[tuple[int, int]], batch: Optional[int] = None
) -> tuple[Optional[int], ...]:
    """Return the shape of the input ``images`` for a (height, width), px; None where one is free."""
    height, width = size or (None, None)
    if metadata.input == "uint8_nhwc":
        return batch, height, width, metadata.channels
    return batch, metadata.channels, height, width


def images_size(metadata: ModelMetadata, shape: Sequence[int]) -> tuple[int, int]:
    """Return the (height, width) of an input ``images`` of this shape, px."""
    start = 1 if metadata.input == "uint8_nhwc" else 2
    return shape[start], shape[start + 1]


def contract_outputs(metadata: ModelMetadata) -> dict[str, Tensor]:
    """Return the outputs that a model with this metadata has."""
    num_rows = metadata.max_per_img
    outputs = {
        "num_dets": Tensor("int32", (None,)),
        "dets": Tensor("float32", (None, num_rows, 5)),
        "labels": Tensor("int32", (None, num_rows)),
    }
    if metadata.keypoints:
        outputs["keypoints"] = Tensor("float32", (None, num_rows, len(metadata.keypoints), 3))
    if metadata.masks in ("crop", "grid"):
        outputs["masks"] = Tensor("float32", (None, num_rows, None, None))
    if metadata.masks == "full":
        outputs["masks"] = Tensor("uint8", (None, num_rows, *(metadata.size or (None, None))))
    return outputs


def check_model_file(model: Union[str, Path]) -> Path:
    """Return the path of an existing model file.

    Raises:
        FileNotFoundError: there is none; the message names the command that makes it.
    """
    path = Path(model)
    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing"
        raise FileNotFoundError(
            f"model {path}: expected a file, found {found}; make it with `{EXPORT_COMMAND}` or `{GRAFT_COMMAND}`, "
            "or name another with --model"
        )
    return path


def model_metadata(model: Union[str, Path], properties: Mapping[str, str]) -> ModelMetadata:
    """Return the metadata among the properties of a model file.

    Raises:
        ValueError: there is none, or it is malformed; names the file.
    """
    if KEY not in properties:
        keys = ", ".join(sorted(properties)) or "none"
        raise ValueError(
            f"model {model}: expected the metadata key {KEY!r} that `{EXPORT_COMMAND}` and `{GRAFT_COMMAND}` write, "
            f"found the keys: {keys}; {NOT_OURS_REMEDY}"
        )
    try:
        return ModelMetadata.from_json(properties[KEY])
    except ValueError as error:
        raise ValueError(f"model {model}: {error}") from error


def check_takes_floats(model: Union[str, Path], metadata: Optional[ModelMetadata], what: str) -> None:
    """Refuse a model that normalises pixels itself, for what is made of the one that does not.

    Raises:
        ValueError: its input is pixels.
    """
    if metadata is not None and metadata.input != "float32":
        raise ValueError(
            f"model {model}: expected a model that takes float32 images, for {what}, found one that takes "
            f"{metadata.input} pixels; give the file that it was converted from"
        )


def check_contract(
    model: Union[str, Path], kind: str, expected: dict[str, Tensor], found: dict[str, Tensor]
) -> None:
    """Refuse a model whose inputs or outputs are not the contract's.

    A dimension that the model leaves free agrees with anything, a free dimension of the contract only with a
    free one for the batch.

    Raises:
        ValueError: names the first difference, all that was found, and the remedy.
    """
    remedy = f"export it with this version of `{EXPORT_COMMAND}`"
    if set(expected) != set(found):
        raise ValueError(
            f"model {model}: expected the {kind}s {', '.join(expected)}, "
            f"found {', '.join(found) or 'none'}; {remedy}"
        )
    for name, tensor in expected.items():
        other = found[name]
        fixed_batch = other.shape[:1] != (None,)
        if tensor.dtype != other.dtype or not _shapes_agree(tensor.shape, other.shape) or fixed_batch:
            batch = " with a dynamic batch" if fixed_batch else ""
            raise ValueError(
                f"model {model}: {kind} {name}: expected {tensor}{batch}, found {other}; {remedy}"
            )


def check_run_inputs(metadata: ModelMetadata, images: np.ndarray, image_sizes: np.ndarray) -> None:
    """Refuse arrays that the model cannot take.

    Raises:
        ValueError: names the array, what was expected, what was found, and the remedy.
    """
    arrays = {"images": images, "image_sizes": image_sizes}
    for name, tensor in contract_inputs(metadata).items():
        array = arrays[name]
        if str(array.dtype) != tensor.dtype or not _shapes_agree(tensor.shape, array.shape):
            found = Tensor(str(array.dtype), array.shape)
            raise ValueError(
                f"{name}: expected {tensor}, found {found}; "
                "make it with runtime.host.preprocess.prepare(images, metadata)"
            )
    if len(images) != len(image_sizes) or len(images) == 0:
        raise ValueError(
            f"images, image_sizes: expected as many of each and at least one, found {len(images)} and "
            f"{len(image_sizes)}; make them with runtime.host.preprocess.prepare(images, metadata)"
        )
    divisor = metadata.size_divisor if metadata.size is None else 1
    height, width = images_size(metadata, images.shape)
    if height % divisor or width % divisor:
        raise ValueError(
            f"images: expected height and width in multiples of {divisor}, found {height}x{width}; pad at the bottom "
            "and right, as runtime.host.preprocess.prepare does"
        )


def _shapes_agree(expected: tuple[Optional[int], ...], found: tuple[Optional[int], ...]) -> bool:
    return len(expected) == len(found) and all(
        a is None or b is None or a == b for a, b in zip(expected, found)
    )


def not_a_tensor(model: Union[str, Path], kind: str, name: str, found: str) -> ValueError:
    """Return what a model is told that has something else as an input or output."""
    return ValueError(
        f"model {model}: {kind} {name}: expected a tensor, found {found}; cut the model before it"
    )


def check_dtypes(
    model: Union[str, Path],
    inputs: Mapping[str, Tensor],
    outputs: Mapping[str, Tensor],
    *,
    strings: bool = False,
) -> None:
    """Refuse a model with inputs or outputs that no NumPy array holds.

    Args:
        model: for messages.
        inputs, outputs: its tensors by name.
        strings: whether arrays of strings are taken.

    Raises:
        ValueError: names the first such tensor, its type and the remedy.
    """
    for kind, tensors, place in (("input", inputs, "behind"), ("output", outputs, "before")):
        for name, tensor in tensors.items():
            if tensor.dtype in (*ARRAY_DTYPES, *((STRINGS,) if strings else ())):
                continue
            found, remedy = tensor.dtype, f"make it float32, with a Cast {place} it"
            if tensor.dtype == STRINGS:
                found, remedy = "strings", "use --backend onnxruntime, which takes them"
            raise ValueError(
                f"model {model}: {kind} {name}: expected a type that NumPy has, found {found}; {remedy}"
            )


def shapes_of(feeds: Mapping[str, np.ndarray]) -> str:
    """Return the names and shapes of arrays in words."""
    return ", ".join(f"{name} {array.shape}" for name, array in feeds.items())


def failed_on(runtime: str, feeds: Mapping[str, np.ndarray], reason: str) -> RuntimeError:
    """Return what a model of any inputs is told that did not run on these."""
    return RuntimeError(
        f"{runtime} failed on {shapes_of(feeds)}: {reason}; a size that is free in the file may be fixed inside it (a "
        "Reshape), or memory has run out"
    )
