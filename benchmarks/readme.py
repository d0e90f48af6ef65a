"""``python -m benchmarks.readme``: write the tables of README and docs/, and ``latency_h200.md``, from the results.

A table, or a sentence with figures, stands between ``<!-- table NAME -->`` and ``<!-- end -->``; NAME is a function of
this module.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Optional

from benchmarks.latency.bars import median
from benchmarks.latency.layers import dense_nodes, not_dense_share
from benchmarks.latency.report import Section, details, summary
from benchmarks.latency.report import latency as latency_table
from runtime.cli import CommandParser

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
MARKED = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def cpu_latency() -> str:
    """PyTorch eager, onnxruntime and OpenVINO, in every precision that was measured."""
    data = json.loads((RESULTS / "cpu_latency.json").read_text())
    versions = data["versions"]
    packages = [name for name in ("torch", "onnxruntime", "openvino") if name in versions]
    words = ", ".join(f"{name} {versions[name]}" for name in packages)
    tables = [_cpu_table(data, name) for name in data["models"]]
    return (
        "\n".join(tables)
        + f"\n{data['threads']} threads of {data['cpu']}{_flags(data)}; medians per image, masks pasted at original "
        f"resolution by all; peak memory of the process; {words}.\n\n{_onnxruntime_settings()}"
    )


def _cpu_table(data: dict, model: str) -> str:
    rows = [row for row in data["rows"] if row["model"] == model]
    seconds = {(r["runtime"], r["batch"]): r["seconds_per_image"]["median"] for r in rows}
    peaks = {r["runtime"]: r["peak_mib"] for r in rows if r["batch"] == min(row["batch"] for row in rows)}
    batches = sorted({row["batch"] for row in rows})
    first = seconds["onnxruntime FP32", batches[0]]
    cells = [
        [
            runtime,
            *(f"{seconds[runtime, b]:.2f} s" if (runtime, b) in seconds else "" for b in batches),
            f"{first / seconds[runtime, batches[0]]:.2f}×" if (runtime, batches[0]) in seconds else "",
            f"{peaks[runtime]} MiB" if peaks.get(runtime) else "",
        ]
        for runtime in dict.fromkeys(row["runtime"] for row in rows)
    ]
    facts = data["models"][model]
    name = f"{facts['config']}, {facts['size'][0]}×{facts['size'][1]}"
    heading = [name, *(f"batch {batch}" for batch in batches), "onnxruntime FP32's speed", "peak"]
    return _table(heading, cells)


def cpu_accuracy() -> str:
    """What each precision on a CPU keeps of the average precision."""
    data = json.loads((RESULTS / "cpu_accuracy.json").read_text())
    models = list(data["models"].values())
    heading = [
        "runtime",
        "file",
        *(f"{model['config']}: {kind} AP" for model in models for kind in ("box", "mask")),
    ]
    cells = [
        [
            _PACKAGES[rows[0]["runtime"]],
            _file_words(rows[0]),
            *(text for row in rows for text in _ap_and_change(row)),
        ]
        for rows in zip(*(model["rows"] for model in models), strict=True)
    ]
    images = " and ".join(str(model["images"]) for model in models)
    calibration = models[0]["calibration"]["images"]
    return (
        f"{_table(heading, cells)}\n{images} images, none of which is among the {calibration} renders that ranges are "
        f"found on; {data['cpu']}{_flags(data)} (`python -m benchmarks.cpu_accuracy DATA`).\n\n{_renders()}\n"
    )


def _renders() -> str:
    """INT8 on so many renders that chance is small."""
    sentences = []
    for name, data in json.loads((RESULTS / "renders.json").read_text()).items():
        floating, quantized = (data["models"][key]["average_precision"] for key in ("fp32", "int8"))
        changes = (f"{kind} {ap:.4f} ({quantized[kind] - ap:+.4f})" for kind, ap in floating.items())
        sentences.append(
            f"{_PACKAGES[name]} on {data['images']} renders, {data['model']}: {', '.join(changes)}."
        )
    return f"Of 60 images the third decimal is chance. `python -m benchmarks.renders`: {' '.join(sentences)}"


def cpu_profile() -> str:
    """How fast the dense layers are in OpenVINO, next to a product of matrices."""
    data = json.loads((RESULTS / "cpu_profile.json").read_text())
    kinds = {"fp32": "FP32", "bf16": "BF16", "int8": "INT8"}
    cells = [
        [
            kinds[row["precision"]],
            f"{row['ms']:.0f} ms",
            f"{row['dense_share']:.0%}",
            f"{row['dense_gflops']:.0f}",
        ]
        for row in data["rows"]
    ]
    size = "×".join(map(str, data["rows"][0]["image_size"]))
    return (
        f"{_table(['OpenVINO', size, 'in dense layers', 'their GFLOP/s'], cells)}\nA product of two FP32 matrices in "
        f"PyTorch does {data['matrix_gflops']:.0f} GFLOP/s on the same {data['threads']} threads of "
        f"{data['cpu']}{_flags(data)} (`python -m benchmarks.cpu_profile`; the INT8 files are `int8` and `uint8`).\n"
    )


_PACKAGES = {"onnxruntime": "onnxruntime", "openvino": "OpenVINO"}


def _file_words(row: dict) -> str:
    if row["file"] == "float":
        return (row["precision"] or "fp32").upper()
    activations, method = row["file"].split()
    return f"INT8, `--activations {activations}`, `--method {method}`"


def _ap_and_change(row: dict) -> list[str]:
    return [f"{row['average_precision'][kind]:.4f} ({row['change'][kind]:+.4f})" for kind in ("box", "mask")]


def _flags(data: dict) -> str:
    return f" ({', '.join(data['flags'])})" if data["flags"] else ""


def _onnxruntime_settings() -> str:
    data = json.loads((RESULTS / "onnxruntime_settings.json").read_text())
    settings = [[name, f"{times['median'] / 1000:.2f} s"] for name, times in data["settings_ms"].items()]
    return (
        '<details markdown="1"><summary>The network alone, batch 1, under other settings of onnxruntime</summary>\n\n'
        f"{_table(['setting', 'median'], settings)}\n"
        f"{data['threads']} threads of {data['cpu']} (`python -m benchmarks.onnxruntime_settings`). The runtime leaves "
        "them at the default; `--threads` is an option.\n</details>\n"
    )


def exactness() -> str:
    """onnxruntime next to mmdet's inference_detector, image by image."""
    rows = []
    for name, content in json.loads((RESULTS / "exactness.json").read_text()).items():
        rows += [
            [f"`{name}`" if batch == "1" else "", batch, *_exactness_cells(images)]
            for batch, images in content["batches"].items()
        ]
    heading = [
        "",
        "batch",
        "detections found",
        "images equal",
        "box, px",
        "score",
        "masks",
        "not equal",
        "then, px",
    ]
    return _table(heading, rows)


