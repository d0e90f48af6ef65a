"""The results' JSON as tables: for the terminal, and for the README."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

from rich.table import Table

from benchmarks.latency.bars import CROP, bars, median

BATCHES = (1, 2, 4, 8, 16, 32)
# Words, the variant, and the stage that is its time.
_ROWS = (
    ("PyTorch FP32", "pytorch/fp32", "network"),
    ("PyTorch FP32, masks pasted", "pytorch/fp32", "network_and_paste"),
    ("PyTorch TF32", "pytorch/tf32", "network"),
    ("PyTorch TF32, masks pasted", "pytorch/tf32", "network_and_paste"),
    ("PyTorch FP16 autocast", "pytorch/autocast", "network"),
    ("PyTorch FP16 autocast, masks pasted", "pytorch/autocast", "network_and_paste"),
    ("PyTorch FP16 autocast, channels last, cuDNN benchmark", "pytorch/autocast_tuned", "network"),
    ("PyTorch FP16 autocast, dense parts compiled", "pytorch/compile", "network"),
    ("PyTorch FP16 autocast, predict compiled", "pytorch/compile_whole", "network"),
    ("onnxruntime CPU", "onnxruntime/cpu", "engine"),
    ("onnxruntime CUDA", "onnxruntime/cuda", "engine"),
    ("TensorRT FP32", "tensorrt/fp32", "engine"),
    ("TensorRT TF32", "tensorrt/tf32", "engine"),
    ("TensorRT FP16", "tensorrt/fp16", "engine"),
    ("TensorRT FP16, CUDA graph", "tensorrt/fp16_graph", "engine"),
    ("TensorRT FP16, masks full", "tensorrt/fp16_full", "engine"),
    ("TensorRT FP16, masks full, CUDA graph", "tensorrt/fp16_full_graph", "engine"),
)
_STAGES = {
    "copy_in": "copy images to the GPU",
    "prepare": "resize, normalise, pad",
    "engine": "engine",
    "encode": "paste at original size, run lengths",
    "copy_out": "copy results back",
    "total": "host memory to COCO run lengths, wall",
}
_HOST_STAGES = {
    "decode": "decode JPEG",
    "preprocess": "resize, normalise, pad",
    "run": "engine with copies",
    "to_rle": "paste, run lengths",
}
_WAYS = (
    ("TensorRT FP16, device path", f"{CROP}/end_to_end_device"),
    ("TensorRT FP16, host path, one thread", f"{CROP}/end_to_end"),
    ("onnxruntime CPU", "onnxruntime/cpu/end_to_end"),
    ("onnxruntime CUDA", "onnxruntime/cuda/end_to_end"),
    *(
        (f"PyTorch {words}, batch {size}", f"pytorch/{mode}/end_to_end-{size}")
        for mode, words in (
            ("fp32", "FP32"),
            ("tf32", "TF32"),
            ("autocast", "FP16 autocast"),
            ("autocast_tuned", "FP16 autocast, tuned"),
        )
        for size in (1, 8)
    ),
)


@dataclass(frozen=True)
class Section:
    """A table: its title, its heading and its rows, all text."""

    title: str
    heading: Sequence[str]
    rows: Sequence[Sequence[str]]


def sections(data: Mapping[str, Any]) -> list[Section]:
    """Return the tables that have rows.

    Args:
        data: the results' JSON.
    """
    cases = data["cases"]
    found = (
        latency(cases),
        outputs(cases),
        device_path(cases),
        host_path(cases),
        end_to_end(cases),
        image(cases),
        threads(cases),
        not_measured(data),
        promises(cases),
    )
    return [section for section in found if section.rows]


def rich_table(section: Section) -> Table:
    """Return a section for the terminal."""
    table = Table(title=section.title, title_justify="left")
    for index, heading in enumerate(section.heading):
        table.add_column(heading, justify="right" if index else "left")
    for row in section.rows:
        table.add_row(*row)
    return table


def latency(cases: Mapping[str, Any]) -> Section:
    """The sweep: images in the network's memory to detections, ms per batch."""
    rows = []
    for words, variant, stage in _ROWS:
        cells = [_spread(cases, f"{variant}/batch-{size}", stage) for size in BATCHES]
        if any(cells):
            memory = cases.get(f"{variant}/memory", {}).get("device_mib")
            if memory is None:
                memory = (cases.get(f"{variant}/batch-8", {}).get("memory") or {}).get("device_mib")
            seconds = cases.get(f"{variant}/build", {}).get("build", {}).get("seconds")
            rows.append([words, *cells, _number(memory, ".0f"), _number(seconds, ".0f")])
    heading = ["ms per batch: median (10 % to 90 %)", *map(str, BATCHES), "MiB at 8", "build, s"]
    return Section("Latency", heading, rows)


