"""Hundreds of damaged annotations and recordings: each is evaluated or refused by name, none hangs or crashes."""

import json
import os
import subprocess
import sys
from pathlib import Path

SECONDS = 10.0


def test_damaged_files_are_refused_or_evaluated(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.runtime.damaged_files", str(tmp_path)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "OMP_NUM_THREADS": "1",
    }
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    except subprocess.TimeoutExpired as error:
        raise AssertionError(f"hangs after {(error.stdout or b'')[-500:]!r}") from error
    cases = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"{done.returncode} after {cases[-1:]}: {done.stderr[-2000:]}"
    assert cases[0]["status"] == 0, cases[0]
    assert len(cases) > 700
    for case in cases[1:]:
        damaged = tmp_path / ("damaged.json" if case["name"].startswith("annotations") else "damaged.npz")
        assert case["seconds"] < SECONDS, case
        assert case["status"] in (0, 2), f"{case['name']}: {case['status']}"
        if case["status"] == 2:
            assert case["said"].startswith("error: "), case
            assert case["said"].count("\n") == 1, case
            assert str(damaged) in case["said"], case
    refused = [case for case in cases if case["status"] == 2]
    assert len(refused) > len(cases) / 2