def _exactness_cells(images: Sequence[dict]) -> list[str]:
    equal = [image for image in images if image["agrees"]]
    others = [image for image in images if not image["agrees"]]
    found, expected = (sum(image[side] for image in images) for side in ("matched", "expected"))
    cells = [f"{found} of {expected}", f"{len(equal)} of {len(images)}"]
    cells += [f"{max(image[kind] for image in equal):.0e}" for kind in ("box_px", "score", "mask")]
    if not others:
        return [*cells, "", ""]
    tied = sum(image["equal_scores"] for image in others)
    handed = max(image["handed_over"]["box_px"] for image in others)
    return [*cells, f"{tied} + {len(others) - tied}", f"{handed:.0e}"]


def accuracy() -> str:
    """COCO AP of mmdet and of the exported files."""
    rows = []
    names = {
        "mmdet": "mmdet `inference_detector`",
        "crop": "`--masks crop`",
        "full": "`--masks full`",
        "fixed": "`--size 800 1344`",
    }
    for subject, content in json.loads((RESULTS / "accuracy.json").read_text()).items():
        images = f"`{subject}`, {content['images']} images, {content['objects']} objects"
        for name, values in content["average_precision"].items():
            figures = [f"{values[kind][m]:.3f}" for kind in ("box", "mask") for m in ("AP", "AP50", "AP75")]
            rows.append([images, names[name], *figures])
            images = ""
    return _table(["", "", "box AP", "AP50", "AP75", "mask AP", "AP50", "AP75"], rows)


def fixed_size() -> str:
    """COCO AP on portraits: mmdet, the file as it is exported by default, and one of fixed size."""
    names = {"mmdet": "mmdet `inference_detector`", "crop": "default", "fixed": "`--size 800 1344`"}
    content = json.loads((RESULTS / "accuracy.json").read_text())["portraits"]
    rows = []
    for side, words in names.items():
        values = content["average_precision"][side]
        figures = [f"{values[kind][m]:.3f}" for kind in ("box", "mask") for m in ("AP", "AP_small")]
        rows.append([words, *figures])
    return _table([f"{content['images']} portraits", "box AP", "small", "mask AP", "small"], rows)


def dynamic_size() -> str:
    """Latency and memory of the dynamic file and of one of fixed size, in onnxruntime on a CPU."""
    content = json.loads((RESULTS / "dynamic_size.json").read_text())
    rows = [
        [name, f"{values['1']['median_ms']:.0f} ms", f"{values['1']['peak_mib']} MiB"]
        for name, values in content["files"].items()
    ]
    height, width = content["size"]
    return _table(
        [f"{content['threads']} CPU threads, {height}×{width}, batch 1", "median", "peak memory"], rows
    )


