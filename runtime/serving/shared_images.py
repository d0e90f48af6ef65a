"""Pixels in memory that two processes share.

The memory belongs to a file without a name, whose descriptor is passed on: the system takes it back when the processes
have ended, however they ended. It does not count as ``/dev/shm``, of which containers have 64 MiB.
"""

import ctypes
import mmap
import os
import tempfile
import threading
import time
import weakref
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Callable

import numpy as np

from runtime.serving.exchange import SharedImage

FILE_NAME = "maskrcnn-images"
_LEAST_BYTES = 1 << 16
_MAP_FAILED = ctypes.c_void_p(-1).value
# A segment that was not used for so long is given back to the system.
IDLE_SECONDS = 30.0


@dataclass(eq=False)
class Segment:
    """Shared memory for one image after the other.

    Attributes:
        number: by which the other process knows it.
        pixels: (n,) uint8.
        idle_since: of ``time.monotonic``.
    """

    number: int
    pixels: np.ndarray
    idle_since: float = field(default_factory=time.monotonic)


class StagedImage:
    """An image in shared memory; its segment is free when nobody has this any more."""

    def __init__(self, segment: Segment, shape: tuple[int, ...], give: Callable[[Segment], None]) -> None:
        self.shared = SharedImage(segment.number, shape)
        self._segment, self._give = segment, give

    def __del__(self) -> None:
        self._give(self._segment)


class SegmentPool:
    """Segments that are used again: as many as images are under way at once. For any thread."""

    def __init__(self, share: Callable[[int, int, int], None], unshare: Callable[[int], None]) -> None:
        """Begin without any.

        Args:
            share: tells the other process of a new segment: its number, its bytes, and the file's descriptor.
            unshare: tells it of the end of one.
        """
        self._share, self._unshare = share, unshare
        # Re-entrant: a segment may come back by garbage collection, while its thread takes another.
        self._lock = threading.RLock()
        self._free: list[Segment] = []
        self._num_made = 0

    def staged(self, image: np.ndarray) -> StagedImage:
        """Copy an image, uint8, into a segment.

        Raises:
            OSError: there is too little memory.
        """
        segment = self._taken(image.nbytes)
        np.copyto(segment.pixels[: image.nbytes].reshape(image.shape), image)
        return StagedImage(segment, image.shape, self._given)

    def trim(self, idle_s: float = IDLE_SECONDS) -> None:
        """Give up segments that were not used for so long."""
        with self._lock:
            least = time.monotonic() - idle_s
            old = [segment for segment in self._free if segment.idle_since < least]
            for segment in old:
                self._free.remove(segment)
        for segment in old:
            self._unshare(segment.number)

    def _taken(self, num_bytes: int) -> Segment:
        with self._lock:
            fitting = [segment for segment in self._free if segment.pixels.nbytes >= num_bytes]
            # Where none fits, one that is too small makes room.
            found = min(fitting or self._free, key=lambda segment: segment.pixels.nbytes, default=None)
            if found is not None:
                self._free.remove(found)
            if found is None or not fitting:
                self._num_made += 1
                number = self._num_made
        if found is not None and fitting:
            return found
        if found is not None:
            self._unshare(found.number)
        return self._made(number, _rounded(num_bytes))

    def _made(self, number: int, num_bytes: int) -> Segment:
        descriptor = _nameless_file(num_bytes)
        try:
            pixels = mapped(descriptor, num_bytes)
            self._share(number, num_bytes, descriptor)
        finally:
            os.close(descriptor)
        return Segment(number, pixels)

    def _given(self, segment: Segment) -> None:
        segment.idle_since = time.monotonic()
        with self._lock:
            self._free.append(segment)


def mapped(descriptor: int, num_bytes: int) -> np.ndarray:
    """Return the bytes of a shared file, (n,) uint8; the memory goes with the last array that shows it.

    Not by ``mmap.mmap``, which before Python 3.13 keeps a descriptor for each: processes have a thousand.

    Raises:
        OSError: there is no room for it.
    """
    libc = _libc()
    access = mmap.PROT_READ | mmap.PROT_WRITE
    address = libc.mmap(None, num_bytes, access, mmap.MAP_SHARED, descriptor, 0)
    if address == _MAP_FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    memory = (ctypes.c_uint8 * num_bytes).from_address(address)
    weakref.finalize(memory, libc.munmap, address, num_bytes).atexit = False
    return np.frombuffer(memoryview(memory), np.uint8)


@cache
def _libc() -> Any:
    """Return the C library, of which ``mmap`` and ``munmap`` have their types."""
    libc = ctypes.CDLL(None, use_errno=True)
    size, number = ctypes.c_size_t, ctypes.c_int
    libc.mmap.argtypes = [ctypes.c_void_p, size, number, number, number, ctypes.c_long]
    libc.mmap.restype = ctypes.c_void_p
    libc.munmap.argtypes = [ctypes.c_void_p, size]
    return libc


def shown(image: SharedImage, pixels: np.ndarray) -> np.ndarray:
    """Return an image where it lies.

    Args:
        image: that the other process has staged.
        pixels: of its segment.
    """
    num_bytes = int(np.prod(image.shape))
    return pixels[:num_bytes].reshape(image.shape)


def _rounded(num_bytes: int) -> int:
    """Return a size that images of nearly the same size share: up to an eighth more."""
    step = max(_LEAST_BYTES, 1 << max(0, num_bytes.bit_length() - 4))
    return -(-num_bytes // step) * step


def _nameless_file(num_bytes: int) -> int:
    """Return the descriptor of a file in memory that has all of its bytes: writing to it does not fail later."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create(FILE_NAME, os.MFD_CLOEXEC)
    else:  # a Python built for an older system
        with tempfile.TemporaryFile(dir="/dev/shm") as file:
            descriptor = os.dup(file.fileno())
    try:
        os.posix_fallocate(descriptor, 0, num_bytes)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
