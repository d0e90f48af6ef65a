"""``python -m benchmarks.onnxruntime_settings MODEL IMAGE``: is a setting of onnxruntime's faster than its default?

The network alone, one image, under each of the settings and half, and twice, the threads; by turns. The runtime leaves
them at the default; ``--threads`` is an option.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import onnxruntime
from rich.console import Console

from benchmarks.cpu_case import RESULTS, processor, spread
from runtime.cli import CommandParser
from runtime.graphs.load import load_onnx, metadata_of
from runtime.host.preprocess import Batch, prepare
from runtime.images import read_image

REPETITIONS = 8
# Attributes of SessionOptions.
SETTINGS: dict[str, dict[str, object]] = {
    "default": {},
    "graph optimisation: extended (no NCHWc)": {
        "graph_optimization_level": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    },
    "graph optimisation: basic": {
        "graph_optimization_level": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    },
    "execution: parallel": {"execution_mode": onnxruntime.ExecutionMode.ORT_PARALLEL},
    "no memory arena": {"enable_cpu_mem_arena": False},
    "no memory pattern": {"enable_mem_pattern": False},
}


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Measure and write the JSON."""
    args = _parser().parse_args(argv)
    metadata = metadata_of(load_onnx(args.model))
    batch = prepare([read_image(args.image, metadata.load)], metadata)
    settings = _measure(args.model, batch, args.threads)
    circumstances = {**processor(), "threads": args.threads, "onnxruntime": onnxruntime.__version__}
    args.output.write_text(json.dumps({**circumstances, "settings_ms": settings}, indent=2) + "\n")
    for name, times in settings.items():
        Console().print(f"{name}: {times['median']:.0f} ms")
    return 0


def _measure(path: Path, batch: Batch, threads: int) -> dict[str, dict[str, float]]:
    """Return ms of each setting."""
    variants: dict[str, tuple[dict[str, object], int]] = {name: (s, threads) for name, s in SETTINGS.items()}
    for count in {max(1, threads // 2), 2 * threads} - {threads}:
        variants[f"{count} threads" if count > 1 else "1 thread"] = ({}, count)
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(2):  # so that a slow minute is not one setting's alone
        for name, (settings, num_threads) in variants.items():
            times[name] += _times(path, batch, settings, num_threads)
    return {name: spread(ts) for name, ts in times.items()}


def _times(path: Path, batch: Batch, settings: dict[str, object], threads: int) -> list[float]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    for key, value in settings.items():
        setattr(options, key, value)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feeds = {i.name: getattr(batch, i.name) for i in session.get_inputs()}
    session.run(None, feeds)  # the warm-up
    times = []
    for _ in range(REPETITIONS // 2):
        start = time.perf_counter()
        session.run(None, feeds)
        times.append((time.perf_counter() - start) * 1000)
    return times


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m benchmarks.onnxruntime_settings", doc=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS / "onnxruntime_settings.json")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
