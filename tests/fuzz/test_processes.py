"""A share of the kill tests, of processes that write at once, and of the watch on memory; by hand they run longer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def _run(module: str, *arguments: object) -> None:
    """In a process of its own: these fork, and this one has threads."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-W", "ignore", "-m", module, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_killed_commands_leave_what_is_whole(tmp_path: Path) -> None:
    _run("tests.fuzz.kills", "--rounds", 12, "--seed", 3, "--folder", tmp_path)


def test_processes_at_once_have_results_of_their_own(tmp_path: Path) -> None:
    _run("tests.fuzz.together", "--rounds", 1, "--folder", tmp_path)


def test_memory_does_not_grow(fake_model: Path) -> None:
    _run("tests.fuzz.memory", fake_model, "--calls", 800)


@pytest.mark.parametrize(("processes", "requests"), [(1, 500), (2, 300)])
def test_a_service_answers_hostile_requests(fake_model: Path, processes: int, requests: int) -> None:
    pytest.importorskip("uvicorn", reason="the extra serve is not installed")
    _run("tests.fuzz.hostile", fake_model, "--requests", requests, "--processes", processes)


@pytest.mark.slow
def test_memory_of_a_network_does_not_grow(embedded_path: Path) -> None:
    _run("tests.fuzz.memory", embedded_path, "--calls", 5000)
