"""Images as they come from a file -> the network's input, bit for bit as mmdet's test pipeline makes it.

Pure functions of arrays. The steps are those of ``runtime.transforms``, then what mmdet's ``DetDataPreprocessor`` does:
colour order, normalisation, padding at the bottom and right.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional, Union

import cv2
import numpy as np

from runtime.contract import images_shape
from runtime.metadata import ModelMetadata
from runtime.runner import NewArray
from runtime.transforms import (
    CenterPad,
    Normalize,
    Pad,
    Size,
    Step,
    applied,
    final_scale_factor,
    final_size,
    is_resize,
)


@dataclass(frozen=True, eq=False)
class BatchGeometry:
    """Where the images of a batch lie in the network's input, and what gets its results back to the original images.

    Attributes:
        image_sizes: (B, 2) float32, each image's (height, width) inside its padding, px.
        scale_factors: (B, 2) float64, (x, y): mmdet's ``scale_factor``.
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
        images: (B, C, H, W) float32, normalised, in the model's colour order, its pad value outside each image; of a
            model whose input is uint8, its pixels (``ModelMetadata.input``), 0 outside each image.
    """

    images: np.ndarray


def network_size(height: int, width: int, metadata: ModelMetadata) -> Size:
    """Return the (height, width) in px that an image has in the network's input, padding not included.

    Raises:
        ValueError: the model's size is fixed and the image does not fit into it.
    """
    found = final_size(height, width, metadata.steps)
    if metadata.size is not None and (found[0] > metadata.size[0] or found[1] > metadata.size[1]):
        raise ValueError(
            f"image of {height}x{width} px (height x width): expected to fit into the model's fixed "
            f"{metadata.size[0]}x{metadata.size[1]} after its test pipeline, found {found[0]}x{found[1]}; export the "
            "model without --size, or with one that holds it"
        )
    return found


def check_image(image: np.ndarray, name: str = "image", metadata: Optional[ModelMetadata] = None) -> None:
    """Refuse what is not an uint8 array of pixels that the model takes: (H, W, 3) BGR, of grey models (H, W).

    Raises:
        ValueError: another type, dtype, rank, channel count, or no pixels; the message says how to convert.
    """
    grey = metadata is not None and metadata.load.is_grey
    unchanged = metadata is not None and metadata.load.color_type == "unchanged"
    kind = "(H, W) uint8 grey" if grey else "(H, W, 3) uint8 BGR"
    expected = f"{name}: expected a {'uint8' if unchanged else kind} array"
    if not isinstance(image, np.ndarray):
        raise ValueError(
            f"{expected}, found {type(image).__name__}; read files with runtime.images.read_image(path)"
        )
    found = f"{expected}, found shape {image.shape} {image.dtype}"
    if unchanged:
        _check_unchanged(image, found, metadata)
    elif grey:
        if image.ndim != 2 and (image.ndim != 3 or image.shape[2] != 1):
            raise ValueError(f"{found}; convert it with cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)")
    elif image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 1):
        raise ValueError(f"{found}; convert grey images with cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)")
    elif image.ndim == 3 and image.shape[2] == 4:
        raise ValueError(f"{found}; drop the alpha channel with image[:, :, :3]")
    elif image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"{found}; pass a list of images, one array each, channels last")
    if image.dtype != np.uint8:
        raise ValueError(f"{found}; pass pixel values of 0 to 255 as uint8, normalisation is done here")
    if 0 in image.shape:
        raise ValueError(f"{found}; it has no pixels")


def check_fits(image: np.ndarray, metadata: ModelMetadata, name: str = "image") -> None:
    """Refuse what the model does not take: see ``check_image`` and ``network_size``.

    Raises:
        ValueError: begins with the name.
    """
    try:
        check_image(image, name, metadata)
        network_size(image.shape[0], image.shape[1], metadata)
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(name) else f"{name}: {error}") from error


def _check_unchanged(image: np.ndarray, found: str, metadata: ModelMetadata) -> None:
    """An image as it lies in its file must have the network's channels; the exchange of two drops a fourth."""
    channels = 1 if image.ndim == 2 else image.shape[2] if image.ndim == 3 else 0
    allowed = (3, 4) if metadata.color_order == "rgb" else (metadata.channels,)
    if channels not in allowed:
        raise ValueError(
            f"{found}; the model reads files as they are and takes {' or '.join(map(str, allowed))} channels: "
            "convert the file, or name other files"
        )


