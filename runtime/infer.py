"""Detect objects in image files: ``python -m runtime.infer [SOURCE ...]``.

Prints a table, and writes overlays (PNG) and COCO results (JSON; see ``runtime.coco_writer``). The exit status is
0, 1 if images were skipped because they cannot be read, or 2 if nothing could be done.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import Any, Optional

import cv2
import numpy as np
from rich.table import Table
from rich.text import Text

from runtime.backends import BACKENDS, backend_name, supported_options
from runtime.cli import DEFAULT_IMAGES, add_host, add_openvino, positive, score
from runtime.coco_writer import IMAGES, RESULTS, ResultsWriter
from runtime.console import table_console, tracked
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.draw import draw_detections
from runtime.images import find_images

DEFAULT_MODEL = Path("out") / "maskrcnn.onnx"
EXIT_OK, EXIT_SKIPPED, EXIT_ERROR = 0, 1, 2
_NUM_CLASSES_SHOWN = 4
# In the order in which an image goes through them; which there are depends on where it runs.
_STAGES = (
    "read",
    "copy_in",
    "prepare",
    "engine",
    "encode",
    "copy_out",
    "results",
    "write",
    "overlays",
)


@dataclass
class Report:
    """What a run has done: table rows, reasons for skipped images, notes, ms of each stage, and seconds in all."""

    rows: list[tuple[str, str, str, str]] = field(default_factory=list)
    num_detections: int = 0
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    milliseconds: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent inside to the stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = (time.perf_counter() - start) * 1e3
            self.milliseconds[name] = self.milliseconds.get(name, 0.0) + spent


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command; return its exit status."""
    args = _parse_arguments(argv)
    try:
        paths = find_images(args.sources or [str(DEFAULT_IMAGES)])
        overlays = overlay_paths(paths, args.out)
        with Detector(args.model, args.backend, batch_size=args.batch, **_backend_options(args)) as detector:
            args.out.mkdir(parents=True, exist_ok=True)
            report = _process(paths, overlays, detector, args)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_ERROR
    _print_report(report, args)
    return EXIT_SKIPPED if report.skipped else EXIT_OK


