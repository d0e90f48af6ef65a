"""Images as they come from a file -> the network's input, bit for bit as mmdet's test pipeline makes it.

Pure functions of arrays. The steps are mmdet's ``Resize`` (through ``mmcv.imrescale`` / ``mmcv.imresize``)
and its ``DetDataPreprocessor`` (colour order, normalisation, zero padding at the bottom and right).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from runtime.metadata import ModelMetadata, ResizeRule


@dataclass(frozen=True, eq=False)
class BatchGeometry:
    """Where the images of a batch lie in the network's input, and what gets its results back to the original images.

    Attributes:
        image_sizes: (B, 2) float32, each image's (height, width) inside its padding, px.
        scale_factors: (B, 2) float64, (new_width / width, new_height / height): mmdet's ``scale_factor``.
        original_sizes: each image's own (height, width), px.
    """

    image_sizes: np.ndarray
    scale_factors: np.ndarray
    original_sizes: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.original_sizes)


@dataclass(frozen=True, eq=False)
class Batch(BatchGeometry):
    """A batch as the network takes it.

    Attributes:
        images: (B, 3, H, W) float32, normalised, in the model's colour order, zero outside each image.
    """

    images: np.ndarray


def resized_size(height: int, width: int, rule: ResizeRule) -> tuple[int, int]:
    """Return the (height, width) in px that an image has after resizing, padding not included.

    Edges are rounded as ``mmcv.imrescale`` rounds them, ``int(edge * scale + 0.5)``. An edge that this takes
    to zero (aspect ratios above 1000) stays at 1 px, where mmcv fails.
    """
    if rule.rule == "stretch":
        return rule.size
    if rule.rule == "keep_ratio":
        scale = min(max(rule.size) / max(height, width), min(rule.size) / min(height, width))
        return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))
    box_height, box_width = rule.size
    scale = min(box_height / height, box_width / width)
    # The rounding may not step over the box, which is the network's size.
    return (
        min(box_height, max(1, int(height * scale + 0.5))),
        min(box_width, max(1, int(width * scale + 0.5))),
    )


def network_size(height: int, width: int, metadata: ModelMetadata) -> tuple[int, int]:
    """Return ``resized_size`` for a model, having checked that the model can take it.

    Raises:
        ValueError: the model's size is fixed and the resized image does not fit into it.
    """
    resized = resized_size(height, width, metadata.resize)
    if metadata.size is not None and (resized[0] > metadata.size[0] or resized[1] > metadata.size[1]):
        raise ValueError(
            f"image of {height}x{width} px (height x width): expected to fit into the model's fixed "
            f"{metadata.size[0]}x{metadata.size[1]} after resizing, found {resized[0]}x{resized[1]} "
            f"by the rule {metadata.resize.rule} {metadata.resize.size}; export the model with "
            "`python -m export.maskrcnn --dynamic-size`, or with a --size that holds both orientations"
        )
    return resized


def check_image(image: np.ndarray, name: str = "image") -> None:
    """Refuse what is not a (H, W, 3) uint8 BGR array with at least one pixel.

    Raises:
        ValueError: another type, dtype, rank, channel count, or no pixels; the message says how to convert.
    """
    expected = f"{name}: expected a (H, W, 3) uint8 BGR array"
    if not isinstance(image, np.ndarray):
        raise ValueError(
            f"{expected}, found {type(image).__name__}; read files with runtime.images.read_image(path)"
        )
    found = f"{expected}, found shape {image.shape} {image.dtype}"
    if image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 1):
        raise ValueError(f"{found}; convert grey images with cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)")
    if image.ndim == 3 and image.shape[2] == 4:
        raise ValueError(f"{found}; drop the alpha channel with image[:, :, :3]")
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"{found}; pass a list of images, one array each, channels last")
    if image.dtype != np.uint8:
        raise ValueError(f"{found}; pass pixel values of 0 to 255 as uint8, normalisation is done here")
    if 0 in image.shape:
        raise ValueError(f"{found}; it has no pixels")


def prepare(images: Sequence[np.ndarray], metadata: ModelMetadata) -> Batch:
    """Resize, normalise, pad and stack images.

    Args:
        images: (H, W, 3) uint8 BGR arrays, sizes may differ.
        metadata: the model's facts.

    Returns:
        The batch. It has the model's fixed size, or with a dynamic size the smallest multiple of
        ``size_divisor`` that holds every image. No images give B = 0.

    Raises:
        ValueError: an image is not such an array, or does not fit into the model's fixed size.
    """
    for index, image in enumerate(images):
        check_image(image, f"images[{index}]")
    originals = [(int(image.shape[0]), int(image.shape[1])) for image in images]
    sizes = [network_size(height, width, metadata) for height, width in originals]
    # np.zeros is the padding: mmdet pads after normalisation.
    stacked = np.zeros((len(images), 3, *padded_size(sizes, metadata)), np.float32)
    tables = normalisation_tables(metadata)
    for image, (height, width), out in zip(images, sizes, stacked):
        _write_normalised(
            _resized(image, height, width), tables, out[:, :height, :width], metadata.color_order
        )
    return Batch(images=stacked, **vars(batch_geometry(originals, sizes)))


def batch_geometry(originals: Sequence[tuple[int, int]], sizes: Sequence[tuple[int, int]]) -> BatchGeometry:
    """Return the geometry of images of the (height, width) ``originals`` that are resized to ``sizes``, px."""
    scale_factors = [(w / ow, h / oh) for (h, w), (oh, ow) in zip(sizes, originals)]
    return BatchGeometry(
        image_sizes=np.array(sizes, np.float32).reshape(-1, 2),
        scale_factors=np.array(scale_factors, np.float64).reshape(-1, 2),
        original_sizes=tuple(originals),
    )


def padded_size(sizes: Sequence[tuple[int, int]], metadata: ModelMetadata) -> tuple[int, int]:
    """Return the (height, width) in px of a batch of images of these sizes: see ``prepare``."""
    if metadata.size is not None:
        return metadata.size
    divisor = metadata.size_divisor
    height, width = (max((size[axis] for size in sizes), default=1) for axis in (0, 1))
    return -(-height // divisor) * divisor, -(-width // divisor) * divisor


def _resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    if image.shape[:2] == (height, width):
        return image
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


def normalisation_tables(metadata: ModelMetadata) -> np.ndarray:
    """Return (3, 256) float32: the normalised value of every pixel value, per channel in ``color_order``.

    float32 throughout, first minus then divided, as torch computes it: a table of those 256 results is the
    same to the last bit and several times faster than the arithmetic on every pixel.
    """
    mean = np.array(metadata.mean, np.float32)[:, None]
    std = np.array(metadata.std, np.float32)[:, None]
    return (np.arange(256, dtype=np.float32) - mean) / std


def _write_normalised(image: np.ndarray, tables: np.ndarray, out: np.ndarray, color_order: str) -> None:
    planes = cv2.split(image)
    for table, plane, target in zip(tables, planes[::-1] if color_order == "rgb" else planes, out):
        written = cv2.LUT(plane, table, dst=target)
        # OpenCV writes into the view it is given as long as type and size fit; were it ever to allocate
        # instead, the image would silently stay zero.
        if not np.shares_memory(written, target):
            target[...] = written
