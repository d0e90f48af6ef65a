"""Clocks: wall time by stage, medians with their spread, and what nvidia-smi says about the GPU meanwhile."""

import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Callable, Optional

import numpy as np

# Fewer repetitions have no spread.
LEAST_REPETITIONS = 3
_STATE = (
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "power.draw",
    "power.limit",
    "temperature.gpu",
    "utilization.gpu",
)
_SAMPLE_MS = 100
_SMI_SECONDS = 20


class Stopwatch:
    """Wall time in ms by stage; a stage ends at its lap."""

    def __init__(self) -> None:
        self.ms: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Add the time since the last lap to a stage."""
        now = time.perf_counter()
        self.ms[stage] = self.ms.get(stage, 0.0) + (now - self._last) * 1e3
        self._last = now


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return ``median``, ``p10``, ``p90`` and the number of values, ``n``."""
    p10, median, p90 = np.percentile(values, (10, 50, 90))
    return {"median": float(median), "p10": float(p10), "p90": float(p90), "n": len(values)}


def repeated(
    run: Callable[[], dict[str, float]], *, repeat: int, seconds: float, warmup: int = 3
) -> dict[str, dict[str, float]]:
    """Repeat something that returns its stages in ms; return each stage's ``spread``.

    Args:
        run: what is measured.
        repeat: most repetitions.
        seconds: start none after this time, once there are ``LEAST_REPETITIONS``.
        warmup: repetitions before, which do not count; one where it takes longer than ``seconds``.
    """
    start = time.monotonic()
    for _ in range(warmup):
        run()
        if time.monotonic() - start > seconds:
            break
    found: dict[str, list[float]] = {}
    start = time.monotonic()
    for done in range(repeat):
        if done >= LEAST_REPETITIONS and time.monotonic() - start > seconds:
            break
        for stage, milliseconds in run().items():
            found.setdefault(stage, []).append(milliseconds)
    return {stage: spread(values) for stage, values in found.items()}


def gpu_state() -> Optional[dict[str, str]]:
    """Return clocks, power, temperature and load of the first GPU as nvidia-smi has them; None without it."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "-i", "0", f"--query-gpu={','.join(_STATE)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SMI_SECONDS, check=True)
    except (subprocess.SubprocessError, OSError) as error:
        return {"error": str(error)}
    return dict(zip(_STATE, (value.strip() for value in done.stdout.split(","))))


@dataclass
class Load:
    """How busy the GPU was.

    Attributes:
        samples: percent of the time in which a kernel ran, over nvidia-smi's periods.
        problem: why there are none.
    """

    samples: list[float] = field(default_factory=list)
    problem: str = ""

    @property
    def share(self) -> Optional[float]:
        """The mean, 0 to 1; None without samples."""
        return float(np.mean(self.samples)) / 100 if self.samples else None


@contextmanager
def gpu_load() -> Iterator[Load]:
    """Ask nvidia-smi ten times a second how busy the first GPU is, while the body runs."""
    load = Load()
    if shutil.which("nvidia-smi") is None:
        load.problem = "no nvidia-smi"
        yield load
        return
    command = ["nvidia-smi", "-i", "0", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    with subprocess.Popen(
        [*command, "-lms", str(_SAMPLE_MS)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield load
        finally:
            process.terminate()
            output = process.communicate(timeout=_SMI_SECONDS)[0]
            load.samples, load.problem = _samples(output)


def _samples(output: str) -> tuple[list[float], str]:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    numbers = [float(line) for line in lines if line.isdigit()]
    return numbers, "" if numbers else f"nvidia-smi said {' '.join(lines)[:200] or 'nothing'}"
