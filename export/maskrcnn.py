"""``python -m export.maskrcnn [CONFIG CHECKPOINT]``: a trained mmdet Mask R-CNN becomes one portable ONNX file.

The exit status is 0 where the file finds what mmdet finds, 1 where it differs, 2 where something was refused, 3 for an
error of the exporter's own.
"""

import argparse
import shlex
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from export.arguments import (
    DEFAULT_OUTPUT,
    INLINING_BACKENDS,
    MAX_OPSET,
    MIN_OPSET,
    add_model,
    add_shape,
    check_output,
    check_request,
)
from export.steps import Step, Steps
from runtime import interrupts
from runtime.cli import CommandParser, count, run_as_program
from runtime.console import table_console
from runtime.messages import printable
from runtime.streams import safe_streams

if TYPE_CHECKING:
    from export.api import ExportResult
    from export.verify import Case
    from runtime.comparison.difference import Tolerance

TIES = (
    "equal where PyTorch sorts equal scores by index, as the file does; mmdet's own sort is not stable, so that its "
    "proposals depend on the machine where two scores are equal"
)
EXIT_DIFFERENT, EXIT_REFUSED, EXIT_FAILED = 1, 2, 3
REFUSALS = (OSError, ValueError, NotImplementedError, MemoryError)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Export, verify, and return the exit status."""
    # Native code (onnxsim's) is waited for: what was begun is then removed.
    with safe_streams(), interrupts.handled(patience=None):
        args = _parser().parse_args(argv)
        return _ended(args, table_console())


def _ended(args: argparse.Namespace, console: Console) -> int:
    try:
        _check(args)
        return _run(args, console)
    except interrupts.Interrupted as error:
        return _interrupted(error, console)
    except Exception as error:
        number = interrupts.received()
        if number is not None:  # what an interrupted library made of it
            return _interrupted(interrupts.Interrupted(number), console)
        if isinstance(error, REFUSALS):
            return _failed(error, console, EXIT_REFUSED)
        traceback.print_exc()
        what = f"{type(error).__name__}: {error}"
        console.print(
            f"[bold red]error:[/] the exporter itself failed: {_plain(what)}\nPlease report the lines above, with the "
            "config and the versions that `pip freeze` prints.",
            highlight=False,
            soft_wrap=True,
        )
        return EXIT_FAILED


def _plain(text: str) -> str:
    """Return a text as rich prints it: no markup, and nothing that no terminal should be sent."""
    return escape(printable(text))


def _interrupted(error: interrupts.Interrupted, console: Console) -> int:
    console.print(f"{error}; nothing was written", highlight=False)
    return error.exit_status


def _check(args: argparse.Namespace) -> None:
    """Refuse what can be without PyTorch; ``export_model`` does the rest."""
    check_request(
        args.config,
        args.checkpoint,
        size=args.size,
        dynamic_size=args.dynamic_size,
        opset=args.opset,
        max_per_img=args.max_per_img,
        device=args.device,
        images=args.images,
        verify=not args.no_verify,
        for_backend=args.for_backend,
    )
    check_output(args.output)


def _run(args: argparse.Namespace, console: Console) -> int:
    with interrupts.loading():
        from export.api import PixelsDifferError, VerificationError, export_model

    try:
        result = export_model(
            args.config,
            args.checkpoint,
            args.output,
            size=args.size,
            dynamic_size=args.dynamic_size,
            masks=args.masks,
            opset=args.opset,
            max_per_img=args.max_per_img,
            simplify=not args.no_simplify,
            for_backend=args.for_backend,
            verify=not args.no_verify,
            images=args.images,
            device=args.device,
            trust_checkpoint=args.trust_checkpoint,
            allow_mismatch=args.allow_mismatch,
            steps=_checked(Steps(console)),
        )
    except VerificationError as error:
        _report(error.result, console)
        return _failed(error, console, EXIT_DIFFERENT)
    except PixelsDifferError as error:
        return _failed(error, console, EXIT_DIFFERENT)
    if result.cases:
        _report(result, console)
    for note in result.notes:
        console.print(f"[yellow]note[/] {_plain(note)}", highlight=False, soft_wrap=True)
    console.print(_summary(result), highlight=False, soft_wrap=True)
    return 0


def _checked(steps: Steps) -> Callable[[str], Step]:
    """Return the steps, none of which begins after a signal: native code (onnxsim's) may lose the exception."""

    def step(title: str) -> Step:
        interrupts.check()
        return steps(title)

    return step


def _failed(error: Exception, console: Console, status: int) -> int:
    words = str(error) or type(error).__name__
    console.print(f"[bold red]error:[/] {_plain(words)}", highlight=False, soft_wrap=True)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m export.maskrcnn",
        description="Export an mmdet Mask R-CNN (or another two-stage detector of its parts) to one ONNX file.",
    )
    parser.add_argument("-o", "--output", type=Path, default=DEFAULT_OUTPUT, help="default: %(default)s")
    add_model(parser)
    graph = parser.add_argument_group("graph")
    add_shape(graph)
    graph.add_argument(
        "--masks",
        choices=("crop", "full"),
        default="crop",
        help="crop: 28x28 probabilities, pasted by the runtime at the original resolution (exact). "
        "full: pasted in the graph at network size (self-contained, less accurate once resized)",
    )
    graph.add_argument(
        "--opset",
        type=count(MAX_OPSET, MIN_OPSET),
        default=MIN_OPSET,
        help=f"{MIN_OPSET} to {MAX_OPSET}; default: %(default)s",
    )
    graph.add_argument("--no-simplify", action="store_true", help="leave the graph as traced")
    graph.add_argument(
        "--for",
        dest="for_backend",
        choices=INLINING_BACKENDS,
        help="standard operators alone, as OpenVINO's own tools need it; default: a file for every backend of the "
        "runtime, OpenVINO among them",
    )
    run = parser.add_argument_group("verification")
    run.add_argument("--no-verify", action="store_true", help="do not compare with mmdet")
    run.add_argument(
        "--images",
        nargs="+",
        metavar="IMAGE",
        help="files, folders and patterns to verify with; default: the embedded images",
    )
    return parser


