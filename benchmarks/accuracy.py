"""``python -m benchmarks.accuracy DATA``: the exported file next to mmdet's ``inference_detector``, on image files.

The embedded model on its 200 held-out renders, and ``mask-rcnn_r50_fpn_2x_coco`` with the weights of the folder DATA
(``checkpoints/``) on its images (``datasets/shapes_val/``) and on 20 rendered portraits. For each: image by image, and
in batches of two of unlike shape, what is the difference (``exactness.json``), and what is COCO's AP
(``accuracy.json``)? Of the portraits also: what is the AP of a file of fixed size?

mmdet's results are recorded once and used again as long as the checkpoint, the images and the versions are the same.
The exit status is 1 where an image differs for another reason than rounding (``benchmarks.handover``), or AP differs.
"""

import patches  # isort: skip  # noqa: F401  makes mmdet importable without mmcv's compiled operators

import argparse
import json
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Optional

import onnxruntime
import torch

import export.maskrcnn
from benchmarks.handover import ExposedModel, infer_from, own_outputs
from benchmarks.inference import detections_from_sample, infer, load_detector, made_with, record_inference
from examples import CHECKPOINT_PATH, CONFIG_PATH
from examples.shapes import write_coco
from export.model import LoadedModel
from export.verify import ordered_ties
from patches.mmcv_ops import ensure_mmcv_ops
from runtime.cli import CommandParser
from runtime.comparison.average_precision import CocoDataset, read_dataset
from runtime.comparison.detections import arrays_from_detections, compare_artifacts
from runtime.comparison.difference import Difference, Tolerance, compare_image
from runtime.comparison.evaluation import evaluate_artifact as evaluate
from runtime.comparison.recording import Recording, read_recording
from runtime.comparison.sources import load_batch, open_artifact, record
from runtime.detections import Detections
from runtime.evaluate import ANNOTATIONS
from runtime.files import sha256_of
from runtime.images import read_image

RESULTS = Path(__file__).parent / "results"
# Boxes and scores in float32, after two libraries' convolutions; masks share the pixels of either side, per image.
TOLERANCE = Tolerance(box_px=0.02, score=1e-4, mask=1e-4, mask_px=0)
MAX_AP_DIFFERENCE = 0.0005
NUM_RENDERS, RENDER_SEED = 200, 20001  # those of examples/metrics.json
SUBJECTS = ("embedded", "r50", "portraits")
NUM_PORTRAITS, PORTRAIT_SEED = 20, 30001
PORTRAIT_SIZES = ((1200, 800), (1280, 720), (1024, 768), (640, 480))  # (height, width) px
# What the config's scale of 1333 x 800 asks for, padded to multiples of 32.
FIXED_SIZE = (800, 1344)


