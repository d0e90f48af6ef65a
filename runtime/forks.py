"""What of a process is not there in one that was forked off it: threads, and whatever needs them; a GPU."""

import ctypes
import os
from typing import Any


def check_process(process: int, what: str) -> None:
    """Refuse to use in a forked process what only the process that made it can use.

    Args:
        process: ``os.getpid()`` of the process that made it.
        what: of which the message speaks.

    Raises:
        RuntimeError: this is another process.
    """
    if process != os.getpid():
        raise RuntimeError(
            f"{what}: expected to be used in process {process}, which made it, found process {os.getpid()}, forked off "
            "it; make the Detector after the fork"
        )


def never_free(value: Any) -> None:
    """Keep an object for as long as this process lives: its destructor would wait for threads that are not here."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))