def zoo() -> str:
    """How many of the two-stage configs that mmdet ships are exact, with random weights."""
    configs, models = _zoo()
    masks = [config for config in configs if "mask-rcnn" in config["config"]]
    rows = [["all two-stage", *_zoo_counts(configs)], ["Mask R-CNN, Cascade included", *_zoo_counts(masks)]]
    exact = [model for model in models.values() if model["result"] == "exact"]
    largest = {figure: max((m[figure] for m in exact), default=0.0) for figure in ("box_px", "score", "mask")}
    states = len({model["code"] for model in models.values()})
    return (
        f"{_table(ZOO_HEADING, rows)}\n{len(models)} distinct models, {len(exact)} of them exact: boxes within "
        f"{largest['box_px']:.1e} px, scores {largest['score']:.1e}, masks {largest['mask']:.1e} of the pixels of "
        f"either; measured with {'one state' if states == 1 else f'{states} states'} of the code.\n"
    )


def zoo_folders() -> str:
    """The same, folder by folder, and why a config is not exact."""
    configs, models = _zoo()
    rows = []
    for folder in sorted({config["folder"] for config in configs}):
        chosen = [config for config in configs if config["folder"] == folder]
        reasons = Counter(
            config.get("reason") or models[config["model"]]["reason"]
            for config in chosen
            if config["result"] not in ("exact", "pending")
        )
        why = [f"{count}× {reason}".replace("|", "\\|") for reason, count in reasons.most_common()]
        rows.append([f"`{folder}`", *_zoo_counts(chosen), "<br>".join(why)])
    return _table([*ZOO_HEADING, "why"], rows)


ZOO_HEADING = ["", "configs", "exact", "refused", "not buildable", "wrong or failed", "not measured"]


def _zoo() -> tuple[list[dict], dict[str, dict]]:
    data = json.loads((RESULTS / "zoo.json").read_text())
    return data["configs"], {row["model"]: row for row in data["models"]}


def _zoo_counts(configs: Sequence[dict]) -> list[object]:
    counts = Counter(config["result"] for config in configs)
    bad = counts["wrong"] + counts["failed"]
    shown = (counts["exact"], counts["refused"], counts["unbuildable"], bad, counts["pending"])
    return [len(configs), *(count or "" for count in shown)]


def embedded() -> str:
    """The embedded model's accuracy."""
    data = json.loads((ROOT / "examples" / "metrics.json").read_text())
    row = [f"{data[f'{kind}_{metric}']:.3f}" for kind in ("box", "mask") for metric in ("AP", "AP50", "AP75")]
    return _table(["box AP", "AP50", "AP75", "mask AP", "AP50", "AP75"], [row])


def fuzz() -> str:
    """What damaged input came to."""
    data = json.loads((RESULTS / "fuzz.json").read_text())
    single = ["cases", "ok", "clean error", "traceback", "hang", "crash", "memory"]
    lost = ["input touched", "result lost or mixed", "file left behind"]
    groups = [*([name] for name in single), lost, ["file not named", "no expected and found"]]
    kinds = {**data["kinds"], "**all**": data["all"]}
    rows = [[name, *(sum(row[c] for c in group) for group in groups)] for name, row in kinds.items()]
    return _table(["input", *single, "touched, lost, left", "unclear words"], rows)


def processes() -> str:
    """The sentences on kills, processes at once, and memory where that has been measured."""
    kills, together = (
        json.loads((RESULTS / f"fuzz_{name}.json").read_text()) for name in ("kills", "together")
    )
    rounds: Counter = Counter()
    for name, ends in kills["counts"].items():
        rounds[name.partition(", ")[0]] += ends.get("ended", 0) + ends.get("whole", 0)
    commands = ", ".join(f"`{name}` ({number})" for name, number in sorted(rounds.items()))
    early = sum(ends.get("ended", 0) for ends in kills["counts"].values())
    text = (
        f"{kills['rounds']} runs met SIGKILL, SIGTERM, SIGINT or a full disk at a random moment: {commands}; `build` "
        f"with a fake TensorRT. {early} ended before they were through, {kills['num_failures']} left anything but "
        "whole results, or what no later run removes. Two or four "
        f"processes wrote into one folder {sum(together['rounds'].values())} times: {together['num_failures']} mixed "
        "or lost."
    )
    path = RESULTS / "fuzz_memory.json"
    if not path.is_file():
        return text + "\n"
    memory = json.loads(path.read_text())
    return text + (
        f" {memory['calls']} calls of the embedded model (128×192, 10 rows): {memory['first_mib']:.0f} MiB "
        f"at first, {memory['last_mib']:.0f} MiB at last ({memory['growth']:+.1%}).\n"
    )


