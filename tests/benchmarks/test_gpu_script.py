"""``benchmarks/gpu.sh`` with a Python that writes down how it was called, and fails where its module is to."""

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Optional

import pytest

from tests.cpp.conftest import ROOT

STUB = """#!/bin/sh
if [ -n "$HANGING" ] && [ "$2" = "$HANGING" ]; then sleep 60 & echo $! > "$CALLS.child"; wait; fi
printf '<%s>' "$@" >> "$CALLS"
echo >> "$CALLS"
[ "$2" != "$FAILING" ]
"""

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")


def run(folder: Path, *steps: str, failing: str = "", **variables: str) -> tuple[int, str, list[str]]:
    """Return the exit status, what was printed and the calls."""
    python, calls, models = folder / "python", folder / "calls", folder / "models"
    python.write_text(STUB)
    python.chmod(0o755)
    calls.unlink(missing_ok=True)
    models.mkdir(exist_ok=True)
    for name in ("variants.json", "tc"):
        (models / name).touch()
    environment = {
        "PATH": os.environ["PATH"],
        "CALLS": str(calls),
        "FAILING": failing,
        "MODELS": str(models),
        **dict.fromkeys(("TRT_PYTHON", "TORCH_PYTHON", "ORT_PYTHON"), str(python)),
        **variables,
    }
    command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), str(folder / "out"), *steps]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert not done.stderr
    return done.returncode, done.stdout, calls.read_text().splitlines() if calls.exists() else []


def test_what_is_not_set_fails_its_steps_alone(tmp_path: Path) -> None:
    status, printed, calls = run(tmp_path, "fp16", "cpp", "grafts", "plugins")
    assert status == 1
    assert [f"== {step}: exit 1" in printed for step in ("fp16", "cpp", "grafts")] == [True] * 3
    assert "== plugins: exit 0" in printed
    assert len(calls) == 1
    assert "<tests.gpu.plugins_report>" in calls[0]
    for step, name in (("fp16", "DATASET"), ("cpp", "PROGRAMS"), ("grafts", "GRAFTS")):
        assert f"{name}: unbound variable" in (tmp_path / "out" / f"{step}.log").read_text()


@pytest.mark.parametrize("failing", ["", "benchmarks.engines", "benchmarks.kernels"])
def test_the_exit_status_is_that_of_the_steps(tmp_path: Path, failing: str) -> None:
    status, printed, calls = run(tmp_path, "kernel-times", "int8", "plugins", failing=failing, DATASET="d")
    assert status == (1 if failing else 0)
    assert printed.count("exit 1") == status
    assert len(calls) == 3


def test_a_step_that_hangs_is_ended_with_what_it_started(tmp_path: Path) -> None:
    variables = {"STEP_SECONDS": "1", "HANGING": "benchmarks.kernels"}
    status, printed, calls = run(tmp_path, "kernel-times", "plugins", **variables)
    assert status == 1
    assert "== kernel-times: exit 124" in printed
    assert "== plugins: exit 0" in printed
    assert len(calls) == 1
    child = Path(f"/proc/{(tmp_path / 'calls.child').read_text().strip()}")
    deadline = time.monotonic() + 10
    while _is_running(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _is_running(child)


def _is_running(process: Path) -> bool:
    try:
        return process.joinpath("stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_an_unknown_step_fails(tmp_path: Path) -> None:
    status, printed, calls = run(tmp_path, "fp61")
    assert (status, calls) == (1, [])
    assert "no step fp61" in printed


@pytest.mark.parametrize(
    ("tactics", "grafts", "engines"),
    [
        (None, "", ""),
        ("none", "<--tactic-sources>", "<--tactic-sources><none>"),
        ("CUBLAS", "<--tactic-sources><CUBLAS>", "<--tactic-sources><CUBLAS>"),
        ("CUBLAS,CUDNN", "<--tactic-sources><CUBLAS><CUDNN>", "<--tactic-sources><CUBLAS,CUDNN>"),
    ],
)
def test_tactic_sources(tmp_path: Path, tactics: Optional[str], grafts: str, engines: str) -> None:
    given = {} if tactics is None else {"TACTICS": tactics}
    status, _, calls = run(tmp_path, "grafts-fp16", "fp16", DATASET="d", GRAFTS="g", **given)
    assert status == 0
    assert f"<--runtimes><tensorrt>{grafts}<--output>" in calls[0]
    assert f"/models/tc>{engines}<--out>" in calls[1]
