"""The size of an image from the first bytes of its file, without decoding it."""

import struct
from pathlib import Path
from typing import BinaryIO, Optional

Size = Optional[tuple[int, int]]
# Start of frame, every kind of coding; 0xC4, 0xC8 and 0xCC among them mean something else.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_ALONE = frozenset((0x01, *range(0xD0, 0xD9)))  # markers without a segment


def stored_size(path: Path) -> Size:
    """Return (height, width) in px as a JPEG, PNG, BMP or WebP stores them, before any turn by its orientation.

    None where the file is of another kind, damaged or not readable: whoever decodes it says so.
    """
    try:
        with path.open("rb") as file:
            return _size(file, file.read(32))
    except (OSError, struct.error):
        return None


def _size(file: BinaryIO, start: bytes) -> Size:
    if start.startswith(b"\xff\xd8"):
        file.seek(2)
        return _jpeg_size(file)
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        width, height = struct.unpack(">II", start[16:24])
        return height, width
    if start.startswith(b"BM") and len(start) >= 26 and struct.unpack("<I", start[14:18])[0] >= 40:
        width, height = struct.unpack("<ii", start[18:26])
        return abs(height), width
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return _webp_size(start)
    return None


def _jpeg_size(file: BinaryIO) -> Size:
    """Go from segment to segment up to the frame's."""
    while True:
        if file.read(1) != b"\xff":
            return None
        marker = b"\xff"
        while marker == b"\xff":  # fill bytes
            marker = file.read(1)
        if not marker:
            return None
        if marker[0] in _JPEG_ALONE:
            continue
        (length,) = struct.unpack(">H", file.read(2))
        if marker[0] in _JPEG_FRAMES:
            height, width = struct.unpack(">xHH", file.read(5))
            return height, width
        file.seek(length - 2, 1)


def _webp_size(start: bytes) -> Size:
    kind = start[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack("<HH", start[26:30])
        return height & 0x3FFF, width & 0x3FFF
    if kind == b"VP8L":
        (bits,) = struct.unpack("<I", start[21:25])
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    if kind == b"VP8X":
        width, height = (int.from_bytes(start[i : i + 3], "little") for i in (24, 27))
        return height + 1, width + 1
    return None