def kernels() -> str:
    """The CUDA kernels next to torchvision's and to the bandwidth floor."""
    rows = []
    for r in json.loads((RESULTS / "kernels_h200.json").read_text())["rows"]:
        case = {"rpn": "RPN, 4741 candidates", "multi_class": "1000 RoIs × 80 classes"}.get(r.get("case"), "")
        if r["op"] == "grouped_nms":
            other = f"torchvision `batched_nms` {r['torchvision_batched_nms_eager_ms']:.2f} ms (eager)"
            rows.append([f"GroupedNMS, {case}", r["batch"], f"{r['ms']:.3f}", other])
        elif r["op"] == "select_top":
            other = f"`torch.topk` {r['torch_topk_ms']:.3f} ms"
            rows.append(["SelectTop, 1000 of each of RPN's 4 levels", r["batch"], f"{r['ms']:.3f}", other])
        elif r["op"] == "decode_proposals":
            name = f"DecodeProposals, {r['rows']} of {len(r['sizes'])} levels, {r['dtype']}, channels last"
            rows.append([name, r["batch"], f"{r['nhwc_ms']:.3f}", f"NCHW {r['nchw_ms']:.3f} ms"])
        elif r["op"] == "decode_detections":
            name = f"DecodeDetections, {r['proposals']} × {r['classes']} classes, {r['dtype']}"
            rows.append([name, r["batch"], f"{r['ms']:.3f}", f"torch's operators {r['torch_ms']:.3f} ms"])
        elif r["op"] == "select_masks":
            name = f"SelectMasks, {r['masks']} of {r['classes']} classes, {r['dtype']}, channels last"
            other = f"NCHW {r['nchw_ms']:.3f} ms; torch's operators on it {r['torch_nchw_ms']:.3f} ms"
            rows.append([name, r["batch"], f"{r['nhwc_ms']:.3f}", other])
        elif r["op"] == "multi_level_roi_align":
            name = f"MultiLevelRoiAlign, {r['rois']} × 256 × {r['bins']}×{r['bins']}, {r['dtype']}, channels last"
            other = f"floor {r['floor_ms']:.3f} ms, torchvision {r['torchvision_roi_align_4_levels_graph_ms']:.2f} ms"
            rows.append([name, r["batch"], f"{r['nhwc_to_nchw_ms']:.3f}", other])
        elif r["op"] == "multi_level_roi_align_int8":
            layout = "nchw" if r["bins"] == 7 else "nchw32"
            name = f"MultiLevelRoiAlign, {r['rois']} × 256 × {r['bins']}×{r['bins']}, int8 of int8"
            other = f"floor {r['floor_ms']:.3f} ms, int8 of float16 {r[f'fp16_to_{layout}_ms']:.3f} ms"
            rows.append([name, r["batch"], f"{r[f'int8_to_{layout}_ms']:.3f}", other])
        elif r["op"] == "paste_masks":
            share = f"{100 * r['share_of_pixels_in_boxes']:.0f} % inside boxes"
            other = f"writing the output {r['write_output_ms']:.3f} ms"
            rows.append([f"PasteMasks, 100 × 800 × 1216 uint8, {share}", r["batch"], f"{r['ms']:.3f}", other])
        elif r["op"] == "prepare_images":
            name = f"prepare_images, {r['from'][0]}×{r['from'][1]} to {r['size'][0]}×{r['size'][1]}"
            rows.append([name, r["batch"], f"{r['ms']:.3f}", f"floor {r['floor_ms']:.3f} ms"])
        elif r["op"] == "encode_masks":
            share = f"{100 * r['share_of_pixels_in_boxes']:.0f} % inside boxes"
            other = (
                f"PasteMasks at this size {r['paste_masks_ms']:.3f} ms; {r['bytes'] / 1024:.0f} KB of strings"
            )
            rows.append([f"encode_masks, 100 × 1080 × 1920, {share}", r["batch"], f"{r['ms']:.3f}", other])
        elif r["op"] == "padded_space_to_depth":
            name = (
                f"PaddedSpaceToDepth, {r['size'][0]} × {r['size'][1]}, pads {', '.join(map(str, r['pads']))}"
            )
            rows.append([name, r["batch"], f"{r['ms']:.3f}", f"floor {r['floor_ms']:.3f} ms"])
    return _table(["kernel", "batch", "ms", "next to"], rows)


ENGINES = {"fp32": "FP32", "tf32": "TF32", "fp16": "FP16, plan", "fp16_no_plan": "FP16, no plan"}


