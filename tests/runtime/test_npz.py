"""Arrays from archives that are not what they say."""

import io
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from runtime.npz import Expected, read_any, read_arrays

ARRAYS = {"a": Expected("float32", (None, 2)), "b": Expected("uint8", (None,))}
VALUES = {"a": np.arange(6, dtype=np.float32).reshape(3, 2), "b": np.zeros(0, np.uint8)}


def _npy(array: np.ndarray, shape: str = "") -> bytes:
    """Return a file of an array; its header may declare another shape."""
    file = io.BytesIO()
    np.save(file, array)
    data = file.getvalue()
    if not shape:
        return data
    size = int.from_bytes(data[8:10], "little")
    text = data[10 : 10 + size].replace(str(array.shape).encode(), shape.encode()).rstrip()
    return data[:10] + text.ljust(size - 1)[: size - 1] + b"\n" + data[10 + size :]


def _write(folder: Path, **members: bytes) -> Path:
    path = folder / "x.npz"
    content = {name: _npy(array) for name, array in VALUES.items()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {**content, **members}.items():
            archive.writestr(f"{name}.npy", data)
    return path


def _read(path: Path, max_bytes: int = 10_000) -> dict[str, np.ndarray]:
    return read_arrays(path, ARRAYS, max_bytes, "ask for more")


def test_what_is_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "plain.npz", **VALUES, c=np.array([{}], object))
    for path in (_write(tmp_path), tmp_path / "plain.npz"):
        found = _read(path)
        assert list(found) == ["a", "b"]
        for name, value in VALUES.items():
            np.testing.assert_array_equal(found[name], value)
            assert found[name].dtype == value.dtype
            assert found[name].flags.writeable


DAMAGED = {
    "more rows": (_npy(VALUES["a"], "(9, 2)"), r"a: expected 72 bytes for \(9, 2\), found 24"),
    "fewer rows": (_npy(VALUES["a"], "(1, 2)"), r"a: expected 8 bytes for \(1, 2\), found 24"),
    "very many rows": (_npy(VALUES["a"], "(999999999999, 2)"), r"a: expected 7999999999992 bytes"),
    "negative rows": (
        _npy(VALUES["a"], "(-3, 2)"),
        r"a: expected float32 \(\?, 2\), found float32 \(-3, 2\)",
    ),
    "no shape": (_npy(VALUES["a"], "(3,,2)"), "."),
    "objects": (
        _npy(np.array([[None, None]], object)),
        r"a: expected float32 \(\?, 2\), found object \(1, 2\)",
    ),
    "text": (b"text", "."),
    "nothing": (b"", "."),
    "another version": (b"\x93NUMPY\x09\x00" + _npy(VALUES["a"])[8:], r"."),
    "nested": (_npy(VALUES["a"], "(" * 60), "."),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_array_is_refused(name: str, tmp_path: Path) -> None:
    data, message = DAMAGED[name]
    with pytest.raises(ValueError, match=message):
        _read(_write(tmp_path, a=data))


def test_larger_arrays_are_refused(tmp_path: Path) -> None:
    path = _write(tmp_path, b=_npy(np.zeros(50_000, np.uint8)))
    with pytest.raises(ValueError, match=r"expected arrays of up to 10000 bytes, found 50\d+; ask for more"):
        _read(path)
    assert len(_read(path, 100_000)["b"]) == 50_000


def test_a_size_that_is_not_declared(tmp_path: Path) -> None:
    """The directory of the archive says 64 bytes, as if it were below the limit."""
    path = _write(tmp_path, b=_npy(np.zeros(50_000, np.uint8)))
    data = bytearray(path.read_bytes())
    size = (50_128).to_bytes(4, "little")
    assert data.count(size) == 2
    path.write_bytes(bytes(data.replace(size, (64).to_bytes(4, "little"))))
    with pytest.raises(ValueError, match="."):
        _read(path)


def test_every_damaged_byte_is_a_valueerror_or_harmless(tmp_path: Path) -> None:
    path = _write(tmp_path)
    data = path.read_bytes()
    generator = np.random.default_rng(0)
    refused = 0
    for index in range(len(data)):
        damaged = bytearray(data)
        damaged[index] ^= int(generator.integers(1, 256))
        path.write_bytes(bytes(damaged))
        try:
            _read(path)
        except ValueError:
            refused += 1
    assert refused > len(data) / 2
    for length in range(0, len(data), 3):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError):
            _read(path)


