"""``python -m benchmarks.engines MODEL.onnx``: engines of one model, built, compared, evaluated and timed in one run.

Needs TensorRT, a GPU, onnx, pycocotools; no PyTorch. Each variant is an engine with batch 1 to 8: compared with a
recorded reference image by image at batch 1 and 2, evaluated on a COCO dataset, checked for the same results at every
batch, and timed stage by stage on the dataset's images. The JSON is written after every variant.
"""

import argparse
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Optional

import numpy as np

from runtime import build
from runtime.backends.tensorrt import TensorRTBackend
from runtime.cli import CommandParser
from runtime.comparison.average_precision import CocoDataset, read_dataset
from runtime.comparison.detections import compare_artifacts
from runtime.comparison.difference import Tolerance
from runtime.comparison.evaluation import evaluate_artifact as evaluate
from runtime.comparison.sources import load_batch, open_artifact
from runtime.console import write_json
from runtime.cuda.binding import open_cuda
from runtime.engine.library import open_library
from runtime.engine.session import EngineSession
from runtime.engine.sidecar import Sidecar
from runtime.host.postprocess import detections_from_outputs
from runtime.metadata import ModelMetadata

# Options of runtime.build by the name of the variant.
VARIANTS = {
    "fp32": ["--precision", "fp32"],
    "tf32": ["--precision", "tf32"],
    "fp16": ["--precision", "fp16"],
    "fp16_no_plan": ["--precision", "fp16", "--no-plan"],
}
TOLERANCES = {"fp32": Tolerance()}
LOOSE = Tolerance(box_px=1.0, score=0.02, mask=0.02, min_score=0.3)
BATCHES = (1, 2, 8)
MAX_BATCH = 8


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Measure, write the JSON after every variant, return 0 or, if a variant failed, 1."""
    args = _parser().parse_args(argv)
    dataset = read_dataset(args.dataset / "annotations.json", args.dataset)
    result: dict[str, Any] = {"model": args.model.name, "images": len(dataset.images), **_circumstances()}
    result["variants"] = {}
    for name in args.variants:
        start = time.monotonic()
        try:
            result["variants"][name] = _measure(name, dataset, args)
        except Exception:  # the other variants' figures are not lost
            traceback.print_exc()
            result["variants"][name] = {"error": traceback.format_exc()}
        result["variants"][name]["seconds_in_all"] = time.monotonic() - start
        write_json(args.out, result)
        print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
    _print_summary(result)
    return int(any("error" in v for v in result["variants"].values()))


def _measure(name: str, dataset: CocoDataset, args: argparse.Namespace) -> dict[str, Any]:
    engine = args.folder / f"{args.model.stem}_{name}.engine"
    command = [str(args.model), "-o", str(engine), *VARIANTS[name], "--batch", *map(str, args.batch)]
    if args.tactic_sources is not None:
        command += ["--tactic-sources", args.tactic_sources]
    if args.timing_cache is not None:
        command += ["--timing-cache", str(args.timing_cache)]
    if build.main(command) != 0:
        raise RuntimeError(f"{name}: runtime.build failed")
    figures: dict[str, Any] = {"build": Sidecar.load(engine).build}
    backend = TensorRTBackend(engine)
    try:
        figures["latency_ms"] = {str(b): _latency(backend, dataset, b, args.repeat) for b in BATCHES}
        figures["batches_against_batch_1"] = _batch_differences(backend, dataset)
        figures["cuda_graph"] = _cuda_graph(engine, dataset, backend, args.repeat)
        figures["layer_ms"] = {
            str(b): _layer_times(engine, dataset, b, backend.metadata) for b in (1, MAX_BATCH)
        }
    finally:
        backend.close()
    tolerance = TOLERANCES.get(name, LOOSE)
    figures["tolerance"] = asdict(tolerance)
    for label, reference in (("pytorch", args.reference), ("onnxruntime", args.onnxruntime)):
        if reference is not None:
            figures[f"against_{label}"] = {
                str(b): _comparison(reference, engine, dataset, b, tolerance) for b in (1, 2)
            }
    with open_artifact(engine, batch_size=MAX_BATCH) as artifact:
        evaluation = evaluate(artifact, dataset)
    figures["average_precision"] = evaluation.average_precision
    figures["problems"] = list(evaluation.problems)
    if args.reference is not None:
        with open_artifact(args.reference) as artifact:
            figures["average_precision_minus_pytorch"] = evaluation.minus(evaluate(artifact, dataset))
    return figures


def _comparison(
    reference: Path, engine: Path, dataset: CocoDataset, batch: int, tolerance: Tolerance
) -> dict[str, Any]:
    paths = [image.path for image in dataset.images]
    with open_artifact(reference) as expected, open_artifact(engine, batch_size=batch) as found:
        comparisons = compare_artifacts(expected, found, paths, tolerance)
    differences = [c.difference for c in comparisons]
    boxes = np.concatenate([np.zeros(1), *(d.boxes_px for d in differences)])
    masks = [d.mask for d in differences if d.mask is not None]
    return {
        "expected": sum(d.expected for d in differences),
        "found": sum(d.found for d in differences),
        "matched": sum(d.matched for d in differences),
        "best_unmatched_score": max((s for d in differences for s in (*d.missing, *d.extra)), default=0.0),
        "box_px": {
            "median": float(np.median(boxes)),
            "p99": float(np.percentile(boxes, 99)),
            "max": float(boxes.max()),
        },
        "score": max((d.score for d in differences), default=0.0),
        "mask_share_of_union": max(masks, default=None),
        "mask_px_of_all": sum(d.mask_px for d in differences)
        / max(1, sum(d.mask_size_px for d in differences)),
        "images_beyond_tolerance": sum(bool(c.violations) for c in comparisons),
        "worst": max(differences, key=lambda d: d.box_px).worst,
    }


def _batch_differences(backend: TensorRTBackend, dataset: CocoDataset) -> dict[str, Any]:
    """Run the same images in every batch from 1 to 8; return the largest difference to batch 1."""
    whole = load_batch([image.path for image in dataset.images[:MAX_BATCH]], backend.metadata)
    single: list[dict[str, np.ndarray]] = [
        backend.run(whole.images[i : i + 1], whole.image_sizes[i : i + 1]) for i in range(MAX_BATCH)
    ]
    result = {}
    for size in range(2, MAX_BATCH + 1):
        found = backend.run(whole.images[:size], whole.image_sizes[:size])
        same_labels = all(np.array_equal(found["labels"][i], single[i]["labels"][0]) for i in range(size))
        result[str(size)] = {
            "same_labels": same_labels,
            "identical": all(
                np.array_equal(found[k][i], single[i][k][0]) for k in found for i in range(size)
            ),
            "dets": max(float(np.abs(found["dets"][i] - single[i]["dets"][0]).max()) for i in range(size)),
        }
    return result


def _latency(backend: TensorRTBackend, dataset: CocoDataset, size: int, repeat: int) -> dict[str, Any]:
    """Time one batch of images stage by stage, ms."""
    paths = [image.path for image in dataset.images[:size]]
    stages: dict[str, list[float]] = {}
    for iteration in range(repeat + 5):
        spent: dict[str, float] = {}
        begin = time.perf_counter()
        batch = load_batch(paths, backend.metadata)
        loaded = time.perf_counter()
        outputs = backend.run(batch.images, batch.image_sizes, spent)
        done = time.perf_counter()
        runs = [
            [d.rle() for d in [found]] for found in detections_from_outputs(outputs, batch, backend.metadata)
        ]
        end = time.perf_counter()
        if len(runs) != size:
            raise RuntimeError(f"expected the detections of {size} images, found those of {len(runs)}")
        spent.update(
            read_and_preprocess=(loaded - begin) * 1e3,
            model_with_copies=(done - loaded) * 1e3,
            postprocess_to_rle=(end - done) * 1e3,
        )
        if iteration >= 5:
            for stage, milliseconds in spent.items():
                stages.setdefault(stage, []).append(milliseconds)
    return {
        stage: {
            "median": float(np.median(values)),
            "p10": float(np.percentile(values, 10)),
            "p90": float(np.percentile(values, 90)),
        }
        for stage, values in stages.items()
    }


def _cuda_graph(engine: Path, dataset: CocoDataset, without: TensorRTBackend, repeat: int) -> dict[str, Any]:
    """Time the engine as a CUDA graph, and say whether its results are those without."""
    backend = TensorRTBackend(engine, cuda_graphs=True)
    try:
        latency = {str(b): _latency(backend, dataset, b, repeat)["engine"] for b in BATCHES}
        same = {}
        for size in BATCHES:
            batch = load_batch([image.path for image in dataset.images[-size:]], backend.metadata)
            expected = without.run(batch.images, batch.image_sizes)
            for _ in range(4):
                found = backend.run(batch.images, batch.image_sizes)
            same[str(size)] = all(np.array_equal(expected[name], found[name]) for name in expected)
        failure = backend.cuda_graph_failure
    finally:
        backend.close()
    return {"engine_ms": latency, "same_results": same, "failure": failure}


def _layer_times(engine: Path, dataset: CocoDataset, size: int, metadata: ModelMetadata) -> dict[str, float]:
    batch = load_batch([image.path for image in dataset.images[:size]], metadata)
    with EngineSession(engine.read_bytes()) as session:
        return session.layer_times({"images": batch.images, "image_sizes": batch.image_sizes})


def _circumstances() -> dict[str, Any]:
    return {"tensorrt": open_library().tensorrt.version, "gpu": open_cuda().device(), "numpy": np.__version__}


def _print_summary(result: dict[str, Any]) -> None:
    for name, figures in result["variants"].items():
        if "error" in figures:
            print(f"{name}: failed")
            continue
        engine = {b: round(v["engine"]["median"], 2) for b, v in figures["latency_ms"].items()}
        precision = {k: round(v["AP"], 4) for k, v in figures["average_precision"].items()}
        print(name, "engine ms", engine, "AP", precision, "build", figures["build"].get("seconds"), "s")


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m benchmarks.engines", doc=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument(
        "--dataset", type=Path, required=True, help="folder with annotations.json and the images"
    )
    parser.add_argument("--reference", type=Path, help=".npz of export.reference (PyTorch)")
    parser.add_argument("--onnxruntime", type=Path, help=".npz of runtime.record with onnxruntime")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument(
        "--batch", nargs=3, type=int, default=(1, 8, MAX_BATCH), metavar=("MIN", "OPT", "MAX")
    )
    parser.add_argument("--repeat", type=int, default=30)
    parser.add_argument("--folder", type=Path, default=Path("out"), help="for engines")
    parser.add_argument("--timing-cache", type=Path)
    parser.add_argument("--tactic-sources")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/engines.json"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