def engines() -> str:
    """What engines find, next to PyTorch in FP32, and what they are."""
    cold = json.loads((RESULTS / "engines_h200_cold.json").read_text())["variants"]
    rows = []
    for name, figures in _engines().items():
        against, minus = figures["against_pytorch"]["1"], figures["average_precision_minus_pytorch"]
        build = figures["build"]
        rows.append(
            [
                ENGINES[name],
                f"{against['matched']} of {against['expected']}",
                f"{against['box_px']['median']:.1g} / {against['box_px']['p99']:.1g} / {against['box_px']['max']:.2g}",
                f"{minus['box']['AP']:+.4f}",
                f"{minus['mask']['AP']:+.4f}",
                f"{100 * build['dense_flops_share']['fp16']:.2f} %",
                f"{build['bytes'] / 2**20:.0f} MiB",
                f"{build['seconds']:.0f} s",
            ]
        )
    heading = [
        "engine",
        "PyTorch's detections found",
        "box, px: median / 99 % / worst",
        "box AP",
        "mask AP",
        "dense FLOPs in FP16",
        "size",
        "build",
    ]
    # Only the first build of that run began with an empty cache.
    return (
        f"{_table(heading, rows)}\nBuilt with a timing cache; without one the FP16 engine of an earlier graph, of "
        f"the same convolutions, took {cold['fp16']['build']['seconds']:.0f} s.\n"
    )


def latency() -> str:
    """The most of what ``benchmarks.latency`` measured on the H200 in one run."""
    return (
        f"![ms per image over the batch](../benchmarks/results/latency_h200.png)\n\n{_sections(summary(_latency()))}\n"
        "The spread of these times, the stages and several contexts: "
        "[latency_h200.md](../benchmarks/results/latency_h200.md).\n"
    )


def fused() -> str:
    """What the operators before NMS and behind the mask head are worth, graph by graph."""
    graphs = json.loads((RESULTS / "layers_h200.json").read_text())["graphs"]
    cases = _latency()["cases"]
    graph_ms = {b: median(cases, f"tensorrt/fp16_graph/batch-{b}", "engine") for b in ("1", "8")}
    present = {"graph_ms": graph_ms, "layer_ms": cases["tensorrt/fp16/layers"]["layer_ms"]}
    rows = []
    for graph in [*graphs, {"words": "DecodeProposals, DecodeDetections, SelectMasks", **present}]:
        cells = [graph["words"]]
        for size in ("1", "8"):
            times = graph["layer_ms"][size]
            share = not_dense_share(times, dense_nodes(times))
            rest = share * sum(times.values())
            cells += [f"{graph['graph_ms'][size]:.2f}", f"{rest:.2f}", f"{100 * share:.0f} %"]
        rows.append(cells)
    columns = [words for size in (1, 8) for words in (f"batch {size}, ms", "not dense", "share")]
    return _table(["between the dense layers", *columns], rows)


def grafts() -> str:
    """Real detectors of other layouts, against their float files in onnxruntime."""
    data = json.loads((RESULTS / "grafts.json").read_text())
    rows = []
    for row in data:
        if "error" in row:
            rows.append([row["file"], row["runtime"], row["precision"].upper(), row["error"], "", "", "", ""])
            continue
        cells = [
            f"{row['matched']} of {row['expected']}",
            row["found"],
            f"{row['box_px']:.2g}",
            f"{row['score']:.2g}",
        ]
        mask = row["mask_share"]
        cells.append("" if mask is None else f"{100 * mask:.1f} %")
        rows.append([row["file"], row["runtime"], row["precision"].upper(), *cells])
    files = list(dict.fromkeys(cells[0] for cells in rows))
    rows.sort(key=lambda cells: (files.index(cells[0]), cells[1:3]))
    heading = [
        "file",
        "runtime",
        "precision",
        "same detections",
        "found",
        "worst corner, px",
        "worst score",
        "mask px",
    ]
    return _table(heading, rows) + _graft_times(data)


def _graft_times(data: Sequence[dict]) -> str:
    """Return the engines' times, behind a line of their own; nothing where there are none."""
    times = []
    for row in data:
        if row["runtime"] != "tensorrt" or "ms" not in row:
            continue
        cells = [
            f"{found['engine']['median']:.2f} ({found['images_per_s']:.0f})" for found in row["ms"].values()
        ]
        times.append([row["file"], row["precision"].upper(), *cells])
    if not times:
        return ""
    sizes = ["batch 1", "batch 8", "batch 32"]
    heading = [
        "TensorRT 8.5.3.1, H200, 640×640: ms of the engine (images/s from pixels)",
        "precision",
        *sizes,
    ]
    return f"\n{_table(heading, times)}"


