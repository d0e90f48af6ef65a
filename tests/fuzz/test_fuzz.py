"""A share of the fuzzer's cases, and those that once failed: nothing hangs, crashes, or is lost."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.fuzz import trial as verdicts
from tests.fuzz.__main__ import cases, failed, regressions, summary
from tests.fuzz.judge import judged
from tests.fuzz.kinds import KINDS, Kind
from tests.fuzz.pool import outcomes
from tests.fuzz.trial import Case, Trial

NUM_CASES = 1500
SEED = 14


def test_damaged_input_is_refused_or_used(tmp_path: Path) -> None:
    """In a process of its own: the pool forks, and this one has threads."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "tests.fuzz",
        "--cases",
        str(NUM_CASES),
        "--seed",
        str(SEED),
    ]
    options = ["--regressions", "--folder", str(tmp_path), "--keep", str(tmp_path / "failed")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run([*command, *options], capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_every_kind_has_its_share_and_cases_are_made_again() -> None:
    chosen = list(cases(2000, SEED))
    assert chosen == list(cases(2000, SEED))
    counts = {name: sum(case.kind == name for case in chosen) for name in KINDS}
    total = sum(kind.share for kind in KINDS.values())
    for name, kind in KINDS.items():
        assert counts[name] == pytest.approx(2000 * kind.share / total, abs=1.5), name
    assert all(case.kind in KINDS for case in regressions())


# What a fuzzer is for has to be seen by it.


def _raise(error: BaseException) -> None:
    raise error


def _touch(folder: Path) -> int:
    (folder / "input").write_bytes(b"other")
    return 0


BEHAVIOURS = {
    "fine": (lambda folder: 0, True, verdicts.OK),
    "refuses": (lambda folder: _raise(ValueError("input: expected a, found b; c")), False, verdicts.CLEAN),
    "names nothing": (lambda folder: _raise(ValueError("expected a, found b")), False, verdicts.UNNAMED),
    "says nothing": (lambda folder: _raise(ValueError("input")), False, verdicts.FORMLESS),
    "raises": (lambda folder: _raise(KeyError("input: expected")), False, verdicts.TRACEBACK),
    "command raises": (lambda folder: _raise(ValueError("input: expected")), True, verdicts.TRACEBACK),
    "status 3": (lambda folder: 3, True, verdicts.TRACEBACK),
    "touches": (_touch, True, verdicts.TOUCHED),
    "adds": (lambda folder: (folder / "new").write_bytes(b"") or 0, True, verdicts.TOUCHED),
    "leaves": (lambda folder: (folder / "out" / ".x.part").write_bytes(b"") or 0, True, verdicts.LEFT),
    "loses": (lambda folder: 0, True, verdicts.LOST),
    "hangs": (lambda folder: time.sleep(1000), True, verdicts.HANG),
    "crashes": (lambda folder: os.abort(), True, verdicts.CRASH),
    "takes memory": (lambda folder: int(np.ones(400 << 20, np.uint8)[0]) - 1, True, verdicts.MEMORY),
}


def _kind(behaviour: str) -> Kind:
    run, is_command, _ = BEHAVIOURS[behaviour]

    def make(folder: Path, random: np.random.Generator) -> Trial:
        (folder / "input").write_bytes(b"data")
        (folder / "out").mkdir()
        lost = "half of it" if behaviour == "loses" else ""
        return Trial(
            behaviour, lambda: run(folder), ("input",), is_command, lambda: lost, outputs=folder / "out"
        )

    return Kind(make, 1)


@pytest.mark.parametrize(
    "behaviour", [name for name in BEHAVIOURS if name not in ("hangs", "crashes", "takes memory")]
)
def test_a_verdict_is_what_happened(behaviour: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, behaviour, _kind(behaviour))
    outcome = judged(Case(behaviour, 1, 0), tmp_path / "case")
    assert outcome.verdict == BEHAVIOURS[behaviour][2], outcome


def test_hangs_and_crashes_end_one_process_and_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.fuzz.pool.SECONDS", 2.0)
    monkeypatch.setattr("tests.fuzz.pool.WAITING_SECONDS", 8.0)
    monkeypatch.setattr("tests.fuzz.judge.MOST_BYTES", 200 << 20)
    for name in BEHAVIOURS:
        monkeypatch.setitem(KINDS, name, _kind(name))
    names = ("crashes", "hangs", "fine", "takes memory", "crashes", "fine")
    wanted = [Case(name, 1, number) for number, name in enumerate(names)]
    found = list(outcomes(wanted, tmp_path, keep=tmp_path / "kept"))
    assert sorted((o.case.kind, o.verdict) for o in found) == sorted((n, BEHAVIOURS[n][2]) for n in names)
    assert len(failed(found)) == 4
    assert summary(found, 1)["all"][verdicts.CRASH] == 2
    assert (tmp_path / "kept" / "crashes-1-0" / "input").read_bytes() == b"data"
