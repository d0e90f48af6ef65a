"""``python -m benchmarks.readme``: write README's tables from the committed results.

A table stands between ``<!-- table NAME -->`` and ``<!-- end -->``; NAME is a function of this module.
"""

import argparse
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
MARKED = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def cpu_latency() -> str:
    """onnxruntime next to PyTorch eager."""
    data = json.loads((RESULTS / "cpu_latency.json").read_text())
    rows = []
    for row in data["measured"]:
        seconds = {name: value["median"] for name, value in row["seconds_per_image"].items()}
        rows.append(
            [
                row["batch"],
                f"{seconds['pytorch']:.2f} s",
                f"{seconds['onnxruntime']:.2f} s",
                f"{seconds['pytorch'] / seconds['onnxruntime']:.1f}×",
            ]
        )
    versions = data["versions"]
    table = _table(["batch", "PyTorch eager, per image", "onnxruntime, per image", "faster"], rows)
    return (
        f"{table}\n{data['config']}, {data['size'][0]}×{data['size'][1]}, {data['threads']} threads of "
        f"{data['cpu']}; medians of {data['measured'][0]['images']} images, masks pasted at original resolution "
        f"on both sides; torch {versions['torch']}, onnxruntime {versions['onnxruntime']}.\n"
    )


def zoo() -> str:
    """Every two-stage config that mmdet ships with random weights, by folder."""
    data = json.loads((RESULTS / "zoo.json").read_text())
    configs, models = data["configs"], {row["model"]: row for row in data["models"]}
    folders = sorted({config["folder"] for config in configs})
    rows = [
        [f"`{folder}`", *_zoo_cells([c for c in configs if c["folder"] == folder], models)]
        for folder in folders
    ]
    masks = [config for config in configs if "mask-rcnn" in config["config"]]
    totals = [
        ["**all**", *_zoo_cells(configs, {})],
        ["**`mask-rcnn` in the name**", *_zoo_cells(masks, {})],
    ]
    heading = ["folder", "configs", "exact", "refused", "not buildable", "wrong or failed", "why"]
    exact = [model for model in models.values() if model["result"] == "exact"]
    largest = {figure: max((m[figure] for m in exact), default=0.0) for figure in ("box_px", "score", "mask")}
    states = len({model["code"] for model in models.values()})
    code = "one state" if states == 1 else f"{states} states"
    return (
        f"{_table(heading, [*totals, *rows])}\n{len(models)} distinct models, {len(exact)} of them exact: boxes within "
        f"{largest['box_px']:.1e} px, scores {largest['score']:.1e}, masks {largest['mask']:.1e} of the pixels of "
        f"either; measured with {code} of the code.\n"
    )


def _zoo_cells(configs: Sequence[dict], models: dict[str, dict]) -> list[object]:
    """Return the counts and, of the models given, why a config is not exact, most frequent first."""
    counts = Counter(config["result"] for config in configs)
    reasons = Counter(
        config.get("reason") or models[config["model"]]["reason"]
        for config in configs
        if models and config["result"] not in ("exact", "pending")
    )
    pending = [f"{counts['pending']} not measured"] if counts["pending"] else []
    why = [f"{count}× {reason}".replace("|", "\\|") for reason, count in reasons.most_common()]
    shown = (
        counts["exact"],
        counts["refused"],
        counts["unbuildable"],
        counts["wrong"] + counts["failed"],
    )
    return [len(configs), *(count or "" for count in shown), "<br>".join([*why, *pending])]


def embedded() -> str:
    """The embedded model's accuracy."""
    data = json.loads((ROOT / "examples" / "metrics.json").read_text())
    row = [f"{data[f'{kind}_{metric}']:.3f}" for kind in ("box", "mask") for metric in ("AP", "AP50", "AP75")]
    return _table(["box AP", "AP50", "AP75", "mask AP", "AP50", "AP75"], [row])


def kernels() -> str:
    """The CUDA kernels next to torchvision's and to the bandwidth floor."""
    rows = []
    for r in json.loads((RESULTS / "kernels_h200.json").read_text())["rows"]:
        case = {"rpn": "RPN, 4741 candidates", "multi_class": "1000 RoIs × 80 classes"}.get(r.get("case"), "")
        if r["op"] == "grouped_nms":
            other = f"torchvision `batched_nms` {r['torchvision_batched_nms_eager_ms']:.2f} ms (eager)"
            rows.append([f"GroupedNMS, {case}", r["batch"], f"{r['ms']:.3f}", other])
        elif r["op"] == "multi_level_roi_align":
            name = f"MultiLevelRoiAlign, {r['rois']} × 256 × {r['bins']}×{r['bins']}, {r['dtype']}, channels last"
            other = f"floor {r['floor_ms']:.3f} ms, torchvision {r['torchvision_roi_align_4_levels_graph_ms']:.2f} ms"
            rows.append([name, r["batch"], f"{r['nhwc_to_nchw_ms']:.3f}", other])
        elif r["op"] == "paste_masks":
            share = f"{100 * r['share_of_pixels_in_boxes']:.0f} % inside boxes"
            other = f"writing the output {r['write_output_ms']:.3f} ms"
            rows.append([f"PasteMasks, 100 × 800 × 1216 uint8, {share}", r["batch"], f"{r['ms']:.3f}", other])
    return _table(["kernel", "batch", "ms", "next to"], rows)


TABLES = {"kernels": kernels, "cpu_latency": cpu_latency, "zoo": zoo, "embedded": embedded}


def updated(text: str) -> str:
    """Return the README with every table made anew.

    Raises:
        KeyError: a table of a name that this module does not have.
    """
    return MARKED.sub(lambda match: f"{match[1]}{TABLES[match[2]]()}{match[3]}", text)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Rewrite the README, or with ``--check`` return 1 if that would change it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit 1 where a table is out of date"
    )
    args = parser.parse_args(argv)
    readme = ROOT / "README.md"
    text = readme.read_text()
    new = updated(text)
    if args.check:
        return int(new != text)
    readme.write_text(new)
    return 0


def _table(heading: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


if __name__ == "__main__":
    raise SystemExit(main())
