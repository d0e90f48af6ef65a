"""Arrays of an ``.npz`` or ``.npy`` from anywhere: their types, shapes and sizes are known before they are read."""

import lzma
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Optional, Union

import numpy as np
from numpy.lib import format as npy

from runtime.messages import listed, said
from runtime.reading import regular_size

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


_NPY, _SUFFIX = b"\x93NUMPY", ".npy"
# Of an array's own header, which NumPy reads up to 10 kB.
_HEADER_BYTES = 1 << 16


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
        regular_size(path)
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if any(f"{name}.npy" not in names for name in arrays):
                raise ValueError(f"expected the arrays {', '.join(arrays)}, found {listed(names, 20)}")
            _check_size(sum(archive.getinfo(f"{name}.npy").file_size for name in arrays), max_bytes, remedy)
            return {name: _member(archive, f"{name}.npy", expected) for name, expected in arrays.items()}
    except _UNREADABLE as error:
        raise ValueError(said(error)) from error


def read_any(path: Path, max_bytes: int, remedy: str) -> Union[np.ndarray, dict[str, np.ndarray]]:
    """Read an ``.npy``, or all arrays of an ``.npz``, of whatever types and shapes; pickles are never loaded.

    Args:
        path: of the file; what it begins with says which it is.
        max_bytes, remedy: see ``read_arrays``.

    Returns:
        The array, or the arrays by name; rows first, in memory of their own.

    Raises:
        OSError: it cannot be opened.
        ValueError: another kind of file, a damaged or a larger one, or objects in it; without the path.
    """
    num_bytes = regular_size(path)
    with path.open("rb") as file:
        is_array = file.read(len(_NPY)) == _NPY
    try:
        if not is_array:
            return _all_members(path, max_bytes, remedy)
        _check_size(num_bytes - _HEADER_BYTES, max_bytes, remedy)
        with path.open("rb") as file:
            return _array(file, num_bytes, None)
    except _UNREADABLE as error:
        raise ValueError(said(error)) from error


def _all_members(path: Path, max_bytes: int, remedy: str) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        others = [name for name in names if not name.endswith(_SUFFIX)]
        if others or not names:
            raise ValueError(f"expected arrays, NAME{_SUFFIX}, in the archive, found {listed(others)}")
        if len(set(names)) < len(names):
            raise ValueError("expected each array once in the archive, found one again")
        _check_size(sum(info.file_size for info in archive.infolist()), max_bytes, remedy)
        return {name[: -len(_SUFFIX)]: _member(archive, name, None) for name in names}


def _check_size(num_bytes: int, max_bytes: int, remedy: str) -> None:
    if num_bytes > max_bytes:
        raise ValueError(f"expected arrays of up to {max_bytes} bytes, found {num_bytes}; {remedy}")


def _member(archive: zipfile.ZipFile, name: str, expected: Optional[Expected]) -> np.ndarray:
    info = archive.getinfo(name)
    try:
        with archive.open(info) as file:
            return _array(file, info.file_size, expected)
    except _UNREADABLE as error:
        raise ValueError(f"{name[: -len(_SUFFIX)]}: {said(error)}") from error


def _array(file: IO[bytes], file_bytes: int, expected: Optional[Expected]) -> np.ndarray:
    """Read one array; what its own header declares has to be there, before memory is taken for it."""
    shape, is_fortran, dtype = _header(file)
    if expected is None:
        if dtype.hasobject or min(shape, default=0) < 0:
            found = "Python objects" if dtype.hasobject else f"{dtype} {shape}"
            raise ValueError(
                f"expected numbers or strings, found {found}; save plain arrays: array.astype('float32')"
            )
    elif is_fortran and len(shape) > 1:
        raise ValueError("expected arrays row by row, found one column by column")
    elif not expected.agrees(dtype, shape):
        raise ValueError(f"expected {expected}, found {dtype} {shape}")
    num_bytes = int(np.prod(shape, dtype=object)) * dtype.itemsize
    data = file.read() if num_bytes < file_bytes else b""
    if len(data) != num_bytes:
        raise ValueError(f"expected {num_bytes} bytes for {shape}, found {len(data) or file_bytes}")
    values = np.frombuffer(data, dtype)
    return values.reshape(shape[::-1]).T.copy(order="C") if is_fortran else values.reshape(shape).copy()


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = npy.read_magic(file)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"expected NumPy's format 1.0 or 2.0, found {version}")
    return readers[version](file)
