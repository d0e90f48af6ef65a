"""``python -m benchmarks.engines MODEL.onnx``: engines of one model, built, compared, evaluated and timed in one run.

Needs TensorRT, a GPU, onnx, pycocotools; no PyTorch. Each variant is an engine with batch 1 to 8: compared with a
recorded reference image by image at batch 1 and 2, evaluated on a COCO dataset, checked for the same results at every
batch, timed stage by stage on the dataset's images, alone with pauses and without, and from files to run lengths. The
same model quantized (``--int8``) and of any size (``--any-size``) are variants of their own, all at the fixed size. The
JSON is written after every variant, and goes on where it was stopped.
"""

import argparse
import json
import sys
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np

from benchmarks.latency.measure import gpu_state, spread
from benchmarks.throughput import full_pipeline
from runtime import build
from runtime.backends.tensorrt import TensorRTBackend
from runtime.cli import CommandParser
from runtime.comparison.average_precision import CocoDataset, read_dataset
from runtime.comparison.detections import compare_artifacts
from runtime.comparison.difference import Tolerance
from runtime.comparison.evaluation import evaluate_artifact as evaluate
from runtime.comparison.sources import load_batch, open_artifact
from runtime.console import write_json
from runtime.cuda.binding import open_cuda, wait
from runtime.detector import Detector
from runtime.engine.config import EngineConfig
from runtime.engine.library import open_library
from runtime.engine.session import EngineSession
from runtime.engine.sidecar import Sidecar
from runtime.graphs.load import load_onnx, metadata_of
from runtime.host.postprocess import detections_from_outputs
from runtime.metadata import ModelMetadata


@dataclass(frozen=True)
class Variant:
    """An engine: which of the files it is built from, and the options of ``runtime.build``."""

    options: tuple[str, ...]
    file: str = "model"


