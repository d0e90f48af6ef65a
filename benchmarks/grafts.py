"""``python -m benchmarks.grafts``: real detectors of other layouts, in every runtime and precision that is there.

Two steps, since the machine with TensorRT may have no onnxruntime:

    python -m benchmarks.grafts prepare MODELS FOLDER     # graft, quantize, record what onnxruntime finds in FP32
    python -m benchmarks.grafts measure FOLDER MODELS     # compare with that, and time

MODELS is a folder of such files with ``photos/``. INT8 files are calibrated on the photos mirrored, none of which is
compared. Results go into one JSON, a row for each file, runtime and precision; rows of another run stay.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Optional

import cv2
import numpy as np

from benchmarks.latency.measure import Stopwatch, repeated
from runtime.cli import CommandParser
from runtime.comparison.detections import compare_artifacts
from runtime.comparison.difference import Tolerance
from runtime.comparison.sources import load_batch, open_artifact, record
from runtime.console import say, write_json
from runtime.detector import Detector
from runtime.host.preprocess import Batch
from runtime.images import read_image

RESULTS = Path(__file__).parent / "results" / "grafts.json"
SIZE = (640, 640)
BATCHES = {"tensorrt": (1, 8, 32), "openvino": (1,), "onnxruntime": (1,)}
# Of engines that are timed: one for each batch.
PROFILES = ((1, 1, 1), (2, 8, 8), (9, 32, 32))
PRECISIONS = ("fp32", "fp16", "int8")
REPEAT, SECONDS = 40, 3.0
INT8, FLOAT, REFERENCE, NETWORK = "int8.onnx", "onnx", "npz", "network.onnx"


@dataclass(frozen=True)
class File:
    """A detector's ONNX, the head that it gets, and the photos in which it finds something."""

    name: str
    head: str
    photos: tuple[str, ...]


_FACES = ("zidane.jpg", "bus.jpg", "solvay_conference_1927.jpg", "astronaut.png")
FILES = (
    File("scrfd_2.5g_kps_640.onnx", "scrfd", (*_FACES, "newton.png")),
    File("retinaface_mnet025_dyn.onnx", "retinaface", _FACES),
    File("centerface.onnx", "centerface", _FACES),
    File("yolov8n_seg_idcard.onnx", "yolov8-seg", ("us_card.png", "two_ids.png", "three_ids.png")),
)
# Runtime, precision, and which file runs; options of the backend, or of runtime.build.
VARIANTS: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("onnxruntime", "fp32", FLOAT, {}),
    ("onnxruntime", "int8", INT8, {}),
    ("openvino", "fp32", FLOAT, {"precision": "fp32"}),
    ("openvino", "int8", INT8, {"precision": "fp32"}),
    ("tensorrt", "fp32", FLOAT, {}),
    ("tensorrt", "fp16", FLOAT, {}),
    ("tensorrt", "int8", INT8, {}),
)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Prepare or measure; return 1 where a variant could not be measured."""
    args = _parser().parse_args(argv)
    files = [file for file in FILES if file.head in args.heads]
    if args.step == "prepare":
        for file in files:
            _prepare(file, args)
        return 0
    return int(sum(_measure(file, args) for file in files) > 0)


def _prepare(file: File, args: argparse.Namespace) -> None:
    """Write the grafted file, the quantized one, the network alone, and what the first finds."""
    import onnx

    from export.graft import graft
    from export.quantization.api import quantize_model

    args.folder.mkdir(parents=True, exist_ok=True)
    photos = [args.models / "photos" / name for name in file.photos]
    model = args.folder / f"{file.head}.{FLOAT}"
    made, _ = graft(args.models / file.name, file.head, model, images=photos, size=SIZE)
    onnx.save(made.network, args.folder / f"{file.head}.{NETWORK}")
    write_json(args.folder / f"{file.head}.json", {"input": made.given.name, **made.match.tensors})
    with tempfile.TemporaryDirectory() as folder:
        mirrored = [_mirrored(photo, Path(folder)) for photo in photos]
        quantize_model(model, args.folder / f"{file.head}.{INT8}", mirrored)
    with open_artifact(model, "onnxruntime") as artifact:
        found = list(record(artifact, photos, args.folder / f"{file.head}.{REFERENCE}"))
    say(f"{file.head}: {sum(len(result.detections) for result in found)} detections")


def _mirrored(photo: Path, folder: Path) -> Path:
    path = folder / f"{photo.stem}.png"
    cv2.imwrite(str(path), read_image(photo)[:, ::-1])
    return path


def _measure(file: File, args: argparse.Namespace) -> int:
    """Measure the variants of a file, and return how many of them failed."""
    num_failed = 0
    rows = json.loads(args.output.read_text()) if args.output.is_file() else []
    photos = [args.models / "photos" / name for name in file.photos]
    for runtime, precision, suffix, options in VARIANTS:
        if runtime not in args.runtimes or precision not in args.precisions:
            continue
        try:
            model = _model(args, file, runtime, precision, suffix)
            row = {**_compared(args, file, model, runtime, options, photos)}
            if not args.no_times:
                row["ms"] = dict(_times(model, runtime, options, photos))
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            row = {"error": " ".join(str(error).split())[:500]}
            num_failed += 1
        key = {"file": file.name, "runtime": runtime, "precision": precision}
        rows = [other for other in rows if {name: other[name] for name in key} != key]
        rows.append({**key, **row})
        write_json(args.output, rows)
        say(f"{file.head} {runtime} {precision}: {row}")
    return num_failed


def _model(args: argparse.Namespace, file: File, runtime: str, precision: str, suffix: str) -> Path:
    """Return the file that runs; of TensorRT an engine, which is built here."""
    model = args.folder / f"{file.head}.{suffix}"
    if runtime != "tensorrt":
        return model
    from runtime.engine.builds import build_engine
    from runtime.engine.config import EngineConfig

    profiles = ((1, 2, 8),) if args.no_times else PROFILES
    config = EngineConfig(profiles=profiles, precision=precision, tactic_sources=args.tactic_sources)
    engine = args.folder / f"{file.head}_{precision}.engine"
    cache = args.folder / "timing.cache"
    return build_engine(model, engine, config=config, timing_cache=cache, allow_slower=True, notify=say).path


def _compared(
    args: argparse.Namespace, file: File, model: Path, runtime: str, options: dict, photos: Sequence[Path]
) -> dict[str, Any]:
    """Return how far detections are from those of the float file in onnxruntime."""
    reference = args.folder / f"{file.head}.{REFERENCE}"
    with open_artifact(reference) as expected, open_artifact(model, runtime, 2, **options) as found:
        comparisons = compare_artifacts(expected, found, photos, Tolerance())
    differences = [c.difference for c in comparisons]
    if not sum(d.expected for d in differences):
        raise RuntimeError(f"{file.head}: expected detections to compare, found none")
    masks = [d.mask for d in differences if d.mask is not None]
    points = [d.keypoint_px for d in differences if d.keypoint_px is not None]
    return {
        "expected": sum(d.expected for d in differences),
        "found": sum(d.found for d in differences),
        "matched": sum(d.matched for d in differences),
        "box_px": max(d.box_px for d in differences),
        "score": max(d.score for d in differences),
        "keypoint_px": max(points, default=None),
        "mask_share": max(masks, default=None),
        "best_unmatched": max((s for d in differences for s in (*d.missing, *d.extra)), default=0.0),
    }


def _times(
    model: Path, runtime: str, options: dict, photos: Sequence[Path]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ms per batch: the network with decoding and NMS; on a GPU by events, else by the wall."""
    for size in BATCHES[runtime]:
        paths = list(islice(cycle(photos), size))
        with Detector(model, runtime, batch_size=size, **options) as detector:
            figures: dict[str, Any] = _time(detector, load_batch(paths, detector.metadata))
            if runtime == "tensorrt":
                figures["images_per_s"] = _throughput(detector, list(islice(cycle(photos), 8 * size)))
        yield str(size), figures


