"""A detector's ONNX whose decoding lives elsewhere -> one that returns detections."""

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
import onnx

from export.graft.assemble import assembled
from export.graft.free import NetworkInput, converted, freed, network_input
from export.graft.grid import Size
from export.graft.head import Head, load_head
from export.graft.match import Match, MismatchError, match, proposal
from export.graft.pipeline import metadata_of
from export.graft.proof import Network, NetworkError, check_batch, noise
from export.versions import installed_versions
from runtime.files import sha256_of
from runtime.graphs.operators import DOMAIN
from runtime.metadata import ModelMetadata

PACKAGES = ("maskrcnn-deploy", "numpy", "onnx", "onnxruntime")


@dataclass(frozen=True, eq=False)
class Grafted:
    """What was made.

    Attributes:
        model: the ONNX.
        network: the network alone, its batch free: what the model was made of.
        given: the network's input.
        match: the outputs that the head reads.
        head: with what was asked for in the place of its own numbers.
        metadata: of the model.
        size: (height, width) in px at which it was tried.
        notes: what whoever asked for it should know.
    """

    model: onnx.ModelProto
    network: onnx.ModelProto
    given: NetworkInput
    match: Match
    head: Head
    metadata: ModelMetadata
    size: Size
    notes: tuple[str, ...] = ()


def grafted(
    path: Union[str, Path],
    head: Optional[Union[str, Head]],
    *,
    size: Optional[Size] = None,
    dynamic_size: bool = False,
    classes: Optional[Sequence[str]] = None,
    score_threshold: Optional[float] = None,
    iou_threshold: Optional[float] = None,
    max_per_img: Optional[int] = None,
    pre_nms: Optional[int] = None,
    resize_with: Optional[str] = None,
) -> Grafted:
    """Append a head to a network, in memory, and prove that its batch is free.

    Args:
        path: of the network's ONNX.
        head: one of ``head_names()``, the path of a JSON file, or a ``Head``.
        size: (height, width) of the input in px; None: the file's, or the head's where that is free.
        dynamic_size: any height and width; the network is run at two other sizes.
        classes: names; None: those in the file, or the head's.
        score_threshold, iou_threshold, max_per_img, pre_nms: in the place of the head's.
        resize_with: ``cv2`` or ``pillow``, in the place of the head's.

    Raises:
        OSError, ValueError: the file, the head or a size cannot be used; says what was expected and found.
    """
    name = Path(path).name
    original = _load(Path(path))
    model = converted(original, name)
    given = network_input(model, name)
    if head is None:
        raise ValueError(_no_head(model, given, name))
    chosen = load_head(head) if isinstance(head, str) else head
    chosen = chosen.changed(
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
        max_per_img=max_per_img,
        pre_nms=pre_nms,
        backend=resize_with,
    )
    known, target = _sizes(given, chosen, size, dynamic_size)
    network = freed(model, given, known, None if dynamic_size else target)
    matched = _matched(network, given, chosen, target, name)
    check_batch(network, given, noise(3, target, chosen), name)
    if dynamic_size:
        _check_sizes(network, given, chosen, target, name)
    names, notes = _class_names(original, chosen, matched.num_classes, classes)
    metadata = metadata_of(
        chosen,
        names,
        None if dynamic_size else target,
        config=f"{name} with head {chosen.name}",
        sha256=sha256_of(Path(path)),
        versions=installed_versions(PACKAGES),
    )
    made = assembled(network, given, chosen, matched, metadata)
    return Grafted(made, network, given, matched, chosen, metadata, target, notes)


