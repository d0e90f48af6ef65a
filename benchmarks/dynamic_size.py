"""``python -m benchmarks.dynamic_size CONFIG CHECKPOINT IMAGE``: what a dynamic size costs in onnxruntime on a CPU.

The file as it is exported by default and one of ``--size``, on the same pixels: an image that either prepares to the
fixed size. By turns, each in a process of its own, so that peak memory is the file's.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import cv2
import numpy as np
import onnxruntime

from runtime.cli import CommandParser
from runtime.detector import Detector
from runtime.images import read_image

RESULTS = Path(__file__).parent / "results"
ROUNDS, REPETITIONS = 3, 4


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Measure and write the JSON; with ``--measure`` print one file's figures."""
    args = _parser().parse_args(argv)
    if args.measure is not None:
        print(json.dumps(_measure(args.measure, args.image, tuple(args.size), args.batch, args.threads)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        files = {name: _exported(args, Path(folder) / f"{name}.onnx", name) for name in ("fixed", "dynamic")}
        rows = {name: [] for name in files}
        for _ in range(ROUNDS):
            for name, path in files.items():
                rows[name].append(_in_a_process(args, path))
    result = {
        "config": Path(args.config).stem,
        "size": args.size,
        "threads": args.threads,
        "cpu": _cpu(),
        "versions": {"onnxruntime": onnxruntime.__version__, "python": platform.python_version()},
        "files": {name: _summary(found, args.batch) for name, found in rows.items()},
    }
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["files"], indent=1))
    return 0


def _exported(args: argparse.Namespace, path: Path, name: str) -> Path:
    size = ["--size", *map(str, args.size)] if name == "fixed" else []
    command = [args.config, str(args.checkpoint), "-o", str(path), "--no-verify", *size]
    subprocess.run([sys.executable, "-m", "export.maskrcnn", *command], check=True)
    return path


def _in_a_process(args: argparse.Namespace, path: Path) -> dict:
    command = [
        sys.executable,
        "-m",
        "benchmarks.dynamic_size",
        args.config,
        str(args.checkpoint),
        str(args.image),
    ]
    options = [
        "--size",
        *map(str, args.size),
        "--threads",
        str(args.threads),
        "--batch",
        *map(str, args.batch),
    ]
    done = subprocess.run(
        [*command, *options, "--measure", str(path)], check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def _measure(path: Path, image: Path, size: tuple[int, int], batches: Sequence[int], threads: int) -> dict:
    # Of just the fixed size, so that neither file resizes or pads.
    pixels = cv2.resize(read_image(image), size[::-1])
    planes = pixels.transpose(2, 0, 1).astype(np.float32) - 120
    found = {}
    with Detector(path, "onnxruntime", threads=threads) as detector:
        for batch in batches:
            images = np.ascontiguousarray(np.broadcast_to(planes / 58, (batch, *planes.shape)))
            sizes = np.tile(np.array(size, np.float32), (batch, 1))
            detector.backend.run(images, sizes)
            times = []
            for _ in range(REPETITIONS):
                start = time.perf_counter()
                detector.backend.run(images, sizes)
                times.append((time.perf_counter() - start) * 1e3)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            found[str(batch)] = {"ms": times, "peak_mib": round(peak)}
    return found


def _summary(rounds: Sequence[dict], batches: Sequence[int]) -> dict:
    return {
        str(batch): {
            "median_ms": statistics.median(ms for row in rounds for ms in row[str(batch)]["ms"]),
            "min_ms": min(ms for row in rounds for ms in row[str(batch)]["ms"]),
            "peak_mib": max(row[str(batch)]["peak_mib"] for row in rounds),
        }
        for batch in batches
    }


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor()


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m benchmarks.dynamic_size", doc=__doc__)
    parser.add_argument("config")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--size", type=int, nargs=2, default=[800, 1216])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=RESULTS / "dynamic_size.json")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
