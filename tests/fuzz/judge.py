"""Runs a trial in this process, and says what came of it."""

import contextlib
import hashlib
import io
import os
import re
import shutil
import stat
import time
import traceback
import zlib
from pathlib import Path
from typing import Optional

import numpy as np

from tests.fuzz import trial as verdicts
from tests.fuzz.kinds import KINDS
from tests.fuzz.trial import Case, Outcome, Trial

# What a refusal is raised as. NotImplementedError is a RuntimeError; argparse leaves with status 2.
REFUSALS = (OSError, ValueError, RuntimeError)
# A case that takes more memory than this beyond what its process had is a bomb that went off.
MOST_BYTES = 3 << 30
_FORM = re.compile(r"expected|found|cannot|usage: ", re.DOTALL)
_MARK = re.compile(r"(?m)^(?:error[: ]|usage: )")
_LONGEST_SAID = 3000


def judged(case: Case, folder: Path) -> Outcome:
    """Make the case's trial in an empty folder and run it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    generator = np.random.default_rng([case.seed, zlib.crc32(case.kind.encode()), case.number])
    trial = KINDS[case.kind].make(folder, generator)
    before = _hashes(folder, trial)
    start = time.perf_counter()
    _forget_peak()
    size = _bytes_of("VmRSS")
    status, said, error = _run(trial)
    seconds = time.perf_counter() - start
    verdict, words = _verdict(trial, status, said, error)
    if _bytes_of("VmHWM") - size > MOST_BYTES:
        verdict, words = verdicts.MEMORY, f"{(_bytes_of('VmHWM') - size) >> 20} MiB; {words}"
    found = _damage(folder, trial, before) if verdict != verdicts.MEMORY else None
    if found:
        verdict, words = found
    return Outcome(case, trial.name, verdict, words[-_LONGEST_SAID:], round(seconds, 3))


def _run(trial: Trial) -> tuple[Optional[int], str, Optional[BaseException]]:
    """Return the exit status, what was said, and what was raised."""
    said = io.StringIO()
    directory, environment = os.getcwd(), dict(os.environ)
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            result = trial.run()
        return (result if trial.is_command else 0), said.getvalue(), None
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1, said.getvalue(), None
    except BaseException as error:
        return None, said.getvalue(), error
    finally:
        os.chdir(directory)
        if dict(os.environ) != environment:
            os.environ.clear()
            os.environ.update(environment)


def _verdict(
    trial: Trial, status: Optional[int], said: str, error: Optional[BaseException]
) -> tuple[str, str]:
    if error is not None:
        if trial.is_command or not isinstance(error, REFUSALS):
            return verdicts.TRACEBACK, "".join(traceback.format_exception(error))
        return _refusal(trial, str(error), traceback.format_exc())
    if status in (0, 1):
        wrong = trial.check()
        return (verdicts.LOST, wrong) if wrong else (verdicts.OK, "")
    if status != 2 or "Traceback (most recent call last)" in said:
        return verdicts.TRACEBACK, f"status {status}: {said}"
    found = _MARK.search(said)
    if not found:
        return verdicts.FORMLESS, said
    return _refusal(trial, said[found.start() :], "")


def _refusal(trial: Trial, message: str, where: str) -> tuple[str, str]:
    """Say whether a refusal names the place and has the form of ours."""
    if trial.named and not any(name in message for name in trial.named):
        return verdicts.UNNAMED, message + where
    if not _FORM.search(message):
        return verdicts.FORMLESS, message
    return verdicts.CLEAN, message


def _damage(folder: Path, trial: Trial, before: dict[str, str]) -> Optional[tuple[str, str]]:
    """Say what a run did to its inputs, or left beside its outputs."""
    after = _hashes(folder, trial)
    names = before if trial.may_add else {*before, *after}
    touched = sorted(name for name in names if after.get(name) != before.get(name))
    if touched:
        return verdicts.TOUCHED, f"changed, gone or new: {touched}"
    if trial.outputs is not None:
        left = [path.name for path in trial.outputs.rglob("*") if _is_temporary(path.name)]
        if left:
            return verdicts.LEFT, f"left: {left}"
    return None


def _is_temporary(name: str) -> bool:
    return name.endswith((".part", ".partial", ".tmp")) or ".partial." in name


def _hashes(folder: Path, trial: Trial) -> dict[str, str]:
    """Return the content of every regular file in the folder that is an input, and the kind of the others."""
    skipped = {os.fspath(path) for path in trial.may_change}
    if trial.outputs is not None and trial.outputs != folder:
        skipped.add(os.fspath(trial.outputs))
    found = {}
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if os.path.join(root, name) not in skipped]
        for name in names:
            path = os.path.join(root, name)
            if path not in skipped:
                found[path] = _content(path)
    return found


def _content(path: str) -> str:
    found = os.lstat(path)
    if not stat.S_ISREG(found.st_mode):
        return f"mode {found.st_mode:o}, device {found.st_rdev}"
    if found.st_blocks * 512 < found.st_size // 2:  # a sparse file is not read
        return f"{found.st_size} bytes, {found.st_mtime_ns}"
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def _forget_peak() -> None:
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def _bytes_of(name: str) -> int:
    """Return a figure of this process's memory that Linux keeps; 0 elsewhere."""
    with contextlib.suppress(OSError), open("/proc/self/status") as file:
        for line in file:
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) << 10
    return 0
