"""COCO's run-length encoding of masks: made from a mask's crop alone, or taken as it is."""

from dataclasses import dataclass
from types import ModuleType

import cv2
import numpy as np

from runtime.detections import MaskCrop


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