# Arrays of any type and shape.

ANY = {
    "rows": np.arange(6, dtype=np.float32).reshape(3, 2),
    "columns": np.asfortranarray(np.arange(24, dtype=np.int16).reshape(2, 3, 4)),
    "scalar": np.array(3, np.uint8),
    "none": np.zeros((0, 5), np.float64),
    "big endian": np.arange(4, dtype=">i8"),
    "flags": np.array([True, False]),
    "text": np.array(["a", "bc"]),
}


def _any(path: Path, most: int = 1 << 20) -> "np.ndarray | dict[str, np.ndarray]":
    return read_any(path, most, "ask for more")


def test_whatever_numpy_saves_is_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "plain.npz", **ANY)
    np.savez_compressed(tmp_path / "small.npz", **ANY)
    for name in ("plain.npz", "small.npz"):
        found = _any(tmp_path / name)
        assert list(found) == list(ANY)
        for key, value in ANY.items():
            np.testing.assert_array_equal(found[key], value)
    for value in ANY.values():
        np.save(tmp_path / "one", value)
        found = _any(tmp_path / "one.npy")
        np.testing.assert_array_equal(found, value)
        assert (found.dtype, found.flags.c_contiguous, found.flags.writeable) == (value.dtype, True, True)


@pytest.mark.parametrize("name", [name for name in DAMAGED if name != "more rows"])
def test_a_damaged_file_of_one_array_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(DAMAGED[name][0])
    with pytest.raises(ValueError, match="."):
        _any(tmp_path / "x.npy")


def test_objects_are_never_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{}], object), allow_pickle=True)
    np.savez(tmp_path / "x.npz", a=np.array([{}], object))
    np.save(tmp_path / "fields.npy", np.zeros(2, [("a", "O")]), allow_pickle=True)
    for file in ("x.npy", "x.npz", "fields.npy"):
        with pytest.raises(
            ValueError, match="expected numbers or strings, found Python objects; save plain arrays"
        ):
            _any(tmp_path / file)


def test_a_bomb_is_refused_before_it_is_decompressed(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", a=np.zeros(4 << 20, np.uint8))
    assert (tmp_path / "x.npz").stat().st_size < 10_000
    with pytest.raises(
        ValueError, match=r"expected arrays of up to 1048576 bytes, found 4194\d+; ask for more"
    ):
        _any(tmp_path / "x.npz")


def test_a_sparse_file_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(_npy(np.zeros(1, np.uint8), f"({1 << 40},)"))
    os.truncate(path, 1 << 40)
    with pytest.raises(ValueError, match="expected arrays of up to 1048576 bytes, found 1099"):
        _any(path)
    # A header that declares its own length.
    path.write_bytes(b"\x93NUMPY\x02\x00" + struct.pack("<I", 0xFFFFFFFF))
    with pytest.raises(ValueError, match="."):
        _any(path)


def test_what_is_no_file_of_arrays_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, kind in (
        (tmp_path / "pipe", "a named pipe"),
        (Path("/dev/zero"), "a device"),
        (tmp_path, "a folder"),
    ):
        with pytest.raises(ValueError, match=f"expected a regular file, found {kind}"):
            _any(name)
        with pytest.raises(ValueError, match=f"expected a regular file, found {kind}"):
            _read(name)


def test_other_members_and_names_twice_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", b"x")
    with pytest.raises(ValueError, match=r"expected arrays, NAME\.npy, in the archive, found a\.txt"):
        _any(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", _npy(VALUES["a"]))
        archive.writestr("b.npy", _npy(VALUES["a"]))
    path.write_bytes(path.read_bytes().replace(b"b.npy", b"a.npy"))
    with pytest.raises(ValueError, match="expected each array once"):
        _any(path)
    with zipfile.ZipFile(path, "w"):
        pass
    with pytest.raises(ValueError, match="in the archive, found none"):
        _any(path)
