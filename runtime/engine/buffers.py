"""An engine's inputs and outputs on the device, and where they arrive on the host."""

from typing import Any, Protocol

import numpy as np

from runtime.cuda.binding import Cuda
from runtime.cuda.memory import Borrowed, DeviceMemory, PinnedMemory, PinnedPool, size_of

# Not 0, which some drivers answer with no address.
_LEAST_BYTES = 256
# The result that a caller works on, and the one before: page-locked memory is not for keeping.
_MOST_HANDED_OUT = 2


class Cast(Protocol):
    """What makes uint8 of float32 on the device."""

    def __call__(self, values: int, num_values: int, output: int, stream: int) -> None:
        """Enqueue it; ``values`` and ``output`` are addresses.

        Raises:
            RuntimeError: the device refuses.
        """


class Buffer:
    """Device memory and its page-locked counterpart for one tensor, grown when more is needed."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._device, self._pinned = DeviceMemory(cuda), PinnedMemory(cuda)

    @property
    def address(self) -> int:
        """Where it lies on the device."""
        return self._device.address

    def reserve(self, num_bytes: int) -> None:
        """Have at least so many bytes. Nothing may be using the old ones."""
        self._device.reserve(max(num_bytes, _LEAST_BYTES))
        self._pinned.reserve(max(num_bytes, _LEAST_BYTES))

    def host(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """Return the page-locked memory as an array of that shape."""
        return self._pinned.bytes(0, size_of(shape, dtype)).view(dtype).reshape(shape)

    def fetch(self, shape: tuple[int, ...], dtype: str, stream: Any) -> np.ndarray:
        """Enqueue the copy to the host; return where it arrives."""
        host = self.host(shape, dtype)
        self._cuda.to_host(host, self.address, stream)
        return host

    def result(self, host: np.ndarray) -> np.ndarray:
        """Return what has arrived as the caller's own."""
        return host.copy()

    def free(self) -> None:
        """Release both."""
        self._device.free()
        self._pinned.free()


class ByteBuffer:
    """An output, float32 in the engine, of which the host gets uint8: a quarter of the bytes, cast on the device.

    They are handed out where they arrive, in page-locked memory that comes back with the last array that shows it:
    copying hundreds of megabytes into fresh memory takes many times as long as fetching them. Results that are kept
    are copies.
    """

    def __init__(self, cuda: Cuda, cast: Cast) -> None:
        self._cuda, self._cast = cuda, cast
        self._values, self._bytes = DeviceMemory(cuda), DeviceMemory(cuda)
        self._pool = PinnedPool(cuda)

    @property
    def address(self) -> int:
        """Where the engine writes."""
        return self._values.address

    def reserve(self, num_bytes: int) -> None:
        """Have at least so many bytes of float32. Nothing may be using the old ones."""
        num_values = -(-num_bytes // 4)
        if num_bytes <= self._values.num_bytes and num_values <= self._bytes.num_bytes:
            return
        self._bytes.reserve(num_values)
        self._pool.give(self._pool.take(self._bytes.num_bytes))
        self._values.reserve(num_bytes)  # last: what fails before is tried again

    def fetch(self, shape: tuple[int, ...], dtype: str, stream: Any) -> np.ndarray:
        """Enqueue the cast and the copy to the host; return where it arrives."""
        del dtype  # of the engine
        piece = np.asarray(Borrowed(self._pool, self._bytes.num_bytes))
        host = piece[: size_of(shape, "uint8")].reshape(shape)
        self._cast(self._values.address, host.size, self._bytes.address, self._cuda.stream_address(stream))
        self._cuda.to_host(host, self._bytes.address, stream)
        return host

    def result(self, host: np.ndarray) -> np.ndarray:
        """Return what has arrived as the caller's own."""
        return host if self._pool.num_taken <= _MOST_HANDED_OUT else host.copy()

    def free(self) -> None:
        """Release everything that is not handed out, and the rest when it comes back."""
        self._values.free()
        self._bytes.free()
        self._pool.close()
