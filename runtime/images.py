"""Image files: finding and reading them."""

import glob
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Union

import cv2
import numpy as np

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def read_image(path: Union[str, Path]) -> np.ndarray:
    """Return the image as (H, W, 3) uint8 BGR, turned as its EXIF orientation says, as mmcv reads it.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is empty, damaged, or not an image.
    """
    # Not cv2.imread: it does not tell a missing file from a damaged one, nor read non-ASCII paths on Windows.
    data = Path(path).read_bytes()
    if _is_cut_jpeg(data):
        raise ValueError(
            f"{path}: expected a whole JPEG, found {len(data)} bytes without an end; copy it again"
        )
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    except cv2.error as error:
        # More pixels than OPENCV_IO_MAX_IMAGE_PIXELS, for example.
        raise ValueError(f"{path}: expected an image, OpenCV cannot decode it: {error.err}") from error
    if image is None:
        raise ValueError(f"{path}: expected an image, found {len(data)} bytes that OpenCV cannot decode")
    return image


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


def find_images(sources: Sequence[str]) -> list[Path]:
    """Return the image files that files, folders and glob patterns name, in that order, each once.

    A folder stands for the images directly in it, sorted by name. A file is taken whatever its suffix; of
    what a glob matches, files with an image's suffix.

    Raises:
        FileNotFoundError: a path that does not exist, a folder without images, a pattern that matches none.
    """
    found = [path for source in sources for path in _images_of(source)]
    return list(dict.fromkeys(found))


def _images_of(source: str) -> list[Path]:
    path = Path(source)
    # Existing paths first: a file may have brackets in its name.
    if path.is_file():
        return [path]
    if path.is_dir():
        return _images_among(path.iterdir(), f"folder {source}")
    if glob.has_magic(source):
        return _images_among((Path(p) for p in glob.glob(source, recursive=True)), f"pattern {source}")
    raise FileNotFoundError(
        f"{source}: expected an image, a folder or a glob pattern, found nothing by that name"
    )


def _images_among(paths: Iterable[Path], described: str) -> list[Path]:
    images = sorted(p for p in paths if p.suffix.lower() in SUFFIXES and p.is_file())
    if not images:
        raise FileNotFoundError(
            f"{described}: expected images ({', '.join(SUFFIXES)}), found none; "
            "name another folder, files or a pattern"
        )
    return images
