"""What two models, or recorded results, find in the same images, matched by class and box."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, TypeVar, Union

import numpy as np

from runtime.comparison.difference import DetectionArrays, Difference, Tolerance, compare_image
from runtime.comparison.sources import Artifact, ImageResult, MadeBy, open_artifact
from runtime.detections import Detections

Item = TypeVar("Item")
# Yields the items, and may show how far one is.
Progress = Callable[[Iterable[Item], int, str], Iterator[Item]]


def no_progress(items: Iterable[Item], total: int, description: str) -> Iterator[Item]:
    """Yield the items."""
    del total, description
    return iter(items)


@dataclass(frozen=True)
class ImageComparison:
    """One image's outcome.

    Attributes:
        image: its path.
        difference: of the detections.
        violations: what is beyond the tolerance, in words; empty if nothing is.
    """

    image: Path
    difference: Difference
    violations: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """What two artifacts find in the same images.

    Attributes:
        images: of each.
        expected, found: which way the results of each were made.
    """

    images: tuple[ImageComparison, ...]
    expected: MadeBy
    found: MadeBy

    @property
    def agrees(self) -> bool:
        """Whether nothing is beyond the tolerance."""
        return not any(image.violations for image in self.images)


def compare(
    expected: Union[str, Path],
    found: Union[str, Path],
    images: Sequence[Path],
    *,
    tolerance: Tolerance = Tolerance(),  # noqa: B008  (frozen)
    backends: tuple[str, str] = ("auto", "auto"),
    batch: int = 1,
    host: bool = False,
    options: Sequence[dict[str, Any]] = ({}, {}),
    progress: Progress = no_progress,
) -> Comparison:
    """Compare what two models or recordings find in image files.

    Args:
        expected, found: exported models, engines, or recordings (``.npz``).
        images: files.
        tolerance: see there.
        backends: of each; see ``Detector``.
        batch: images that run at once.
        host: see ``Detector``.
        options: of the backend of each.
        progress: shows how far it is.

    Raises:
        FileNotFoundError, ValueError, RuntimeError: see ``open_artifact`` and ``compare_artifacts``.
    """
    with ExitStack() as stack:
        a, b = (
            stack.enter_context(open_artifact(path, backend, batch, host=host, **own))
            for path, backend, own in progress(zip((expected, found), backends, options), 2, "loading")
        )
        compared = compare_artifacts(a, b, images, tolerance, progress)
        return Comparison(tuple(compared), a.made_by, b.made_by)


def compare_artifacts(
    expected: Artifact,
    found: Artifact,
    images: Sequence[Path],
    tolerance: Tolerance,
    progress: Progress = no_progress,
) -> list[ImageComparison]:
    """Compare what two artifacts find in image files.

    Raises:
        ValueError: their classes differ, or an image does not fit.
        FileNotFoundError: an image is missing.
    """
    _check_classes(expected, found)
    pairs = zip(expected(images), found(images))
    return [_compared(a, b, tolerance) for a, b in progress(pairs, len(images), "comparing")]


def arrays_from_detections(detections: Detections) -> DetectionArrays:
    """Return detections as ``compare_image`` takes them; masks are pasted one at a time."""
    masks = _PastedMasks(detections) if detections.has_masks else None
    return DetectionArrays(detections.boxes, detections.scores, detections.labels, masks)


class _PastedMasks:
    """(n, H, W) bool masks of which one exists at a time."""

    def __init__(self, detections: Detections) -> None:
        self._detections = detections

    def __len__(self) -> int:
        return len(self._detections)

    def __getitem__(self, index: int) -> np.ndarray:
        mask = np.zeros(self._detections.image_size, bool)
        crop = self._detections.mask_source.crop(index)
        mask[crop.window] = crop.pixels
        return mask


def _check_classes(expected: Artifact, found: Artifact) -> None:
    if expected.classes == found.classes:
        return
    pairs = enumerate(zip(expected.classes, found.classes))
    differing = next(
        (f"label {i} is {a!r} and {b!r}" for i, (a, b) in pairs if a != b), "the first are equal"
    )
    raise ValueError(
        f"classes: expected {expected.name} and {found.name} to have the same, found {len(expected.classes)} and "
        f"{len(found.classes)}, {differing}; compare models of the same checkpoint"
    )


def _compared(expected: ImageResult, found: ImageResult, tolerance: Tolerance) -> ImageComparison:
    difference = compare_image(*(arrays_from_detections(side.detections) for side in (expected, found)))
    problems = [
        f"{side} is not a result: {result.problem}"
        for side, result in (("A", expected), ("B", found))
        if result.problem
    ]
    # Where a side has no result, that all detections are missing says nothing more.
    return ImageComparison(expected.path, difference, tuple(problems or difference.violations(tolerance)))
