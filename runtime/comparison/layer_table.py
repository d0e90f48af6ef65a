"""``python -m runtime.compare --layers``: the two sides from their files, and the table."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from runtime.backends import backend_module, backend_name, supported_options
from runtime.comparison.bisection import (
    LayerReport,
    Side,
    TensorError,
    compare_layers,
)
from runtime.comparison.recording import SUFFIX
from runtime.comparison.sources import load_batch, split_precision
from runtime.console import status, table_console
from runtime.graphs.load import graph_errors, metadata_of
from runtime.metadata import ModelMetadata


@dataclass(frozen=True)
class LayerOptions:
    """How two models' layers are compared.

    Attributes:
        backends: of the first and the second model; see ``runtime.backends``.
        tolerance: relative to a tensor's largest value.
        chunk: tensors that are marked at once.
        device, threads: of onnxruntime and OpenVINO.
        precision: of OpenVINO; a model's own is behind its name, see ``split_precision``.
    """

    backends: tuple[str, str] = ("auto", "auto")
    tolerance: float = 1e-3
    chunk: int = 8
    device: str = "cpu"
    threads: Optional[int] = None
    precision: Optional[str] = None


def compare_files(expected: Path, found: Path, images: Sequence[Path], options: LayerOptions) -> LayerReport:
    """Compare the layers of two models on one batch of images.

    Args:
        expected, found: .onnx files, or engines with their sidecars. The ONNX of an engine is the file that its
            sidecar names, or the other of the two.
        images: files, all run as one batch.
        options: see there.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: not such a model, an engine of another ONNX, or an image that does not fit.
        RuntimeError: a backend is missing, or a model does not run.
    """
    first = _side(expected, found, options.backends[0], len(images), options)
    second = _side(found, expected, options.backends[1], len(images), options)
    batch = load_batch(images, _metadata(expected, first))
    feeds = {"images": batch.images, "image_sizes": batch.image_sizes}
    valid = (graph_errors(expected, first.model), graph_errors(found, second.model))
    with valid[0], valid[1], status("comparing layers") as show:
        return compare_layers(
            first,
            second,
            feeds,
            tolerance=options.tolerance,
            chunk=options.chunk,
            listener=lambda measured, marked: show(
                f"comparing layers: {measured} tensors measured, {marked} more marked"
            ),
        )


def print_layers(report: LayerReport, tolerance: float) -> None:
    """Print the tensors that were measured, and where the two part."""
    console = table_console()
    table = Table(title="measured tensors in topological order")
    for heading in ("tensor", "made by"):
        table.add_column(heading, overflow="fold")
    for heading in ("shape", "largest"):
        table.add_column(heading, justify="right", overflow="fold")
    for heading in ("error", "relative", "beyond", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    for error in report.measured:
        differs = not error.relative <= tolerance
        table.add_row(
            *(Text(text) for text in (error.name, error.op, _shape(error.shape), f"{error.scale:.3g}")),
            f"{error.absolute:.1e}",
            f"{error.relative:.1e}",
            f"{error.share:.1%}",
            ("[red]differs[/]" if differs else "[green]agrees[/]") + (" *" if error.ordered_by else ""),
        )
    console.print(table)
    if any(error.ordered_by for error in report.measured):
        console.print(
            "* after a node that orders rows by data (TopK, NMS): rows of nearly equal scores may have swapped places"
        )
    for line in summary(report, tolerance):
        console.print(escape(line), soft_wrap=True)


def summary(report: LayerReport, tolerance: float) -> list[str]:
    """Return the outcome in words."""
    lines = [
        f"{len(report.measured)} of {report.num_tensors} common tensors measured, {report.num_marked} marked as "
        f"outputs in {report.num_runs} runs"
    ]
    lines += [f"{name} cannot be an output: {reason}" for name, reason in report.unmeasured.items()]
    if report.same_order:
        lines.append(
            "every tensor before the first node that orders rows by data (TopK, NMS) agrees; "
            f"for those after it both got the order of the first ({len(report.same_order)} tensors)"
        )
    if report.order_problem:
        lines.append(f"the order of the first cannot be given to both: {report.order_problem}")
    if report.first is None:
        return [*lines, f"no tensor differs by more than {tolerance:g} of its largest value"]
    lines.append(f"first tensor beyond {tolerance:g}: {_described(report.first)}")
    if report.first.ordered_by:
        lines.append(
            f"it comes after {report.first.ordered_by}, where the order of rows depends on the data, so "
            f"that equal results in another order differ here too ({report.first.share:.1%} of the values do): compare "
            "the detections before you blame the node"
        )
    return lines


def _described(error: TensorError) -> str:
    made_by = f"{error.name}, made by node {error.node} ({error.op})"
    if error.shape != error.found_shape:
        return f"{made_by}: expected shape {_shape(error.shape)}, found {_shape(error.found_shape)}"
    return (
        f"{made_by}: relative error {error.relative:.3g}, worst at {list(error.index)} of {_shape(error.shape)}: "
        f"expected {error.expected:.6g}, found {error.found:.6g}"
    )


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _side(path: Path, other: Path, backend: str, batch: int, options: LayerOptions) -> Side:
    if path.suffix.lower() == SUFFIX:
        raise ValueError(
            f"--layers: expected two models, found the recorded results {path}; they have no layers, name an ONNX"
        )
    path, precision = split_precision(path)
    name = backend_name(path, backend, options.device)
    given = {
        "device": options.device,
        "threads": options.threads,
        "precision": precision or options.precision,
    }
    other = split_precision(other)[0]
    return Side(*backend_module(name).layers(path, other, batch, **supported_options(name, given)))


def _metadata(path: Path, side: Side) -> ModelMetadata:
    metadata = metadata_of(side.model, path)
    if metadata is None:
        raise ValueError(
            f"model {path}: expected the metadata that says how images are prepared, found none; "
            "export the checkpoint with `python -m export.maskrcnn`"
        )
    return metadata
