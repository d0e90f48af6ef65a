"""Signals that end a command: in time, with what was finished, and without a traceback."""

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Optional

from runtime.files import remove_partial_files

# Where the system has them: the terminal's Ctrl-C, what `kill` and service managers send, a terminal that is closed.
NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
# How long native code may go on after a signal, where nothing has to be finished: a build is minutes in one call.
PATIENCE_SECONDS = 5.0
# Of signals that come sooner than this after the first, one was meant: supervisors send several at once.
_TOGETHER_SECONDS = 1.0
_POLL_SECONDS = 0.25
_STOP = b"\0"
_EXIT_STATUS = 128


class Interrupted(KeyboardInterrupt):
    """A signal has come.

    Attributes:
        number: the signal's.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.number = number

    @property
    def exit_status(self) -> int:
        """What a shell makes of a process that the signal ends: 130 for SIGINT, 143 for SIGTERM."""
        return _EXIT_STATUS + self.number


class _State:
    """What has come, and what may happen about it now; of the one block ``handled`` that is entered."""

    def __init__(self, patience: Optional[float]) -> None:
        self.received: Optional[int] = None
        self.is_raised = False
        self.num_holds = 0
        self.is_loading = False
        self.patience = patience


_state = _State(None)


@contextmanager
def handled(patience: Optional[float] = PATIENCE_SECONDS) -> Iterator[None]:
    """Have SIGINT, SIGTERM and SIGHUP raise ``Interrupted`` inside, once, in the main thread.

    A signal that this process was told to ignore (``nohup``, a shell's ``&``) stays ignored. Where native code keeps
    the main thread for longer than the patience, or a second signal comes, the process ends at once; what it was
    writing is removed first. Native code may also lose the exception: ``check`` raises it again.

    Args:
        patience: how long native code may go on after a signal, s; None: until it is done, or a second signal comes.
    """
    global _state
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    numbers = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
    numbers = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    outer, _state = _state, _State(patience)
    with _watched(_state, numbers):
        before = {number: signal.signal(number, _interrupt) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            _state = outer


def received() -> Optional[int]:
    """Return the signal that has come, if one has."""
    return _state.received


def check() -> None:
    """Raise what has come and was held, or was lost.

    Raises:
        Interrupted: a signal has come.
    """
    if _state.received is not None and not _state.num_holds:
        _state.is_raised = True
        raise Interrupted(_state.received)


@contextmanager
def held() -> Iterator[None]:
    """Let nothing be cut in the middle: a signal waits for the next ``released`` block or ``check``."""
    before, _state.num_holds = (_state.num_holds, _state.patience), _state.num_holds + 1
    _state.patience = None
    try:
        yield
    finally:
        _state.num_holds, _state.patience = before


@contextmanager
def loading() -> Iterator[None]:
    """Have a signal end the process at once: nothing has begun, and libraries do not survive an exception.

    An exception while they are imported makes ``ImportError`` of some, and ``abort`` of others.
    """
    before = (_state.is_loading, _state.patience)
    _state.is_loading, _state.patience = True, 0.0
    try:
        yield
    finally:
        _state.is_loading, _state.patience = before


@contextmanager
def released(patience: Optional[float] = None) -> Iterator[None]:
    """Inside ``held``: let signals raise again.

    Args:
        patience: see ``handled``.

    Raises:
        Interrupted: one has come meanwhile.
    """
    before = (_state.num_holds, _state.patience)
    try:
        _state.num_holds, _state.patience = 0, patience
        if not _state.is_raised:
            check()
        yield
    finally:
        _state.num_holds, _state.patience = before


def _interrupt(number: int, frame: Optional[FrameType]) -> None:
    del frame
    if _state.is_loading:
        _end(number)
    if _state.received is None:
        _state.received = number
    # Once: what is cleaned up after the first is not cut by the next.
    if not _state.num_holds and not _state.is_raised:
        _state.is_raised = True
        raise Interrupted(_state.received)


@contextmanager
def _watched(state: _State, numbers: Sequence[int]) -> Iterator[None]:
    """Have a thread learn of signals while the main thread is in native code, where no handler runs."""
    # Not a pipe: on Windows `select` knows sockets alone.
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=_watch, args=(reading, state, numbers), daemon=True, name="signals")
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        with suppress(OSError):
            writing.send(_STOP)
        thread.join()
        reading.close()
        writing.close()


def _watch(reading: socket.socket, state: _State, numbers: Sequence[int]) -> None:
    """End the process where the main thread does not; each byte that comes is a signal's number."""
    number, first = 0, 0.0
    while True:
        ready, _, _ = select.select([reading], [], [], _POLL_SECONDS if number else None)
        now = time.monotonic()
        if not ready:
            if state.patience is not None and not state.is_raised and now >= first + state.patience:
                _end(number)
            continue
        data = reading.recv(64)
        if not data or _STOP in data:
            return
        if not set(data) & set(numbers):
            continue
        if number and now > first + _TOGETHER_SECONDS:
            _end(number)
        if not number:
            number, first = next(n for n in data if n in numbers), now


def _end(number: int) -> None:
    """End this process although native code is running."""
    remove_partial_files()
    with suppress(OSError):
        os.write(2, f"{Interrupted(number)}: ended at once\n".encode())
    os._exit(Interrupted(number).exit_status)
