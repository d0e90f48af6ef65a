"""What is measured, one case after another, into one JSON that is whole after each."""

import json
import time
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Callable, Optional, Protocol

from benchmarks.latency.measure import gpu_state
from runtime.console import write_json


@dataclass(frozen=True)
class Options:
    """What all sides measure.

    Attributes:
        model: the exported ONNX, masks ``crop``.
        full: the same model exported with masks ``full``; None leaves it out.
        config, checkpoint: of the model in PyTorch; the embedded model's by default.
        size: (height, width) of the network's input, px.
        dataset: folder with ``annotations.json`` and its images.
        images: at most so many of them, in order.
        folder: for engines and recordings.
        batches: the sweep.
        profile: least, best and largest batch of the engines.
        repeat, seconds: most repetitions of a measurement, and after how long no other is begun.
        device: PyTorch's, ``cuda`` or ``cpu``.
        threads: of onnxruntime and PyTorch on the CPU; None for all.
        timing_cache: TensorRT's; None keeps none.
        tactic_sources: of ``runtime.build``; None for its default.
    """

    model: Path
    full: Optional[Path]
    config: str
    checkpoint: Path
    size: tuple[int, int]
    dataset: Path
    images: Optional[int]
    folder: Path
    batches: tuple[int, ...]
    profile: tuple[int, int, int]
    repeat: int
    seconds: float
    device: str
    threads: Optional[int]
    timing_cache: Optional[Path]
    tactic_sources: Optional[str] = None

    @property
    def reference(self) -> Path:
        """What PyTorch in FP32 found, recorded in this run."""
        return self.recording("pytorch", "fp32", "outputs")

    def recording(self, side: str, variant: str, kind: str) -> Path:
        """Return where the results of a variant are recorded."""
        return self.folder / f"latency_{side}_{variant}_{kind}.npz"

    def settings(self) -> dict[str, Any]:
        """Return those that have to be equal in all parts of one run; JSON can hold them."""
        names = ("config", "size", "images", "profile", "device")
        values = {name: value for name, value in asdict(self).items() if name in names}
        files = {"model": self.model.name, "full": None if self.full is None else self.full.name}
        return json.loads(
            json.dumps({**files, "checkpoint": self.checkpoint.name, "dataset": self.dataset.name, **values})
        )


@dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
        side: ``pytorch``, ``onnxruntime`` or ``tensorrt``.
        variant: of the side, such as ``fp16``.
        kind: what is measured, such as ``batch-8``.
        seconds: that it takes, about; it is not begun with less left.
        run: measures; returns what JSON can hold.
    """

    side: str
    variant: str
    kind: str
    seconds: float
    run: Callable[[], dict[str, Any]]

    @property
    def name(self) -> str:
        """``side/variant/kind``."""
        return f"{self.side}/{self.variant}/{self.kind}"


class Side(Protocol):
    """Something that runs the model."""

    circumstances: dict[str, Any]
    skipped: dict[str, str]

    def cases(self) -> Sequence[Case]:
        """Return what it measures, in order, cheapest first."""

    def close(self) -> None:
        """Release what is open."""


class Results:
    """The JSON. Another process may have written cases of its own since the last time."""

    def __init__(self, path: Path, settings: Optional[dict[str, Any]] = None) -> None:
        """Go on with the file, or begin it.

        Args:
            path: the JSON.
            settings: of this run; None takes what the file has.

        Raises:
            ValueError: it holds a run with other settings.
            FileNotFoundError: there is no file, and no settings to begin one with.
        """
        self.path = path
        self.data: dict[str, Any] = {"settings": settings, "circumstances": {}, "skipped": {}, "cases": {}}
        if settings is None and not path.is_file():
            raise FileNotFoundError(f"--out {path}: expected results to report, found nothing; measure first")
        self.load()
        if settings is not None and self.data["settings"] != settings:
            different = {k: v for k, v in settings.items() if self.data["settings"].get(k) != v}
            raise ValueError(
                f"--out {path}: expected a run with the same settings, found another ({different} here); name another "
                "file"
            )

    def load(self) -> None:
        """Read what is there."""
        if self.path.is_file():
            self.data = json.loads(self.path.read_text())

    def save(self) -> None:
        """Write everything."""
        write_json(self.path, self.data)


def run_cases(
    cases: Iterable[Case],
    results: Results,
    *,
    only: Sequence[str] = (),
    retry: bool = False,
    deadline: float = float("inf"),
) -> list[str]:
    """Run what is not there yet, and save after each case; an exception becomes its result.

    Args:
        cases: in order.
        results: where to.
        only: patterns of names (``tensorrt/fp16/*``); none for all.
        retry: run again what failed.
        deadline: of ``time.monotonic()``, s; what takes longer is left for the next time.

    Returns:
        Names of the cases that were left for want of time.
    """
    left = []
    for case in cases:
        done = results.data["cases"].get(case.name)
        if done is not None and not (retry and "error" in done):
            continue
        if only and not any(fnmatch(case.name, pattern) for pattern in only):
            continue
        if time.monotonic() + case.seconds > deadline:
            left.append(case.name)
            continue
        results.data["cases"][case.name] = figures = _measured(case)
        results.save()
        print(f"{case.name}: {figures['seconds']:.1f} s{_failure(figures)}", flush=True)
    return left


def _measured(case: Case) -> dict[str, Any]:
    start, before = time.monotonic(), gpu_state()
    try:
        figures = case.run()
    except Exception as error:  # the other cases' figures are not lost
        traceback.print_exc()
        figures = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    state = {"before": before, "after": gpu_state()}
    return {**figures, "gpu": state, "seconds": time.monotonic() - start}


def _failure(figures: dict[str, Any]) -> str:
    return f"  failed: {' '.join(figures['error'].split())[:200]}" if "error" in figures else ""
