"""Sizes from the first bytes, against what OpenCV wrote."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from runtime.image_size import stored_size

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