def _report(result: "ExportResult", console: Console) -> None:
    """Print a row per image, and what is beyond the tolerance."""
    from runtime.comparison.difference import Tolerance

    tolerance = Tolerance()
    table = Table(
        title="the exported file in onnxruntime, and mmdet on the same files: worst difference",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("image", overflow="fold")
    for heading in ("batch", "size", "matched", "box px", "score", "masks", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    for case in result.cases:
        table.add_row(*_cells(case, tolerance))
    console.print(table)
    if result.threshold is not None and result.threshold < result.metadata.score_threshold:
        console.print(
            f"few detections above the model's score threshold {result.metadata.score_threshold:g}: the same graph was "
            f"also compared above {result.threshold:g}, in the lower rows",
            highlight=False,
            soft_wrap=True,
        )
    if any(case.ordered_ties for case in result.cases):
        console.print(f"* {TIES}", highlight=False, soft_wrap=True)
    for case in result.cases:
        for words in case.difference.violations(tolerance):
            text = f"{case.path.name}, batch {case.batch}, image {case.image}: {words}"
            console.print(_plain(text), highlight=False, soft_wrap=True)


def _cells(case: "Case", tolerance: "Tolerance") -> tuple[str, ...]:
    d = case.difference
    return (
        _plain(case.path.name),
        str(case.batch),
        f"{case.size[0]}x{case.size[1]}",
        f"{d.matched} of {d.expected}" + (f", found {d.found}" if d.found != d.expected else ""),
        f"{d.box_px:.1e}",
        f"{d.score:.1e}",
        "-" if d.mask is None else f"{d.mask:.1e}",
        ("[green]equal[/]" if case.within(tolerance) else "[red]differs[/]") + " *" * case.ordered_ties,
    )


def _summary(result: "ExportResult") -> str:
    from export.weights import data_path

    metadata = result.metadata
    size = "x".join(map(str, metadata.size)) if metadata.size else "dynamic"
    digest = metadata.checkpoint_sha256
    weights = "random weights" if digest is None else f"checkpoint {digest[:12]}"
    parts = [path for path in (result.path, data_path(result.path)) if path.is_file()]
    megabytes = sum(path.stat().st_size for path in parts) / 1e6
    facts = f"{megabytes:.1f} MB, batch dynamic, size {size}, {len(metadata.classes)} classes"
    path = _plain(str(result.path))
    return (
        f"[bold]{path}[/]  {facts}, masks {metadata.masks}, {weights}\n"
        f"[bold]{_plain(str(result.plan_path))}[/]  {len(result.plan.nodes)} nodes that stay FP32 in an FP16 engine\n"
        f"run it: python -m runtime.infer --model {_plain(shlex.quote(str(result.path)))} --batch 2 IMAGE..."
    )


if __name__ == "__main__":
    run_as_program(main)
