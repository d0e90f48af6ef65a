"""The results' JSON as tables: all of them for the terminal, a few for the README, the rest for a file beside it."""

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
    ("onnxruntime CUDA FP32", "onnxruntime/cuda_fp32", "engine"),
    ("onnxruntime CUDA TF32", "onnxruntime/cuda_tf32", "engine"),
    ("onnxruntime CUDA FP16", "onnxruntime/cuda_fp16", "engine"),
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
    ("onnxruntime CUDA TF32", "onnxruntime/cuda_tf32/end_to_end"),
    ("onnxruntime CUDA FP16", "onnxruntime/cuda_fp16/end_to_end"),
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


_SAME_OUTPUTS = "The same outputs as PyTorch FP32 in this run"
_FULL_NOTE = (
    "Mask AP of `masks full` differs because the graph pastes masks at the network's size and they are then resized to "
    "the image; mmdet pastes them at the image's own size."
)
# With and without a spread.
_FORMS = {True: "median (10 % to 90 %)", False: "median"}


@dataclass(frozen=True)
class Section:
    """A table: its title, its heading and its rows, all text, and what is said below it."""

    title: str
    heading: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def summary(data: Mapping[str, Any]) -> list[Section]:
    """Return the tables of the README: medians, what they are worth, and what is promised.

    Args:
        data: the results' JSON.
    """
    cases = data["cases"]
    found = (
        latency(cases, with_spread=False),
        same_outputs(cases),
        end_to_end(cases),
        image(cases, with_spread=False),
        promises(cases),
    )
    return _with_rows(found)


def details(data: Mapping[str, Any]) -> list[Section]:
    """Return the other tables, and the times with their spread.

    Args:
        data: the results' JSON.
    """
    cases = data["cases"]
    found = (
        latency(cases, with_spread=True),
        outputs(cases),
        device_path(cases),
        host_path(cases),
        image(cases, with_spread=True),
        threads(cases),
        not_measured(data),
    )
    return _with_rows(found)


def sections(data: Mapping[str, Any]) -> list[Section]:
    """Return the tables of the terminal: all of them, the promises last.

    Args:
        data: the results' JSON.
    """
    return [*details(data), *_with_rows((end_to_end(data["cases"]), promises(data["cases"])))]


def _with_rows(found: Sequence[Section]) -> list[Section]:
    return [section for section in found if section.rows]


def rich_table(section: Section) -> Table:
    """Return a section for the terminal."""
    table = Table(title=section.title, title_justify="left", caption=section.note or None)
    for index, heading in enumerate(section.heading):
        table.add_column(heading, justify="right" if index else "left")
    for row in section.rows:
        table.add_row(*row)
    return table


def measured_batches(cases: Mapping[str, Any]) -> list[int]:
    """Return the batches of the sweep that any side measured."""
    measured = {name.split("/")[2] for name, case in cases.items() if "ms" in case}
    return [size for size in BATCHES if f"batch-{size}" in measured]


def latency(cases: Mapping[str, Any], *, with_spread: bool) -> Section:
    """The sweep: images in the network's memory to detections, ms per batch."""
    rows = []
    batches = measured_batches(cases)
    for words, variant, stage in _ROWS:
        cells = [_time(cases, f"{variant}/batch-{size}", stage, with_spread) for size in batches]
        if any(cells):
            memory = cases.get(f"{variant}/memory", {}).get("device_mib")
            if memory is None:
                memory = (cases.get(f"{variant}/batch-8", {}).get("memory") or {}).get("device_mib")
            seconds = cases.get(f"{variant}/build", {}).get("build", {}).get("seconds")
            rows.append([words, *cells, _number(memory, ".0f"), _number(seconds, ".0f")])
    heading = [f"ms per batch: {_FORMS[with_spread]}", *map(str, batches), "MiB at 8", "build, s"]
    return Section("Latency", heading, rows)