VARIANTS = {
    "fp16": Variant(("--precision", "fp16")),
    "int8": Variant(("--precision", "int8", "--allow-slower"), "int8"),
    "fp16_any_size": Variant(("--precision", "fp16"), "any_size"),
    "tf32": Variant(("--precision", "tf32")),
    "fp32": Variant(("--precision", "fp32")),
    "fp16_no_plan": Variant(("--precision", "fp16", "--no-plan")),
}
TOLERANCES = {"fp32": Tolerance()}
LOOSE = Tolerance(box_px=1.0, score=0.02, mask=0.02, min_score=0.3)
BATCHES = (1, 2, 8)
MAX_BATCH = 8
# Launches between two events; pauses before each with them, and how long there are none without.
LAUNCHES, PAUSES, PAUSE_SECONDS, WARM_SECONDS, SUSTAINED_SECONDS = 20, 15, 0.05, 1.5, 3.0
THROUGHPUT_SECONDS = 5.0


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Measure, write the JSON after every variant, return 0 or, if a variant failed, 1."""
    args = _parser().parse_args(argv)
    args.is_warm = args.timing_cache is not None and args.timing_cache.is_file()
    dataset = read_dataset(args.dataset / "annotations.json", args.dataset)
    result: dict[str, Any] = {"model": args.model.name, "images": len(dataset.images), **_circumstances()}
    result["variants"] = json.loads(args.out.read_text())["variants"] if args.out.is_file() else {}
    for name in args.variants:
        if "error" not in result["variants"].get(name, {"error": ""}):
            continue
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
    variant, engine = VARIANTS[name], args.folder / f"{args.model.stem}_{name}.engine"
    model = getattr(args, variant.file)
    if model is None:
        raise ValueError(f"{name}: expected a file for it, found no --{variant.file.replace('_', '-')}")
    command = [str(model), "-o", str(engine), *variant.options, "--batch", *map(str, args.batch)]
    if args.tactic_sources is not None:
        command += ["--tactic-sources", args.tactic_sources]
    if args.timing_cache is not None:
        command += ["--timing-cache", str(args.timing_cache)]
    if build.main(command) != 0:
        raise RuntimeError(f"{name}: runtime.build failed")
    figures: dict[str, Any] = {"build": Sidecar.load(engine).build, "timing_cache_was_there": args.is_warm}
    metadata = metadata_of(load_onnx(args.model), args.model)
    backend = TensorRTBackend(engine, cuda_graphs=False)
    try:
        figures["alone_ms"] = _alone(engine, dataset, metadata)
        figures["layer_ms"] = {str(b): _layer_times(engine, dataset, b, metadata) for b in (1, MAX_BATCH)}
        figures["images_per_s"] = _throughput(engine, dataset)
        figures["images_per_s_2_streams"] = _throughput(engine, dataset, streams=2)
        if variant.file == "any_size":
            return figures
        figures["latency_ms"] = {str(b): _latency(backend, dataset, b, args.repeat) for b in BATCHES}
        figures["batches"] = _batch_differences(backend, dataset)
        figures["cuda_graph"] = _cuda_graph(engine, dataset, backend, args.repeat)
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
    """Run the same images in every batch from 2 to 8; return the largest difference to batch 1, and to batch 2.

    An engine has a profile for one image alone, whose kernels round differently.
    """
    whole = load_batch([image.path for image in dataset.images[:MAX_BATCH]], backend.metadata)

    def in_parts(size: int) -> list[dict[str, np.ndarray]]:
        """Return what each image has in batches of ``size``, alone."""
        rows = []
        for start in range(0, MAX_BATCH, size):
            part = slice(start, start + size)
            found = backend.run(whole.images[part], whole.image_sizes[part])
            rows += [{name: array[i] for name, array in found.items()} for i in range(size)]
        return rows

    single, pairs = in_parts(1), in_parts(2)
    result = {}
    for size in range(2, MAX_BATCH + 1):
        found = backend.run(whole.images[:size], whole.image_sizes[:size])
        result[str(size)] = {
            "same_labels_as_1": all(
                np.array_equal(found["labels"][i], single[i]["labels"]) for i in range(size)
            ),
            "identical_to_1": all(
                np.array_equal(found[k][i], single[i][k]) for k in found for i in range(size)
            ),
            "identical_to_2": all(
                np.array_equal(found[k][i], pairs[i][k]) for k in found for i in range(size)
            ),
            "dets_from_1": max(
                float(np.abs(found["dets"][i] - single[i]["dets"]).max()) for i in range(size)
            ),
        }
    return result


def _alone(engine: Path, dataset: CocoDataset, metadata: ModelMetadata) -> dict[str, Any]:
    """Time the network alone as a CUDA graph on what lies on the device, ms: after pauses, and without any."""
    return {str(size): _launches(engine, dataset, size, metadata) for size in BATCHES}


def _launches(engine: Path, dataset: CocoDataset, size: int, metadata: ModelMetadata) -> dict[str, Any]:
    batch = load_batch([image.path for image in dataset.images[:size]], metadata)
    feeds = {"images": batch.images, "image_sizes": batch.image_sizes}
    shapes = {name: array.shape for name, array in feeds.items()}
    with EngineSession(engine.read_bytes(), cuda_graphs=True) as session:
        for _ in range(4):  # captured with the third
            session.run(feeds)
        cuda = session.cuda
        with session.exclusive() as stream:
            begin, end = cuda.new_event(), cuda.new_event()

            def milliseconds(count: int) -> float:
                cuda.record(begin, stream)
                for _ in range(count):
                    session.start(shapes, {})
                cuda.record(end, stream)
                wait(cuda, end)
                return cuda.milliseconds(begin, end) / count

            rested = []
            for _ in range(PAUSES):
                time.sleep(PAUSE_SECONDS)
                milliseconds(2)  # the clock is up again
                rested.append(milliseconds(2))
            _until(WARM_SECONDS, lambda: milliseconds(LAUNCHES))
            with ThreadPoolExecutor(1) as pool:
                state = pool.submit(gpu_state)  # of a GPU that has no pause
                sustained = _until(SUSTAINED_SECONDS, lambda: milliseconds(LAUNCHES))
            cuda.free_event(begin)
            cuda.free_event(end)
        failure = session.cuda_graph_failure
    return {
        "rested": spread(rested),
        "sustained": spread(sustained),
        "sustained_state": state.result(),
        "cuda_graph_failure": failure,
    }


def _until(seconds: float, run: Callable[[], float]) -> list[float]:
    deadline, found = time.monotonic() + seconds, []
    while not found or time.monotonic() < deadline:
        found.append(run())
    return found


def _throughput(engine: Path, dataset: CocoDataset, streams: int = 1) -> dict[str, Any]:
    """Measure image files to COCO run lengths through the runtime's pipeline, images per second, while it is full."""
    paths = [image.path for image in dataset.images]
    with Detector(engine, "tensorrt", batch_size=MAX_BATCH, streams=streams) as detector:
        found = full_pipeline(detector, paths, THROUGHPUT_SECONDS, WARM_SECONDS)
        return {
            "images_per_s": found.images_per_s,
            "images": found.images,
            "detections": found.detections,
            "device_failure": detector.device_failure,
        }


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
        engine = {
            b: (round(v["rested"]["median"], 3), round(v["sustained"]["median"], 3))
            for b, v in figures["alone_ms"].items()
        }
        precision = {k: round(v["AP"], 4) for k, v in figures.get("average_precision", {}).items()}
        rate, build = figures["images_per_s"]["images_per_s"], figures["build"]
        more = figures["images_per_s_2_streams"]["images_per_s"]
        print(
            f"{name}: rested, sustained ms {engine}, {rate:.0f}, {more:.0f} images/s, AP {precision}, "
            f"build {build['seconds']} s"
        )
        print(f"  {build.get('dense_flops_share')} slower: {build.get('slower_than_asked')}")


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m benchmarks.engines", doc=__doc__)
    parser.add_argument("model", type=Path, help="exported, of fixed size")
    parser.add_argument("--int8", type=Path, help="the same quantized: export.quantize")
    parser.add_argument("--any-size", type=Path, help="the same exported for any size")
    parser.add_argument(
        "--dataset", type=Path, required=True, help="folder with annotations.json and the images"
    )
    parser.add_argument("--reference", type=Path, help=".npz of export.reference (PyTorch)")
    parser.add_argument("--onnxruntime", type=Path, help=".npz of runtime.record with onnxruntime")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["fp16", "tf32", "fp32"])
    parser.add_argument(
        "--batch", nargs=3, type=int, default=EngineConfig().batch, metavar=("MIN", "OPT", "MAX")
    )
    parser.add_argument("--repeat", type=int, default=30)
    parser.add_argument("--folder", type=Path, default=Path("out"), help="for engines")
    parser.add_argument("--timing-cache", type=Path)
    parser.add_argument("--tactic-sources")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/engines.json"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
