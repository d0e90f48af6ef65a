"""``python -m runtime.compare --layers``: the two sides from their files, and the table."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from runtime.backends import backend_name
from runtime.comparison.bisection import (
    LayerReport,
    Side,
    TensorError,
    compare_layers,
)
from runtime.comparison.recording import SUFFIX
from runtime.comparison.sources import load_batch
from runtime.console import status, table_console
from runtime.files import sha256_of
from runtime.graphs.load import load_onnx, metadata_of
from runtime.metadata import ModelMetadata
from runtime.runner import LayerRunnerFactory


@dataclass(frozen=True)
class LayerOptions:
    """How two models' layers are compared.

    Attributes:
        backends: of the first and the second model; see ``runtime.backends``.
        tolerance: relative to a tensor's largest value.
        chunk: tensors that are marked at once.
        device, threads: of onnxruntime.
    """

    backends: tuple[str, str] = ("auto", "auto")
    tolerance: float = 1e-3
    chunk: int = 8
    device: str = "cpu"
    threads: Optional[int] = None


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
    sides = [
        _side(path, other, backend, len(images), options)
        for path, other, backend in zip((expected, found), (found, expected), options.backends)
    ]
    batch = load_batch(images, _metadata(expected, sides[0]))
    feeds = {"images": batch.images, "image_sizes": batch.image_sizes}
    with status("comparing layers") as show:
        return compare_layers(
            *sides,
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
    for heading, justify in (
        ("tensor", "left"),
        ("made by", "left"),
        ("shape", "right"),
        ("largest", "right"),
    ):
        table.add_column(heading, justify=justify, overflow="fold")
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
    kind = backend_name(path, backend)
    if kind == "onnxruntime":
        from runtime.backends.onnxruntime import layer_runner

        return Side(load_onnx(path), layer_runner(options.device, options.threads))
    if path.suffix.lower() == ".onnx":
        return _side_from_onnx(path, batch)
    return _side_from_engine(path, other)


def _side_from_onnx(path: Path, batch: int) -> Side:
    """Engines as ``Detector(path, backend="tensorrt")`` would build them."""
    from runtime.engine.config import EngineConfig
    from runtime.engine.profiles import with_default_sizes

    model = load_onnx(path)
    metadata = metadata_of(model)
    config = EngineConfig(batch=(1, batch, batch))
    if metadata is not None:
        config = with_default_sizes(config, metadata)
    return Side(model, _engine_runner(path, model, config))


def _side_from_engine(path: Path, other: Path) -> Side:
    """Engines as the one in the file was built, so that they differ from it by the marked outputs alone."""
    from runtime.engine.sidecar import Sidecar

    sidecar = Sidecar.load(path)
    beside = path.parent / sidecar.onnx
    candidates = [p for p in (beside, other) if p.suffix.lower() == ".onnx" and p.is_file()]
    matching = [p for p in candidates if sha256_of(p) == sidecar.provenance.onnx_sha256]
    if not matching:
        listed = ", ".join(map(str, candidates)) or "no ONNX"
        raise ValueError(
            f"engine {path}: expected the ONNX that it was built from (SHA-256 "
            f"{sidecar.provenance.onnx_sha256[:12]}) as {beside} or as the other model, found {listed}; "
            "name that ONNX, or build the engine again"
        )
    model = load_onnx(matching[0])
    return Side(model, _engine_runner(matching[0], model, sidecar.config, sidecar))


def _engine_runner(onnx: Path, model: Any, config: Any, sidecar: Any = None) -> LayerRunnerFactory:
    from hashlib import sha256

    from runtime.backends.tensorrt import layer_runner
    from runtime.precision.choice import chosen_plan

    with_plan = config.precision == "fp16" and (sidecar is None or sidecar.plan_sha256 is not None)
    plan = chosen_plan(onnx, model) if with_plan else None
    found = None if plan is None else sha256(plan.to_json().encode()).hexdigest()
    if sidecar is not None and found != sidecar.plan_sha256:
        raise ValueError(
            f"precision plan: expected the one that the engine was built with (SHA-256 {sidecar.plan_sha256[:12]}), "
            f"found {found[:12]} beside {onnx}; put that plan beside the ONNX, or build the engine again"
        )
    return layer_runner(config, plan=plan)


def _metadata(path: Path, side: Side) -> ModelMetadata:
    metadata = metadata_of(side.model)
    if metadata is None:
        raise ValueError(
            f"model {path}: expected the metadata that says how images are prepared, found none; "
            "export the checkpoint with `python -m export.maskrcnn`"
        )
    return metadata
