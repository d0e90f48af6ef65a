"""``python -m benchmarks.cpu_latency``: PyTorch, onnxruntime and OpenVINO on the same cores, same images, same work.

All go from the prepared batch to detections with masks pasted at the original images' resolution: PyTorch by mmdet's
``predict(rescale=True)`` (with mmcv's compiled operators, or with this project's where those are absent), the others
by the exported file and ``runtime``'s post-processing. Each case runs in a process of its own, one after the other,
round by round. INT8 files are those that are given, or are made by ``export.quantize``.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Optional

from rich.console import Console
from rich.table import Table

from benchmarks.cpu_case import RESULTS, Case, processor, spread
from examples import CHECKPOINT_PATH, CONFIG_PATH, IMAGES_DIR
from patches.mmcv_ops import ensure_mmcv_ops
from runtime.cli import CommandParser
from runtime.console import write_json
from runtime.graphs.load import load_onnx, metadata_of
from runtime.image_files import find_images

PACKAGES = ("torch", "onnxruntime", "openvino", "onnx")
NUM_IMAGES = 8
# One process of a model: all its images, several times.
REPETITIONS = {1: 6, 4: 3}
MINUTES_PER_CASE = 15


@dataclass(frozen=True)
class Variant:
    """A column of the results: what runs which file, and how.

    Attributes:
        runtime: its name.
        backend: see ``Case``.
        file: ``fixed``, ``any size``, ``int8`` or ``uint8``.
        precision: of floats, in OpenVINO.
        sizes: see ``OpenVINOOptions``.
        batches: at which it is measured; None for all.
    """

    runtime: str
    backend: str
    file: str = "fixed"
    precision: str = "fp32"
    sizes: Optional[int] = None
    batches: Optional[tuple[int, ...]] = None


VARIANTS = (
    Variant("PyTorch", "pytorch"),
    Variant("onnxruntime FP32", "onnxruntime"),
    Variant("onnxruntime INT8", "onnxruntime", "uint8"),
    Variant("OpenVINO FP32", "openvino"),
    Variant("OpenVINO BF16", "openvino", precision="bf16"),
    Variant("OpenVINO INT8", "openvino", "int8"),
    Variant("OpenVINO INT8, activations uint8", "openvino", "uint8", batches=(1,)),
    Variant("onnxruntime FP32, any size", "onnxruntime", "any size", batches=(1,)),
    Variant("OpenVINO FP32, any size, one network", "openvino", "any size", sizes=0, batches=(1,)),
    Variant("OpenVINO FP32, any size, the size's own network", "openvino", "any size", sizes=1, batches=(1,)),
)


@dataclass(frozen=True)
class Model:
    """A model, with its files by kind.

    Attributes:
        name: in the results.
        config, checkpoint: of mmdet.
        size: of the network's input, (height, width) px.
        images: files.
        files: ``fixed`` and so on -> ONNX.
    """

    name: str
    config: str
    checkpoint: str
    size: tuple[int, int]
    images: tuple[str, ...]
    files: dict[str, Path]


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Measure and write the JSON."""
    args = _parser().parse_args(argv)
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        models = [_with_files(model, Path(folder), args, console) for model in _models(args)]
        rows, skipped = _measured(models, args, console)
    result = {
        **_circumstances(args),
        "models": {m.name: _facts(m) for m in models},
        "rows": rows,
        "skipped": skipped,
    }
    write_json(args.output, result)
    _show(rows, console)
    for row in skipped:
        console.print(f"skipped: {row['model']}, {row['runtime']}: {row['reason']}", highlight=False)
    return 0


def _models(args: argparse.Namespace) -> list[Model]:
    embedded = Model("embedded", str(CONFIG_PATH), str(CHECKPOINT_PATH), (448, 640), (str(IMAGES_DIR),), {})
    models = [embedded]
    if args.r50 is not None:
        config, checkpoint, images = args.r50
        models.insert(0, Model("r50", config, checkpoint, (800, 1216), (images,), {}))
    return [
        replace(model, images=tuple(map(str, find_images(list(model.images))[:NUM_IMAGES])))
        for model in models
    ]


def _with_files(model: Model, folder: Path, args: argparse.Namespace, console: Console) -> Model:
    """Export the model, and quantize it where its INT8 files are not given."""
    files = {"fixed": folder / f"{model.name}.onnx", "any size": folder / f"{model.name}_any.onnx"}
    export = ["export.maskrcnn", model.config, model.checkpoint, "--no-verify", "-o"]
    _command(console, *export, files["fixed"], "--size", *model.size)
    _command(console, *export, files["any size"], "--dynamic-size")
    given = {tuple(text.split("=", 1)[0].split(":")): Path(text.split("=", 1)[1]) for text in args.quantized}
    for kind in ("int8", "uint8"):
        if (model.name, kind) in given:
            files[kind] = given[model.name, kind]
        elif find_spec("export.quantize") is not None and not args.no_quantize:
            files[kind] = folder / f"{model.name}.{kind}.onnx"
            options = (
                "--activations",
                kind,
                "-o",
                files[kind],
                "--images",
                *(args.calibration or model.images),
            )
            _command(console, "export.quantize", files["fixed"], *options)
    return replace(model, files=files)


def _command(console: Console, module: str, *arguments: Any) -> None:
    """Run a command of ours in another process, so that this one stays small."""
    words = [module, *map(str, arguments)]
    console.print(f"[dim]python -m {' '.join(words[:3])} ...[/]", highlight=False)
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(
            f"{' '.join(words)}: exit {done.returncode}: {(done.stdout + done.stderr)[-2000:]}"
        )


