"""Image files of clients: looked at before they are decoded."""

import numpy as np

from runtime.image_size import size_in
from runtime.images import decode_image
from runtime.serving.refusals import BAD_IMAGE, TOO_LARGE, Refused
from runtime.transforms import Load


def check_declared(data: bytes, name: str, max_pixels: int) -> None:
    """Refuse an image by what its header says.

    Args:
        data: of the file.
        name: of the image, for messages.
        max_pixels: that it may have.

    Raises:
        Refused: it is none of the known kinds, or has more pixels.
    """
    size = size_in(data)
    if size is None or min(size) < 1:
        raise Refused(
            BAD_IMAGE,
            f"{name}: expected an image file (JPEG, PNG, WebP, BMP, TIFF, GIF or netpbm), found {_described(data)}",
        )
    if size[0] * size[1] > max_pixels:
        raise Refused(
            TOO_LARGE,
            f"{name}: expected an image of up to {max_pixels} pixels, found {size[0]}x{size[1]} (height x width); "
            "make it smaller, or start the service with a larger --max-pixels",
        )


def decoded(data: bytes, name: str, load: Load, max_pixels: int) -> np.ndarray:
    """Return the pixels of an image file; see ``runtime.images.decode_image``.

    Raises:
        Refused: see ``check_declared``; or it is damaged.
    """
    check_declared(data, name, max_pixels)
    try:
        return decode_image(data, load, name=name)
    except ValueError as error:
        raise Refused(BAD_IMAGE, str(error)) from error


def _described(data: bytes) -> str:
    return f"{len(data)} bytes that begin with {data[:12]!r}" if data else "no bytes"
