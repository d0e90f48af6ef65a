from pathlib import Path

import cv2
import mmcv
import numpy as np
import pytest

from runtime.image_files import find_images
from runtime.images import read_image
from tests.runtime import fakes

JPEG = cv2.imencode(".jpg", fakes.random_image(40, 50))[1].tobytes()
PNG = cv2.imencode(".png", fakes.random_image(40, 50))[1].tobytes()


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def _names(sources: list[str], root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in find_images(sources)]


def test_files_folders_and_globs_are_found_in_order_and_once(tmp_path: Path) -> None:
    _touch(tmp_path, "b.jpg", "a.PNG", "notes.txt", "deep/c.webp", "raw.dat")
    assert _names([str(tmp_path)], tmp_path) == ["a.PNG", "b.jpg"]
    assert _names([f"{tmp_path}/b.jpg", str(tmp_path)], tmp_path) == ["b.jpg", "a.PNG"]
    assert _names([f"{tmp_path}/**/*"], tmp_path) == ["a.PNG", "b.jpg", "deep/c.webp"]
    # A file is named on purpose, whatever its suffix.
    assert _names([f"{tmp_path}/raw.dat"], tmp_path) == ["raw.dat"]


def test_brackets_in_a_files_name_are_no_pattern(tmp_path: Path) -> None:
    _touch(tmp_path, "photo[1].jpg", "photo1.jpg")
    assert _names([f"{tmp_path}/photo[1].jpg"], tmp_path) == ["photo[1].jpg"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("none.jpg", "none.jpg: expected an image, a folder or a glob pattern, found nothing by that name"),
        ("empty", "folder .*empty: expected images .*, found none"),
        ("*.png", r"pattern .*\*.png: expected images .*, found none"),
    ],
)
def test_a_source_without_images_is_refused(source: str, message: str, tmp_path: Path) -> None:
    _touch(tmp_path, "empty/notes.txt", "b.jpg")
    with pytest.raises(FileNotFoundError, match=message):
        find_images([f"{tmp_path}/b.jpg", f"{tmp_path}/{source}"])


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
