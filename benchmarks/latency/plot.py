"""The sweep as a picture: ms per image over the batch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.latency.bars import median
from benchmarks.latency.report import measured_batches

# The same work: masks end as 28x28 probabilities.
_LINES = (
    ("PyTorch FP32", "pytorch/fp32", "network", "#8c2d04"),
    ("PyTorch TF32", "pytorch/tf32", "network", "#d94801"),
    ("PyTorch FP16 autocast", "pytorch/autocast", "network", "#fd8d3c"),
    ("PyTorch FP16 autocast, tuned", "pytorch/autocast_tuned", "network", "#fdbe85"),
    ("PyTorch FP16 autocast, compiled", "pytorch/compile", "network", "#ae017e"),
    ("onnxruntime CPU", "onnxruntime/cpu", "engine", "#737373"),
    ("onnxruntime CUDA TF32", "onnxruntime/cuda_tf32", "engine", "#bdbdbd"),
    ("TensorRT FP32", "tensorrt/fp32", "engine", "#9ecae1"),
    ("TensorRT TF32", "tensorrt/tf32", "engine", "#4292c6"),
    ("TensorRT FP16, CUDA graph", "tensorrt/fp16_graph", "engine", "#084594"),
)


def draw(cases: Mapping[str, Any], path: Path) -> None:
    """Write a PNG with a line per variant; the band is from 10 % to 90 %.

    Raises:
        ImportError: no matplotlib.
    """
    from matplotlib.figure import Figure  # beside mmdet; a box that only runs models lacks it
    from matplotlib.ticker import LogLocator, NullFormatter

    batches = measured_batches(cases)
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for words, variant, stage, color in _LINES:
        sizes = [b for b in batches if median(cases, f"{variant}/batch-{b}", stage) is not None]
        times = [cases[f"{variant}/batch-{b}"]["ms"][stage] for b in sizes]
        if not sizes:
            continue
        low, middle, high = ([t[key] / b for t, b in zip(times, sizes)] for key in ("p10", "median", "p90"))
        axes.fill_between(sizes, low, high, color=color, alpha=0.25, linewidth=0)
        axes.plot(sizes, middle, marker="o", markersize=4, color=color, label=words)
    axes.set(xscale="log", yscale="log", xlabel="batch", ylabel="ms per image")
    axes.set_xticks(batches, map(str, batches), minor=False)
    axes.xaxis.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3, which="both")
    if axes.lines:
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
