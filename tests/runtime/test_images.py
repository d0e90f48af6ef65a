import os
from pathlib import Path

import cv2
import mmcv
import numpy as np
import pytest

from runtime.images import read_image
from tests.runtime import fakes

JPEG = cv2.imencode(".jpg", fakes.random_image(40, 50))[1].tobytes()
PNG = cv2.imencode(".png", fakes.random_image(40, 50))[1].tobytes()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_an_image_is_read_as_mmcv_reads_it(channels: int, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, channels), np.uint8)
    path = tmp_path / "bild ä.png"
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    image = read_image(path)
    assert image.shape == (20, 30, 3)
    np.testing.assert_array_equal(image, mmcv.imread(str(path)))


@pytest.mark.parametrize(
    "content", [b"", b"not an image", PNG[: len(PNG) // 2]], ids=["empty", "text", "cut PNG"]
)
def test_what_cannot_be_decoded_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.jpg"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"bad.jpg: expected an image, found {len(content)} bytes"):
        read_image(path)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("thumbnail", [b"", b"\xff\xe1\x00\x08ab\xff\xd9cd"], ids=["plain", "thumbnail"])
def test_a_cut_jpeg_is_refused(share: float, thumbnail: bytes, tmp_path: Path) -> None:
    """OpenCV 4 returns it with a grey rest. The thumbnail's own end marker is not the image's."""
    whole = JPEG[:2] + thumbnail + JPEG[2:]
    path = tmp_path / "cut.jpg"
    path.write_bytes(whole)
    assert read_image(path).shape == (40, 50, 3)
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ValueError, match="cut.jpg: expected a whole JPEG, found .* bytes without an end"):
        read_image(path)


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "none.jpg")


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    """A pipe would be waited for, a device has no end."""
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("/dev/zero")
    for name, kind in (("pipe.png", "a named pipe"), ("link.png", "a device"), ("", "a folder")):
        with pytest.raises(
            ValueError, match=f"{tmp_path / name}: expected a regular file, found {kind}; name"
        ):
            read_image(tmp_path / name)


def test_an_image_larger_than_the_limits_is_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    monkeypatch.setenv("MASKRCNN_MAX_IMAGE_PIXELS", "1999")
    message = "a.png: expected an image of up to 1999 pixels, found 40x50 .*set MASKRCNN_MAX_IMAGE_PIXELS to as much"
    with pytest.raises(ValueError, match=message):
        read_image(path)
    monkeypatch.setenv("MASKRCNN_MAX_IMAGE_PIXELS", "2000")
    assert read_image(path).shape == (40, 50, 3)
    monkeypatch.setenv("MASKRCNN_MAX_IMAGE_BYTES", "100")
    message = (
        f"a.png: expected a file of up to 100 bytes, found {len(PNG)}; .*set MASKRCNN_MAX_IMAGE_BYTES to as"
    )
    with pytest.raises(ValueError, match=message):
        read_image(path)
    with path.open("wb") as file:
        file.truncate(1 << 40)
    monkeypatch.delenv("MASKRCNN_MAX_IMAGE_BYTES")
    with pytest.raises(ValueError, match=f"up to {1 << 30} bytes, found {1 << 40}"):
        read_image(path)
