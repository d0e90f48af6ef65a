"""Reading image files."""

import io
import os
from pathlib import Path
from typing import Any, Optional, Union

import cv2
import numpy as np

from runtime.image_size import size_in
from runtime.reading import bounded_bytes, limit
from runtime.transforms import Load, pillow_image

IN_COLOR = Load()
BYTES_VARIABLE, PIXELS_VARIABLE = "MASKRCNN_MAX_IMAGE_BYTES", "MASKRCNN_MAX_IMAGE_PIXELS"
# Of a file, and of what it holds: 16384x16384 px take 805 MB in colour, in each reading thread.
MAX_BYTES, MAX_PIXELS = 1 << 30, 1 << 28


def read_image(path: Union[str, Path], load: Load = IN_COLOR) -> np.ndarray:
    """Return the image as mmcv's ``LoadImageFromFile`` reads it.

    Args:
        path: of the file.
        load: how it is decoded; by default turned as its EXIF orientation says.

    Returns:
        uint8: (H, W, 3) BGR for the color types of that name, (H, W) for the grey ones, and what is in the file for
        ``unchanged``. ``load.to_float32`` is left to ``runtime.host.preprocess``.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no regular file, empty, damaged, not an image, its pixels are not 8 bits, or it is larger than
            ``MASKRCNN_MAX_IMAGE_BYTES`` or ``MASKRCNN_MAX_IMAGE_PIXELS`` in the environment allow.
        RuntimeError: it is to be decoded with Pillow, which is not installed.
    """
    # Not cv2.imread: it does not tell a missing file from a damaged one, nor read non-ASCII paths on Windows.
    return decode_image(_file_bytes(path), load, name=str(path))


def decode_image(data: bytes, load: Load = IN_COLOR, *, name: str) -> np.ndarray:
    """Return the image that a file's bytes hold.

    Args:
        data: of the file.
        load: see ``read_image``.
        name: of the file, for messages.

    Returns:
        See ``read_image``.

    Raises:
        ValueError, RuntimeError: see ``read_image``.
    """
    if _is_cut_jpeg(data):
        raise ValueError(
            f"{name}: expected a whole JPEG, found {len(data)} bytes without an end; copy it again"
        )
    _check_pixels(data, name)
    image = _DECODERS[load.decoder](data, load.color_type, name) if data else None
    if image is None:
        raise ValueError(
            f"{name}: expected an image, found {len(data)} bytes that {load.decoder} cannot decode"
        )
    if image.dtype != np.uint8:
        raise ValueError(f"{name}: expected 8 bits per channel, found {image.dtype} pixels; convert the file")
    return image


def _file_bytes(path: Union[str, Path]) -> bytes:
    try:
        return bounded_bytes(
            path, limit(BYTES_VARIABLE, MAX_BYTES), f"if it is an image, set {BYTES_VARIABLE} to as much"
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: expected an image, found nothing there; check the path") from None
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise type(error)(f"{path}: expected a file that can be read, found: {reason}") from error


def _check_pixels(data: bytes, name: str) -> None:
    """Refuse an image of which its header says that it is too large to decode in memory."""
    size, most = size_in(data), limit(PIXELS_VARIABLE, MAX_PIXELS)
    if size is not None and size[0] * size[1] > most:
        raise ValueError(
            f"{name}: expected an image of up to {most} pixels, found {size[0]}x{size[1]} (height x width); cut it "
            f"into parts, or set {PIXELS_VARIABLE} to as much"
        )


def _with_opencv(data: bytes, color_type: str, name: str) -> Optional[np.ndarray]:
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), _IMREAD_FLAGS[color_type])
    except cv2.error as error:
        # More pixels than OPENCV_IO_MAX_IMAGE_PIXELS, for example.
        raise ValueError(f"{name}: expected an image, OpenCV cannot decode it: {error.err}") from error


def _with_pillow(data: bytes, color_type: str, name: str) -> np.ndarray:
    pillow = pillow_image()
    from PIL import ImageOps

    try:
        with pillow.open(io.BytesIO(data)) as image:
            if color_type in ("color", "grayscale"):
                image = ImageOps.exif_transpose(image)
            if color_type == "unchanged":
                array = np.array(image)
                return array[..., _BGR_AND_MORE[: array.shape[2]]] if array.ndim == 3 else array
            image = _on_canvas(image, pillow) if image.mode == "LA" else image.convert("RGB")
            return (
                np.array(image.convert("L")) if color_type.startswith("gray") else np.array(image)[..., ::-1]
            )
    except Exception as error:  # Pillow's readers of damaged files raise anything
        raise ValueError(f"{name}: expected an image, Pillow cannot decode it: {error}") from error


def _on_canvas(image: Any, pillow: Any) -> Any:
    """Return a grey image with transparency as RGB; mmcv lays it on this colour."""
    opaque = image.convert("RGBA")
    canvas = pillow.new("RGB", opaque.size, (124, 117, 104))
    canvas.paste(opaque, mask=opaque.getchannel("A"))
    return canvas


_DECODERS = {"cv2": _with_opencv, "pillow": _with_pillow}
_IMREAD_FLAGS = {
    "color": cv2.IMREAD_COLOR,
    "grayscale": cv2.IMREAD_GRAYSCALE,
    "unchanged": cv2.IMREAD_UNCHANGED,
    "color_ignore_orientation": cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION,
    "grayscale_ignore_orientation": cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION,
}
_BGR_AND_MORE = [2, 1, 0, 3]


def _is_cut_jpeg(data: bytes) -> bool:
    """Return whether a JPEG stops before its end: OpenCV 4 fills the missing part with grey and says nothing."""
    if not data.startswith(b"\xff\xd8"):
        return False
    # Segment by segment to the start of the scan (0xDA), over thumbnails, which have an end marker of their
    # own.
    position = 2
    while data[position : position + 1] == b"\xff" and data[position + 1 : position + 2] != b"\xda":
        is_fill = data[position + 1 : position + 2] == b"\xff"
        position += 1 if is_fill else 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    # From the end, where it is in a whole file: the search keeps the interpreter's lock.
    return data.rfind(b"\xff\xd9", position) < 0