def _backend_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options that were given; the backend refuses those that it has not got."""
    names = ("device", "host", "threads", "precision", "streams", "plugins", "rebuild")
    options = {name: getattr(args, name) for name in names}
    name = backend_name(args.model, args.backend, args.device)
    return {
        **options,
        **supported_options(name, {"notify": lambda line: print(line, file=sys.stderr, flush=True)}),
    }


def overlay_paths(paths: Sequence[Path], folder: Path) -> list[Path]:
    """Return a PNG in the folder for each image: its stem, or where that is taken with its folder or a number.

    No two are equal, on a file system that ignores case neither, and none is one of the images themselves.
    """
    taken = {str(path.resolve()).casefold() for path in paths}
    overlays = []
    for path in paths:
        stems = chain(
            (path.stem, f"{path.resolve().parent.name}_{path.stem}"),
            (f"{path.stem}_{number}" for number in count(2)),
        )
        candidates = (folder / f"{stem}.png" for stem in stems)
        overlay = next(p for p in candidates if str(p.resolve()).casefold() not in taken)
        taken.add(str(overlay.resolve()).casefold())
        overlays.append(overlay)
    return overlays


def _process(
    paths: Sequence[Path], overlays: Sequence[Path], detector: Detector, args: argparse.Namespace
) -> Report:
    """Stream the files through the detector, and write what it finds."""
    report = Report()
    start = time.perf_counter()
    with ResultsWriter(args.out, detector.metadata.classes) as results:
        found = detector.detect_files(
            paths,
            min_score=min(args.score, args.json_score),
            keep_images=args.overlays,
            timings=report.milliseconds,
        )
        # Files, not images found readable: a skipped one counts as done.
        for result in tracked(found, len(paths), "detecting"):
            if result.error:
                report.skipped.append(result.error)
                continue
            with report.stage("write"):
                kept = result.detections.filter(args.json_score)
                results.add(kept, result.index + 1, _shown(result.path))
            shown = result.detections.filter(args.score)
            _add_row(report, result.path, shown)
            if args.overlays:
                with report.stage("overlays"):
                    _write_overlay(overlays[result.index], result.image, shown)
    report.seconds = time.perf_counter() - start
    report.notes = detector.notes
    return report


def _write_overlay(path: Path, image: np.ndarray, detections: Detections) -> None:
    done, data = cv2.imencode(".png", draw_detections(image, detections))
    if not done:
        raise RuntimeError(f"{path}: OpenCV cannot encode the overlay as PNG")
    # Not cv2.imwrite: it returns False instead of saying that the disk is full.
    path.write_bytes(data.tobytes())


def _add_row(report: Report, path: Path, detections: Detections) -> None:
    height, width = detections.image_size
    report.num_detections += len(detections)
    report.rows.append((_shown(path), f"{width}x{height}", str(len(detections)), _classes(detections)))


def _classes(detections: Detections) -> str:
    """Return the classes with the best scores, how often each was found, and its best score."""
    counts = Counter(detections.names)
    best: dict[str, float] = {}
    for name, value in zip(detections.names, detections.scores):
        best[name] = max(best.get(name, 0.0), float(value))
    names = sorted(best, key=lambda name: -best[name])
    parts = [f"{counts[name]} {name} ({best[name]:.2f})" for name in names[:_NUM_CLASSES_SHOWN]]
    if len(names) > _NUM_CLASSES_SHOWN:
        parts.append(f"{len(names) - _NUM_CLASSES_SHOWN} more classes")
    return ", ".join(parts) or "-"


def _shown(path: Path) -> str:
    """Return the path relative to the working directory where it lies inside."""
    try:
        return path.resolve().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return path.as_posix()


def _print_report(report: Report, args: argparse.Namespace) -> None:
    for message in report.skipped:
        print(f"skipped: {message}", file=sys.stderr)
    console = table_console()
    table = Table("image", "size (w x h)")
    table.add_column("detections", justify="right")
    table.add_column("classes (best score)")
    for row in report.rows:
        # Text, not str: a file name with brackets is not rich's markup.
        table.add_row(*(Text(cell, overflow="fold") for cell in row))
    console.print(table)
    for line in _totals(report, args):
        console.print(Text(line), soft_wrap=True)


def _totals(report: Report, args: argparse.Namespace) -> list[str]:
    num_images = len(report.rows)
    lines = [
        f"{_counted(report.num_detections, 'detection')} of score {args.score:g} or more "
        f"in {_counted(num_images, 'image')}"
    ]
    if report.skipped:
        lines[0] += f", {len(report.skipped)} skipped"
    if num_images:
        spent = report.milliseconds
        stages = ", ".join(f"{stage} {spent[stage] / num_images:.1f}" for stage in _STAGES if stage in spent)
        lines.append(f"{num_images / report.seconds:.2f} images/s; ms per image, side by side: {stages}")
    lines.extend(report.notes)
    written = f"{RESULTS} and {IMAGES}" + (f", {_counted(num_images, 'overlay')}" if args.overlays else "")
    lines.append(f"wrote {written} to {args.out}")
    return lines


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _parse_arguments(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m runtime.infer", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "sources",
        nargs="*",
        metavar="SOURCE",
        help="image files, folders and glob patterns (default: the embedded examples/images)",
    )
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="default: %(default)s")
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default="auto",
        help="auto (default): TensorRT where it, the plugin library and a GPU are there, otherwise OpenVINO where it "
        "is installed, otherwise onnxruntime",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="cuda: of onnxruntime (default: cpu)")
    parser.add_argument(
        "--plugins", type=Path, help="plugin library of TensorRT (default: where it is built)"
    )
    parser.add_argument(
        "--rebuild",
        choices=("auto", "never", "always"),
        help="what to do about an ONNX without a good engine (default: auto, build it)",
    )
    parser.add_argument(
        "--threads", type=positive, help="CPU threads of the model (default: as many as there are cores)"
    )
    add_openvino(parser)
    parser.add_argument("--batch", type=positive, default=1, help="images at once (default: %(default)s)")
    add_host(parser)
    parser.add_argument(
        "--score", type=score, default=0.3, help="least score in table and overlays (default: %(default)s)"
    )
    parser.add_argument(
        "--json-score", type=score, default=0.05, help=f"least score in {RESULTS} (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder (default: %(default)s)")
    parser.add_argument("--no-overlays", dest="overlays", action="store_false", help="write no PNGs")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
