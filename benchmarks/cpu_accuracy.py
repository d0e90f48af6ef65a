"""``python -m benchmarks.cpu_accuracy DATA``: what each precision on a CPU keeps of the average precision.

The embedded model on its 200 held-out renders, and ``mask-rcnn_r50_fpn_2x_coco`` with the weights of the folder DATA
(``checkpoints/``) on its images (``datasets/shapes_val/``). INT8 files are made by ``export.quantize`` from renders of
another seed, none of which is evaluated; besides the default method also that of the extremes of all.
The exit status is 1 where the default INT8 file loses more than ``MAX_DROP`` in OpenVINO.
"""

import patches  # isort: skip  # noqa: F401  makes mmdet importable without mmcv's compiled operators

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Optional

from rich.console import Console

from benchmarks.cpu_case import RESULTS, processor
from benchmarks.renders import SIZES
from examples import CHECKPOINT_PATH, CONFIG_PATH
from examples.shapes import IMAGE_SIZES, write_coco
from export import export_model, quantize_model
from export.quantization.api import QuantizeOptions
from runtime.comparison.average_precision import CocoDataset, read_dataset
from runtime.comparison.evaluation import Evaluation, evaluate_artifact
from runtime.comparison.sources import open_artifact
from runtime.console import write_json
from runtime.evaluate import ANNOTATIONS
from runtime.files import sha256_of
from runtime.image_files import find_images

PACKAGES = ("onnxruntime", "openvino", "onnx", "torch")
NUM_RENDERS, RENDER_SEED = 200, 20001  # those of examples/metrics.json
NUM_CALIBRATION, CALIBRATION_SEED = 24, 40001
MAX_DROP = 0.003


@dataclass(frozen=True)
class Subject:
    """A model, what it is evaluated on, and the sizes of the images that it is calibrated on, (height, width) px."""

    name: str
    config: str
    checkpoint: Path
    dataset: CocoDataset
    sizes: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Variant:
    """What runs which file: ``float``, or activations and method of a quantized one."""

    runtime: str
    file: str = "float"
    precision: Optional[str] = None


FLOAT = Variant("onnxruntime")
DEFAULT = Variant("openvino", "int8 average")
VARIANTS = (
    FLOAT,
    Variant("openvino", precision="fp32"),
    Variant("openvino", precision="bf16"),
    DEFAULT,
    Variant("openvino", "int8 minmax"),
    Variant("openvino", "uint8 average"),
    Variant("onnxruntime", "uint8 average"),
)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Measure and write the JSON."""
    args = _parser().parse_args(argv)
    console = Console()
    subjects = {"embedded": _embedded, "r50": _r50}
    models = json.loads(args.output.read_text())["models"] if args.output.is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        for name in args.only:
            work = Path(folder) / name
            subject = subjects[name](work, args)
            models[name] = {**_facts(subject), "rows": list(_rows(subject, work, args, console))}
            circumstances = {**processor(), "versions": {p: version(p) for p in PACKAGES}}
            write_json(args.output, {**circumstances, "models": models})
    return int(not all(_is_kept(model["rows"]) for model in models.values()))


def _embedded(work: Path, args: argparse.Namespace) -> Subject:
    write_coco(work / "renders", num=NUM_RENDERS, seed=RENDER_SEED)
    dataset = read_dataset(work / "renders" / ANNOTATIONS, work / "renders", args.limit)
    return Subject(CONFIG_PATH.stem, str(CONFIG_PATH), CHECKPOINT_PATH, dataset, IMAGE_SIZES)


def _r50(work: Path, args: argparse.Namespace) -> Subject:
    folder = args.data / "datasets" / "shapes_val"
    checkpoint = args.data / "checkpoints" / "mask-rcnn_r50_fpn_shapes.pth"
    dataset = read_dataset(folder / ANNOTATIONS, folder, args.limit)
    return Subject("mask-rcnn_r50_fpn_2x_coco", "mask-rcnn_r50_fpn_2x_coco", checkpoint, dataset, SIZES)


def _rows(
    subject: Subject, work: Path, args: argparse.Namespace, console: Console
) -> Iterator[dict[str, Any]]:
    """Yield a row per variant, the float model in onnxruntime first."""
    files = _files(subject, work, args.threads)
    expected = None
    for variant in VARIANTS:
        options = {"threads": args.threads} | ({"precision": variant.precision} if variant.precision else {})
        with open_artifact(files[variant.file], variant.runtime, **options) as artifact:
            found = evaluate_artifact(artifact, subject.dataset)
        expected = expected or found
        row = _row(variant, found, expected)
        console.print(f"{subject.name}: {row}", highlight=False)
        yield row


def _files(subject: Subject, work: Path, threads: int) -> dict[str, Path]:
    """Export the model, and quantize it in every way that a variant names."""
    files = {"float": work / "model.onnx"}
    export_model(subject.config, subject.checkpoint, files["float"], verify=False)
    write_coco(work / "calibration", num=NUM_CALIBRATION, seed=CALIBRATION_SEED, sizes=subject.sizes)
    images = find_images([str(work / "calibration")])
    for name in sorted({variant.file for variant in VARIANTS} - set(files)):
        activations, method = name.split()
        files[name] = work / f"{activations}_{method}.onnx"
        options = QuantizeOptions(activations=activations)
        quantize_model(files["float"], files[name], images, options=options, method=method, threads=threads)
    return files


def _row(variant: Variant, found: Evaluation, expected: Evaluation) -> dict[str, Any]:
    if found.problems:
        raise RuntimeError(f"{variant}: expected results for every image, found {found.problems[0]}")
    changes = found.minus(expected)
    return {
        "runtime": variant.runtime,
        "file": variant.file,
        "precision": variant.precision,
        "detections": found.num_detections,
        "seconds_per_image": found.seconds / found.num_images,
        "average_precision": {kind: values["AP"] for kind, values in found.average_precision.items()},
        "change": {kind: values["AP"] for kind, values in changes.items()},
    }


def _is_kept(rows: Sequence[dict[str, Any]]) -> bool:
    (row,) = (row for row in rows if (row["runtime"], row["file"]) == (DEFAULT.runtime, DEFAULT.file))
    return min(row["change"].values()) >= -MAX_DROP


def _facts(subject: Subject) -> dict[str, Any]:
    return {
        "config": subject.name,
        "checkpoint_sha256": sha256_of(subject.checkpoint),
        "images": len(subject.dataset.images),
        "calibration": {"images": NUM_CALIBRATION, "seed": CALIBRATION_SEED},
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cpu_accuracy", description=__doc__.split("\n")[0]
    )
    parser.add_argument("data", type=Path, help="a folder with checkpoints/ and datasets/shapes_val/")
    parser.add_argument("--only", nargs="+", choices=("embedded", "r50"), default=["embedded", "r50"])
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images of each, for a trial")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=RESULTS / "cpu_accuracy.json")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
