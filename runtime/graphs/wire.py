"""Protobuf's wire format: ONNX files are looked at before they are loaded, without the package onnx.

onnxruntime does not need that package, and a box that runs models may lack it.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Union

# Of graphs inside graphs.
MOST_DEPTH = 100

Field = tuple[int, Union[int, memoryview]]


class NoProtobuf(Exception):
    """The bytes are not in the wire format."""


def file_bytes(path: Path) -> memoryview:
    """Return a file's bytes, mapped into memory.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        try:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except ValueError:  # empty
            return memoryview(b"")


def fields(data: Union[int, memoryview]) -> Iterator[Field]:
    """Yield a message's fields: numbers, and bytes of whatever has a length."""
    if isinstance(data, int):
        raise NoProtobuf
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = varint(data, at)
            yield number, value
        elif kind == 2:
            length, at = varint(data, at)
            if length > len(data) - at:
                raise NoProtobuf
            yield number, data[at : at + length]
            at += length
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise NoProtobuf


def packed(data: memoryview) -> Iterator[int]:
    """Yield the whole numbers of a packed list, of 64 bits without a sign."""
    at = 0
    while at < len(data):
        value, at = varint(data, at)
        yield value


def varint(data: memoryview, at: int) -> tuple[int, int]:
    """Return the whole number at a place, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & ((1 << 64) - 1), at
    raise NoProtobuf


def text(value: Union[int, memoryview]) -> str:
    """Return the beginning of a text."""
    return "" if isinstance(value, int) else bytes(value[:100]).decode("utf-8", "replace")
