"""What the project promises about speed, and what the figures say."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Optional

# Of the engines, the one as the runtime launches it.
CROP, FULL, LAYERS = "tensorrt/fp16_graph", "tensorrt/fp16_full_graph", "tensorrt/fp16/layers"
_ENGINE_MS = {1: 2.7, 8: 11.5}
_FULL_MS_PER_IMAGE = 0.1
_TIMES_EAGER, _TIMES_BEST = 10.0, 5.0
_NOT_DENSE = {1: 0.25, 8: 0.20}
_IMAGE_MS = 8.0
_IMAGES_PER_S = 450.0
_GPU_BUSY = 0.8


@dataclass(frozen=True)
class Bar:
    """One promise.

    Attributes:
        what: in words.
        limit: the bound; a lower one where ``at_least``.
        found: the figure; None where it was not measured.
        note: what the figure is made of.
    """

    what: str
    limit: float
    found: Optional[float]
    at_least: bool = False
    note: str = ""

    @property
    def met(self) -> Optional[bool]:
        """Whether the figure keeps the promise; None without a figure."""
        if self.found is None:
            return None
        return self.found >= self.limit if self.at_least else self.found <= self.limit


def bars(cases: Mapping[str, Any]) -> list[Bar]:
    """Return every promise with its figure.

    Args:
        cases: of the results' JSON, by name.
    """
    return [*_engine_bars(cases), *_pytorch_bars(cases), *_layer_bars(cases), *_whole_bars(cases)]


def median(cases: Mapping[str, Any], name: str, stage: str) -> Optional[float]:
    """Return a stage's median in ms; None where it was not measured."""
    return cases.get(name, {}).get("ms", {}).get(stage, {}).get("median")


def _engine_bars(cases: Mapping[str, Any]) -> Iterator[Bar]:
    for size, limit in _ENGINE_MS.items():
        found = median(cases, f"{CROP}/batch-{size}", "engine")
        plain = median(cases, f"tensorrt/fp16/batch-{size}", "engine")
        note = "" if plain is None else f"without a CUDA graph {plain:.2f}"
        yield Bar(f"engine, masks crop, batch {size}, ms", limit, found, note=note)
    for size in _ENGINE_MS:
        crop = median(cases, f"{CROP}/batch-{size}", "engine")
        full = median(cases, f"{FULL}/batch-{size}", "engine")
        more = None if crop is None or full is None else (full - crop) / size
        note = "" if more is None else f"{full:.2f} ms, crop {crop:.2f}"
        yield Bar(f"engine, masks full, batch {size}: ms per image more", _FULL_MS_PER_IMAGE, more, note=note)


def _pytorch_bars(cases: Mapping[str, Any]) -> Iterator[Bar]:
    # Each engine next to the PyTorch that does the same work.
    for size in _ENGINE_MS:
        for engine, stage, words in ((CROP, "network", "crop"), (FULL, "network_and_paste", "full")):
            ours = median(cases, f"{engine}/batch-{size}", "engine")
            modes = _pytorch(cases, size, stage)
            eager = modes.get("fp32")
            best = min(modes, key=modes.get, default=None)
            for what, limit, mode in (
                ("eager FP32", _TIMES_EAGER, eager and "fp32"),
                ("best mode", _TIMES_BEST, best),
            ):
                found = modes[mode] / ours if mode and ours else None
                note = "" if found is None else f"{mode} {modes[mode]:.1f} ms, engine {ours:.2f} ms"
                yield Bar(f"times PyTorch's {what}, {words}, batch {size}", limit, found, True, note)


def _pytorch(cases: Mapping[str, Any], size: int, stage: str) -> dict[str, float]:
    """Return the medians by mode."""
    found = {}
    for name in cases:
        side, mode, kind = name.split("/")
        if side == "pytorch" and kind == f"batch-{size}" and median(cases, name, stage) is not None:
            found[mode] = median(cases, name, stage)
    return found


def _layer_bars(cases: Mapping[str, Any]) -> Iterator[Bar]:
    shares = cases.get(LAYERS, {}).get("not_dense_share", {})
    for size, limit in _NOT_DENSE.items():
        yield Bar(f"share of layers that are not dense, batch {size}", limit, shares.get(str(size)))


def _whole_bars(cases: Mapping[str, Any]) -> Iterator[Bar]:
    image = median(cases, f"{CROP}/image_device", "total")
    yield Bar("one 1080x1920 image, host memory to run lengths, ms", _IMAGE_MS, image)
    whole = cases.get(f"{CROP}/end_to_end_device", {})
    yield Bar("JPEG files to run lengths, images/s", _IMAGES_PER_S, whole.get("images_per_s"), True)
    events, sampled = whole.get("gpu_busy_events"), whole.get("gpu_busy_nvidia_smi")
    note = "by events" if events is not None else "by nvidia-smi" if sampled is not None else ""
    if events is not None and sampled is not None:
        note = f"by events; nvidia-smi's samples {sampled:.2f}"
    yield Bar("GPU busy meanwhile, share", _GPU_BUSY, sampled if events is None else events, True, note)
    yield _memory_bar(cases)


def _memory_bar(cases: Mapping[str, Any]) -> Bar:
    ours = cases.get(f"{CROP}/memory", {}).get("device_mib")
    theirs = {
        name.split("/")[1]: case["memory"]["device_mib"]
        for name, case in cases.items()
        if name.startswith("pytorch/") and name.endswith("/batch-8") and case.get("memory")
    }
    least = min(theirs, key=theirs.get, default=None)
    if least is None:
        return Bar("peak memory at batch 8, MiB, below PyTorch's", 0.0, None)
    note = ", ".join(f"{mode} {mib:.0f}" for mode, mib in theirs.items())
    return Bar("peak memory at batch 8, MiB, below PyTorch's least", theirs[least], ours, note=note)
