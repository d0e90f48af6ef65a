"""The numbers that may be asked for: more is a slip, and would take the memory or the threads of the machine."""

import operator
from typing import Any

# Larger machines have no more cores, and each thread takes memory and a place among the system's.
MAX_THREADS = 1024
# Of 800 x 1344 px, as float32: 13 GB.
MAX_BATCH = 1024
# Of an image inside the network, px: a feature map of that size squared takes gigabytes.
MAX_SIZE = 1 << 16
# A TiB, which no GPU has.
MAX_WORKSPACE_MIB = 1 << 20
# Of a service, each with an interpreter and its libraries: 100 MB.
MAX_PROCESSES = 64
MAX_DEVICE_INDEX = 255
# Of a GPU: each has memory for an engine's largest batch, and kernels fill a GPU with few.
MAX_STREAMS = 64
# Of floats on a CPU.
CPU_PRECISIONS = ("fp32", "bf16")
# Tensors that are outputs at once.
MAX_CHUNK = 1024


def checked_count(name: str, value: Any, most: int, *, least: int = 1) -> int:
    """Return a whole number from ``least``, which is 0 or 1, to ``most``.

    Raises:
        ValueError: another number, or none; names the option.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if isinstance(value, bool) or not least <= number <= most:
        raise ValueError(f"{name}: expected a whole number from {least} to {most}, found {value!r:.60}")
    return number
