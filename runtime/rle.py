"""COCO's run-length encoding of masks: made from a mask's crop alone, or taken as it is once it has been checked."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Union

import cv2
import numpy as np

from runtime.masks import MaskCrop

# pycocotools shifts C ints while it unpacks a run: longer ones than this come out as something else.
MAX_PIXELS = 1 << 29
_FIRST_CHARACTER = 48  # "0"
_MORE, _SIGN, _DIGIT = 0x20, 0x10, 0x1F
_MOST_CHARACTERS = 6  # of one number, 5 bits each


def rle_from_crop(crop: MaskCrop, image_size: tuple[int, int]) -> dict:
    """Return ``{"size": [H, W], "counts": str}``, what ``pycocotools.mask.encode`` makes of the whole mask.

    ``encode`` reads every pixel of the image; this looks only at the crop, and leaves to pycocotools the
    packing of the counts into a string.
    """
    coco_mask = load_pycocotools()
    height, width = image_size
    lengths = {"size": [height, width], "counts": run_lengths(crop, image_size)}
    encoded = coco_mask.frPyObjects(lengths, height, width)
    return {"size": [height, width], "counts": encoded["counts"].decode("ascii")}


@dataclass(frozen=True, eq=False)
class RunLengthMasks:
    """Masks as COCO's compressed run lengths; a ``MaskSource``.

    Attributes:
        counts: the ``counts`` of each mask.
        image_size: (height, width) of the image, px.
    """

    counts: tuple[bytes, ...]
    image_size: tuple[int, int]

    def crop(self, index: int) -> MaskCrop:
        """Decode mask ``index``; the crop is its bounding box."""
        coco_mask = load_pycocotools()
        lengths = {"size": list(self.image_size), "counts": self.counts[index]}
        left, top, width, height = (int(v) for v in coco_mask.toBbox(lengths))
        pixels = coco_mask.decode(lengths)[top : top + height, left : left + width]
        return MaskCrop(np.ascontiguousarray(pixels, np.uint8).view(bool), top, left)

    def rle(self, index: int) -> dict:
        """Return mask ``index`` as ``{"size": [H, W], "counts": str}``."""
        return {"size": list(self.image_size), "counts": self.counts[index].decode("ascii")}

    def select(self, keep: np.ndarray) -> "RunLengthMasks":
        """Return the masks at ``keep`` ((n,) bool or indices)."""
        indices = np.arange(len(self.counts))[keep]
        return RunLengthMasks(tuple(self.counts[i] for i in indices), self.image_size)


def checked_counts(counts: Union[str, bytes], image_size: tuple[int, int]) -> bytes:
    """Return compressed run lengths that pycocotools can take: its loops do not end, or end early, with others.

    Args:
        counts: COCO's string.
        image_size: (height, width) of the mask, px.

    Returns:
        ``counts``, made anew where runs of no length lie between others.

    Raises:
        ValueError: it is no such string, or its runs are not the mask's; without the place, which the caller knows.
    """
    data = counts.encode("utf-8", "surrogatepass") if isinstance(counts, str) else counts
    runs = runs_from_counts(data)
    check_runs(runs, image_size)
    return data if runs[1:].all() else counts_from_runs(runs, image_size)


def runs_from_counts(counts: bytes) -> np.ndarray:
    """Return the run lengths in COCO's string, (n,) int64, zeros first. Some may be negative if it is damaged.

    The inverse of ``rleToString`` in cocoapi's ``maskApi.c``: a number has 5 bits per character, the lowest first, a
    bit for "more follows" and a sign; from the fourth on, it is the difference to the last but one.

    Raises:
        ValueError: other characters, or a number without an end or of too many of them.
    """
    codes = np.frombuffer(counts, np.uint8).astype(np.int64) - _FIRST_CHARACTER
    wrong = np.flatnonzero((codes < 0) | (codes >= 2 * _MORE))
    if len(wrong):
        character = counts[wrong[0] : wrong[0] + 1]
        raise ValueError(f"expected the characters '0' to 'o', found {character!r} at {wrong[0]}")
    ends = np.flatnonzero((codes & _MORE) == 0)
    if len(codes) and (not len(ends) or ends[-1] != len(codes) - 1):
        raise ValueError("expected a string with a whole last number, found one that was cut off")
    if not len(codes):
        return np.zeros(0, np.int64)
    lengths = np.diff(ends, prepend=-1)
    if lengths.max() > _MOST_CHARACTERS:
        raise ValueError(
            f"expected numbers of up to {_MOST_CHARACTERS} characters, found one of {lengths.max()}"
        )
    starts = ends - lengths + 1
    places = np.arange(len(codes)) - np.repeat(starts, lengths)
    values = np.add.reduceat((codes & _DIGIT) << (5 * places), starts)
    values -= np.where(codes[ends] & _SIGN, 1 << (5 * lengths), 0)
    for first in (1, 2):
        values[first::2] = np.cumsum(values[first::2])
    return values


def check_runs(runs: np.ndarray, image_size: tuple[int, int]) -> None:
    """Refuse run lengths, (n,) int64, that do not make up a mask.

    Raises:
        ValueError: one is negative, or their sum is not height * width; without the place.
    """
    height, width = image_size
    if len(runs) and runs.min() < 0:
        raise ValueError(f"expected runs of 0 or more pixels, found one of {runs.min()}")
    if runs.sum() != height * width:
        raise ValueError(
            f"expected runs of {height} * {width} = {height * width} pixels, found {runs.sum()} in {len(runs)} runs"
        )


def counts_from_runs(runs: Union[np.ndarray, Sequence[int]], image_size: tuple[int, int]) -> bytes:
    """Return COCO's string for run lengths that ``check_runs`` passes; without runs of no length between others."""
    height, width = image_size
    lengths = {"size": [height, width], "counts": _without_empty_runs(np.asarray(runs, np.int64)).tolist()}
    return load_pycocotools().frPyObjects(lengths, height, width)["counts"]


