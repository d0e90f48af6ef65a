"""``python -m benchmarks.pytorch_gpu``: mmdet's own Mask R-CNN on a GPU, in FP32, TF32 and FP16 autocast.

The model is unpatched; its NMS and RoIAlign are mmcv's compiled ones where there are any, torchvision's otherwise.
Timed is ``model.predict`` on prepared batches of a dataset's images, masks pasted at the network's size included, as
``benchmarks.engines`` times engines.
"""

import argparse
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch

from export.metadata import metadata_from_model
from export.model import load_model
from export.verify import data_samples
from runtime.artifacts import load_batch
from runtime.cli import write_json
from runtime.images import find_images

MODES = ("fp32", "tf32", "autocast")


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Measure and write the JSON."""
    args = _parser().parse_args(argv)
    loaded = load_model(args.config, args.checkpoint, device="cuda")
    metadata = metadata_from_model(loaded, size=tuple(args.size), dynamic_size=False, masks="crop")
    paths = find_images([str(args.images)])[:8]
    result: dict[str, Any] = {
        "config": args.config,
        "size": args.size,
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name(),
        "latency_ms": {},
    }
    for mode in MODES:
        result["latency_ms"][mode] = {}
        for size in (1, 2, 8):
            batch = load_batch(paths[:size], metadata)
            result["latency_ms"][mode][str(size)] = _latency(loaded.model, batch, mode, args.repeat)
            print(mode, size, result["latency_ms"][mode][str(size)], flush=True)
    write_json(args.out, result)
    return 0


def _latency(model: Any, batch: Any, mode: str, repeat: int) -> dict[str, float]:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = mode == "tf32"
    images = torch.from_numpy(batch.images).cuda()
    samples = data_samples(batch)
    times = []
    torch.cuda.reset_peak_memory_stats()
    for _ in range(repeat + 5):
        context = torch.autocast("cuda", torch.float16) if mode == "autocast" else nullcontext()
        torch.cuda.synchronize()
        start = time.perf_counter()
        with torch.no_grad(), context:
            model.predict(images, samples, rescale=False)
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) * 1e3)
    p10, median, p90 = np.percentile(times[5:], (10, 50, 90))
    peak = torch.cuda.max_memory_allocated() / 2**20
    return {"median": float(median), "p10": float(p10), "p90": float(p90), "peak_memory_mib": float(peak)}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pytorch_gpu", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("config")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--size", nargs=2, type=int, default=(800, 1216), metavar=("H", "W"))
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/pytorch_gpu.json"))
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
