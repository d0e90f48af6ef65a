"""The mark in a PNG that tells an overlay from an image: a text chunk right behind the header."""

import struct
import zlib
from pathlib import Path

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER_BYTES = len(_SIGNATURE) + 25  # the chunk IHDR: length, name, 13 bytes, checksum
_TEXT = b"Software\0maskrcnn-deploy overlay"


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


_MARK = _chunk(b"tEXt", _TEXT)


def marked(png: bytes) -> bytes:
    """Return the PNG with the mark.

    Raises:
        ValueError: not a PNG.
    """
    if not png.startswith(_SIGNATURE):
        raise ValueError(f"expected a PNG, found {png[:8]!r}")
    return png[:_HEADER_BYTES] + _MARK + png[_HEADER_BYTES:]


def is_overlay(path: Path) -> bool:
    """Return whether a regular file is a PNG with the mark; False where it cannot be read."""
    if path.suffix.lower() != ".png":
        return False
    try:
        with path.open("rb") as file:
            start = file.read(_HEADER_BYTES + len(_MARK))
    except OSError:
        return False
    return start.startswith(_SIGNATURE) and start.endswith(_MARK) and len(start) == _HEADER_BYTES + len(_MARK)
