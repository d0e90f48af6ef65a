"""The size of an image from the first bytes of its file, without decoding it."""

import io
import re
import struct
from pathlib import Path
from typing import BinaryIO, Optional

import numpy as np

Size = Optional[tuple[int, int]]
# Start of frame, every kind of coding; 0xC4, 0xC8 and 0xCC among them mean something else.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Of a TIFF; more are not looked at.
_MOST_DIRECTORIES = 100
_TIFF_SHORT = 3
_TIFF_ENTRIES = {
    order: np.dtype(
        [("tag", f"{order}u2"), ("kind", f"{order}u2"), ("count", f"{order}u4"), ("value", f"{order}u4")]
    )
    for order in "<>"
}
_JPEG_ALONE = frozenset((0x01, *range(0xD0, 0xD9)))  # markers without a segment


def stored_size(path: Path) -> Size:
    """Return (height, width) in px as a JPEG, PNG, BMP or WebP stores them, before any turn by its orientation.

    None where the file is of another kind, damaged or not readable: whoever decodes it says so.
    """
    try:
        if not path.is_file():  # a pipe would be waited for
            return None
        with path.open("rb") as file:
            return _size(file, file.read(32))
    except (OSError, ValueError, struct.error):
        return None


def size_in(data: bytes) -> Size:
    """Return the (height, width) in px that the first image in a file's bytes declares.

    Of a JPEG, PNG, BMP, WebP, GIF, TIFF or netpbm; None of another kind, or a damaged one.
    """
    try:
        file = io.BytesIO(data)
        found = _size(file, file.read(32))
        if found is None and data.startswith((b"GIF87a", b"GIF89a")):
            width, height = struct.unpack("<HH", data[6:10])
            return height, width
        if found is None and data.startswith((b"II*\0", b"MM\0*")):
            return _tiff_size(data)
        return _netpbm_size(data) if found is None else found
    except (ValueError, struct.error):
        return None


def _tiff_size(data: bytes) -> Size:
    """Return the largest edges of any directory."""
    order = "<" if data.startswith(b"II") else ">"
    (start,) = struct.unpack(order + "I", data[4:8])
    sides = {256: 0, 257: 0}
    for _ in range(_MOST_DIRECTORIES):
        if not start:
            break
        (count,) = struct.unpack(order + "H", data[start : start + 2])
        # Not one by one: a file may say that it has millions.
        entries = np.frombuffer(data, _TIFF_ENTRIES[order], count, start + 2)
        # Numbers of 16 bits lie in the first two bytes.
        shorts = entries["value"] >> 16 if order == ">" else entries["value"] & 0xFFFF
        values = np.where(entries["kind"] == _TIFF_SHORT, shorts, entries["value"])
        for tag in sides:
            sides[tag] = max(sides[tag], int(values[entries["tag"] == tag].max(initial=0)))
        end = start + 2 + 12 * count
        (start,) = struct.unpack(order + "I", data[end : end + 4])
    return sides[257], sides[256]


def _netpbm_size(data: bytes) -> Size:
    if data.startswith(b"P7"):
        found = {
            name: int(value) for name, value in re.findall(rb"(?m)^(WIDTH|HEIGHT)\s+(\d{1,18})", data[:1000])
        }
        return (found[b"HEIGHT"], found[b"WIDTH"]) if len(found) == 2 else None
    match = re.match(rb"P[1-6fF](?:\s|#[^\n]*\n)+(\d{1,18})(?:\s|#[^\n]*\n)+(\d{1,18})\s", data[:1000])
    return (int(match[2]), int(match[1])) if match else None


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
