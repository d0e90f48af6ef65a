"""From image files to detections: files are read and decoded in threads while the model runs."""

import os
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Callable, Optional, TypeVar, Union

import numpy as np

from runtime.detections import Detections
from runtime.images import IN_COLOR, read_image
from runtime.ranges import MAX_BATCH, MAX_THREADS, checked_count
from runtime.remote import RemoteImage
from runtime.runner import Pending, Runner, Timings, add_timings
from runtime.transforms import Load

# Files that cannot be read, behind ones that can, before these run as a smaller batch.
_MOST_WAITING = 256
# How many files one of a rare size waits for others of its size: batches' worth, but at most so many, decoded.
_SIZE_WINDOW, _MOST_IN_WINDOW = 4, 256

# An image file, or the address of one.
Source = Union[Path, RemoteImage]
# An image's height and width -> what its height and width are in the network's input, px.
SizeOf = Callable[[int, int], tuple[int, int]]

Item = TypeVar("Item")
Result = TypeVar("Result")
Key = TypeVar("Key")


@dataclass(frozen=True, eq=False)
class FileResult:
    """What became of one file.

    Attributes:
        index: its place among the paths.
        path: of the file.
        detections: what was found; None where the file was skipped.
        error: why it was skipped, naming the file; empty where it was not.
        cause: the exception behind ``error``.
        problem: why the model's output for it is not a result (NaN, a label without a class), in words; else empty.
        image: (H, W, 3) uint8 BGR pixels, where they were asked for.
    """

    index: int
    path: Source
    detections: Optional[Detections] = None
    error: str = ""
    image: Optional[np.ndarray] = None
    cause: Optional[Exception] = None
    problem: str = ""


@dataclass(frozen=True, eq=False)
class _ReadFile:
    """A file as a reading thread leaves it; ``staged`` is the runner's, None with an error.

    Images of one ``size`` may run together; None: with any.
    """

    index: int
    path: Source
    staged: Any
    error: str
    image: Optional[np.ndarray]
    milliseconds: float
    cause: Optional[Exception]
    size: Optional[tuple[int, int]] = None

    def result(self, detections: Optional[Detections], problem: str) -> FileResult:
        return FileResult(
            self.index, self.path, detections, self.error, self.image, cause=self.cause, problem=problem
        )


