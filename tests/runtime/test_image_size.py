"""Sizes from the first bytes, against what OpenCV wrote."""

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from runtime.image_size import size_in, stored_size

KINDS = {
    ".jpg": [],
    ".progressive.jpg": [cv2.IMWRITE_JPEG_PROGRESSIVE, 1],
    ".png": [],
    ".bmp": [],
    ".webp": [cv2.IMWRITE_WEBP_QUALITY, 80],
    ".lossless.webp": [cv2.IMWRITE_WEBP_QUALITY, 101],
}


def _encoded(kind: str, size: tuple, channels: int = 3) -> bytes:
    image = np.random.default_rng(0).integers(0, 256, (*size, channels), np.uint8)
    return cv2.imencode("." + kind.rsplit(".", 1)[1], image, KINDS[kind])[1].tobytes()


@pytest.mark.parametrize("size", [(448, 641), (1, 7), (300, 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_sizes(kind: str, size: tuple, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(_encoded(kind, size))
    assert stored_size(path) == size


def test_a_webp_with_alpha_has_an_extended_header(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(_encoded(".webp", (20, 30), 4))
    assert stored_size(path) == (20, 30)


def test_a_jpeg_with_a_thumbnail(tmp_path: Path) -> None:
    """The thumbnail's frame lies in a segment before the image's own."""
    image, thumbnail = _encoded(".jpg", (50, 60)), _encoded(".jpg", (5, 6))
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    path = tmp_path / "image"
    path.write_bytes(image[:2] + segment + b"\xff\xff" + image[2:])
    assert stored_size(path) == (50, 60)


def test_what_is_damaged_has_no_size(tmp_path: Path) -> None:
    path = tmp_path / "image"
    for kind in KINDS:
        data = _encoded(kind, (50, 60))
        for length in range(30):
            path.write_bytes(data[:length])
            assert stored_size(path) in (None, (50, 60))
    for data in (b"", b"text", b"\xff\xd8\xff\xe0\x00\x00", b"\xff\xd8\xff\xff", b"GIF89a"):
        path.write_bytes(data)
        assert stored_size(path) is None
    assert stored_size(tmp_path / "gone") is None
    assert stored_size(tmp_path) is None


@pytest.mark.parametrize("size", [(448, 641), (1, 7)])
@pytest.mark.parametrize("kind", [*KINDS, ".tiff", ".ppm", ".pgm", ".pam", ".gif"])
def test_declared_sizes(kind: str, size: tuple) -> None:
    """Of more kinds: what a decoder would take memory for."""
    if kind in KINDS:
        data = _encoded(kind, size)
    else:
        pixels = np.random.default_rng(0).integers(0, 256, (*size, 1 if kind == ".pgm" else 3), np.uint8)
        data = cv2.imencode(kind, pixels)[1].tobytes()
    assert size_in(data) == size
    for length in range(0, len(data), max(1, len(data) // 50)):
        assert size_in(data[:length]) in (None, size, (0, 0), (size[0], 0), (0, size[1]))


def test_a_tiff_is_as_large_as_its_largest_directory_says() -> None:
    def directory(width: int, height: int, following: int) -> bytes:
        entries = ((256, 4, width), (257, 3, height))
        packed = b"".join(
            struct.pack(">HHI", tag, kind, 1) + struct.pack(">I" if kind == 4 else ">H2x", value)
            for tag, kind, value in entries
        )
        return struct.pack(">H", 2) + packed + struct.pack(">I", following)

    first = directory(10, 20, 38)
    assert size_in(b"MM\0*" + struct.pack(">I", 8) + first + directory(70_000, 5, 0)) == (20, 70_000)
    assert size_in(b"MM\0*" + struct.pack(">I", 8) + directory(10, 20, 8)) == (20, 10)  # without end


def test_other_content_has_no_declared_size() -> None:
    for data in (
        b"",
        b"text",
        b"P6 1",
        b"P6 x 3 255\n",
        b"II*\0",
        b"II*\0\xff\xff\xff\xff",
        b"GIF89a",
        b"P7\nWIDTH 3\n",
    ):
        assert size_in(data) is None or 0 in size_in(data)
    assert size_in(b"P6 # a comment\n 30 # another\n 20 255\n") == (20, 30)
