"""``python -m benchmarks.cpu_latency``: onnxruntime next to PyTorch eager on the same cores, same images, same work.

Both go from the prepared batch to detections with masks pasted at the original images' resolution: PyTorch by
mmdet's ``predict(rescale=True)`` (with mmcv's compiled operators, or with this project's where those are absent),
onnxruntime by the exported file and ``runtime``'s post-processing. They take turns, image by image. Then the network
alone under other settings of onnxruntime than the runtime's, which are its defaults: is one of them faster?
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Callable, Optional

import numpy as np
import onnxruntime
import torch
from rich.console import Console
from rich.table import Table

import export.maskrcnn
from benchmarks.inference import data_samples
from export.model import LoadedModel, load_model
from patches.mmcv_ops import ensure_mmcv_ops
from runtime.detector import Detector
from runtime.host.postprocess import detections_from_outputs
from runtime.host.preprocess import Batch, prepare
from runtime.image_files import find_images
from runtime.images import read_image

RESULTS = Path(__file__).parent / "results"
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
    torch.set_num_threads(args.threads)
    images = [read_image(path) for path in find_images([str(args.images)])[: args.num]]
    loaded = load_model(args.config, args.checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        command = [
            args.config,
            str(args.checkpoint),
            "-o",
            str(path),
            "--no-verify",
            "--size",
            *map(str, args.size),
        ]
        if export.maskrcnn.main(command) != 0:
            return 1
        with Detector(path, "onnxruntime", threads=args.threads) as detector:
            measured = [_measure(loaded, detector, images, batch) for batch in args.batch]
            batch = prepare(images[:1], detector.metadata)
        settings = _measure_settings(path, batch, args.threads)
    result = {**_circumstances(args), "measured": measured, "settings_ms": settings}
    args.output.write_text(json.dumps(result, indent=2) + "\n")
    _show(measured)
    for name, spread in settings.items():
        Console().print(f"{name}: {spread['median']:.0f} ms")
    return 0


def _measure(loaded: LoadedModel, detector: Detector, images: list[np.ndarray], size: int) -> dict:
    """Time batches of ``size`` images."""
    batches = [
        prepare(images[i : i + size], detector.metadata) for i in range(0, len(images) - size + 1, size)
    ]
    runs: dict[str, Callable[[Batch], int]] = {
        "pytorch": lambda batch: _predict(loaded, batch),
        "onnxruntime": lambda batch: _detect(detector, batch),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    found: dict[str, int] = dict.fromkeys(runs, 0)
    for batch in [batches[0], *batches]:  # the first is the warm-up
        for name, run in runs.items():
            start = time.perf_counter()
            found[name] += run(batch)
            times[name].append(time.perf_counter() - start)
    return {
        "batch": size,
        "images": len(batches) * size,
        "detections": found,
        "seconds_per_image": {name: _spread([t / size for t in ts[1:]]) for name, ts in times.items()},
    }


def _measure_settings(path: Path, batch: Batch, threads: int) -> dict[str, dict[str, float]]:
    """Time the network alone, ms, under each of the settings and half, and twice, the threads; by turns."""
    variants: dict[str, tuple[dict[str, object], int]] = {name: (s, threads) for name, s in SETTINGS.items()}
    for count in {max(1, threads // 2), 2 * threads} - {threads}:
        variants[f"{count} threads" if count > 1 else "1 thread"] = ({}, count)
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(2):  # so that a slow minute is not one setting's alone
        for name, (settings, num_threads) in variants.items():
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = num_threads
            for key, value in settings.items():
                setattr(options, key, value)
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            feeds = {i.name: getattr(batch, i.name) for i in session.get_inputs()}
            session.run(None, feeds)  # the warm-up
            for _ in range(REPETITIONS // 2):
                start = time.perf_counter()
                session.run(None, feeds)
                times[name].append((time.perf_counter() - start) * 1000)
    return {name: _spread(ts) for name, ts in times.items()}


def _spread(times: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(times), "min": min(times), "max": max(times)}


def _detect(detector: Detector, batch: Batch) -> int:
    outputs = detector.backend.run(batch.images, batch.image_sizes)
    return sum(len(d.masks) for d in detections_from_outputs(outputs, batch, detector.metadata))


def _predict(loaded: LoadedModel, batch: Batch) -> int:
    images = torch.from_numpy(batch.images)
    with torch.no_grad():
        samples = loaded.model.predict(images, data_samples(batch, images.shape[2:]), rescale=True)
    return sum(len(sample.pred_instances.masks) for sample in samples)


def _circumstances(args: argparse.Namespace) -> dict:
    cpu = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    return {
        "config": args.config,
        "size": args.size,
        "threads": args.threads,
        "cpu": cpu[0] if cpu else platform.processor(),
        "cores": len(cpu),
        "mmcv_ops": ensure_mmcv_ops(),
        "versions": {
            "torch": torch.__version__,
            "onnxruntime": onnxruntime.__version__,
            "python": platform.python_version(),
        },
    }


def _show(measured: list[dict]) -> None:
    table = Table("batch", "PyTorch eager, s/image", "onnxruntime, s/image", "faster by")
    for row in measured:
        seconds = {name: value["median"] for name, value in row["seconds_per_image"].items()}
        table.add_row(
            str(row["batch"]),
            f"{seconds['pytorch']:.2f}",
            f"{seconds['onnxruntime']:.2f}",
            f"{seconds['pytorch'] / seconds['onnxruntime']:.2f}x",
        )
    Console().print(table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cpu_latency", description=__doc__.split("\n")[0]
    )
    parser.add_argument("config")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("images", type=Path, help="a folder of images")
    parser.add_argument("--num", type=int, default=8, help="images; default: %(default)s")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--size", type=int, nargs=2, default=[800, 1216])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS / "cpu_latency.json")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