def prepare(
    images: Sequence[np.ndarray], metadata: ModelMetadata, new_array: Optional[NewArray] = None
) -> Batch:
    """Take images through the model's steps, normalise, pad and stack them.

    Args:
        images: uint8 arrays as ``check_image`` takes them, sizes may differ.
        metadata: the model's facts.
        new_array: makes the array of the network's input, of no particular content; None: NumPy does.

    Returns:
        The batch. It has the model's fixed size, or with a dynamic size the smallest multiple of
        ``size_divisor`` that holds every image. No images give B = 0.

    Raises:
        ValueError: an image is not such an array, or does not fit into the model's fixed size.
    """
    for index, image in enumerate(images):
        check_image(image, f"images[{index}]", metadata)
    originals = [(int(image.shape[0]), int(image.shape[1])) for image in images]
    sizes = [network_size(height, width, metadata) for height, width in originals]
    make = _normalised if metadata.input == "float32" else _pixels
    return Batch(images=make(images, sizes, metadata, new_array), **vars(batch_geometry(originals, metadata)))


def _normalised(
    images: Sequence[np.ndarray],
    sizes: Sequence[Size],
    metadata: ModelMetadata,
    new_array: Optional[NewArray],
) -> np.ndarray:
    """Return the network's input, (B, C, H, W) float32, of images that have these sizes in it."""
    # mmdet pads after normalisation.
    shape = (len(images), metadata.channels, *padded_size(sizes, metadata))
    stacked = _filled(shape, np.dtype("float32"), metadata.pad_value, new_array)
    tables = normalisation_tables(metadata)
    for image, (height, width), out in zip(images, sizes, stacked):
        pixels = applied(loaded(image, metadata), metadata.steps)
        if pixels.ndim == 2:
            pixels = pixels[..., None]
        target = out[:, :height, :width]
        if pixels.dtype == np.uint8:
            _write_tables(pixels, tables, target, metadata.color_order)
        else:
            _write_normalised(pixels, metadata, target)
    return stacked


def _filled(
    shape: tuple[int, ...], dtype: np.dtype, value: float, new_array: Optional[NewArray]
) -> np.ndarray:
    if new_array is None:
        return np.full(shape, value, dtype) if value else np.zeros(shape, dtype)
    array = new_array(shape, dtype)
    array.fill(value)
    return array


def _pixels(
    images: Sequence[np.ndarray],
    sizes: Sequence[Size],
    metadata: ModelMetadata,
    new_array: Optional[NewArray],
) -> np.ndarray:
    """Return the network's input where that is the steps' pixels: uint8, 0 outside each image."""
    shape = images_shape(metadata, padded_size(sizes, metadata), len(images))
    stacked = _filled(shape, np.dtype("uint8"), 0, new_array)
    for image, (height, width), out in zip(images, sizes, stacked):
        pixels = applied(loaded(image, metadata), metadata.steps)
        if pixels.dtype != np.uint8:
            raise ValueError(
                f"image: expected the test pipeline to leave uint8 pixels for a model that normalises them itself, "
                f"found {pixels.dtype}; convert the float32 file again"
            )
        pixels = pixels.reshape(height, width, -1)[..., : metadata.channels]
        target = out if metadata.input == "uint8_nhwc" else out.transpose(1, 2, 0)
        target[:height, :width] = pixels
    return stacked


def loaded(image: np.ndarray, metadata: ModelMetadata) -> np.ndarray:
    """Return a decoded image as the first step gets it."""
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    return image.astype(np.float32) if metadata.load.to_float32 else image


