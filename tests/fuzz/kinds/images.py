"""Image files of every format that OpenCV and Pillow read, damaged, and what is no regular file."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from runtime.image_size import stored_size
from runtime.images import read_image
from runtime.infer import main as infer
from runtime.transforms import COLOR_TYPES, DECODERS, Load
from tests.fuzz import materials
from tests.fuzz.mutations import damaged_bytes, pick
from tests.fuzz.results import wrong_results
from tests.fuzz.trial import Trial
from tests.runtime import fakes

SUFFIXES = (
    *(
        ".png",
        ".jpg",
        ".bmp",
        ".tiff",
        ".webp",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pam",
        ".ras",
        ".hdr",
        ".exr",
        ".jp2",
        ".avif",
    ),
    *(".gif", ".pfm", ".ico", ".tga", ".pcx", ".sgi", ".dds", ".eps", ".pdf", ".icns", ".im", ".msp", ".xbm"),
)
LARGE = (0, 1, 65535, 65536, 100_000, 2**31 - 1, 2**31, 2**32 - 1)


def images(folder: Path, random: np.random.Generator) -> Trial:
    """Damage an image, and read it, or detect in it beside a good one."""
    path = folder / f"damaged{pick(random, ('.png', '.jpg', '.bmp', '.tif', '.webp'))}"
    said = pick(random, CHANGES)(path, random)
    kind = int(random.integers(10))
    load = Load(pick(random, COLOR_TYPES), pick(random, DECODERS))
    if kind < 6:
        return Trial(f"{load.decoder}: {said}", lambda: read_image(path, load), (str(path),))
    if kind == 6:
        return Trial(said, lambda: stored_size(path), ())
    materials.write_images(folder)
    model, out = folder / "good.onnx", folder / "out"
    model.write_bytes(materials.fake_model())
    arguments = [str(path), str(folder / "1.png"), "--model", str(model), "--out", str(out), "--threads", "1"]
    arguments += ["--backend", "onnxruntime", *pick(random, ([], ["--no-overlays"]))]
    return Trial(said, lambda: infer(arguments), (str(path),), True, lambda: wrong_results(out), out)


def _flipped(path: Path, random: np.random.Generator) -> str:
    suffix = pick(random, list(_encoded()))
    said, data = damaged_bytes(_encoded()[suffix], random)
    path.write_bytes(data)
    return f"{suffix}: {said}"


def _flipped_header(path: Path, random: np.random.Generator) -> str:
    suffix = pick(random, list(_encoded()))
    data = bytearray(_encoded()[suffix])
    for _ in range(int(random.integers(1, 5))):
        data[int(random.integers(min(64, len(data))))] = pick(
            random, (0, 1, 127, 128, 255, int(random.integers(256)))
        )
    path.write_bytes(bytes(data))
    return f"{suffix}: header"


def _whole(path: Path, random: np.random.Generator) -> str:
    suffix = pick(random, list(_encoded()))
    path.write_bytes(_encoded()[suffix])
    return f"{suffix}: whole"


def _sized(path: Path, random: np.random.Generator) -> str:
    """Declare another size in the header of a PNG, BMP, JPEG, GIF or PNM."""
    width, height = (pick(random, LARGE) for _ in range(2))
    kind = pick(random, ("png", "bmp", "jpg", "gif", "ppm", "tiff", "webp"))
    path.write_bytes(_with_size(kind, width, height))
    return f"{kind} of {width}x{height}"


def _with_size(kind: str, width: int, height: int) -> bytes:
    if kind == "ppm":
        return b"P6 %d %d 255\n" % (width, height) + b"\0" * 1000
    data = bytearray(_encoded()[f".{kind}"])
    if kind == "png":
        data[16:24] = struct.pack(">II", width, height)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    if kind == "bmp":
        data[18:26] = struct.pack("<II", width, height)
    if kind == "gif":
        data[6:10] = struct.pack("<HH", width & 0xFFFF, height & 0xFFFF)
    if kind == "jpg":
        at = data.find(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", height & 0xFFFF, width & 0xFFFF)
    if kind == "webp":
        at = data.find(b"\x9d\x01\x2a") + 3
        data[at : at + 4] = struct.pack("<HH", width & 0x3FFF, height & 0x3FFF)
    if kind == "tiff":
        start = struct.unpack("<I", data[4:8])[0]
        for tag, value in ((256, width), (257, height)):
            at = data.find(struct.pack("<H", tag), start)
            data[at + 2 : at + 12] = struct.pack("<HII", 4, 1, value)
    return bytes(data)


def _bomb(path: Path, random: np.random.Generator) -> str:
    """A few kilobytes that are hundreds of megapixels, and gigabytes in colour."""
    side, depth = pick(random, ((8000, 8), (20_000, 8), (30_000, 1), (60_000, 1)))
    pixels = _black(side, depth)
    header = struct.pack(">IIBBBBB", side, side, depth, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks))
    return f"a bomb of {side}x{side}, {depth} bits"


@cache
def _black(side: int, depth: int) -> bytes:
    rows, row = zlib.compressobj(1), b"\0" * (1 + (side * depth + 7) // 8)
    return b"".join(rows.compress(row * 100) for _ in range(side // 100)) + rows.flush()


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _exif(path: Path, random: np.random.Generator) -> str:
    """An orientation that is none, or data that is no EXIF."""
    block = pick(
        random,
        (
            b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0"
            + bytes([int(random.integers(256))])
            + b"\0\0\0\0\0\0\0",
            b"Exif\0\0" + random.bytes(40),
            b"Exif\0\0MM\0*\xff\xff\xff\xff",
            b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01" * 30,
        ),
    )
    if random.random() < 0.5:
        segment = b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block
        data = _encoded()[".jpg"]
        path.write_bytes(data[:2] + segment + data[2:])
        return "EXIF of a JPEG"
    data = _encoded()[".png"]
    path.write_bytes(data[:33] + _chunk(b"eXIf", block[6:]) + data[33:])
    return "EXIF of a PNG"


def _segments(path: Path, random: np.random.Generator) -> str:
    """A JPEG of segments without end, or of lengths that lead nowhere."""
    data = pick(
        random,
        (
            b"\xff\xd8" + b"\xff" * 200_000,
            b"\xff\xd8" + b"\xff\xe0\0\0" * 50_000,
            b"\xff\xd8" + b"\xff\xe0\xff\xff" * 1000,
            b"\xff\xd8" + b"\xff\xd0" * 100_000 + b"\xff\xd9",
            b"\xff\xd8\xff\xc0\0\x11\x08",
        ),
    )
    path.write_bytes(data)
    return f"a JPEG of segments {data[2:6]!r}"


def _deep(path: Path, random: np.random.Generator) -> str:
    """Pixels of 16 or 32 bits, of one, two or four channels, of one edge without length."""
    shape = pick(random, ((5, 7), (5, 7, 1), (5, 7, 2), (5, 7, 4), (1, 1, 3), (1, 5000, 3), (5000, 1, 3)))
    dtype = pick(random, (np.uint8, np.uint16, np.float32))
    suffix = ".tiff" if dtype == np.float32 else ".png"
    array = (np.ones(shape) * 9).astype(dtype)
    if array.ndim == 3 and array.shape[2] == 2:
        file = io.BytesIO()
        Image.fromarray(array.astype(np.uint8), "LA").save(file, "PNG")
        path.write_bytes(file.getvalue())
    else:
        path.write_bytes(cv2.imencode(suffix, array)[1].tobytes())
    return f"{suffix} of {shape} {dtype.__name__}"


def _special(path: Path, random: np.random.Generator) -> str:
    """What is no regular file."""
    kind = int(random.integers(8))
    if kind == 0:
        os.mkfifo(path)
        return "a named pipe"
    if kind == 1:
        path.symlink_to(
            pick(random, ("/dev/zero", "/dev/null", "/dev/full", "/proc/self/mem", path.name, "nothing", "/"))
        )
        return f"a link to {os.readlink(path)}"
    if kind == 2:
        path.mkdir()
        return "a folder"
    if kind == 3:
        with path.open("wb") as file:
            file.truncate(1 << 34)
        return "a sparse file of 16 GiB"
    if kind == 4:
        path.write_bytes(b"")
        return "an empty file"
    if kind == 5:
        return "nothing"
    if kind == 6:
        path.write_bytes(random.bytes(int(random.integers(1, 2000))))
        return "noise"
    path.write_bytes(
        pick(
            random,
            (
                b"\xff\xd8",
                b"\x89PNG\r\n\x1a\n",
                b"BM",
                b"GIF89a",
                b"RIFF\0\0\0\0WEBP",
                b"P6\n",
                b"#?RADIANCE\n",
            ),
        )
    )
    return "a signature alone"


@cache
def _encoded() -> dict[str, bytes]:
    """Return an image in every format that is written here."""
    array = fakes.random_image(*materials.SIZE)
    found = {}
    for suffix in SUFFIXES:
        for encode in (_with_opencv, _with_pillow):
            try:
                data = encode(suffix, array)
            except (cv2.error, OSError, ValueError, KeyError):
                continue
            if data:
                found.setdefault(suffix, data)
    return found


def _with_opencv(suffix: str, array: np.ndarray) -> bytes:
    if suffix in (".hdr", ".exr", ".pfm"):
        array = array.astype(np.float32)
    if suffix in (".pgm", ".pbm"):
        array = array[..., 0]
    return cv2.imencode(suffix, array)[1].tobytes()


def _with_pillow(suffix: str, array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array if suffix not in (".msp", ".xbm") else array[..., 0] > 99).save(
        file, Image.registered_extensions()[suffix]
    )
    return file.getvalue()


CHANGES: tuple[Callable[[Path, np.random.Generator], str], ...] = (
    *(_flipped,) * 8,
    *(_flipped_header,) * 6,
    _whole,
    *(_sized,) * 4,
    _bomb,
    *(_exif,) * 2,
    _segments,
    _deep,
    *(_special,) * 3,
)
