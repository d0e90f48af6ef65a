"""Arrays of an ``.npz`` from anywhere: their types, shapes and sizes are known before they are decompressed."""

import lzma
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Optional

import numpy as np
from numpy.lib import format as npy

from runtime.messages import listed, said

# All that zipfile, its decompressors and NumPy raise for a damaged file; RuntimeError is an encrypted one.
_UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    SyntaxError,
    OverflowError,
    MemoryError,
    RuntimeError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)


@dataclass(frozen=True)
class Expected:
    """An array: NumPy's name of its type, and its shape with None for any length."""

    dtype: str
    shape: tuple[Optional[int], ...]

    def __str__(self) -> str:
        return f"{self.dtype} ({', '.join('?' if n is None else str(n) for n in self.shape)})"

    def agrees(self, dtype: np.dtype, shape: tuple[int, ...]) -> bool:
        """Return whether an array of this type and shape is meant."""
        fits = len(shape) == len(self.shape) and all(n in (m, None) for m, n in zip(shape, self.shape))
        return dtype == np.dtype(self.dtype) and fits and min(shape, default=0) >= 0


def read_arrays(
    path: Path, arrays: Mapping[str, Expected], max_bytes: int, remedy: str
) -> dict[str, np.ndarray]:
    """Read the arrays of these names; others are left alone, and pickles are never loaded.

    Args:
        path: the ``.npz``.
        arrays: what to read.
        max_bytes: most that they may take once they are decompressed.
        remedy: what makes ``max_bytes`` larger, for the message.

    Raises:
        ValueError: another kind of file, a damaged one, other arrays or larger ones; without the path.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if any(f"{name}.npy" not in names for name in arrays):
                raise ValueError(f"expected the arrays {', '.join(arrays)}, found {listed(names, 20)}")
            num_bytes = sum(archive.getinfo(f"{name}.npy").file_size for name in arrays)
            if num_bytes > max_bytes:
                raise ValueError(f"expected arrays of up to {max_bytes} bytes, found {num_bytes}; {remedy}")
            return {name: _read_array(archive, name, expected) for name, expected in arrays.items()}
    except _UNREADABLE as error:
        raise ValueError(said(error)) from error


def _read_array(archive: zipfile.ZipFile, name: str, expected: Expected) -> np.ndarray:
    """Read one array; what its own header declares has to be there, before memory is taken for it."""
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as file:
        shape, dtype = _header(file)
        if not expected.agrees(dtype, shape):
            raise ValueError(f"{name}: expected {expected}, found {dtype} {shape}")
        num_bytes = int(np.prod(shape, dtype=object)) * dtype.itemsize
        data = file.read() if num_bytes < info.file_size else b""
    if len(data) != num_bytes:
        raise ValueError(
            f"{name}: expected {num_bytes} bytes for {shape}, found {len(data) or info.file_size}"
        )
    return np.frombuffer(data, dtype).reshape(shape).copy()


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = npy.read_magic(file)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"expected NumPy's format 1.0 or 2.0, found {version}")
    shape, is_fortran, dtype = readers[version](file)
    if is_fortran and len(shape) > 1:
        raise ValueError("expected arrays row by row, found one column by column")
    return shape, dtype