def _load(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing"
        raise FileNotFoundError(f"network {path}: expected an ONNX file, found {found}; check the path")
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf's, onnx's and the checker's own
        raise ValueError(
            f"network {path}: expected an ONNX, found a file that onnx refuses: {' '.join(str(error).split())[:300]}; "
            "export it again"
        ) from error
    if any(entry.domain == DOMAIN for entry in model.opset_import):
        raise ValueError(
            f"network {path}: expected one without decoding, found one of this tool's own; it detects as it is"
        )
    return model


def _no_head(model: onnx.ModelProto, given: NetworkInput, name: str) -> str:
    size = tuple(edge or 640 for edge in given.size)
    network = freed(model, given, size, size)
    return f"--head: expected one, found none; {name}: {proposal(_output_shapes(network, given, size, name), size)}"


def _sizes(given: NetworkInput, head: Head, size: Optional[Size], dynamic: bool) -> tuple[Size, Size]:
    """Return the (height, width) at which the constants of a network are right, and the one that is wanted."""
    if size is not None and dynamic:
        raise ValueError("--size, --dynamic-size: expected one of them, found both; leave one out")
    if size is not None and any(edge % head.input.divisor or edge < 1 for edge in size):
        raise ValueError(
            f"--size: expected multiples of {head.input.divisor}, found {size[0]} {size[1]}; take the next larger"
        )
    # Of one cell at the deepest level (CenterFace's 32x32): an example of the exporter's, and no size to detect at.
    declared = given.size if None not in given.size else head.input.size
    is_example = max(declared) <= head.input.divisor
    wanted = size or (head.input.size if is_example else declared)
    return (declared[0], declared[1]), (wanted[0], wanted[1])


def _output_shapes(
    network: onnx.ModelProto, given: NetworkInput, size: Size, name: str
) -> dict[str, tuple[int, ...]]:
    """Return each output's shape without the batch, found by running one image."""
    images = np.zeros((1, 3, *size), np.float32)
    return {output: array.shape[1:] for output, array in Network(network, given, name)(images).items()}


def _matched(network: onnx.ModelProto, given: NetworkInput, head: Head, size: Size, name: str) -> Match:
    shapes = _output_shapes(network, given, size, name)
    try:
        return match(head, shapes, size)
    except MismatchError as error:
        raise MismatchError(f"{name}: {error}; {proposal(shapes, size)}") from error


def _check_sizes(network: onnx.ModelProto, given: NetworkInput, head: Head, known: Size, name: str) -> None:
    """Run two sizes other than the known one, landscape and portrait, and match what comes out.

    Both edges are longer, so that no level has as many cells as at the known size: constants of its cells fit none.
    """
    edge, step = max(known), head.input.divisor
    exported = "" if None in given.size else f", {given.size[0]}x{given.size[1]}"
    remedy = (
        f"its cells are constants of the size that it was exported with{exported}: leave out --dynamic-size"
    )
    for size in ((edge + step, edge + 2 * step), (edge + 2 * step, edge + step)):
        try:
            match(head, _output_shapes(network, given, size, name), size)
        except NetworkError as error:
            raise ValueError(
                _no_size(name, head, f"at {size[0]}x{size[1]} px {error.reason}; {remedy}")
            ) from error
        except MismatchError as error:
            raise ValueError(_no_size(name, head, f"{error}; {remedy}")) from error


def _no_size(name: str, head: Head, found: str) -> str:
    return (
        f"{name}: --dynamic-size: expected a network that runs at any multiple of {head.input.divisor} px, found "
        f"{found}"
    )


def _class_names(
    model: onnx.ModelProto, head: Head, count: int, given: Optional[Sequence[str]]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the classes' names, and a note where nobody has them."""
    if given is not None:
        if len(given) != count:
            raise ValueError(
                f"--classes: expected {count} names, found {len(given)}; name the network's classes"
            )
        return tuple(given), ()
    if head.classes:
        return head.classes, ()
    written = _names_in(model)
    if len(written) == count:
        return written, ()
    invented = tuple(f"class_{index}" for index in range(count))
    return invented, (
        f"class names are invented: {count} classes, and the file names {len(written)}; --classes",
    )


def _names_in(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the names that Ultralytics and YOLOv5 write into a file: a Python dict by index, or a list."""
    text = next((p.value for p in model.metadata_props if p.key == "names"), "")
    try:
        found: Any = ast.literal_eval(text) if len(text) < 1 << 20 else None
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return ()
    values = list(found.values()) if isinstance(found, dict) else found
    return tuple(values) if isinstance(values, list) and all(isinstance(v, str) for v in values) else ()
