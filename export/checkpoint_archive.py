"""Files of ``torch.save``: the zip archives of PyTorch >= 1.6, and the stream of pickles before it.

The pickle is read by ``export.restricted_pickle``; the tensors stay in the file until ``Archive.tensor`` reads one. So
an optimizer's state takes no memory, and nothing is believed that the file does not hold.

``torch.load(weights_only=True)`` is not what reads them: it stops at the first name it does not know (the history
that mmengine's Runner writes), and it reserves what a file declares, a ``bytearray`` or a tensor larger than its
storage.
"""

import io
import math
import zipfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from export.checkpoint_files import shown
from export.restricted_pickle import RestrictedUnpickler, StorageRef, TensorRecord

# First pickle of a legacy file, and bytes that hold it in any protocol.
MAGIC = 0x1950A86A20F9469CFC6C
MAGIC_BYTES = 64
LEGACY_PROTOCOL = 1001
# A record is stored as it is; whoever packs the archive anew may deflate it, by what weights and text allow.
MAX_EXPANSION = 8
# A tensor may repeat its storage (``expand``), up to this many elements more than the storage holds.
MAX_REPEATED = 1 << 24


class DamagedError(ValueError):
    """The file is of ``torch.save`` and does not hold what it declares."""


class NotAnArchiveError(ValueError):
    """The file is not of ``torch.save``."""


class Archive(ABC):
    """An open file of ``torch.save``.

    Attributes:
        content: the object that was saved, tensors as records, foreign objects as stubs.
        left_out: name -> how many foreign objects became stubs.
    """

    content: Any
    left_out: Counter

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._file_bytes = file.seek(0, io.SEEK_END)
        file.seek(0)
        self._storages: dict[str, bytearray] = {}

    def tensor(self, record: TensorRecord) -> Tensor:
        """Read one tensor; those that share a storage in the file share its memory.

        Raises:
            DamagedError: it reaches beyond its storage, or the storage is cut or changed.
        """
        storage = record.storage
        if storage.key not in self._storages:
            self._storages[storage.key] = self._read(storage)
        return _view(record, self._storages[storage.key])

    def check_total(self, records: Iterable[TensorRecord]) -> None:
        """Refuse storages that together hold more than the file can.

        Raises:
            DamagedError: they do.
        """
        sizes = {r.storage.key: _num_bytes(r.storage) for r in records}
        if sum(sizes.values()) > MAX_EXPANSION * self._file_bytes:
            raise DamagedError(
                f"it declares {sum(sizes.values())} bytes of weights and has {self._file_bytes}"
            )

    @abstractmethod
    def _read(self, storage: StorageRef) -> bytearray:
        """Read a storage's bytes, little-endian."""