def _without_empty_runs(runs: np.ndarray) -> np.ndarray:
    """Join the runs on both sides of an empty one; the first, of zeros, may be empty."""
    ends = np.cumsum(runs)[runs > 0]
    values = (np.arange(len(runs)) % 2)[runs > 0]
    if not len(ends):
        return np.zeros(1, np.int64)
    last = np.append(values[1:] != values[:-1], True)
    joined = np.diff(ends[last], prepend=0)
    return joined if values[0] == 0 else np.concatenate(([0], joined))


def load_pycocotools() -> ModuleType:
    """Return ``pycocotools.mask``, imported at first use since nothing else needs it.

    Raises:
        RuntimeError: it is not installed.
    """
    try:
        from pycocotools import mask
    except ImportError as error:
        raise RuntimeError(
            f"COCO run lengths: expected pycocotools, found {error}; `pip install pycocotools`"
        ) from error
    return mask


def run_lengths(crop: MaskCrop, image_size: tuple[int, int]) -> list[int]:
    """Return the lengths of the alternating runs of the whole mask in column-major order, zeros first.

    Their sum is H * W. An empty mask is one run of zeros.
    """
    height, width = image_size
    positions = _run_boundaries(crop, height)
    bounds = np.concatenate(([0], positions, [height * width]))
    counts = np.diff(bounds)
    # A mask that reaches the image's last pixel has no run of zeros after it.
    if len(counts) > 1 and counts[-1] == 0:
        counts = counts[:-1]
    return counts.tolist()


def _run_boundaries(crop: MaskCrop, height: int) -> np.ndarray:
    """Return the column-major positions in the image where the mask changes value, in order."""
    crop_height, crop_width = crop.pixels.shape
    if crop.pixels.size == 0:
        return np.zeros(0, np.intp)
    # Each column between two zeros, so that every run starts and ends within its column.
    padded = np.zeros((crop_width, crop_height + 2), np.uint8)
    padded[:, 1:-1] = cv2.transpose(crop.pixels.view(np.uint8)).reshape(crop_width, crop_height)
    changes = np.flatnonzero(padded.ravel()[1:] != padded.ravel()[:-1])
    columns, rows = np.divmod(changes, crop_height + 2)
    positions = (columns + crop.left) * height + rows + crop.top
    return _joined(positions)


def _joined(positions: np.ndarray) -> np.ndarray:
    """Drop each end that is the next run's start: at the image's bottom a run goes on in the next column."""
    starts, ends = positions[0::2], positions[1::2]
    apart = ends[:-1] != starts[1:]
    first = np.ones(min(1, len(starts)), bool)
    return np.column_stack(
        (starts[np.concatenate((first, apart))], ends[np.concatenate((apart, first))])
    ).ravel()