def profiles() -> str:
    """Engines of two profiles, of any size and of INT8."""
    data = json.loads((RESULTS / "profiles_h200.json").read_text())
    rows, notes = [], []
    for row in data["rows"]:
        times = [f"{row['graph_ms'][size]:.2f}" for size in ("1", "2", "8")]
        sustained = row.get("sustained_ms", {}).get("8")
        rates = [row[key] for key in ("images_per_s", "images_per_s_2_streams") if row.get(key) is not None]
        precision, cold = row.get("average_precision") or {}, row.get("cold_build_seconds")
        if row["note"]:
            notes.append(f"[{len(notes) + 1}] {row['note']}")
        rows.append(
            [
                row["words"] + (f" [{len(notes)}]" if row["note"] else ""),
                *times,
                "" if sustained is None else f"{sustained:.2f}",
                "; ".join(f"{rate:.0f} ({rate * sustained / 80:.0f} %)" for rate in rates),
                ", ".join(f"{value:.3f}" for value in precision.values()),
                f"{100 * row['build']['dense_flops_share'].get('int8', 0):.0f} %",
                f"{row['build']['seconds']:.0f}" + ("" if cold is None else f", {cold:.0f}"),
            ]
        )
    heading = [
        "ms per batch, CUDA graph",
        "1",
        "2",
        "8",
        "8, sustained",
        "images/s (of the engine's); 2 streams",
        "box, mask AP",
        "INT8",
        "build, s: with a timing cache, cold",
    ]
    times = {row["words"]: row["graph_ms"] for row in data["rows"]}
    more = {size: times["FP16, any size"][size] / times["FP16"][size] - 1 for size in ("1", "8")}
    any_size = f"Any size takes {more['1']:.1%} longer at batch 1 and {more['8']:.1%} at batch 8."
    return "\n".join([_table(heading, rows), *notes, "", any_size, ""])


def pipeline_parts() -> str:
    """What limits images per second: reading, the engine, threads and streams."""
    data = json.loads((RESULTS / "pipeline_parts_h200.json").read_text())
    precisions = tuple(data["engines"])
    cells: dict[tuple[str, object, object], dict[str, float]] = {}
    for precision, rows in data["engines"].items():
        for row in rows:
            key = row["part"], row.get("streams", ""), row.get("threads", "")
            cells.setdefault(key, {})[precision] = row
    table = [
        [
            *key,
            *(f"{found[name]['images_per_s']:.0f}" for name in ("fp16", "int8")),
            f"{found['int8']['cores_busy']:.1f}",
        ]
        for key, found in sorted(cells.items(), key=lambda item: tuple(map(str, item[0])))
        if {"fp16", "int8"} <= found.keys()
    ]
    return _table(
        ["images/s", "streams", "threads that read", *map(str.upper, precisions), "cores busy, INT8"], table
    )


def kernel_profiles() -> str:
    """Kernels that were changed since the table above, before and after, and what binds the slowest."""
    data = json.loads((RESULTS / "profiles_h200.json").read_text())["kernels"]
    times = {name: found for name, found in data["graph_us"].items() if name != "about"}
    steps = [
        [kernel, *(f"{found[kernel]:.0f}" if kernel in found else "" for found in times.values())]
        for kernel in times["now"]
    ]
    words = next(key for key in data if key.startswith("multi_level_roi_align"))
    roi = [
        [
            name,
            f"{run['us']:.0f}",
            f"{run['warp_instructions'] / 1e6:.0f} M",
            f"{run['issue_active_pct']:.0f} %",
            f"{run['l2_bytes'] / 1e9:.2f} GB",
            f"{run['l2_bytes'] / run['us'] / 1e6:.1f} TB/s",
        ]
        for name, run in data[words].items()
    ]
    columns = [words, "µs", "instructions of warps", "issue slots busy", "from L2", "at"]
    return f"{_table(['µs', *times], steps)}\n{_table(columns, roi)}"


def cpp_engine() -> str:
    """The C++ library beside Python's runtime, one engine, one run."""
    data = json.loads((RESULTS / "cpp_engine_h200.json").read_text())
    rows = [
        [size, *(f"{found[side]['median']:.2f}" for side in ("cpp_ms", "python_ms"))]
        for size, found in data["latency"].items()
    ]
    return _table(["images", "C++, ms", "Python, ms"], rows)


def latency_more() -> str:
    """Larger batches in an engine made for them, and onnxruntime on the same machine's CPU."""
    data = json.loads((RESULTS / "latency_h200_more.json").read_text())
    cores = data["circumstances"]["onnxruntime"]["cores"]
    section = latency_table(data["cases"], with_spread=False)
    largest = data["settings"]["profile"][2]
    rows = [row[:-2] for row in section.rows]  # memory and build are those of other settings
    return (
        f"Measured apart, with an engine for batches up to {largest}, and onnxruntime on the {cores} cores of the same "
        f"kind of machine:\n\n{_table(section.heading[:-2], rows)}"
    )


def latency_details() -> str:
    """The rest of it, as a file of its own."""
    return (
        "# Latency on an H200\n\nWritten by `python -m benchmarks.readme` from `latency_h200.json`; docs/benchmarks.md "
        f"has the medians and what is promised.\n\n{_sections(details(_latency()))}"
    )


def _latency() -> dict:
    return json.loads((RESULTS / "latency_h200.json").read_text())


def _sections(found: Sequence[Section]) -> str:
    texts = [
        f"**{s.title}**\n\n{_table(s.heading, s.rows)}" + (f"\n{s.note}\n" if s.note else "") for s in found
    ]
    return "\n".join(texts)


def _engines() -> dict:
    return json.loads((RESULTS / "engines_h200.json").read_text())["variants"]