def _cases(models: Sequence[Model], args: argparse.Namespace) -> Iterator[tuple[Case, Variant]]:
    for model in models:
        metadata = metadata_of(load_onnx(model.files["fixed"])).to_json()
        for batch in args.batch:
            for variant in VARIANTS:
                wanted = args.only is None or variant.runtime in args.only
                if not wanted or (variant.batches is not None and batch not in variant.batches):
                    continue
                yield _case(model, variant, batch, metadata, args), variant


def _case(model: Model, variant: Variant, batch: int, metadata: str, args: argparse.Namespace) -> Case:
    options: dict[str, Any] = {"precision": variant.precision} if variant.backend == "openvino" else {}
    if variant.sizes is not None:
        options["sizes"] = variant.sizes
    return Case(
        model=model.name,
        runtime=variant.runtime,
        backend=variant.backend,
        file=str(model.files.get(variant.file, "")),
        metadata=metadata,
        config=model.config,
        checkpoint=model.checkpoint,
        images=model.images,
        batch=batch,
        threads=args.threads,
        repetitions=args.repetitions or REPETITIONS.get(batch, 3),
        options=options,
        own_network=bool(variant.sizes),
    )


def _measured(
    models: Sequence[Model], args: argparse.Namespace, console: Console
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return a row per case, of all its rounds together; and what did not run, and why."""
    cases = list(_cases(models, args))
    outcomes: dict[int, list[dict[str, Any]]] = {}
    reasons: dict[int, str] = {}
    for _ in range(args.rounds):  # so that a slow minute is not one case's alone
        for number, (case, variant) in enumerate(cases):
            if number in reasons:
                continue
            outcome = _run(case) if case.file else f"no {variant.file} file: name one with --quantized"
            if isinstance(outcome, str):
                reasons[number] = outcome
                continue
            outcomes.setdefault(number, []).append(outcome)
            seconds = spread(outcome["whole"])["median"]
            name = f"{case.model}, batch {case.batch}, {case.runtime}"
            console.print(f"{name}: {seconds:.2f} s per image, {outcome['peak_mib']} MiB", highlight=False)
    rows = [_row(cases[number][0], found) for number, found in sorted(outcomes.items())]
    named = ((cases[number][0], reason) for number, reason in sorted(reasons.items()))
    return rows, [{"model": c.model, "batch": c.batch, "runtime": c.runtime, "reason": r} for c, r in named]


def _run(case: Case) -> "dict[str, Any] | str":
    """Return what the case's process measured, or its last words."""
    command = [sys.executable, "-m", "benchmarks.cpu_case", json.dumps(asdict(case))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60 * MINUTES_PER_CASE)
    lines = [
        line for line in (done.stdout if done.returncode == 0 else done.stderr).splitlines() if line.strip()
    ]
    if done.returncode != 0:
        return lines[-1] if lines else f"exit {done.returncode}"
    return dict(json.loads(lines[-1]))


def _row(case: Case, outcomes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    whole, network = ([t for o in outcomes for t in o[kind]] for kind in ("whole", "network"))
    return {
        "model": case.model,
        "batch": case.batch,
        "runtime": case.runtime,
        "seconds_per_image": spread(whole),
        "network_seconds_per_image": spread(network) if network else None,
        "repetitions": len(whole),
        "detections": outcomes[0]["detections"],
        "peak_mib": max(outcome["peak_mib"] for outcome in outcomes),
    }


def _facts(model: Model) -> dict[str, Any]:
    return {"config": Path(model.config).stem, "size": list(model.size), "images": len(model.images)}


def _circumstances(args: argparse.Namespace) -> dict[str, Any]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        **processor(),
        "threads": args.threads,
        "rounds": args.rounds,
        "mmcv_ops": ensure_mmcv_ops(),
        "versions": versions,
    }


def _show(rows: Sequence[dict[str, Any]], console: Console) -> None:
    table = Table("model", "batch", "runtime", "s/image", "network alone", "peak MiB")
    for row in rows:
        network = row["network_seconds_per_image"]
        table.add_row(
            row["model"],
            str(row["batch"]),
            row["runtime"],
            f"{row['seconds_per_image']['median']:.3f}",
            f"{network['median']:.3f}" if network else "",
            str(row["peak_mib"]),
        )
    console.print(table)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m benchmarks.cpu_latency", doc=__doc__)
    parser.add_argument(
        "--r50",
        nargs=3,
        metavar=("CONFIG", "CHECKPOINT", "IMAGES"),
        help="a larger model beside the embedded one, at 800x1216: mask-rcnn_r50_fpn_2x_coco, its weights, a folder",
    )
    parser.add_argument(
        "--quantized",
        nargs="+",
        default=[],
        metavar="MODEL:KIND=FILE",
        help="INT8 files instead of new ones, such as r50:int8=a.onnx embedded:uint8=b.onnx",
    )
    parser.add_argument(
        "--calibration", nargs="+", metavar="IMAGE", help="to quantize with; default: the images"
    )
    parser.add_argument("--no-quantize", action="store_true", help="make no INT8 files")
    parser.add_argument("--only", nargs="+", choices=[v.runtime for v in VARIANTS], metavar="RUNTIME")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1, help="processes of each case; default: %(default)s")
    parser.add_argument(
        "--repetitions", type=int, help="batches of each process; default: 6 of one image, 3 of four"
    )
    parser.add_argument("--output", type=Path, default=RESULTS / "cpu_latency.json")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
