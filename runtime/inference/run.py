"""Image files through a detector; what it finds is written image by image.

Whatever ends a run, a signal, a full disk or a device that fails: what was finished is in the files, and they are
valid.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from runtime.coco_writer import IMAGES, RESULTS, Identity, ResultsWriter, coco_results
from runtime.console import tracked
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.files import locked, make_folder, refuse_inputs, remove_abandoned
from runtime.inference.json_lines import LINES, JsonLinesWriter
from runtime.inference.label_files import label_files
from runtime.inference.options import Chosen, InferenceOptions, chosen_labels
from runtime.inference.overlays import OverlayError, overlay_paths, write_overlay
from runtime.inference.own_ids import OwnDataset
from runtime.inference.report import Report, shown
from runtime.inference.resuming import Earlier, ResumeError, check_same, earlier_run
from runtime.interop.coco import detections_from_rows
from runtime.interrupts import held, released
from runtime.messages import in_utf8
from runtime.pipeline import FileResult, Source

# What ends a run with a message; the rest is a defect of ours.
_ENDS = (KeyboardInterrupt, OSError, ValueError, RuntimeError, MemoryError)


@dataclass(frozen=True, eq=False)
class Own:
    """Ids of the user's own data set.

    Attributes:
        dataset: whose categories count.
        entries: of each source, its image.
    """

    dataset: OwnDataset
    entries: Sequence[dict]


@dataclass(frozen=True)
class _Identity:
    """What the files call a source."""

    image_id: Identity
    file_name: str


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


def detect_and_write(
    paths: Sequence[Source], detector: Detector, options: InferenceOptions, own: Optional[Own] = None
) -> Report:
    """Detect in image files; write the COCO files, the JSON lines, the overlays, and what else is asked for.

    Args:
        paths: of the files; or addresses.
        detector: which detects.
        options: see there.
        own: whose ids the results have; None: numbers from 1.

    Returns:
        What was done; of a run that ended early, what of it was finished, and why it ended. Where that is nothing,
        nothing is written.

    Raises:
        OSError, ValueError, RuntimeError: an error ended it before anything was finished, or there is no such class,
            or the earlier run is another one.
    """
    run = _Run(paths, detector, options, own)
    make_folder(options.out)
    remove_abandoned(options.out)
    report, start = Report(len(paths)), time.perf_counter()
    with held():
        try:
            run.write_all(report)
        except KeyboardInterrupt:
            pass  # before anything was finished
        except OSError as error:  # the disk is full; the lines are there
            if not report.num_finished:
                raise
            report.end = report.end or error
    report.seconds = time.perf_counter() - start
    report.notes = detector.notes
    return report


class _Run:
    """One run: its sources, and its files."""

    def __init__(
        self, paths: Sequence[Source], detector: Detector, options: InferenceOptions, own: Optional[Own]
    ) -> None:
        self._paths, self._detector, self._options, self._own = paths, detector, options, own
        facts = detector.metadata
        ids = None if own is None else own.dataset.category_ids(facts.classes)
        self._chosen: Chosen = chosen_labels(facts.classes, options.classes, ids)
        self._identities = _identities(paths, own)
        self._overlays = overlay_paths(paths, options.out) if options.overlays else []
        self._labels = label_files(options.out, options.formats, options.crops, paths)
        self._earlier = Earlier(options.out)
        if options.resume:
            expected = [vars(identity) for identity in self._identities]
            self._earlier = earlier_run(options.out, expected, detector.file_batch)
        self._compared = dict(enumerate(self._earlier.compared(), self._earlier.num_kept))
        self._report: Report
        self._results: ResultsWriter
        self._lines: JsonLinesWriter

    def write_all(self, report: Report) -> None:
        """Detect in all sources, and write."""
        self._report = report
        facts = self._detector.metadata
        with ExitStack() as stack:
            writer = ResultsWriter(
                self._options.out,
                facts.classes,
                category_ids=self._chosen.category_ids,
                categories=None if self._own is None else self._own.dataset.categories,
            )
            if facts.keypoints:
                writer.set_keypoints(facts.keypoints, facts.skeleton)
            self._results = stack.enter_context(writer)
            # Left first: where the disk is full, they are there.
            least = max(1, self._earlier.num_lines)
            self._lines = stack.enter_context(JsonLinesWriter(self._options.out, least=least))
            if self._labels is not None:
                self._labels.begin(facts.classes)
            self._take_over()
            report.end = self._process()
            if report.end is not None and not report.num_finished:
                raise report.end
            # Else the names of one run could come between those of another.
            with locked(self._options.out):
                stack.close()
        report.written = True

    def _take_over(self) -> None:
        """Write what an earlier run has found."""
        for number, line in enumerate(self._earlier.kept()):
            identity = self._identities[number]
            self._lines.add_line(line)
            self._report.num_resumed += 1
            if "skipped" in line:
                self._report.skipped.append(line["skipped"])
                continue
            rows = [_row(detection, identity) for detection in line["detections"]]
            size = (line["height"], line["width"])
            self._results.add_results(rows, identity.image_id, identity.file_name, size)
            found = detections_from_rows(rows, size, self._detector.metadata, self._chosen.category_ids)
            self._report.add(identity.file_name, found.filter(self._options.score))

    def _process(self) -> Optional[BaseException]:
        """Write what is found in each source; return what ended it, or None."""
        options, begin = self._options, self._earlier.num_kept
        paths = self._paths[begin:]
        found = self._detector.detect_files(
            paths,
            min_score=min(options.score, options.json_score),
            keep_images=options.overlays or options.crops is not None,
            timings=self._report.milliseconds,
            by_size=options.by_size,
        )
        try:
            # Files, not images found readable: a skipped one counts as done.
            for result in _interruptible(tracked(found, len(paths), "detecting")):
                self._add(result, result.index + begin)
        except ResumeError:
            raise
        except _ENDS as error:
            return error
        finally:
            found.close()
        return None

    def _add(self, result: FileResult, index: int) -> None:
        identity = self._identities[index]
        if result.detections is None:
            self._check_resumed(index, None)
            self._lines.add_skipped(identity.image_id, identity.file_name, in_utf8(result.error))
            self._report.skipped.append(result.error)
            return
        found = self._chosen.of(result.detections)
        kept, drawn = found.filter(self._options.json_score), found.filter(self._options.score)
        self._check_resumed(index, kept)
        with self._report.stage("write"):
            self._write(kept, identity)
        self._report.add(identity.file_name, drawn)
        # Last what is large: a run that is resumed makes these of the last batch again.
        if self._labels is not None:
            with self._report.stage("write"):
                self._labels.write(index, result.image, drawn)
        if self._options.overlays:
            with self._report.stage("overlays"):
                self._draw(self._overlays[index], result, drawn)

    def _write(self, kept: Detections, identity: _Identity) -> None:
        image_id, name, ids = identity.image_id, identity.file_name, self._chosen.category_ids
        rows = self._results.add(kept, image_id, name)
        try:
            self._lines.add(image_id, name, kept.image_size, rows, kept.classes, ids)
        except OSError:
            self._results.remove_last()  # no file has what another has not
            raise

    def _check_resumed(self, index: int, found: Optional[Detections]) -> None:
        """Compare with what an earlier run has found in this source; None where it cannot be read."""
        before = self._compared.pop(index, None)
        if before is None:
            return
        now: dict[str, Any] = {"skipped": ""}
        if found is not None:
            now = {"detections": coco_results(found, 0, "", self._chosen.category_ids)}
        check_same(self._earlier.path, before, now)

    def _draw(self, overlay: Path, result: FileResult, drawn: Detections) -> None:
        try:
            write_overlay(overlay, result.image, drawn)
            self._report.num_overlays += 1
        except OverlayError as error:
            self._report.undrawn.append(str(error))


def _identities(paths: Sequence[Source], own: Optional[Own]) -> list[_Identity]:
    if own is not None:
        return [_Identity(entry["id"], entry["file_name"]) for entry in own.entries]
    return [_Identity(number, shown(path)) for number, path in enumerate(paths, 1)]


def _row(detection: dict, identity: _Identity) -> dict:
    """Return a line's detection as ``coco_results`` made it, its keys in their order."""
    values = dict(detection)
    first = {
        "image_id": identity.image_id,
        "category_id": values.pop("category_id"),
        "bbox": values.pop("bbox"),
        "score": values.pop("score"),
        "file_name": identity.file_name,
    }
    del values["category"]
    return {**first, **values}


def _interruptible(results: Iterator[FileResult]) -> Iterator[FileResult]:
    """Yield the results; a signal cuts the waiting for one, and not what is done with it."""
    while True:
        with released():
            result = next(results, None)
        if result is None:
            return
        yield result
