"""Build a TensorRT engine: ``python -m runtime.build model.onnx``.

Writes ``model.engine`` and ``model.engine.json``, what it was built from. An engine that is there and still good is
kept. The exit status is 0, or 2 if there is no engine to be had.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from runtime.cli import EXIT_OK, EXIT_REFUSED, positive
from runtime.console import table_console
from runtime.engine.builds import build_engine
from runtime.engine.config import PRECISIONS, EngineConfig, Shapes
from runtime.engine.files import REBUILD
from runtime.engine.progress import Monitor, heartbeat
from runtime.engine.sidecar import Sidecar

_MIB = 1 << 20


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command; return its exit status."""
    args = _parse_arguments(argv)
    try:
        keywords = _keywords(args)
        with _progress(args.verbose) as monitor:
            built = build_engine(
                **keywords,
                monitor=monitor,
                echo=_say if args.verbose else None,
                notify=_say,
            )
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_REFUSED
    _print_report(built.path, built.sidecar)
    return EXIT_OK


def _keywords(args: argparse.Namespace) -> dict[str, Any]:
    """Return what ``build_engine`` is asked for."""
    height, width = _size_ranges(args.size)
    config = EngineConfig(
        batch=tuple(args.batch),
        height=height,
        width=width,
        shapes=tuple(_shape_option(text) for text in args.shape),
        precision=args.precision,
        workspace_mib=args.workspace,
        tactic_sources=_tactic_sources(args.tactic_sources),
    )
    return {
        "model": args.model,
        "engine": args.output,
        "config": config,
        "plan": args.plan,
        "use_plan": not args.no_plan,
        "timing_cache": args.timing_cache,
        "plugins": args.plugins,
        "device_index": args.device_index,
        "rebuild": args.rebuild,
    }


@contextmanager
def _progress(verbose: bool) -> Iterator[Monitor]:
    """Show phases with a bar on a terminal, and a line every half minute elsewhere."""
    if sys.stderr.isatty() and not verbose:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
        with Progress(
            *columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True
        ) as progress:
            task = progress.add_task("building", total=None)
            yield lambda phase, done, total: progress.update(
                task, description=phase, completed=done, total=total or None
            )
        return
    latest = ["reading the model", 0, 0]

    def monitor(phase: str, done: int, total: int) -> None:
        latest[:] = [phase, done, total]

    def beat(seconds: float) -> None:
        phase, done, total = latest
        _say(f"{seconds:5.0f} s  {phase}" + (f"  {done}/{total}" if total else ""))

    with heartbeat(beat):
        yield monitor


def _print_report(engine: Path, sidecar: Sidecar) -> None:
    build, config = sidecar.build, sidecar.config
    # Text, not str: a folder with brackets is not rich's markup.
    table = Table("engine")
    table.add_column(Text(str(engine)), overflow="fold")
    table.add_row("batch", f"{config.batch[0]} to {config.batch[2]}, tuned for {config.batch[1]}")
    for name in ("height", "width"):
        limits = getattr(config, name)
        if limits:
            table.add_row(name, f"{limits[0]} to {limits[2]} px, tuned for {limits[1]}")
    kept = f", {build['layers_kept_fp32']} layers kept FP32" if build.get("layers_kept_fp32") else ""
    table.add_row("precision", config.precision + kept)
    counts = ", ".join(
        f"{count} {name}" for name, count in sorted(build.get("layers_by_precision", {}).items())
    )
    table.add_row("layers", f"{build.get('layers', '?')} ({counts})")
    shares = build.get("dense_flops_share", {})
    table.add_row("dense FLOPs", ", ".join(f"{share:.1%} {name}" for name, share in shares.items() if share))
    table.add_row("size", f"{build['bytes'] / _MIB:.1f} MiB")
    table.add_row("build time", f"{build['seconds']:.0f} s")
    table_console().print(table)