@dataclass(frozen=True)
class Subject:
    """A model and the images it is measured on."""

    name: str
    config: str
    checkpoint: Path
    dataset: CocoDataset
    work: Path
    fixed_size: Optional[tuple[int, int]] = None

    @property
    def images(self) -> list[Path]:
        """The files, in the dataset's order."""
        return [image.path for image in self.dataset.images]


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Measure, and write the two files."""
    args = _parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    subjects = {"embedded": embedded, "r50": stock, "portraits": portraits}
    agree = True
    for name in args.only:
        subject = subjects[name](args)
        exactness, accuracy = measure(subject, args.threads)
        _write(args.output / "exactness.json", name, {**_circumstances(subject, args.threads), **exactness})
        _write(args.output / "accuracy.json", name, {**_circumstances(subject, args.threads), **accuracy})
        agree &= exactness["agrees"] and accuracy["agrees"]
    return int(not agree)


def embedded(args: argparse.Namespace) -> Subject:
    """Return the embedded model and its held-out renders, written as PNG files at first use."""
    work = args.work / "embedded"
    renders = work / "renders"
    if not (renders / ANNOTATIONS).is_file():
        write_coco(renders, num=NUM_RENDERS, seed=RENDER_SEED)
    return Subject(CONFIG_PATH.stem, str(CONFIG_PATH), CHECKPOINT_PATH, _dataset(renders, args.limit), work)


def stock(args: argparse.Namespace) -> Subject:
    """Return the stock R50-FPN with trained weights and its evaluation set."""
    config = "mask-rcnn_r50_fpn_2x_coco"
    checkpoint = args.data / "checkpoints" / "mask-rcnn_r50_fpn_shapes.pth"
    return Subject(
        config,
        config,
        checkpoint,
        _dataset(args.data / "datasets" / "shapes_val", args.limit),
        args.work / "r50",
    )


def portraits(args: argparse.Namespace) -> Subject:
    """Return the stock R50-FPN on rendered portraits, as a telephone takes them."""
    subject = stock(args)
    work = args.work / "portraits"
    renders = work / "renders"
    if not (renders / ANNOTATIONS).is_file():
        write_coco(renders, num=NUM_PORTRAITS, seed=PORTRAIT_SEED, sizes=PORTRAIT_SIZES)
    return replace(subject, dataset=_dataset(renders, args.limit), work=work, fixed_size=FIXED_SIZE)


def measure(subject: Subject, threads: int) -> tuple[dict, dict]:
    """Record both sides, and return what goes into ``exactness.json`` and ``accuracy.json``."""
    loaded = load_detector(subject.config, subject.checkpoint)
    alone = [[path] for path in subject.images]
    pairs = unlike_pairs(subject.images)
    crop, full = (_exported(subject, masks) for masks in ("crop", "full"))
    recorded = {}
    if subject.fixed_size is not None:
        fixed = _exported(subject, "crop", subject.fixed_size)
        recorded["fixed"] = _onnxruntime(subject, fixed, alone, "fixed", threads)
    by_mmdet, by_mmdet_in_pairs, found, found_in_pairs, found_full = (
        _mmdet(subject, loaded, alone, "mmdet"),
        _mmdet(subject, loaded, pairs, "mmdet_pairs"),
        _onnxruntime(subject, crop, alone, "crop", threads),
        _onnxruntime(subject, crop, pairs, "crop_pairs", threads),
        _onnxruntime(subject, full, alone, "full", threads),
    )
    batches = {
        "1": compared(by_mmdet, found, alone, loaded, crop),
        "2": compared(by_mmdet_in_pairs, found_in_pairs, pairs, loaded, crop),
    }
    exactness = {
        "tolerance": {"box_px": TOLERANCE.box_px, "score": TOLERANCE.score, "mask": TOLERANCE.mask},
        "agrees": all(row["agrees"] or row["rounding"] for rows in batches.values() for row in rows),
        "batches": batches,
    }
    values = {
        name: _average_precision(path, subject.dataset)
        for name, path in {"mmdet": by_mmdet, "crop": found, "full": found_full, **recorded}.items()
    }
    apart = [abs(values["crop"][kind]["AP"] - values["mmdet"][kind]["AP"]) for kind in ("box", "mask")]
    return exactness, {"agrees": max(apart) <= MAX_AP_DIFFERENCE, "average_precision": values}


def unlike_pairs(images: Sequence[Path]) -> list[list[Path]]:
    """Return the images two by two, the tallest beside the widest; of an odd number one is alone."""
    sizes = {path: read_image(path).shape for path in images}
    ordered = sorted(images, key=lambda path: sizes[path][1] / sizes[path][0])
    half = len(ordered) // 2
    pairs = [[tall, wide] for tall, wide in zip(ordered[:half], reversed(ordered))]
    return pairs + [ordered[half : half + 1]] * (len(ordered) % 2)


def compared(
    expected: Path, found: Path, batches: Sequence[Sequence[Path]], loaded: LoadedModel, model: Path
) -> list[dict]:
    """Compare two recordings, and look into every image that differs.

    Returns:
        A row per image. ``agrees``: within the tolerance. Where not, ``rounding``: handed onnxruntime's feature maps
        and RPN outputs, mmdet finds what the exported file finds; ``equal_scores``: it does so with its own as well,
        as long as scores that are equal stay in order.
    """
    images = [path for batch in batches for path in batch]
    with open_artifact(expected) as a, open_artifact(found) as b:
        comparisons = compare_artifacts(a, b, images, TOLERANCE)
    recording = read_recording(found)
    rows = {c.image: {"agrees": not c.violations, **_figures(c.difference)} for c in comparisons}
    exposed = None
    for batch in batches:
        for path in batch:
            height, width = recording.find(path).image_size
            others = [other.name for other in batch if other != path]
            rows[path] = {"image": path.name, "height": height, "width": width, "with": others, **rows[path]}
        if not all(rows[path]["agrees"] for path in batch):
            exposed = exposed or ExposedModel(model)
            _explain(rows, batch, loaded, exposed, recording)
    return list(rows.values())


def _explain(
    rows: dict[Path, dict],
    batch: Sequence[Path],
    loaded: LoadedModel,
    exposed: ExposedModel,
    recording: Recording,
) -> None:
    """Say of the images of a batch that do not agree whether that is rounding."""
    prepared = load_batch(batch, recording.metadata)
    _, theirs = exposed(prepared)
    handed = infer_from(loaded.model, batch, theirs)
    inputs = theirs.relative_difference(own_outputs(loaded.model, prepared))
    with ordered_ties():
        in_order = infer(loaded.model, batch)
    for path, by_theirs, by_own in zip(batch, handed, in_order):
        if rows[path]["agrees"]:
            continue
        found = recording.find(path)
        difference = _difference(by_theirs, found)
        rows[path] |= {
            "rounding": difference.within(TOLERANCE),
            "equal_scores": _difference(by_own, found).within(TOLERANCE),
            "handed_over": _figures(difference),
            "inputs": inputs,
        }


def _difference(sample: object, found: Detections) -> Difference:
    expected = detections_from_sample(sample, found.classes)
    return compare_image(*(arrays_from_detections(side) for side in (expected, found)))


def _figures(difference: Difference) -> dict:
    return {
        "expected": difference.expected,
        "found": difference.found,
        "matched": difference.matched,
        "box_px": difference.box_px,
        "score": difference.score,
        "mask": difference.mask,
    }


def _exported(subject: Subject, masks: str, size: Optional[tuple[int, int]] = None) -> Path:
    path = subject.work / f"{masks}{'' if size is None else '_fixed'}.onnx"
    options = ["--masks", masks, "--no-verify", "-o", str(path)]
    if size is not None:
        options += ["--size", *map(str, size)]
    status = export.maskrcnn.main([subject.config, str(subject.checkpoint), *options])
    if status != 0:
        raise RuntimeError(
            f"{path}: expected an exported model, found exit status {status} of export.maskrcnn"
        )
    return path


def _mmdet(subject: Subject, loaded: LoadedModel, batches: Sequence[Sequence[Path]], name: str) -> Path:
    """Return the recording of mmdet's results, made anew if it is another model's, or of other images."""
    path = subject.work / f"{name}.npz"
    if not _is_current(path, loaded, batches):
        record_inference(loaded, batches, path)
    return path


def _is_current(path: Path, loaded: LoadedModel, batches: Sequence[Sequence[Path]]) -> bool:
    if not path.is_file():
        return False
    recording = read_recording(path)
    images = [(image.name, image.sha256) for image in recording.images]
    return (
        recording.metadata.checkpoint_sha256 == loaded.checkpoint.sha256
        and recording.made_with == made_with(loaded, batches)
        and images == [(image.name, sha256_of(image)) for batch in batches for image in batch]
    )


def _onnxruntime(
    subject: Subject, model: Path, batches: Sequence[Sequence[Path]], name: str, threads: int
) -> Path:
    path = subject.work / f"{name}.npz"
    images = [image for batch in batches for image in batch]
    with open_artifact(model, "onnxruntime", max(map(len, batches)), threads=threads) as artifact:
        for _ in record(artifact, images, path):
            pass
    return path


def _average_precision(recording: Path, dataset: CocoDataset) -> dict:
    with open_artifact(recording) as artifact:
        result = evaluate(artifact, dataset)
    return {"detections": result.num_detections, **result.average_precision}


def _dataset(folder: Path, limit: Optional[int]) -> CocoDataset:
    return read_dataset(folder / ANNOTATIONS, folder, limit)


def _circumstances(subject: Subject, threads: int) -> dict:
    ids = {image.image_id for image in subject.dataset.images}
    return {
        "config": subject.name,
        "checkpoint_sha256": sha256_of(subject.checkpoint),
        "images": len(subject.images),
        "objects": sum(a["image_id"] in ids for a in subject.dataset.truth["annotations"]),
        "mmcv_ops": ensure_mmcv_ops(),
        "threads": threads,
        "versions": {
            "torch": torch.__version__,
            "onnxruntime": onnxruntime.__version__,
            "python": platform.python_version(),
        },
    }


def _write(path: Path, name: str, content: dict) -> None:
    """Put one model's results into the file, a row of an image per line."""
    results = json.loads(path.read_text()) if path.is_file() else {}
    text = json.dumps({**results, name: content}, indent=1)
    path.write_text(re.sub(r"\n {5,}|\n {4}(?=[\]}])", " ", text) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m benchmarks.accuracy", doc=__doc__)
    parser.add_argument("data", type=Path, help="a folder with checkpoints/ and datasets/shapes_val/")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=("embedded", "r50", "portraits"),
        default=["embedded", "r50", "portraits"],
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images of each, for a trial")
    parser.add_argument("--threads", type=int, default=2, help="of both sides; default: %(default)s")
    parser.add_argument(
        "--work", type=Path, default=Path("out/accuracy"), help="models and recordings; default: %(default)s"
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the two JSON files")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