def outputs(cases: Mapping[str, Any]) -> Section:
    """The same outputs: what PyTorch in FP32 found in this very run."""
    rows = []
    for name, case in _of_kind(cases, "outputs", "outputs_device"):
        if "error" in case:
            continue
        box, minus = case["box_px"], case["minus_reference"]
        rows.append(
            [
                name,
                f"{case['matched']} of {case['expected']}",
                f"{_number(box['median'], '.1g')} / {_number(box['max'], '.2g')}",
                _number(case["average_precision"]["box"]["AP"], ".4f"),
                _number(minus["box"]["AP"], "+.4f"),
                _number(case["average_precision"].get("mask", {}).get("AP"), ".4f"),
                _number(minus.get("mask", {}).get("AP"), "+.4f"),
            ]
        )
    heading = ["outputs", "matched", "box px: median / worst", "box AP", "", "mask AP", ""]
    return Section("The same outputs as PyTorch FP32 in this run", heading, rows)


def device_path(cases: Mapping[str, Any]) -> Section:
    """The stages on the GPU, ms per batch."""
    rows = [
        [words, *(_spread(cases, f"{CROP}/device-{size}", stage) for size in BATCHES)]
        for stage, words in _STAGES.items()
    ]
    return Section("Device path, ms per batch", ["stage", *map(str, BATCHES)], _filled(rows))


def host_path(cases: Mapping[str, Any]) -> Section:
    """The stages of the host path in one thread, ms per batch."""
    rows = [
        [words, *(_spread(cases, f"{CROP}/batch-{size}", stage, "stages_ms") for size in BATCHES)]
        for stage, words in _HOST_STAGES.items()
    ]
    return Section("Host path, one thread, ms per batch", ["stage", *map(str, BATCHES)], _filled(rows))


def end_to_end(cases: Mapping[str, Any]) -> Section:
    """JPEG files on disk to COCO's run lengths."""
    rows = []
    for words, name in _WAYS:
        case = cases.get(name, {})
        if "images_per_s" in case:
            busy = case.get("gpu_busy_events")
            sampled = case.get("gpu_busy_nvidia_smi")
            rows.append([words, f"{case['images_per_s']:.1f}", _number(busy, ".0%"), _number(sampled, ".0%")])
    heading = ["JPEG files to COCO run lengths", "images/s", "GPU busy, events", "GPU busy, nvidia-smi"]
    return Section("End to end", heading, rows)


def image(cases: Mapping[str, Any]) -> Section:
    """One 1080x1920 image from host memory to COCO's run lengths."""
    rows = []
    for name, case in _of_kind(cases, "image", "image_device"):
        total = median(cases, name, "total")
        if total is not None:
            stages = ", ".join(f"{s} {v['median']:.2f}" for s, v in case["ms"].items() if s != "total")
            rows.append([name, _spread(cases, name, "total"), stages])
    return Section("One 1080x1920 image, host memory to run lengths", ["", "ms", "stages, ms"], rows)


def threads(cases: Mapping[str, Any]) -> Section:
    """Images per second of several sessions side by side."""
    rows = []
    for name, case in cases.items():
        if name.startswith(f"{CROP}/threads-") and "images_per_s" in case:
            cells = [
                _number(case[kind].get(size), ".0f")
                for kind in ("images_per_s", "images_per_s_device")
                for size in ("1", "8")
            ]
            rows.append([str(case["threads"]), *cells])
    heading = [
        "threads, a session each",
        "engine with copies, batch 1",
        "batch 8",
        "device path, batch 1",
        "batch 8",
    ]
    return Section("Several contexts, images/s", heading, sorted(rows))


def not_measured(data: Mapping[str, Any]) -> Section:
    """What was skipped or failed, and why."""
    skipped = [[name, reason] for name, reason in data["skipped"].items()]
    failed = [[name, _line(case["error"])] for name, case in data["cases"].items() if "error" in case]
    return Section("Not measured", ["", "why"], [*skipped, *failed])


def promises(cases: Mapping[str, Any]) -> Section:
    """The bars."""
    words = {True: "met", False: "NOT MET", None: "not measured"}
    rows = [
        [
            bar.what,
            f"{'>=' if bar.at_least else '<='} {bar.limit:.4g}",
            _number(bar.found, ".4g"),
            words[bar.met],
            bar.note,
        ]
        for bar in bars(cases)
    ]
    return Section("Bars", ["bar", "limit", "found", "", ""], rows)


def _of_kind(cases: Mapping[str, Any], *kinds: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    return ((name, case) for name, case in cases.items() if name.split("/")[2] in kinds)


def _spread(cases: Mapping[str, Any], name: str, stage: str, key: str = "ms") -> str:
    times = cases.get(name, {}).get(key, {}).get(stage)
    if times is None:
        return ""
    return f"{times['median']:.2f} ({times['p10']:.2f} to {times['p90']:.2f})"


def _filled(rows: list[list[str]]) -> list[list[str]]:
    return [row for row in rows if any(row[1:])]


def _number(value: Optional[float], form: str) -> str:
    return "" if value is None else format(value, form)


def _line(text: str) -> str:
    return " ".join(text.split())[:300]