def same_outputs(cases: Mapping[str, Any]) -> Section:
    """What the figures are worth: the counts and the differences of ``outputs``."""
    rows = [[words, matched, box, mask] for words, matched, _, _, box, _, mask in outputs(cases).rows]
    heading = ["", "detections matched", "box AP, difference", "mask AP, difference"]
    note = _FULL_NOTE if any(name.split("/")[1].startswith("fp16_full") for name in cases) else ""
    return Section(_SAME_OUTPUTS, heading, rows, note)


def outputs(cases: Mapping[str, Any]) -> Section:
    """The same outputs: what PyTorch in FP32 found in this very run."""
    rows = []
    for name, case in _of_kind(cases, "outputs", "outputs_device"):
        if "error" in case:
            continue
        box, minus = case["box_px"], case["minus_reference"]
        rows.append(
            [
                _words(name),
                f"{case['matched']} of {case['expected']}",
                f"{_number(box['median'], '.1g')} / {_number(box['max'], '.2g')}",
                _number(case["average_precision"]["box"]["AP"], ".4f"),
                _number(minus["box"]["AP"], "+.4f"),
                _number(case["average_precision"].get("mask", {}).get("AP"), ".4f"),
                _number(minus.get("mask", {}).get("AP"), "+.4f"),
            ]
        )
    heading = ["", "detections matched", "box px: median / worst", "box AP", "", "mask AP", ""]
    return Section(_SAME_OUTPUTS, heading, rows)


def device_path(cases: Mapping[str, Any]) -> Section:
    """The stages on the GPU, ms per batch."""
    batches = measured_batches(cases)
    rows = [
        [words, *(_spread(cases, f"{CROP}/device-{size}", stage) for size in batches)]
        for stage, words in _STAGES.items()
    ]
    return Section("Device path, ms per batch", ["stage", *map(str, batches)], _filled(rows))


def host_path(cases: Mapping[str, Any]) -> Section:
    """The stages of the host path in one thread, ms per batch."""
    batches = measured_batches(cases)
    rows = [
        [words, *(_spread(cases, f"{CROP}/batch-{size}", stage, "stages_ms") for size in batches)]
        for stage, words in _HOST_STAGES.items()
    ]
    return Section("Host path, one thread, ms per batch", ["stage", *map(str, batches)], _filled(rows))


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


def image(cases: Mapping[str, Any], *, with_spread: bool) -> Section:
    """One 1080x1920 image from host memory to COCO's run lengths."""
    rows = []
    for name, case in _of_kind(cases, "image", "image_device"):
        total = median(cases, name, "total")
        if total is not None:
            stages = ", ".join(f"{s} {v['median']:.2f}" for s, v in case["ms"].items() if s != "total")
            rows.append([_words(name), _time(cases, name, "total", with_spread), stages])
    heading = ["", f"ms: {_FORMS[with_spread]}", "stages, ms"]
    return Section("One 1080x1920 image, host memory to run lengths", heading, rows)


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
    """What is promised, met or not."""
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
    return Section("What is promised", ["", "limit", "found", "", ""], rows)


def _of_kind(cases: Mapping[str, Any], *kinds: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    return ((name, case) for name, case in cases.items() if name.split("/")[2] in kinds)


def _spread(cases: Mapping[str, Any], name: str, stage: str, key: str = "ms") -> str:
    times = cases.get(name, {}).get(key, {}).get(stage)
    if times is None:
        return ""
    return f"{times['median']:.2f} ({times['p10']:.2f} to {times['p90']:.2f})"


def _words(name: str) -> str:
    """Return a case's variant in words, and the path that it takes where there are two."""
    side, mode, kind = name.split("/")
    words = next(words for words, variant, _ in _ROWS if variant == f"{side}/{mode}")
    return f"{words}, device path" if kind.endswith("_device") else words


def _time(cases: Mapping[str, Any], name: str, stage: str, with_spread: bool) -> str:
    return _spread(cases, name, stage) if with_spread else _number(median(cases, name, stage), ".2f")


def _filled(rows: list[list[str]]) -> list[list[str]]:
    return [row for row in rows if any(row[1:])]


def _number(value: Optional[float], form: str) -> str:
    return "" if value is None else format(value, form)


def _line(text: str) -> str:
    return " ".join(text.split())[:300]
