"""Device and page-locked memory that grows when more is needed and is used again and again."""

import threading
from collections.abc import Mapping
from typing import Any, Optional, Union

import numpy as np

from runtime.cuda.binding import Cuda, active

# What TensorRT, and 16-byte loads, ask of addresses.
_ALIGNMENT = 256
_LEAST_PINNED_BYTES = 1 << 20


def aligned(num_bytes: int) -> int:
    """Return the next multiple of what addresses are aligned to."""
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT


def size_of(shape: tuple[int, ...], dtype: Union[str, np.dtype]) -> int:
    """Return the bytes of an array."""
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize


class DeviceMemory:
    """Memory on the device; what is in it is lost when it grows."""

    def __init__(self, cuda: Cuda, num_bytes: int = 0) -> None:
        self._cuda = cuda
        self.address = 0
        self.num_bytes = 0
        self.reserve(num_bytes)

    def reserve(self, num_bytes: int) -> None:
        """Have at least so many bytes. Nothing on the device may be using the old ones."""
        if num_bytes <= self.num_bytes:
            return
        # Half as much again: images of rising sizes would have it grow each time.
        wanted = aligned(max(num_bytes, self.num_bytes * 3 // 2))
        self.free()
        self.address = self._cuda.malloc(wanted)
        self.num_bytes = wanted

    def free(self) -> None:
        """Release it."""
        if self.address:
            self._cuda.free(self.address)
        self.address, self.num_bytes = 0, 0


class PinnedMemory:
    """Page-locked memory of the host; what is in it is lost when it grows."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._array: Optional[np.ndarray] = None

    def reserve(self, num_bytes: int) -> None:
        """Have at least so many bytes. No copy may be using the old ones."""
        if self._array is None or num_bytes > self._array.nbytes:
            self.free()
            self._array = self._cuda.pinned(aligned(max(1, num_bytes)))

    def bytes(self, start: int, stop: int) -> np.ndarray:
        """Return the bytes from start to stop, uint8."""
        return self._array[start:stop]

    def free(self) -> None:
        """Release it."""
        if self._array is not None:
            self._cuda.free_pinned(self._array)
        self._array = None


class Block:
    """Several arrays beside each other on the device, with a page-locked counterpart, copied as one."""

    def __init__(self, cuda: Cuda, arrays: Mapping[str, tuple[tuple[int, ...], str]]) -> None:
        """Allocate.

        Args:
            cuda: the device.
            arrays: the largest shape, and the dtype, by name.
        """
        self._dtypes = {name: dtype for name, (_, dtype) in arrays.items()}
        self._starts: dict[str, int] = {}
        num_bytes = 0
        for name, (shape, dtype) in arrays.items():
            self._starts[name] = num_bytes
            num_bytes += aligned(size_of(shape, dtype))
        self._cuda = cuda
        self._num_bytes = num_bytes
        self._device = DeviceMemory(cuda, num_bytes)
        self._pinned = PinnedMemory(cuda)
        try:
            self._pinned.reserve(num_bytes)
        except BaseException:
            self._device.free()
            raise

    def address(self, name: str) -> int:
        """Return where an array lies on the device."""
        return self._device.address + self._starts[name]

    def host(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Return an array's page-locked counterpart in a shape not larger than the largest."""
        start, dtype = self._starts[name], self._dtypes[name]
        return self._pinned.bytes(start, start + size_of(shape, dtype)).view(dtype).reshape(shape)

    def to_device(self, stream: object) -> None:
        """Copy all of it."""
        self._cuda.to_device(self._device.address, self._pinned.bytes(0, self._num_bytes), stream)

    def to_host(self, stream: object) -> None:
        """Copy all of it."""
        self._cuda.to_host(self._pinned.bytes(0, self._num_bytes), self._device.address, stream)

    def free(self) -> None:
        """Release both."""
        self._device.free()
        self._pinned.free()


class PinnedPool:
    """Page-locked memory for what is on its way to or from the device, kept for the next. For any thread.

    Attributes:
        num_taken: pieces that are out.
    """

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        # Re-entrant: a piece may come back by garbage collection, while its thread takes another.
        self._lock = threading.RLock()
        self._free: list[np.ndarray] = []
        self._is_closed = False
        self.num_taken = 0

    def take(self, num_bytes: int) -> np.ndarray:
        """Return a piece of at least so many bytes, uint8; in the end it is given back."""
        with self._lock:
            fitting = [array for array in self._free if array.nbytes >= num_bytes]
            # Where none fits, one that is too small makes room: the number of pieces is that of images under way.
            piece = min(fitting or self._free, key=lambda array: array.nbytes, default=None)
            if piece is not None:
                self._free = [array for array in self._free if array is not piece]
        if not fitting:
            with active(self._cuda):
                if piece is not None:
                    self._cuda.free_pinned(piece)
                # Powers of two, so that images of similar sizes take each other's.
                piece = self._cuda.pinned(max(_LEAST_PINNED_BYTES, 1 << (num_bytes - 1).bit_length()))
        with self._lock:
            self.num_taken += 1
        return piece

    def give(self, piece: np.ndarray) -> None:
        """Take a piece back; no copy is using it any more."""
        with self._lock:
            self.num_taken -= 1
            if not self._is_closed:
                self._free.append(piece)
                return
        with active(self._cuda):
            self._cuda.free_pinned(piece)

    def close(self) -> None:
        """Release what is here now, and the rest when it is given back."""
        with self._lock:
            self._is_closed = True
            pieces, self._free = self._free, []
        with active(self._cuda):
            for piece in pieces:
                self._cuda.free_pinned(piece)


class PinnedArrays:
    """NumPy arrays in page-locked memory, which goes back to a pool with the last array that shows it.

    Page-locked memory is not for keeping: while many arrays are out, further ones lie in ordinary memory. So do small
    ones, which are copied in no time.
    """

    def __init__(self, cuda: Cuda, most: int) -> None:
        """Begin.

        Args:
            cuda: the device.
            most: arrays that are out at once.
        """
        self._pool, self._most = PinnedPool(cuda), most

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Return an array of no particular content."""
        num_bytes = size_of(shape, dtype)
        if num_bytes < _LEAST_PINNED_BYTES or self._pool.num_taken >= self._most:
            return np.empty(shape, dtype)
        piece = np.asarray(Borrowed(self._pool, num_bytes))
        return piece[:num_bytes].view(dtype).reshape(shape)

    def close(self) -> None:
        """Release what is not handed out, and the rest when it comes back."""
        self._pool.close()


class Borrowed:
    """A piece of a pool as NumPy takes it, which goes back with the last array that shows it."""

    def __init__(self, pool: PinnedPool, num_bytes: int) -> None:
        self._piece: Optional[np.ndarray] = None
        self._pool = pool
        self._piece = pool.take(num_bytes)

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return self._piece.__array_interface__

    def __del__(self) -> None:
        if self._piece is not None:
            self._pool.give(self._piece)