class ZipArchive(Archive):
    """A zip archive with ``<name>/data.pkl`` and ``<name>/data/<key>``."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        try:
            self._zip = zipfile.ZipFile(file)
        except zipfile.BadZipFile as error:
            raise DamagedError(
                f"the zip archive's directory, its end, is missing or damaged ({error})"
            ) from error
        names = self._zip.namelist()
        pickles = [n for n in names if n.count("/") == 1 and n.endswith("/data.pkl")]
        if not pickles or f"{pickles[0][:-8]}constants.pkl" in names:
            raise NotAnArchiveError
        self._folder = pickles[0][: -len("data.pkl")]
        byteorder = f"{self._folder}byteorder"
        self._big_endian = byteorder in names and self._record(byteorder) == b"big"
        unpickler = RestrictedUnpickler(io.BytesIO(self._record(pickles[0])))
        self.content = unpickler.load()
        self.left_out = unpickler.left_out

    def _read(self, storage: StorageRef) -> bytearray:
        num_bytes = _num_bytes(storage)
        if not num_bytes:
            return bytearray()
        data = bytearray(self._record(f"{self._folder}data/{storage.key}"))
        if len(data) < num_bytes:
            raise DamagedError(f"storage {storage.key} has {len(data)} bytes of {num_bytes}")
        return _swapped(data, storage.dtype) if self._big_endian else data

    def _record(self, name: str) -> bytes:
        try:
            info = self._zip.getinfo(name)
        except KeyError:
            raise DamagedError(f"its record {name} is missing") from None
        if info.file_size > MAX_EXPANSION * self._file_bytes:
            raise DamagedError(f"its record {name} declares {info.file_size} bytes")
        if (
            not info.CRC
        ):  # as torch.serialization.set_crc32_options(False) writes it; zipfile then checks none
            del info.CRC
        return self._zip.read(info)


class LegacyArchive(Archive):
    """Pickles one after another (magic, protocol, system, content, storages' keys), then the storages."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        file.seek(_end_of_magic(file.read(MAGIC_BYTES)))
        if RestrictedUnpickler(file).load() != LEGACY_PROTOCOL:
            raise DamagedError("its protocol is not 1001")
        RestrictedUnpickler(file).load()
        unpickler = _StorageCollector(file)
        self.content = unpickler.load()
        self.left_out = unpickler.left_out
        self._offsets = self._index(RestrictedUnpickler(file).load(), unpickler.itemsizes)

    def _index(self, keys: Any, itemsizes: dict[str, int]) -> dict[str, int]:
        """Find where each storage begins: its number of elements, 8 bytes little-endian, stands before it."""
        offsets = {}
        for key in keys:
            if not isinstance(key, (str, int)):  # of a list the text could be longer than any memory
                raise DamagedError("a storage's key is no text")
            key = str(key)
            count = int.from_bytes(self._file.read(8), "little")
            offsets[key] = self._file.tell()
            end = offsets[key] + count * itemsizes[key]
            if end > self._file_bytes:
                raise DamagedError(f"storage {key} ends {end - self._file_bytes} bytes after the file")
            self._file.seek(end)
        return offsets

    def _read(self, storage: StorageRef) -> bytearray:
        if storage.key not in self._offsets:
            raise DamagedError(f"storage {storage.key} is missing")
        self._file.seek(self._offsets[storage.key])
        data = bytearray(self._file.read(_num_bytes(storage)))
        if len(data) < _num_bytes(storage):
            raise DamagedError(f"storage {storage.key} has {len(data)} bytes of {_num_bytes(storage)}")
        return data


class _StorageCollector(RestrictedUnpickler):
    """Keeps the size of every storage's elements, by which a legacy file's storages are found."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.itemsizes: dict[str, int] = {}

    def persistent_load(self, pid: Any) -> Any:
        storage = super().persistent_load(pid)
        if isinstance(storage, StorageRef):
            self.itemsizes[storage.key] = storage.dtype.itemsize
        return storage


@contextmanager
def opened(path: Path) -> Iterator[Archive]:
    """Open a file of ``torch.save`` and read its content, tensors excepted.

    Raises:
        NotAnArchiveError: it is another file.
        DamagedError: it is cut, changed, or declares what it does not hold.
    """
    with path.open("rb") as file:
        yield from_any_failure(_archive, file)


def _archive(file: BinaryIO) -> Archive:
    head = file.read(4)
    file.seek(0)
    return ZipArchive(file) if head in (b"PK\3\4", b"PK\5\6") else LegacyArchive(file)


def from_any_failure(read: Callable[..., Any], *args: Any) -> Any:
    """Call ``read`` and turn whatever a damaged file makes it raise into a ``DamagedError``.

    Raises:
        DamagedError: see there.
        NotAnArchiveError, OSError: as ``read`` raises them.
    """
    try:
        return read(*args)
    except (DamagedError, NotAnArchiveError, OSError):
        raise
    except Exception as error:  # the opcodes and the headers of a damaged file raise anything
        reason = shown(f"{type(error).__name__}: {error}".splitlines()[0])
        raise DamagedError(reason) from error


def _end_of_magic(head: bytes) -> int:
    """Return where the legacy format's first pickle ends; another file's beginning is no archive's."""
    beginning = io.BytesIO(head)
    try:
        magic = RestrictedUnpickler(beginning).load()
    except Exception as error:  # any file at all gets here
        raise NotAnArchiveError from error
    if magic != MAGIC:
        raise NotAnArchiveError
    return beginning.tell()


def _num_bytes(storage: StorageRef) -> int:
    return storage.num_elements * storage.dtype.itemsize


def _swapped(data: bytearray, dtype: torch.dtype) -> bytearray:
    elements = torch.frombuffer(data, dtype=torch.uint8).view(-1, dtype.itemsize)
    return bytearray(elements.flip(1).contiguous().numpy().tobytes())


def _view(record: TensorRecord, data: bytearray) -> Tensor:
    """Lay the record's strides over its storage.

    Raises:
        DamagedError: they reach beyond it, or repeat it without end.
    """
    num_elements = math.prod(record.size)
    if not num_elements:
        return torch.empty(record.size, dtype=record.dtype)
    available = len(data) // record.dtype.itemsize
    last = record.offset + sum((n - 1) * s for n, s in zip(record.size, record.stride))
    if last >= available or num_elements > available + MAX_REPEATED:
        raise DamagedError(
            f"a tensor of size {record.size} needs {max(last + 1, num_elements)} elements of a storage of {available}"
        )
    elements = torch.frombuffer(data, dtype=record.dtype, count=available)
    return elements.as_strided(record.size, record.stride, record.offset)
