"""What a run of ``runtime.infer`` has done, and what it prints about that."""

import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from rich.table import Table
from rich.text import Text

from runtime import interrupts
from runtime.coco_writer import IMAGES, RESULTS
from runtime.console import table_console
from runtime.detections import Detections
from runtime.inference.json_lines import LINES
from runtime.inference.options import InferenceOptions
from runtime.interrupts import Interrupted
from runtime.messages import counted, in_utf8, printable
from runtime.pipeline import Source
from runtime.remote import RemoteImage

EXIT_OK, EXIT_SKIPPED, EXIT_ERROR = 0, 1, 2
_NUM_CLASSES_SHOWN = 4
# A table of more rows is no longer read, and takes minutes to lay out; the rest is in the files.
_MOST_ROWS = 200
_MOST_SKIPPED = 50
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
    """What a run has done.

    Attributes:
        num_files: that it was given.
        rows: of the table: name, size, detections, classes.
        num_images: that were read and written.
        num_detections, num_overlays: of them.
        num_resumed: files that an earlier run had finished.
        skipped: files, and why.
        undrawn: overlays that cannot be, and why.
        notes: what runs more slowly than it could.
        milliseconds: of each stage.
        seconds: in all.
        end: what ended the run before it was through; None where nothing did.
        written: whether the COCO files are.
    """

    num_files: int = 0
    rows: list[tuple[str, str, str, str]] = field(default_factory=list)
    num_images: int = 0
    num_detections: int = 0
    num_overlays: int = 0
    num_resumed: int = 0
    skipped: list[str] = field(default_factory=list)
    undrawn: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    milliseconds: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    end: Optional[BaseException] = None
    written: bool = False

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent inside to the stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = (time.perf_counter() - start) * 1e3
            self.milliseconds[name] = self.milliseconds.get(name, 0.0) + spent

    def add(self, name: str, detections: Detections) -> None:
        """Count an image."""
        height, width = detections.image_size
        self.num_images += 1
        self.num_detections += len(detections)
        if len(self.rows) < _MOST_ROWS:
            self.rows.append((name, f"{width}x{height}", str(len(detections)), _classes(detections)))

    @property
    def num_finished(self) -> int:
        """How many files were read and written, or found unreadable."""
        return self.num_images + len(self.skipped)

    @property
    def exit_status(self) -> int:
        """0; 1 where images were skipped or not drawn; 2 after an error; 128 + its number after a signal."""
        number = interrupts.received()
        if number is not None:
            return Interrupted(number).exit_status
        if self.end is not None:
            return EXIT_ERROR
        return EXIT_SKIPPED if self.skipped or self.undrawn else EXIT_OK


def shown(path: Source) -> str:
    """Return the path relative to the working directory where it lies inside; an address as it is."""
    if isinstance(path, RemoteImage):
        return path.url
    try:
        return in_utf8(path.resolve().relative_to(Path.cwd()).as_posix())
    except (OSError, ValueError):
        return in_utf8(path.as_posix())


def print_report(report: Report, options: InferenceOptions) -> None:
    """Print a row per image and the totals, and on standard error what is missing."""
    if not report.num_finished:
        _print_end(report, options)
        return
    _print_some("skipped", report.skipped)
    _print_some("no overlay", report.undrawn)
    console = table_console()
    table = Table("image", "size (w x h)")
    table.add_column("detections", justify="right")
    table.add_column("classes (best score)")
    for row in report.rows:
        # Text, not str: a file name with brackets is not rich's markup.
        table.add_row(*(Text(printable(cell), overflow="fold") for cell in row))
    console.print(table)
    if report.num_images > len(report.rows):
        print(f"and {report.num_images - len(report.rows)} more images; {LINES} has them all")
    for line in _totals(report, options):
        console.print(Text(line), soft_wrap=True)
    _print_end(report, options)


def _print_some(what: str, messages: list[str]) -> None:
    for message in messages[:_MOST_SKIPPED]:
        print(f"{what}: {printable(message)}", file=sys.stderr)
    if len(messages) > _MOST_SKIPPED:
        print(f"{what}: {len(messages) - _MOST_SKIPPED} more; {LINES} has them all", file=sys.stderr)


def _print_end(report: Report, options: InferenceOptions) -> None:
    number = interrupts.received()
    done = f"{report.num_finished} of {counted(report.num_files, 'image')} finished"
    kept = f"{done}, in {options.out / (RESULTS if report.written else LINES)}"
    if not report.num_finished:
        kept = f"{done}; nothing was written"
    if number is not None:
        print(printable(f"{Interrupted(number)}: {kept}"), file=sys.stderr)
    elif report.end is not None:
        words = str(report.end) or type(report.end).__name__
        print(f"error: {printable(words)}\nended early: {printable(kept)}", file=sys.stderr)


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


def _totals(report: Report, options: InferenceOptions) -> list[str]:
    lines = [
        f"{counted(report.num_detections, 'detection')} of score {options.score:g} or more "
        f"in {counted(report.num_images, 'image')}"
    ]
    if report.skipped:
        lines[0] += f", {len(report.skipped)} skipped"
    if report.num_resumed:
        lines.append(
            f"resumed: {report.num_resumed} of {counted(report.num_files, 'image')} were finished before"
        )
    if report.num_images > report.num_resumed:
        spent = report.milliseconds
        number = report.num_images - report.num_resumed
        stages = ", ".join(f"{stage} {spent[stage] / number:.1f}" for stage in _STAGES if stage in spent)
        rate = number / max(report.seconds, 1e-9)
        lines.append(f"{rate:.2f} images/s; ms per image, side by side: {stages}")
    lines.extend(report.notes)
    written = f"{RESULTS}, {IMAGES} and {LINES}" if report.written else LINES
    overlays = f", {counted(report.num_overlays, 'overlay')}" if options.overlays else ""
    labels = "".join(f", labels of {name}" for name in options.formats if name != "coco")
    crops = ", crops" if options.crops is not None else ""
    return [*lines, printable(f"wrote {written}{overlays}{labels}{crops} to {options.out}")]
