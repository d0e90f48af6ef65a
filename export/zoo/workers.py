"""Run a function on many arguments, each in a process of its own that may hang, grow or die."""

import multiprocessing
import os
import select
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Optional

POLL_S = 0.2
MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What one process may take: seconds, and MiB of resident memory."""

    seconds: float = 600.0
    memory_mib: float = 8192.0


@dataclass(frozen=True)
class Outcome:
    """How one call ended.

    Attributes:
        argument: the call's first.
        value: what it returned; None if it did not return.
        problem: why it did not, in one line; None if it did.
        seconds: it took, process included.
        peak_mib: most resident memory that was seen.
    """

    argument: str
    value: Any
    problem: Optional[str]
    seconds: float
    peak_mib: float


class _Running:
    """One process, its pipe, and what it has printed."""

    def __init__(
        self, context: BaseContext, function: Callable[..., Any], argument: str, rest: Sequence[Any]
    ) -> None:
        self.argument = argument
        self.log = Path(tempfile.mkstemp(prefix="zoo-", suffix=".log")[1])
        self.start = time.monotonic()
        self.peak_mib = 0.0
        self.connection: Connection
        self.connection, theirs = context.Pipe(duplex=False)
        self.process: BaseProcess = context.Process(
            target=_call,
            args=(self.connection, theirs, str(self.log), function, argument, *rest),
            daemon=True,
        )
        self.process.start()
        theirs.close()

    def poll(self, limits: Limits) -> Optional[Outcome]:
        """Return the outcome once there is one; a process beyond its limits is killed."""
        self.peak_mib = max(self.peak_mib, resident_mib(self.process.pid))
        if self.connection.poll():
            return self._received()
        seconds = time.monotonic() - self.start
        if seconds > limits.seconds:
            return self._ended(f"killed after {limits.seconds:.0f} s")
        if self.peak_mib > limits.memory_mib:
            return self._ended(f"killed at {limits.memory_mib:.0f} MiB of memory")
        return None

    def stop(self) -> None:
        """Kill what still runs."""
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.connection.close()
        self.log.unlink(missing_ok=True)

    def _received(self) -> Outcome:
        try:
            value, problem = self.connection.recv()
        except EOFError:
            self.process.join()
            return self._ended(f"the process died ({_exit_name(self.process.exitcode)}){self._last_words()}")
        return self._ended(problem, value)

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").split("\n")
        words = [line.strip() for line in lines if line.strip()]
        return f": {words[-1][:200]}" if words else ""

    def _ended(self, problem: Optional[str], value: Any = None) -> Outcome:
        seconds = time.monotonic() - self.start
        self.stop()
        return Outcome(self.argument, value, problem, round(seconds, 1), round(self.peak_mib))


def run_each(
    function: Callable[..., Any],
    arguments: Sequence[str],
    *rest: Any,
    jobs: int = 1,
    limits: Limits = Limits(),
    deadline: Optional[float] = None,
    context: Optional[BaseContext] = None,
) -> Iterator[Outcome]:
    """Call ``function(argument, *rest)`` for every argument, ``jobs`` at a time, each in a fresh process.

    Args:
        function: of a module, so that another process can import it.
        arguments: in the order in which calls begin.
        rest: further arguments of every call.
        jobs: processes at a time.
        limits: of each.
        deadline: of ``time.monotonic``; no call begins after it, those that run end.
        context: how processes start; default: ``forkserver_context(function.__module__)``.

    Yields:
        Outcomes, as they come. A caller that stops early leaves no process behind.
    """
    context = context or forkserver_context(function.__module__)
    waiting = list(arguments)[::-1]
    running: list[_Running] = []
    try:
        while waiting or running:
            late = deadline is not None and time.monotonic() >= deadline
            while waiting and len(running) < jobs and not late:
                running.append(_Running(context, function, waiting.pop(), rest))
            if not running:
                return
            wait([r.connection for r in running], timeout=POLL_S)
            for process in list(running):
                outcome = process.poll(limits)
                if outcome is not None:
                    running.remove(process)
                    yield outcome
    finally:
        for process in running:
            process.stop()


def forkserver_context(*modules: str) -> BaseContext:
    """Return a context whose processes are forked from one that has imported ``modules`` and done nothing else.

    Importing mmdet takes longer than exporting a small model; a fork of a process that has computed something may
    find PyTorch's threads gone.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(modules))
    return context


def resident_mib(pid: Optional[int]) -> float:
    """Return a process's resident memory; 0 if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/statm").read_text().split()
    except OSError:
        return 0.0
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / MIB if len(fields) > 1 else 0.0


def _call(
    reader: Connection, connection: Connection, log: str, function: Callable[..., Any], *arguments: Any
) -> None:
    """Run in the process: what it prints, native code included, goes to ``log``."""
    reader.close()  # a fork's copy would keep the pipe from breaking when the runner is killed
    threading.Thread(target=_end_with_reader, args=(connection.fileno(),), daemon=True).start()
    target = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(target, 1)
    os.dup2(target, 2)
    try:
        result = (function(*arguments), None)
    except Exception as error:
        result = (None, f"{type(error).__name__}: {error}")
    connection.send(result)
    connection.close()


def _end_with_reader(descriptor: int) -> None:
    """End the process once nobody reads what it is to send: whoever started it was killed."""
    poll = select.poll()
    poll.register(descriptor, 0)  # errors are always reported; a pipe without a reader is one
    poll.poll()
    os._exit(1)


def _exit_name(code: Optional[int]) -> str:
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"
