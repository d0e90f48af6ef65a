"""``python -m benchmarks.cpu_profile MODEL.onnx ... --image IMAGE``: where a network's time goes in OpenVINO.

How long each kind of layer takes, and how many operations a second the dense ones do, next to what a plain product of
two matrices reaches on the same cores in PyTorch: what is at that speed cannot be made faster by another graph.
"""

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import numpy as np
import openvino
import torch

from benchmarks.cpu_case import RESULTS, processor
from runtime.backends.openvino import OpenVINOOptions, _config
from runtime.comparison.sources import load_batch
from runtime.console import write_json
from runtime.engine.inspection import dense_flops
from runtime.graphs.inlining import inlined
from runtime.graphs.load import load_onnx, metadata_of
from runtime.quantization import is_quantized

DENSE = ("Convolution", "ConvolutionBackpropData", "FullyConnected", "FullyConnectedQuantizedLegacy")
REPETITIONS = 5
SIDE = 2048  # of the matrices


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Measure and write the JSON."""
    args = _parser().parse_args(argv)
    flops = sum(dense_flops(load_onnx(args.models[0]), {"batch": 1}).values())
    rows = [
        _profile(model, precision, args.image, args.threads, flops)
        for model in args.models
        for precision in (("fp32",) if is_quantized(load_onnx(model)) else ("fp32", "bf16"))
    ]
    found = {
        **processor(),
        "threads": args.threads,
        "matrix_gflops": _matrix_gflops(args.threads),
        "rows": rows,
    }
    write_json(args.output, found)
    print(json.dumps(found, indent=1))
    return 0


def _profile(path: Path, precision: str, image: Path, threads: int, flops: float) -> dict[str, Any]:
    model = load_onnx(path)
    metadata = metadata_of(model)
    core = openvino.Core()
    config = {**_config(OpenVINOOptions(threads=threads, precision=precision)), "PERF_COUNT": True}
    compiled = core.compile_model(core.read_model(inlined(model).SerializeToString()), "CPU", config)
    request, batch = compiled.create_infer_request(), load_batch([image], metadata)
    feeds = {"images": batch.images, "image_sizes": batch.image_sizes}
    names = {name for port in compiled.inputs for name in port.get_names()}
    seconds = []
    for _ in range(REPETITIONS + 1):
        start = time.perf_counter()
        request.infer({name: array for name, array in feeds.items() if name in names})
        seconds.append(time.perf_counter() - start)
    spent = Counter()
    for layer in request.get_profiling_info():
        spent[layer.node_type] += 1e3 * layer.real_time.total_seconds()
    dense_ms = sum(spent[kind] for kind in DENSE)
    return {
        "precision": "int8" if is_quantized(model) else precision,
        "image_size": list(batch.images.shape[2:]),
        "ms": 1e3 * statistics.median(seconds[1:]),
        "dense_share": dense_ms / sum(spent.values()),
        "dense_gflops": flops / dense_ms / 1e6,
        "ms_by_layer": {kind: ms for kind, ms in spent.most_common(12) if ms > 0.5},
    }


def _matrix_gflops(threads: int) -> float:
    """Return what a product of two float32 matrices reaches."""
    torch.set_num_threads(threads)
    a, b = (torch.from_numpy(np.random.default_rng(i).random((SIDE, SIDE), np.float32)) for i in (0, 1))
    seconds = []
    for _ in range(REPETITIONS + 2):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return 2 * SIDE**3 / statistics.median(seconds[2:]) / 1e9


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cpu_profile", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "models", nargs="+", type=Path, help="of a fixed size: the float file, then others of it"
    )
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=RESULTS / "cpu_profile.json")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