_NOT_MEASURED = "Not measured yet (`python -m benchmarks.serve_load`).\n"


def serve_capacity() -> str:
    """What a service answers with so many clients, with and without batching."""
    data = _serve_load()
    if "capacity" not in data:
        return _NOT_MEASURED
    rows = [
        [
            row["clients"],
            row["batching"],
            f"{row['per_second']:.1f}",
            f"{row['ms']['p50']:.0f} ms",
            f"{row['ms']['p99']:.0f} ms",
        ]
        for row in sorted(data["capacity"], key=lambda row: (row["clients"], row["batching"] == "off"))
    ]
    return (
        f"{_table(['clients', 'batching', 'images/s', 'median', '99 %'], rows)}\n"
        f"The embedded model at 448×640 with {data['backend']}, {data['threads']} threads of {data['cores']} cores of "
        f"{data['cpu']}, which the clients share; each client sends its next image when it has the answer to its "
        f"last.{_busy(data)}\n"
    )


def _busy(data: dict) -> str:
    """Say where other work ran meanwhile."""
    if data["load_average"] < data["cores"] / 2:
        return ""
    return f" Other work ran beside it (load average {data['load_average']}): an idle machine does more."


def serve_overload() -> str:
    """What a service does when it is asked for more than it can."""
    data = _serve_load()
    if "overload" not in data:
        return _NOT_MEASURED
    rows = [
        [
            f"{row['times']}×: {row['offered_per_second']:.0f}/s",
            row["requests"],
            row["answers"].get("200", 0),
            row["answers"].get("429", 0),
            row["unanswered"],
            f"{row['answered_per_second']:.1f}",
            "{p50:.0f} / {p99:.0f} / {max:.0f} ms".format(**row["refused_ms"]),
            row["refused_after_50_ms"],
        ]
        for row in data["overload"]
    ]
    heading = [
        "requests at random times",
        "sent",
        "answered",
        "refused (429)",
        "neither",
        "images/s",
        "refusal: median / 99 % / worst",
        "later than 50 ms",
    ]
    return _table(heading, rows)


def serve_endurance() -> str:
    """Whether a service grows."""
    found = _serve_load().get("endurance")
    if found is None:
        return _NOT_MEASURED
    first, last = found["first"], found["last"]
    return (
        f"{found['requests']} requests of {found['clients']} clients, {found['per_second']:.0f}/s (a model of a few "
        f"operators): {first['mib']:.0f} MiB, {first['threads']} threads and {first['descriptors']} descriptors after "
        f"the first tenth, {last['mib']:.0f} MiB, {last['threads']} and {last['descriptors']} at the end.\n"
    )


def _serve_load() -> dict:
    path = RESULTS / "serve_load.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def serve_hostile() -> str:
    """What became of requests that are none."""
    found = json.loads((RESULTS / "serve_hostile.json").read_text())
    first, last = found["first"], found["last"]
    return (
        f"{found['requests']} hostile requests of {len(found['kinds'])} kinds in {found['seconds']} s: "
        f"{found['num_failures']} without the answer that they have to get, no crash; {first['mib']:.0f} MiB, "
        f"{first['threads']} threads and {first['descriptors']} descriptors after the first tenth, "
        f"{last['mib']:.0f} MiB, {last['threads']} and {last['descriptors']} at the end.\n"
    )


# What stands in README's table of speed: words, cases, stage; of the case of each batch.
_SPEED = (
    ("PyTorch, FP32", "pytorch/fp32", "network"),
    ("PyTorch, FP16 autocast, compiled", "pytorch/compile", "network"),
    ("TensorRT, FP16, CUDA graph", "tensorrt/fp16_graph", "engine"),
)
_SPEED_ON_CPU = {
    "PyTorch": "FP32: PyTorch",
    "onnxruntime FP32": "FP32: onnxruntime",
    "OpenVINO FP32": "FP32: OpenVINO",
    "OpenVINO BF16": "BF16: OpenVINO",
    "OpenVINO INT8": "INT8: OpenVINO",
}


def speed() -> str:
    """The latency of the network on a GPU and of everything on a CPU, in a few rows."""
    cases = _latency()["cases"]
    rows: list[list[object]] = []
    for words, variant, stage in _SPEED:
        times = [median(cases, f"{variant}/batch-{size}", stage) for size in ("1", "8")]
        rows.append([f"H200: {words}", *(f"{time:.1f} ms" for time in times)])
    data = json.loads((RESULTS / "cpu_latency.json").read_text())
    for row in data["rows"]:
        if row["model"] == "r50" and row["batch"] == 1 and row["runtime"] in _SPEED_ON_CPU:
            words = _SPEED_ON_CPU[row["runtime"]]
            milliseconds = 1000 * row["seconds_per_image"]["median"]
            rows.append([f"{data['threads']} CPU threads, {words}", f"{milliseconds:.0f} ms", ""])
    return _table(["", "batch 1", "batch 8"], rows)


