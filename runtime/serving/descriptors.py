"""File descriptors: each connection takes one, and the system gives a process only so many."""

import asyncio
import errno
import os
import sys
import time
from contextlib import suppress
from typing import Any, Optional

# So many connections are taken in a turn of asyncio's loop, and it is some turns until one that is refused is closed.
NUM_ACCEPTED = 4
_TURNS = 6
# Connections beyond the limit that wait until their client has read why.
NUM_LINGERING = 16
# Shared memory on its way, the metrics' files, what libraries open for a moment.
_NUM_OTHERS = 24
_RESERVED = _TURNS * NUM_ACCEPTED + NUM_LINGERING + _NUM_OTHERS
_NOT_THERE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_SAY_AGAIN_SECONDS = 10.0


def num_connections(wanted: int) -> int:
    """Return for how many connections there are descriptors; the system's limit is raised as far as it allows.

    Args:
        wanted: connections.

    Returns:
        Up to as many, 1 or more.
    """
    limit = _raised_limit(wanted + _RESERVED + _num_open())
    return wanted if limit is None else max(1, min(wanted, limit - _RESERVED - _num_open()))


def _raised_limit(wanted: int) -> Optional[int]:
    """Return how many descriptors this process may have, ``wanted`` or fewer; None where there is no such limit."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return None
    if soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(ValueError, OSError):  # macOS allows less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
    return soft


def _num_open() -> int:
    for folder in ("/proc/self/fd", "/dev/fd"):
        with suppress(OSError):
            return len(os.listdir(folder))
    return 0


class Shortage:
    """Takes what asyncio reports: that a connection could not be taken is said once in a while, in a line."""

    def __init__(self) -> None:
        self._said_at = -_SAY_AGAIN_SECONDS

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """See ``asyncio.loop.set_exception_handler``."""
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in _NOT_THERE:
            loop.default_exception_handler(context)
        elif time.monotonic() >= self._said_at + _SAY_AGAIN_SECONDS:
            self._said_at = time.monotonic()
            print(f"connections wait: {os.strerror(error.errno)}", file=sys.stderr, flush=True)