def num_cores() -> int:
    """Return how many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def num_readers() -> int:
    """Return how many threads read and decode files where nobody says: of eight cores one is left to the caller.

    With all 16 cores of a machine decoding, a GPU waited for the thread that feeds it: 1225 instead of 1245 images/s.
    """
    cores = num_cores()
    return cores - cores // 8


def detect_files(
    runner: Runner,
    paths: Iterable[Union[str, Source]],
    *,
    load: Load = IN_COLOR,
    batch_size: int,
    min_score: float = 0.0,
    threads: Optional[int] = None,
    keep_images: bool = False,
    check_outputs: bool = False,
    timings: Timings = None,
    size_of: Optional[SizeOf] = None,
) -> Generator[FileResult, None, None]:
    """Yield what is found in image files, in their order.

    Memory holds the images of a few batches, however many files there are. Closing the iterator stops the threads.

    Args:
        runner: the model.
        paths: of the files, or addresses; those that cannot be read, or do not fit into the model, are reported as
            results.
        load: how files are decoded.
        batch_size: images that run at once; the last batch may be smaller.
        min_score: detections below it are left out.
        threads: that read and decode; None: ``num_readers()``.
        keep_images: return the pixels with the results.
        check_outputs: an image for which the model's output is not a result, NaN in a mask's probabilities included,
            has no detections and says so in ``problem``.
        timings: if given, milliseconds are added: ``read``, the sum over the threads, and those of ``Pending.result``.
        size_of: images for which it returns the same run together, so that none is padded for another's sake; a batch
            whose size is rare is smaller. Results still come in the files' order: where a later batch fails, those that
            wait for an earlier file are lost. None: they run in their order, padded to the largest of the batch.

    Raises:
        ValueError: an unusable argument.
        ValueError, RuntimeError: see ``Runner.submit`` and ``Pending.result``.
    """
    threads = num_readers() if threads is None else checked_count("threads", threads, MAX_THREADS)
    batch_size = checked_count("batch_size", batch_size, MAX_BATCH)
    # As many as the threads are at, and a batch that waits while another is collected.
    files = in_threads(
        lambda item: _read(runner, *item, load, keep_images, size_of),
        ((index, Path(path) if isinstance(path, str) else path) for index, path in enumerate(paths)),
        threads,
        threads + 2 * batch_size,
    )
    done: dict[int, FileResult] = {}
    turn = 0
    try:
        grouped = _groups(files, batch_size) if size_of is None else _groups_by_size(files, batch_size)
        groups = ((group, [f.staged for f in group if not f.error]) for group in grouped)
        for group, found, problems in _run(runner, groups, min_score, timings, check_outputs):
            results = iter(enumerate(found))
            for file in group:
                add_timings(timings, {"read": file.milliseconds})
                index, detections = (-1, None) if file.error else next(results)
                done[file.index] = file.result(detections, problems.get(index, ""))
            while turn in done:
                yield done.pop(turn)
                turn += 1
    finally:
        files.close()


def _read(
    runner: Runner, index: int, path: Source, load: Load, keep_image: bool, size_of: Optional[SizeOf]
) -> _ReadFile:
    start = time.perf_counter()
    staged, image, problem, cause, size = None, None, "", None, None
    try:
        image = path.read(load) if isinstance(path, RemoteImage) else read_image(path, load)
        staged = runner.stage(image)
        size = size_of(*image.shape[:2]) if size_of is not None else None
    except (OSError, ValueError) as error:
        problem = str(error) if str(path) in str(error) else f"{path}: {error}"
        image, cause = None, error
    spent = (time.perf_counter() - start) * 1e3
    return _ReadFile(index, path, staged, problem, image if keep_image else None, spent, cause, size)


def _groups(files: Iterator[_ReadFile], batch_size: int) -> Iterator[list[_ReadFile]]:
    """Yield files with ``batch_size`` readable ones among them; fewer at the end, and where many are unreadable."""
    group: list[_ReadFile] = []
    num_readable = 0
    for file in files:
        group.append(file)
        num_readable += not file.error
        # Files that cannot be read are not kept waiting for those that can: there may be nothing else.
        if num_readable == batch_size or not num_readable or len(group) - num_readable >= _MOST_WAITING:
            yield group
            group, num_readable = [], 0
    if group:
        yield group


def _groups_by_size(files: Iterator[_ReadFile], batch_size: int) -> Iterator[list[_ReadFile]]:
    """Yield ``batch_size`` files of one size, fewer where no others come soon; one that cannot be read by itself."""
    # The first has waited the longest: a size's place is that of its first file.
    waiting: dict[Optional[tuple[int, int]], list[_ReadFile]] = {}
    window = max(batch_size, min(_SIZE_WINDOW * batch_size, _MOST_IN_WINDOW))
    for file in files:
        if file.error:
            yield [file]
        else:
            group = waiting.setdefault(file.size, [])
            group.append(file)
            if len(group) == batch_size:
                yield waiting.pop(file.size)
        if waiting:
            size, oldest = next(iter(waiting.items()))
            if file.index - oldest[0].index >= window:
                yield waiting.pop(size)
    yield from waiting.values()


def run_batches(
    runner: Runner,
    batches: Iterable[tuple[Key, Sequence[Any]]],
    min_score: float = 0.0,
    timings: Timings = None,
) -> Iterator[tuple[Key, list[Detections]]]:
    """Yield each batch's key and detections, in order, with as many batches under way as the runner has slots.

    Args:
        runner: the model.
        batches: a key and staged images; without images, nothing is run.
        min_score, timings: see ``Runner.submit`` and ``Pending.result``.
    """
    for key, found, _ in _run(runner, batches, min_score, timings, check=False):
        yield key, found


def _run(
    runner: Runner,
    batches: Iterable[tuple[Key, Sequence[Any]]],
    min_score: float,
    timings: Timings,
    check: bool,
) -> Iterator[tuple[Key, list[Detections], dict[int, str]]]:
    """Yield each batch's key, detections, and problems by index; with ``check`` these are raised by none."""
    under_way: deque[tuple[Key, Optional[Pending]]] = deque()
    for key, staged in batches:
        oldest = None
        if len(under_way) == runner.num_slots:
            oldest = _collected(under_way.popleft(), timings, check)
        pending = runner.submit(staged, min_score, check_masks=check) if staged else None
        under_way.append((key, pending))
        if oldest is not None:
            # Only now, so that the device has something to do while the caller looks at it.
            yield oldest
    while under_way:
        yield _collected(under_way.popleft(), timings, check)


def _collected(
    batch: tuple[Key, Optional[Pending]], timings: Timings, check: bool
) -> tuple[Key, list[Detections], dict[int, str]]:
    key, pending = batch
    problems: dict[int, str] = {}
    found = [] if pending is None else pending.result(timings, problems if check else None)
    return key, found, problems


def in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int, ahead: int
) -> Generator[Result, None, None]:
    """Yield ``function(item)`` for each item, in order, computed in threads, at most ``ahead`` of them in advance."""
    iterator = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        futures = deque(pool.submit(function, item) for item in islice(iterator, ahead))
        try:
            while futures:
                done = futures.popleft()
                result = done.result()
                futures.extend(pool.submit(function, item) for item in islice(iterator, 1))
                yield result
        finally:
            for future in futures:
                future.cancel()
