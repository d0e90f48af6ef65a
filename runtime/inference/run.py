"""Image files through a detector; what it finds is written image by image.

Whatever ends a run, a signal, a full disk or a device that fails: what was finished is in the files, and they are
valid.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Optional

from runtime.coco_writer import IMAGES, RESULTS, ResultsWriter
from runtime.console import tracked
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.files import locked, refuse_inputs, remove_abandoned
from runtime.inference.json_lines import LINES, JsonLinesWriter
from runtime.inference.options import InferenceOptions
from runtime.inference.overlays import OverlayError, overlay_paths, write_overlay
from runtime.inference.report import Report, shown
from runtime.interrupts import held, released
from runtime.messages import in_utf8
from runtime.pipeline import FileResult

# What ends a run with a message; the rest is a defect of ours.
_ENDS = (KeyboardInterrupt, OSError, ValueError, RuntimeError, MemoryError)


def check_outputs(out: Path, inputs: Sequence[Path]) -> None:
    """Refuse a folder that is none, and files in it that are read.

    Raises:
        ValueError: names both.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out}: expected a folder or a new name, found a file; name another")
    for name in (RESULTS, IMAGES, LINES):
        if (out / name).exists():
            refuse_inputs(out / name, inputs)


def detect_and_write(paths: Sequence[Path], detector: Detector, options: InferenceOptions) -> Report:
    """Detect in image files; write the COCO files, the JSON lines, and the overlays.

    Args:
        paths: of the files.
        detector: which detects.
        options: see there.

    Returns:
        What was done; of a run that ended early, what of it was finished, and why it ended. Where that is nothing,
        nothing is written.

    Raises:
        OSError, ValueError, RuntimeError: an error ended it before anything was finished.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    remove_abandoned(options.out)
    report, start = Report(len(paths)), time.perf_counter()
    with held():
        try:
            _write_all(paths, detector, options, report)
        except KeyboardInterrupt:
            pass  # before anything was finished
        except OSError as error:  # the disk is full; the lines are there
            if not report.num_finished:
                raise
            report.end = report.end or error
    report.seconds = time.perf_counter() - start
    report.notes = detector.notes
    return report


def _write_all(paths: Sequence[Path], detector: Detector, options: InferenceOptions, report: Report) -> None:
    with ExitStack() as stack:
        results = stack.enter_context(ResultsWriter(options.out, detector.metadata.classes))
        # Left first: where the disk is full, they are there.
        lines = stack.enter_context(JsonLinesWriter(options.out))
        run = _Run(detector, options, results, lines, report)
        report.end = run.process(paths)
        if report.end is not None and not report.num_finished:
            raise report.end
        # Else the names of one run could come between those of another.
        with locked(options.out):
            stack.close()
    report.written = True


class _Run:
    """The files of one run."""

    def __init__(
        self,
        detector: Detector,
        options: InferenceOptions,
        results: ResultsWriter,
        lines: JsonLinesWriter,
        report: Report,
    ) -> None:
        self._detector, self._options, self._report = detector, options, report
        self._results, self._lines = results, lines

    def process(self, paths: Sequence[Path]) -> Optional[BaseException]:
        """Write what is found in each file; return what ended it, or None."""
        options = self._options
        overlays = overlay_paths(paths, options.out) if options.overlays else []
        found = self._detector.detect_files(
            paths,
            min_score=min(options.score, options.json_score),
            keep_images=options.overlays,
            timings=self._report.milliseconds,
        )
        try:
            # Files, not images found readable: a skipped one counts as done.
            for result in _interruptible(tracked(found, len(paths), "detecting")):
                self._add(result, overlays[result.index] if options.overlays else None)
        except _ENDS as error:
            return error
        finally:
            found.close()
        return None

    def _add(self, result: FileResult, overlay: Optional[Path]) -> None:
        image_id, name = result.index + 1, shown(result.path)
        if result.detections is None:
            self._lines.add_skipped(image_id, name, in_utf8(result.error))
            self._report.skipped.append(result.error)
            return
        with self._report.stage("write"):
            kept = result.detections.filter(self._options.json_score)
            rows = self._results.add(kept, image_id, name)
            try:
                self._lines.add(image_id, name, kept.image_size, rows, kept.classes)
            except OSError:
                self._results.remove_last()  # no file has what another has not
                raise
        drawn = result.detections.filter(self._options.score)
        self._report.add(name, drawn)
        if overlay is not None:
            with self._report.stage("overlays"):
                self._draw(overlay, result, drawn)

    def _draw(self, overlay: Path, result: FileResult, drawn: Detections) -> None:
        try:
            write_overlay(overlay, result.image, drawn)
            self._report.num_overlays += 1
        except OverlayError as error:
            self._report.undrawn.append(str(error))


def _interruptible(results: Iterator[FileResult]) -> Iterator[FileResult]:
    """Yield the results; a signal cuts the waiting for one, and not what is done with it."""
    while True:
        with released():
            result = next(results, None)
        if result is None:
            return
        yield result
