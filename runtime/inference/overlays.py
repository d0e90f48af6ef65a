"""Overlays: PNGs of images with what was found in them; their names, and which file one may replace."""

import errno
import hashlib
import os
import unicodedata
import urllib.parse
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import cv2
import numpy as np

from runtime.detections import Detections
from runtime.draw import draw_detections
from runtime.files import write_whole
from runtime.messages import in_utf8
from runtime.pipeline import Source
from runtime.png_marks import is_overlay, marked
from runtime.remote import RemoteImage

SUFFIX = ".png"
_LONGEST_NAME = 255  # bytes, of most file systems
_DIGEST_DIGITS = 8
# Errors that speak of a name and not of the disk.
_OF_THE_NAME = (errno.EINVAL, errno.EILSEQ, errno.ENAMETOOLONG, errno.EISDIR)


def overlay_paths(sources: Sequence[Source], folder: Path) -> list[Path]:
    """Return a PNG in the folder for each image: its stem, or where that is taken with its folder or a number.

    No two are equal, on a file system that ignores case or the normal form of Unicode neither. None is one of the
    images, or another file that is there and is no overlay. A name that is too long is cut and gets a digest of the
    whole; bytes that are not UTF-8 become ``%FF``.
    """
    paths = [as_path(source) for source in sources]
    inputs = {_key(source.resolve()) for source in sources if isinstance(source, Path)}
    taken: set[str] = set()
    numbers: dict[str, Iterator[int]] = {}
    overlays = []
    for path in paths:
        overlay = next(p for p in _candidates(path, folder, numbers) if _is_free(p, inputs, taken))
        taken.add(_key(overlay))
        overlays.append(overlay)
    return overlays


def numbered_names(sources: Sequence[Source]) -> list[str]:
    """Return a file's name without suffix for each source, as ``overlay_paths`` has them, no two equal."""
    taken: set[str] = set()
    numbers: dict[str, Iterator[int]] = {}
    names = []
    for source in sources:
        found = next(p for p in _candidates(as_path(source), Path(), numbers) if _key(p) not in taken)
        taken.add(_key(found))
        names.append(in_utf8(found.name[: -len(SUFFIX)]))
    return names


def as_path(source: Source) -> Path:
    """Return a path after which files of a source can be called: of an address its host and its last part."""
    if isinstance(source, RemoteImage):
        host = urllib.parse.urlsplit(source.url).hostname or "address"
        return Path(*(_safe(part) for part in (host, source.name)))
    return source


def _safe(name: str) -> str:
    return "".join(c if c.isprintable() and c not in "/\\\0" else "_" for c in name).strip(".") or "_"


def _candidates(path: Path, folder: Path, numbers: dict[str, Iterator[int]]) -> Iterator[Path]:
    stem = _without_bytes(path.stem)
    yield _named(folder, stem)
    yield _named(folder, f"{_without_bytes(path.resolve().parent.name)}_{stem}")
    # Counted on from the last image of this stem: thousands may have one.
    for number in numbers.setdefault(_folded(stem), count(2)):
        yield _named(folder, stem, f"_{number}")


def _named(folder: Path, stem: str, ending: str = "") -> Path:
    room = _LONGEST_NAME - len(ending) - len(SUFFIX)
    encoded = stem.encode()
    if len(encoded) > room:
        digest = hashlib.sha256(encoded).hexdigest()[:_DIGEST_DIGITS]
        stem = f"{encoded[: room - len(digest) - 1].decode(errors='ignore')}~{digest}"
    # As the locale has it, which need not be UTF-8.
    return folder / os.fsdecode(f"{stem}{ending}{SUFFIX}".encode())


def _without_bytes(name: str) -> str:
    """Return a file's name with ``%FF`` for a byte that is not UTF-8; some file systems refuse such names."""
    return "".join(f"%{ord(c) - 0xDC00:02X}" if 0xDC80 <= ord(c) <= 0xDCFF else c for c in in_utf8(name))


def _is_free(overlay: Path, inputs: set[str], taken: set[str]) -> bool:
    if _key(overlay) in taken or _key(overlay.resolve()) in inputs:
        return False
    return not os.path.lexists(overlay) or (overlay.is_file() and is_overlay(overlay))


def _key(path: Path) -> str:
    return _folded(in_utf8(str(path)))


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold())


class OverlayError(ValueError):
    """One image's overlay cannot be; the others' can."""


def write_overlay(path: Path, image: np.ndarray, detections: Detections) -> None:
    """Draw and write an overlay.

    Args:
        path: of the PNG.
        image: (H, W, 3) uint8 BGR; see ``draw_detections``.
        detections: of this image.

    Raises:
        OverlayError: OpenCV cannot draw or encode this one, or no file can have its name.
        OSError: nothing can be written there: the disk is full, or the folder may not be written to.
    """
    try:
        done, data = cv2.imencode(SUFFIX, draw_detections(image, detections))
    except cv2.error as error:
        raise OverlayError(f"{path}: OpenCV cannot draw the overlay: {error.err or error}") from error
    if not done:
        raise OverlayError(f"{path}: OpenCV cannot encode the overlay as PNG")
    try:
        write_whole(path, marked(data.tobytes()))
    except ValueError as error:
        raise OverlayError(str(error)) from error
    except OSError as error:
        if error.errno in _OF_THE_NAME:
            raise OverlayError(f"{error}; rename the image") from error
        raise
