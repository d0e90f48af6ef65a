"""Processes that run cases, and a watchdog: one that hangs or dies is counted and replaced."""

import faulthandler
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Optional

from tests.fuzz import trial as verdicts
from tests.fuzz.judge import judged
from tests.fuzz.trial import Case, Outcome

# Of the process's own time; and of waiting, on a machine that has other things to do.
SECONDS, WAITING_SECONDS = 10.0, 60.0
# Address space beyond what a process has when it starts: a bomb is then a MemoryError, not the machine's end.
MOST_BYTES = 5 << 30
# A process ends after so many cases: what one leaves behind is not what another fails by.
MOST_CASES = 1000
_TRACE = "trace.txt"


@dataclass
class _Worker:
    """A process, the folder that it works in, and what it is at."""

    process: BaseProcess
    connection: Connection
    folder: Path
    case: Optional[Case] = None
    start: float = 0.0
    cpu_seconds: float = 0.0
    num_cases: int = field(default=0)

    def give(self, case: Case) -> None:
        self.case, self.start = case, time.monotonic()
        self.cpu_seconds = _cpu_seconds(self.process.pid)
        self.num_cases += 1
        self.connection.send(case)

    def end(self) -> Optional[int]:
        """End the process and those that it started; return the signal that it had died of by itself."""
        self.process.join(0.2 if self.case else 5)
        status = self.process.exitcode
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            self.process.kill()
        self.process.join(WAITING_SECONDS)
        self.connection.close()
        return status


def outcomes(
    cases: Iterable[Case], folder: Path, *, num_workers: int = 2, keep: Optional[Path] = None
) -> Iterator[Outcome]:
    """Yield what comes of each case, in the order in which they end.

    Args:
        cases: to run.
        folder: in which each process has its own.
        num_workers: processes at once.
        keep: where the files of failed cases are copied to; None for nowhere.
    """
    waiting = iter(cases)
    workers = []
    try:
        for index in range(num_workers):
            case = next(waiting, None)
            if case is not None:
                workers.append(_started(folder / f"worker-{index}"))
                workers[-1].give(case)
        while workers:
            for worker in _ready(workers):
                outcome = _outcome_of(worker)
                if keep is not None and outcome.verdict not in (verdicts.OK, verdicts.CLEAN):
                    _keep(worker, outcome, keep)
                workers.remove(worker)
                yield outcome
                case = next(waiting, None)
                worker = _next(worker, case)
                if worker is not None:
                    workers.append(worker)
    finally:
        for worker in workers:
            worker.end()


def _ready(workers: list[_Worker]) -> list[_Worker]:
    """Wait for the workers that answered, died, or are over their time."""
    answered = wait([worker.connection for worker in workers], timeout=0.5)
    now = time.monotonic()
    return [w for w in workers if w.connection in answered or _is_over(w, now - w.start)]


def _is_over(worker: _Worker, seconds: float) -> bool:
    if seconds < SECONDS:
        return False
    return seconds > WAITING_SECONDS or _cpu_seconds(worker.process.pid) - worker.cpu_seconds > SECONDS


def _cpu_seconds(process: int) -> float:
    """Return the time that a process and the children that it waited for have taken; 0 of one that is gone."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _outcome_of(worker: _Worker) -> Outcome:
    case, seconds = worker.case, time.monotonic() - worker.start
    try:
        if worker.connection.poll():
            outcome = worker.connection.recv()
            worker.case = None
            return outcome
        verdict, status = verdicts.HANG, None
        worker.end()
    except (EOFError, ConnectionError):
        verdict, status = verdicts.CRASH, worker.end()
    said = f"exit status {status}\n{_trace(worker)}" if verdict == verdicts.CRASH else _trace(worker)
    return Outcome(case, "", verdict, said, round(seconds, 3))


def _next(worker: _Worker, case: Optional[Case]) -> Optional[_Worker]:
    """Return the worker at its next case, or another one where it is gone; None without a case."""
    is_gone = worker.case is not None
    if not is_gone and (case is None or worker.num_cases >= MOST_CASES):
        worker.end()
        is_gone = True
    if case is None:
        return None
    if is_gone:
        worker = _started(worker.folder)
    worker.give(case)
    return worker


def _started(folder: Path) -> _Worker:
    folder.mkdir(parents=True, exist_ok=True)
    # Forked, since the packages take seconds to import: this process has used none of their threads.
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, ours, folder), daemon=False)
    process.start()
    theirs.close()
    return _Worker(process, ours, folder)


def _work(connection: Connection, other: Connection, folder: Path) -> None:
    """Run what the connection brings, in a group of processes of its own."""
    other.close()
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _limit_memory()
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    # The packages' own words on standard error are nobody's; a crash's last ones are.
    trace = open(folder / _TRACE, "w")  # noqa: SIM115  (for as long as the process)
    os.dup2(trace.fileno(), 2)
    faulthandler.enable(trace)
    while True:
        try:
            case = connection.recv()
        except EOFError:
            return
        trace.seek(0)
        trace.truncate()
        faulthandler.dump_traceback_later(SECONDS * 0.9, repeat=True, file=trace)
        try:
            outcome = judged(case, folder / "case")
        except BaseException:  # of the fuzzer itself
            outcome = Outcome(case, "the fuzzer's own", verdicts.TRACEBACK, traceback.format_exc())
        faulthandler.cancel_dump_traceback_later()
        connection.send(outcome)


def _limit_memory() -> None:
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MOST_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def _trace(worker: _Worker) -> str:
    path = worker.folder / _TRACE
    return path.read_text(errors="replace")[-4000:] if path.is_file() else ""


def _keep(worker: _Worker, outcome: Outcome, folder: Path) -> None:
    case = outcome.case
    target = folder / f"{case.kind}-{case.seed}-{case.number}"
    try:
        shutil.copytree(worker.folder / "case", target, symlinks=True, dirs_exist_ok=True)
    except (OSError, shutil.Error) as error:  # names and pipes that cannot be copied
        print(f"{target}: not kept whole: {str(error)[:200]}", file=sys.stderr)
    target.mkdir(parents=True, exist_ok=True)
    (target / "outcome.txt").write_text(f"{outcome.verdict}: {outcome.name}\n{outcome.said}\n")
