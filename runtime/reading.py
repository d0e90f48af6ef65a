"""How much of a file is read: a device has no end, and a sparse file is larger than memory."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Union

# Of JSON that is ours.
SMALL = 1 << 26


def limit(variable: str, default: int) -> int:
    """Return the whole number in a variable of the environment, or the default.

    Raises:
        ValueError: something else is in it.
    """
    text = os.environ.get(variable, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise ValueError(f"{variable}: expected a whole number, found {text!r}; set or unset it")
    return int(text)


def regular_size(path: Union[str, Path]) -> int:
    """Return the bytes of a regular file.

    Raises:
        ValueError: it is none (a pipe would be waited for); without the place.
        OSError: there is nothing.
    """
    with _errors_of(path):
        found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"))
        kind = next((name for is_kind, name in kinds if is_kind(found.st_mode)), "a device")
        raise ValueError(f"expected a regular file, found {kind}; name a file")
    return found.st_size


def bounded_bytes(path: Union[str, Path], most: int, remedy: str = "name another file") -> bytes:
    """Read a regular file.

    Args:
        path: of the file.
        most: bytes that it may have.
        remedy: what to do about a larger one, for the message.

    Raises:
        ValueError: it is larger, or no regular file; without the place.
        OSError: it cannot be read.
    """
    size = regular_size(path)
    if size <= most:
        with _errors_of(path), open(path, "rb") as file:
            data = file.read(most + 1)
        if len(data) <= most:
            return data
        size = len(data)
    raise ValueError(f"expected a file of up to {most} bytes, found {size}; {remedy}")


@contextmanager
def _errors_of(path: Union[str, Path]) -> Iterator[None]:
    """Say in the system's errors what could not be done; some name no file either."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, f"cannot read: {os.strerror(error.errno)}", str(path)) from error