def accuracy_line() -> str:
    """How good the exported files are beside mmdet, in a sentence for each model."""
    exact = json.loads((RESULTS / "exactness.json").read_text())
    words = {
        "embedded": "The embedded model",
        "r50": "`mask-rcnn_r50_fpn_2x_coco`",
        "portraits": "`mask-rcnn_r50_fpn_2x_coco` (portraits)",
    }
    lines = []
    for subject, content in json.loads((RESULTS / "accuracy.json").read_text()).items():
        mmdet, crop = (content["average_precision"][side] for side in ("mmdet", "crop"))
        figures = [
            f"{kind} AP {crop[kind]['AP']:.3f} (mmdet {mmdet[kind]['AP']:.3f})" for kind in ("box", "mask")
        ]
        images = exact[subject]["batches"]["1"]
        found, expected = (sum(image[side] for image in images) for side in ("matched", "expected"))
        lines.append(
            f"- {words[subject]} on {content['images']} image files: {', '.join(figures)}; "
            f"{found} of mmdet's {expected} detections found again.\n"
        )
    return "".join(lines)


def zoo_line() -> str:
    """The zoo in a sentence."""
    configs, _ = _zoo()
    counts = Counter(config["result"] for config in configs)
    bad = counts["wrong"] + counts["failed"]
    return (
        f"Of the {len(configs)} two-stage configs that mmdet 3.3 ships, {counts['exact']} export and equal PyTorch, "
        f"{counts['refused']} are refused by name before anything is traced, {counts['unbuildable']} mmdet itself "
        f"cannot build, and {bad or 'none'} {'are' if bad != 1 else 'is'} wrong.\n"
    )


def engines_line() -> str:
    """How many images of an FP32 engine are beyond the export's own tolerance, and what a batch changes."""
    data = json.loads((RESULTS / "engines_h200.json").read_text())
    fp32 = data["variants"]["fp32"]
    agree = [
        data["images"] - fp32[side]["1"]["images_beyond_tolerance"]
        for side in ("against_pytorch", "against_onnxruntime")
    ]
    batches = {size: 0 for size in fp32["batches_against_batch_1"]}
    same = all(
        result["identical"]
        for v in data["variants"].values()
        for result in v["batches_against_batch_1"].values()
    )
    return (
        f"In FP32, {agree[0]} of the {data['images']} images agree with PyTorch within the export's own tolerance "
        f"({fp32['tolerance']['box_px']} px), and {agree[1]} with onnxruntime. Batches of {min(batches)} to "
        f"{max(batches)} give the results of batch 1 {'bit for bit' if same else 'only nearly'}, in every precision.\n"
    )


TABLES = {
    "kernels": kernels,
    "cpu_latency": cpu_latency,
    "cpu_accuracy": cpu_accuracy,
    "cpu_profile": cpu_profile,
    "exactness": exactness,
    "accuracy": accuracy,
    "zoo": zoo,
    "zoo_folders": zoo_folders,
    "embedded": embedded,
    "fixed_size": fixed_size,
    "dynamic_size": dynamic_size,
    "engines": engines,
    "latency": latency,
    "latency_more": latency_more,
    "fused": fused,
    "profiles": profiles,
    "pipeline_parts": pipeline_parts,
    "grafts": grafts,
    "kernel_profiles": kernel_profiles,
    "cpp_engine": cpp_engine,
    "speed": speed,
    "accuracy_line": accuracy_line,
    "zoo_line": zoo_line,
    "engines_line": engines_line,
    "fuzz": fuzz,
    "processes": processes,
    "serve_capacity": serve_capacity,
    "serve_overload": serve_overload,
    "serve_endurance": serve_endurance,
    "serve_hostile": serve_hostile,
}


def updated(text: str) -> str:
    """Return a page with every table made anew.

    Raises:
        KeyError: a table of a name that this module does not have.
    """
    return MARKED.sub(lambda match: f"{match[1]}{TABLES[match[2]]()}{match[3]}", text)


def pages() -> dict[Path, str]:
    """Return every file that is written here, with its text."""
    texts = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return {
        **{path: updated(path.read_text(encoding="utf-8")) for path in texts},
        RESULTS / "latency_h200.md": latency_details(),
    }


def outdated(files: Mapping[Path, str]) -> list[Path]:
    """Return those that are not there with this text."""
    return [path for path, text in files.items() if not path.is_file() or path.read_text() != text]


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Rewrite the files, or with ``--check`` return 1 if that would change one."""
    parser = CommandParser(prog="python -m benchmarks.readme", doc=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit 1 where a table is out of date"
    )
    args = parser.parse_args(argv)
    files = pages()
    if args.check:
        return int(bool(outdated(files)))
    for path, text in files.items():
        path.write_text(text)
    return 0


def _table(heading: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


if __name__ == "__main__":
    raise SystemExit(main())
