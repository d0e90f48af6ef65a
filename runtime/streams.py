"""Standard output and standard error that never end a run: closed, full, with nobody who reads, or not UTF-8."""

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Optional, TextIO


class SafeStream:
    """A text stream whose writing never fails. What its encoding lacks is written as escapes, such as ``\\u2265``."""

    def __init__(self, stream: Optional[TextIO]) -> None:
        self._stream = stream
        self.encoding = getattr(stream, "encoding", None) or "utf-8"

    @property
    def is_open(self) -> bool:
        """Whether what is written goes somewhere."""
        return self._stream is not None

    def write(self, text: str) -> int:
        """Write what can be written."""
        if self._stream is None:
            return len(text)
        try:
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                self._stream.write(text.encode(self.encoding, "backslashreplace").decode(self.encoding))
        except BlockingIOError:
            pass  # see `unwaited`: it is lost, and the next may not be
        except (OSError, ValueError):
            self._give_up()
        return len(text)

    def flush(self) -> None:
        """Flush what can be flushed."""
        if self._stream is not None:
            try:
                self._stream.flush()
            except BlockingIOError:
                pass
            except (OSError, ValueError):
                self._give_up()

    def end(self) -> None:
        """Flush what can be flushed, for the last time."""
        if self._stream is not None:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                self._give_up()

    def isatty(self) -> bool:
        """Return whether there is a terminal."""
        with suppress(OSError, ValueError):
            return self._stream is not None and self._stream.isatty()
        return False

    def fileno(self) -> int:
        """Return the file descriptor.

        Raises:
            OSError: there is none.
        """
        if self._stream is None:
            raise OSError("closed")
        return self._stream.fileno()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _give_up(self) -> None:
        """Have the rest go nowhere, and what is in buffers: Python flushes them when it ends, or exits with 120."""
        stream, self._stream = self._stream, None
        with suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


@contextmanager
def safe_streams() -> Iterator[None]:
    """Make standard output and standard error such streams."""
    _fill_descriptors()
    before = sys.stdout, sys.stderr
    streams = SafeStream(sys.stdout), SafeStream(sys.stderr)
    sys.stdout, sys.stderr = streams
    try:
        yield
    finally:
        for stream in streams:
            stream.end()
        sys.stdout, sys.stderr = before


def unwaited(descriptor: int) -> None:
    """Have lines that nobody reads be lost where they would be waited for, in a pipe that is full.

    Native libraries write to standard error, too: what a file is warned of would otherwise stop the thread that decodes
    it. The pipe is opened again, since whoever else writes to it may want to wait. Linux alone.

    Args:
        descriptor: of a pipe; of anything else nothing is changed.
    """
    with suppress(OSError):
        if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            again = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK)
            os.dup2(again, descriptor)
            os.close(again)


def _fill_descriptors() -> None:
    """Open nothing where 0, 1 or 2 is closed: the next file would get that number, and what libraries print."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with suppress(OSError):
                os.open(os.devnull, os.O_RDWR)