def _size_ranges(texts: Optional[Sequence[str]]) -> tuple:
    """Return the ranges of height and width that one or three ``HxW`` mean."""
    if not texts:
        return None, None
    sizes = [_numbers(text, "--size", 2) for text in texts]
    if len(sizes) == 1:
        sizes *= 3
    if len(sizes) != 3:
        raise ValueError(f"--size: expected HxW, or MIN OPT MAX of it, found {' '.join(texts)}")
    return tuple(zip(*sizes))


def _shape_option(text: str) -> tuple[str, Shapes]:
    """Parse ``name=1x3x320x320,2x3x800x1216,8x3x1344x1344``."""
    name, _, shapes = text.partition("=")
    parsed = tuple(_numbers(shape, f"--shape {name}") for shape in shapes.split(","))
    if not name or len(parsed) != 3:
        raise ValueError(
            f"--shape: expected NAME=MIN,OPT,MAX with shapes such as 1x3x800x1216, found {text!r}"
        )
    return name, parsed


def _numbers(text: str, option: str, count: Optional[int] = None) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.lower().split("x"))
    except ValueError:
        numbers = ()
    if not numbers or (count is not None and len(numbers) != count):
        raise ValueError(f"{option}: expected numbers joined by x, such as 800x1216, found {text!r}")
    return numbers


def _tactic_sources(text: Optional[str]) -> Optional[tuple[str, ...]]:
    if text is None:
        return None
    return () if text == "none" else tuple(part for part in text.split(",") if part)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parse_arguments(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m runtime.build", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "model", type=Path, metavar="MODEL.onnx", help="exported by export.maskrcnn, or any other ONNX"
    )
    parser.add_argument("-o", "--output", type=Path, help="the engine (default: MODEL.engine)")
    profile = parser.add_argument_group("profile")
    profile.add_argument(
        "--batch",
        nargs=3,
        type=positive,
        metavar=("MIN", "OPT", "MAX"),
        default=EngineConfig().batch,
        help="images at once; tuned for OPT (default: 1 2 8)",
    )
    profile.add_argument(
        "--size",
        nargs="+",
        metavar="HxW",
        help="MIN OPT MAX, or one, for a model of dynamic size (default: what the model's resize rule needs)",
    )
    profile.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="NAME=MIN,OPT,MAX",
        help="shapes of one input, such as 1x3x320x320, instead of --batch and --size; may be repeated",
    )
    precision = parser.add_argument_group("precision")
    precision.add_argument("--precision", choices=PRECISIONS, default="fp16", help="default: %(default)s")
    plan = precision.add_mutually_exclusive_group()
    plan.add_argument(
        "--plan",
        type=Path,
        help="nodes that stay FP32 (default: MODEL.plan.json, or else the graph's geometry; see runtime.precision)",
    )
    plan.add_argument(
        "--no-plan",
        action="store_true",
        help="leave every layer to TensorRT; without the plugins, or in graphs of others, boxes and masks suffer",
    )
    build = parser.add_argument_group("build")
    build.add_argument(
        "--workspace", type=positive, metavar="MIB", help="most memory of layers (default: TensorRT's)"
    )
    build.add_argument(
        "--tactic-sources",
        metavar="A,B",
        help="libraries for kernels, e.g. cublas,cudnn; `none`: TensorRT's own only",
    )
    build.add_argument(
        "--timing-cache", type=Path, help="file of kernel timings, read and extended: later builds are fast"
    )
    build.add_argument("--plugins", type=Path, help="plugin library (default: where `make plugins` puts it)")
    build.add_argument("--device-index", type=int, default=0, help="GPU (default: %(default)s)")
    build.add_argument(
        "--rebuild",
        choices=REBUILD,
        default="auto",
        help="auto: build what is missing or stale; never: refuse it; always (default: %(default)s)",
    )
    build.add_argument("--verbose", action="store_true", help="print TensorRT's whole log")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
