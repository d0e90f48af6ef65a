"""``python -m export.maskrcnn [CONFIG CHECKPOINT]``: a trained mmdet Mask R-CNN becomes one portable ONNX file.

The exit status is 0 where the file finds what mmdet finds, 1 where it differs, 2 where something was refused, 3 for an
error of the exporter's own.
"""

import argparse
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Optional, TextIO

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from export.api import INLINING_BACKENDS, ExportResult, PixelsDifferError, VerificationError, export_model
from export.graph import MAX_OPSET, MIN_OPSET
from export.steps import Step, Steps
from export.verify import Case
from export.weights import data_path
from runtime.comparison.difference import Tolerance

DEFAULT_OUTPUT = Path("out/maskrcnn.onnx")
TIES = (
    "equal where PyTorch sorts equal scores by index, as the file does; mmdet's own sort is not stable, so that its "
    "proposals depend on the machine where two scores are equal"
)
# Without a terminal, rich assumes 80 columns and folds tables.
WIDTH_WITHOUT_TERMINAL = 140
EXIT_DIFFERENT, EXIT_REFUSED, EXIT_FAILED, EXIT_INTERRUPTED = 1, 2, 3, 130
REFUSALS = (OSError, ValueError, NotImplementedError, MemoryError)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Export, verify, and return the exit status."""
    args = _parser().parse_args(argv)
    stream = _Stream(sys.stdout)
    console = Console(file=stream, width=None if stream.isatty() else WIDTH_WITHOUT_TERMINAL, highlight=False)
    interrupts = _Interrupts()
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
            steps=interrupts.checked(Steps(console)),
        )
    except VerificationError as error:
        _report(error.result, console)
        return _failed(error, console, EXIT_DIFFERENT)
    except PixelsDifferError as error:
        return _failed(error, console, EXIT_DIFFERENT)
    except REFUSALS as error:
        return _failed(error, console, EXIT_REFUSED)
    except KeyboardInterrupt:
        console.print("interrupted; nothing was written", highlight=False)
        return EXIT_INTERRUPTED
    except Exception as error:
        traceback.print_exc()
        what = f"{type(error).__name__}: {error}"
        console.print(
            f"[bold red]error[/] the exporter itself failed: {escape(what)}\nPlease report the lines above, with the "
            "config and the versions that `pip freeze` prints.",
            highlight=False,
            soft_wrap=True,
        )
        return EXIT_FAILED
    finally:
        interrupts.restore()
    if result.cases:
        _report(result, console)
    for note in result.notes:
        console.print(f"[yellow]note[/] {escape(note)}", highlight=False, soft_wrap=True)
    console.print(_summary(result), highlight=False, soft_wrap=True)
    return 0


class _Interrupts:
    """Ends the export on SIGINT, SIGTERM and SIGHUP: what was begun is removed, and the file that was there stays.

    Native code (onnxsim's) may lose the exception that a signal's handler raises: the next step raises it again.
    """

    def __init__(self) -> None:
        self._is_set = False
        self._before: dict[int, Any] = {}
        if threading.current_thread() is not threading.main_thread():
            return  # signals are the main thread's
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            if hasattr(signal, name):
                number = getattr(signal, name)
                self._before[number] = signal.signal(number, self._interrupt)

    def restore(self) -> None:
        """Handle signals as before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _interrupt(self, number: int, frame: object) -> None:
        self._is_set = True
        raise KeyboardInterrupt

    def checked(self, steps: Steps) -> Callable[[str], Step]:
        """Return the steps, none of which begins after a signal."""

        def step(title: str) -> Step:
            if self._is_set:
                raise KeyboardInterrupt
            return steps(title)

        return step


class _Stream:
    """Standard output that never ends a run: closed, full, or with nobody who reads it."""

    def __init__(self, stream: Optional[TextIO]) -> None:
        self._stream = stream
        self.encoding = getattr(stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            if self._stream is not None:
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            if self._stream is not None:
                self._stream.flush()

    def isatty(self) -> bool:
        return self._stream is not None and not self._stream.closed and self._stream.isatty()

    def fileno(self) -> int:
        if self._stream is None:
            raise OSError("closed")
        return self._stream.fileno()


def _failed(error: Exception, console: Console, status: int) -> int:
    words = str(error) or type(error).__name__
    console.print(f"[bold red]error[/] {escape(words)}", highlight=False, soft_wrap=True)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m export.maskrcnn",
        description="Export an mmdet Mask R-CNN (or another two-stage detector of its parts) to one ONNX file.",
    )
    parser.add_argument(
        "config", nargs="?", help="an mmdet config: a file, or the bare name of one that mmdet ships"
    )
    parser.add_argument(
        "checkpoint", nargs="?", type=Path, help="its weights (.pth); `none` for random weights"
    )
    parser.add_argument("-o", "--output", type=Path, default=DEFAULT_OUTPUT, help="default: %(default)s")
    size = parser.add_argument_group("input size")
    size.add_argument(
        "--size",
        nargs=2,
        type=int,
        metavar=("H", "W"),
        help="fixed, px; images are fitted into it. Default: images have the sizes that the config's test pipeline "
        "gives them",
    )
    size.add_argument(
        "--dynamic-size",
        action="store_true",
        help="any height and width, also where the test pipeline makes one size alone",
    )
    graph = parser.add_argument_group("graph")
    graph.add_argument(
        "--masks",
        choices=("crop", "full"),
        default="crop",
        help="crop: 28x28 probabilities, pasted by the runtime at the original resolution (exact). "
        "full: pasted in the graph at network size (self-contained, less accurate once resized)",
    )
    graph.add_argument(
        "--opset", type=int, default=MIN_OPSET, help=f"{MIN_OPSET} to {MAX_OPSET}; default: %(default)s"
    )
    graph.add_argument(
        "--max-per-img", type=int, metavar="K", help="rows in the outputs; default: the config's"
    )
    graph.add_argument("--no-simplify", action="store_true", help="leave the graph as traced")
    graph.add_argument(
        "--for",
        dest="for_backend",
        choices=INLINING_BACKENDS,
        help="standard operators alone, as OpenVINO's own tools need it; default: a file for every backend of the "
        "runtime, OpenVINO among them",
    )
    run = parser.add_argument_group("run")
    run.add_argument("--no-verify", action="store_true", help="do not compare with mmdet")
    run.add_argument(
        "--images",
        nargs="+",
        metavar="IMAGE",
        help="files, folders and patterns to verify with; default: the embedded images",
    )
    run.add_argument("--device", default="cpu", help="where PyTorch runs; default: %(default)s")
    run.add_argument("--trust-checkpoint", action="store_true", help="let a checkpoint's pickle run code")
    run.add_argument(
        "--allow-mismatch", action="store_true", help="export although checkpoint and model keys differ"
    )
    return parser


def _report(result: ExportResult, console: Console) -> None:
    """Print a row per image, and what is beyond the tolerance."""
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
            console.print(escape(text), highlight=False, soft_wrap=True)


def _cells(case: Case, tolerance: Tolerance) -> tuple[str, ...]:
    d = case.difference
    return (
        escape(case.path.name),
        str(case.batch),
        f"{case.size[0]}x{case.size[1]}",
        f"{d.matched} of {d.expected}" + (f", found {d.found}" if d.found != d.expected else ""),
        f"{d.box_px:.1e}",
        f"{d.score:.1e}",
        "-" if d.mask is None else f"{d.mask:.1e}",
        ("[green]equal[/]" if case.within(tolerance) else "[red]differs[/]") + " *" * case.ordered_ties,
    )


def _summary(result: ExportResult) -> str:
    metadata = result.metadata
    size = "x".join(map(str, metadata.size)) if metadata.size else "dynamic"
    digest = metadata.checkpoint_sha256
    weights = "random weights" if digest is None else f"checkpoint {digest[:12]}"
    parts = [path for path in (result.path, data_path(result.path)) if path.is_file()]
    megabytes = sum(path.stat().st_size for path in parts) / 1e6
    facts = f"{megabytes:.1f} MB, batch dynamic, size {size}, {len(metadata.classes)} classes"
    path = escape(str(result.path))
    return (
        f"[bold]{path}[/]  {facts}, masks {metadata.masks}, {weights}\n"
        f"[bold]{escape(str(result.plan_path))}[/]  {len(result.plan.nodes)} nodes that stay FP32 in an FP16 engine\n"
        f"run it: python -m runtime.infer --model {escape(shlex.quote(str(result.path)))} --batch 2 IMAGE..."
    )


if __name__ == "__main__":
    sys.exit(main())