def _time(detector: Detector, batch: Batch) -> dict[str, dict[str, float]]:
    on_gpu = detector.backend.name == "tensorrt"

    def run() -> dict[str, float]:
        spent: dict[str, float] = {}
        watch = Stopwatch()
        detector.backend.run(batch.images, batch.image_sizes, *([spent] if on_gpu else []))
        watch.lap("wall")
        return {**watch.ms, **({"engine": spent["engine"]} if on_gpu else {})}

    return repeated(run, repeat=REPEAT, seconds=SECONDS, warmup=5)


def _throughput(detector: Detector, paths: Sequence[Path]) -> float:
    """Return images per second from pixels in host memory to boxes, through the pipeline."""
    images = [np.ascontiguousarray(read_image(path)) for path in paths]
    detector(images)
    watch = Stopwatch()
    detector(images * 4)
    watch.lap("all")
    return 4e3 * len(images) / watch.ms["all"]


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m benchmarks.grafts", doc=__doc__)
    steps = parser.add_subparsers(dest="step", required=True)
    prepare = steps.add_parser("prepare")
    prepare.add_argument("models", type=Path)
    prepare.add_argument("folder", type=Path)
    measure = steps.add_parser("measure")
    measure.add_argument("folder", type=Path)
    measure.add_argument("models", type=Path)
    for step in (prepare, measure):
        heads = [file.head for file in FILES]
        step.add_argument("--heads", nargs="+", choices=heads, default=heads, help="default: all")
    measure.add_argument("--runtimes", nargs="+", choices=tuple(BATCHES), default=["onnxruntime", "openvino"])
    measure.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    measure.add_argument("--no-times", action="store_true", help="compare only, where the machine is busy")
    measure.add_argument("--tactic-sources", nargs="*", default=None)
    measure.add_argument("--output", type=Path, default=RESULTS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