def batch_geometry(originals: Sequence[Size], metadata: ModelMetadata) -> BatchGeometry:
    """Return the geometry of images of these (height, width), px, in the model's input."""
    sizes = [final_size(*size, metadata.steps) for size in originals]
    scale_factors = [final_scale_factor(*size, metadata.steps) for size in originals]
    return BatchGeometry(
        image_sizes=np.array(sizes, np.float32).reshape(-1, 2),
        scale_factors=np.array(scale_factors, np.float64).reshape(-1, 2),
        original_sizes=tuple(originals),
    )


def padded_size(sizes: Sequence[Size], metadata: ModelMetadata) -> Size:
    """Return the (height, width) in px of a batch of images of these sizes: see ``prepare``."""
    if metadata.size is not None:
        return metadata.size
    divisor = metadata.size_divisor
    height, width = (max((size[axis] for size in sizes), default=1) for axis in (0, 1))
    return -(-height // divisor) * divisor, -(-width // divisor) * divisor


def size_alone(height: int, width: int, metadata: ModelMetadata) -> Size:
    """Return the (height, width) in px of the network's input for one image of a (height, width), alone.

    Raises:
        ValueError: a step makes more pixels than memory is to be taken for.
    """
    return padded_size([final_size(height, width, metadata.steps)], metadata)


def typical_sizes(metadata: ModelMetadata) -> Optional[tuple[tuple[Size, Size], Size]]:
    """Return what sizes the network's input has, padding included, (height, width) in px.

    Returns:
        (the least and the largest height and width of images of any shape, the size of a wide photograph); None where
        the steps do not bound them. Found by asking the steps, over aspect ratios from 1:100 to 100:1.
    """
    edges = [(edge, edge) for edge in (_LARGE_EDGE, 2 * _LARGE_EDGE)]
    try:
        *sizes, large, larger = [size_alone(*size, metadata) for size in (*_ANY_SHAPE, *edges)]
    except ValueError:  # more pixels than an image may have
        return None
    if large != larger:
        return None
    low = (min(s[0] for s in sizes), min(s[1] for s in sizes))
    high = (max(s[0] for s in sizes), max(s[1] for s in sizes))
    typical = size_alone(1200, 2000, metadata)
    # A short edge alone is asked for: the long one has no end.
    return None if max(high) > 10 * max(typical) else ((low, high), typical)


_LARGE_EDGE = 20000
_ANY_SHAPE = [
    size
    for edge in (100, 640, 1000, 4000, _LARGE_EDGE)
    for ratio in (1, 1.2, 4 / 3, 1.5, 5 / 3, 16 / 9, 2, 3, 10, 100)
    for size in ((edge, max(1, round(edge / ratio))), (max(1, round(edge / ratio)), edge))
]


def normalisation_tables(metadata: ModelMetadata) -> np.ndarray:
    """Return (C, 256) float32: the normalised value of every uint8 value, per channel of the network's input.

    float32 throughout, first minus then divided, as torch computes it: a table of those 256 results is the
    same to the last bit and several times faster than the arithmetic on every pixel.
    """
    mean = np.array(metadata.mean, np.float32)[:, None]
    std = np.array(metadata.std, np.float32)[:, None]
    return (np.arange(256, dtype=np.float32) - mean) / std


def _write_tables(image: np.ndarray, tables: np.ndarray, out: np.ndarray, color_order: str) -> None:
    planes = cv2.split(image)
    for table, plane, target in zip(tables, planes[2::-1] if color_order == "rgb" else planes, out):
        written = cv2.LUT(plane, table, dst=target)
        # OpenCV writes into the view it is given as long as type and size fit; were it ever to allocate
        # instead, the image would silently stay zero.
        if not np.shares_memory(written, target):
            target[...] = written


def _write_normalised(image: np.ndarray, metadata: ModelMetadata, out: np.ndarray) -> None:
    """The same of float32 pixels."""
    planes = image.transpose(2, 0, 1)
    if metadata.color_order == "rgb":
        planes = planes[2::-1]
    mean = np.array(metadata.mean, np.float32)[:, None, None]
    std = np.array(metadata.std, np.float32)[:, None, None]
    np.divide(planes - mean, std, out=out)


@dataclass(frozen=True, eq=False)
class DevicePlan:
    """Which part of ``prepare`` the plugin library's ``prepare_images`` does.

    Attributes:
        host_steps: steps that the host does first, on uint8 pixels.
        resize: the step that the kernel does, bilinear as OpenCV's; None where the host did it.
        steps: those after it, of which the kernel's tables and padding are the result.
        tables: (3, 256) float32, per channel of the network's input, the value of each value of a pixel.
        reverse_channels: the input's first channel is the image's third.
    """

    host_steps: tuple[Step, ...]
    resize: Optional[Step]
    steps: tuple[Step, ...]
    tables: np.ndarray
    reverse_channels: bool

    def content_size(self, height: int, width: int) -> Size:
        """Return the (height, width) in px of the pixels of an image of that size, ``Pad`` not included."""
        height, width = final_size(height, width, self.host_steps)
        return (height, width) if self.resize is None else self.resize.size(height, width)


def device_plan(metadata: ModelMetadata) -> Union[DevicePlan, str]:
    """Return how images are prepared on the device, or in words why they are not."""
    if metadata.input != "float32":
        return f"the network's input is {metadata.input}: it normalises pixels itself"
    if metadata.channels != 3 or metadata.load.color_type == "unchanged" or metadata.load.is_grey:
        return f"the network's input has {metadata.channels} channels, read as {metadata.load.color_type}"
    if metadata.load.to_float32:
        return "the test pipeline's images are float32 before they are resized (to_float32)"
    if metadata.masks == "crop" and any(isinstance(step, CenterPad) for step in metadata.steps):
        return "the test pipeline pads around the image, from which masks are not moved back on the device"
    steps = list(metadata.steps)
    resize = steps.pop(0) if steps and _is_kernels_resize(steps[0]) else None
    host: list[Step] = []
    while steps and not _is_pointwise(steps, metadata):
        host.append(steps.pop(0))
    if any(isinstance(step, Normalize) for step in host):
        return "the test pipeline changes sizes after Normalize"
    if host and resize is not None:
        host, resize = [resize, *host], None
    reverse = (
        sum(isinstance(s, Normalize) and s.to_rgb for s in steps) + (metadata.color_order == "rgb")
    ) % 2 == 1
    return DevicePlan(tuple(host), resize, tuple(steps), _composed_tables(steps, metadata), reverse)


def _is_kernels_resize(step: Any) -> bool:
    return is_resize(step) and step.backend == "cv2" and step.interpolation == "bilinear"


def _is_pointwise(steps: Sequence[Step], metadata: ModelMetadata) -> bool:
    """Whether every step is a Normalize, or a Pad whose pixels become the pad value of the network's input."""
    for index, step in enumerate(steps):
        if isinstance(step, Pad):
            if step.mode != "constant" or not _becomes_pad_value(step, index, steps, metadata):
                return False
        elif not isinstance(step, Normalize):
            return False
    return True


def _becomes_pad_value(step: Pad, index: int, steps: Sequence[Step], metadata: ModelMetadata) -> bool:
    is_float = any(isinstance(s, Normalize) for s in steps[:index])
    pixel = Pad(shape=(2, 1), value=step.value).apply(
        np.zeros((1, 1, 3), np.float32 if is_float else np.uint8)
    )
    values = _network_values(
        pixel[:, 1:], [s for s in steps[index + 1 :] if isinstance(s, Normalize)], metadata
    )
    return bool((values == np.float32(metadata.pad_value)).all())


def _composed_tables(steps: Sequence[Step], metadata: ModelMetadata) -> np.ndarray:
    values = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    found = _network_values(values, [s for s in steps if isinstance(s, Normalize)], metadata)
    return np.ascontiguousarray(found[:, 0])


def _network_values(pixels: np.ndarray, steps: Sequence[Step], metadata: ModelMetadata) -> np.ndarray:
    """Return (3, H, W) float32 of (H, W, 3) pixels after pointwise steps and the normalisation."""
    pixels = applied(pixels, steps).astype(np.float32)
    out = np.empty((3, *pixels.shape[:2]), np.float32)
    _write_normalised(pixels, metadata, out)
    return out
