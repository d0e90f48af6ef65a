"""What of a process is not there in one that was forked off it: threads, and whatever needs them; a GPU."""

import ctypes
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Callable

# A fork waits so long for calls that are under way; a batch takes less.
CALL_SECONDS = 30.0
# Threads that have nothing to do fall asleep within milliseconds; what runs on is another library's.
REST_SECONDS = 1.0
# Where the system does not say which threads sleep.
_BLIND_SECONDS = 0.05
_REMEDY = "fork while no Detector runs, or start the process anew (`spawn`)"
_TASKS = Path("/proc/self/task")


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


class LibraryCalls:
    """Calls into a library that has threads and locks once in a process, for all of its models.

    A forked process has the locks, but not the threads: what one of them held at that moment stays locked for ever. So
    a fork waits for the calls that are under way, holds others back, and waits until the threads sleep.
    """

    def __init__(self, name: str, tidy: Callable[[], None]) -> None:
        """Begin; made once, at import.

        Args:
            name: the library's.
            tidy: has the library give up idle threads; called before a fork, if there was a call ever.
        """
        self._name, self._tidy = name, tidy
        self._was_called = False
        self._refusal = self._refusal_of_child = ""
        self._begin()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=self._before_fork, after_in_parent=self._after_fork, after_in_child=self._in_child
            )

    def _begin(self) -> None:
        self._changed = threading.Condition()
        self._num_calls = self._num_forks = 0
        self._own = threading.local()

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Let no process be forked meanwhile. Calls may be nested."""
        depth = getattr(self._own, "depth", 0)
        if not depth:
            with self._changed:
                self._changed.wait_for(lambda: not self._num_forks)
                self._num_calls += 1
                self._was_called = True
        self._own.depth = depth + 1
        try:
            yield
        finally:
            self._own.depth = depth
            if not depth:
                with self._changed:
                    self._num_calls -= 1
                    self._changed.notify_all()

    def check(self) -> None:
        """Refuse what might not end here.

        Raises:
            RuntimeError: this process was forked during a call.
        """
        if self._refusal:
            raise RuntimeError(f"{self._name}: {self._refusal}")

    def _before_fork(self) -> None:
        """Wait for calls and threads; where an exception, of a signal for example, ends that, the child refuses."""
        self._refusal_of_child = (
            f"expected no call under way when process {os.getpid()} was forked, found one that had not ended after "
            f"{CALL_SECONDS:.0f} s; {_REMEDY}"
        )
        own = min(1, getattr(self._own, "depth", 0))  # this thread's call would be waited for in vain
        with self._changed:
            self._num_forks += 1
            is_idle = self._changed.wait_for(lambda: self._num_calls <= own, CALL_SECONDS)
        if is_idle:
            self._refusal_of_child = self._rested() if self._was_called else ""

    def _rested(self) -> str:
        """Have all threads sleep; return why not where that fails."""
        try:
            self._tidy()
        except RuntimeError as error:  # of an interpreter that ends, which begins no threads
            return (
                f"expected no idle threads when process {os.getpid()} was forked, found some that could not be ended "
                f"({error}); {_REMEDY}"
            )
        wait_for_rest(REST_SECONDS)
        return ""

    def _after_fork(self) -> None:
        with self._changed:
            self._num_forks -= 1
            self._changed.notify_all()

    def _in_child(self) -> None:
        """Know of no calls and no forks: the threads that they were in are not here."""
        self._refusal = self._refusal or self._refusal_of_child
        self._begin()


def wait_for_rest(seconds: float) -> None:
    """Wait until all of the process's threads sleep at one moment, those of Python aside; not longer than told.

    A thread that sleeps, and is woken by nobody, holds no lock that another needs.
    """
    if not _TASKS.is_dir():
        time.sleep(_BLIND_SECONDS)
        return
    end = time.monotonic() + seconds
    before = _native_threads()
    # Those that slept at both looks, and did not run between them, slept at the moment between them, all at once.
    while (now := _native_threads()) != before or any(state != "S" for state, _ in now.values()):
        if time.monotonic() > end:
            return
        time.sleep(1e-3)
        before = now


def _native_threads() -> dict[str, tuple[str, str]]:
    """Return by their id the state of the threads that are not Python's, and how often they stopped running."""
    own = {str(thread.native_id) for thread in threading.enumerate()} | {str(threading.get_native_id())}
    found = {}
    for task in os.listdir(_TASKS):
        if task not in own:
            with suppress(OSError):  # it has ended
                lines = (_TASKS / task / "status").read_text().splitlines()
                fields = dict(line.split(":", 1) for line in lines if ":" in line)
                switches = fields.get("voluntary_ctxt_switches", "") + fields.get(
                    "nonvoluntary_ctxt_switches", ""
                )
                found[task] = (fields["State"].split()[0], switches)
    return found
