"""``python -m benchmarks.graft_baseline FOLDER MODELS``: SCRFD and RetinaFace as people run them without a graft.

The network alone in onnxruntime (``--device cuda`` or ``cpu``), from arrays in host memory to arrays in host memory,
then decoding and NMS in NumPy: vectorized, over what passes the threshold. FOLDER is what ``benchmarks.grafts prepare``
wrote; before anything is timed, what is found has to be what onnxruntime finds with the grafted file.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Optional

import numpy as np
import onnxruntime

from benchmarks.grafts import BATCHES, FILES, FLOAT, NETWORK, REPEAT, SECONDS, File
from benchmarks.latency.measure import Stopwatch, repeated
from runtime.cli import CommandParser
from runtime.comparison.sources import load_batch
from runtime.console import say, write_json
from runtime.graphs.cuda_provider import CUDA, preload, with_options
from runtime.graphs.load import load_onnx, metadata_of

RESULTS = Path(__file__).parent / "results" / "graft_baseline.json"
STRIDES = (8, 16, 32)
SIDE = 640
# Of the head files that these networks get.
SCRFD_SCORE, SCRFD_IOU, SCRFD_PER_CELL = 0.5, 0.4, 2
RETINAFACE_SCORE, RETINAFACE_IOU, VARIANCES = 0.6, 0.4, (0.1, 0.2)
RETINAFACE_ANCHORS = ((16, 32), (64, 128), (256, 512))
_BOX_PX, _SCORE = 1.0, 1e-2  # TF32

# Boxes (n, 4) px, scores (n,), key points (n, 5, 2) px, best first.
Decoded = tuple[np.ndarray, np.ndarray, np.ndarray]


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Compare, time, write the JSON."""
    args = _parser().parse_args(argv)
    loaded = preload(onnxruntime) if args.device == "cuda" else ()
    providers = with_options((CUDA,), args.precision) if args.device == "cuda" else ["CPUExecutionProvider"]
    rows = []
    for file in FILES:
        if file.head in _DECODERS:
            rows.append({"file": file.name, "device": args.device, **_measured(file, args, providers)})
            say(f"{file.head}: {rows[-1]}")
    found = {"onnxruntime": onnxruntime.__version__, "libraries": list(loaded), "rows": rows}
    write_json(args.output, found)
    return 0


def _measured(file: File, args: argparse.Namespace, providers: list[Any]) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(args.folder / f"{file.head}.{NETWORK}", providers=providers)
    tensors = json.loads((args.folder / f"{file.head}.json").read_text())
    grafted = args.folder / f"{file.head}.{FLOAT}"
    metadata = metadata_of(load_onnx(grafted), grafted)
    photos = [args.models / "photos" / name for name in file.photos]
    decode = _DECODERS[file.head]

    def run(images: np.ndarray) -> list[Decoded]:
        names = [name for role in ("scores", "boxes", "keypoints") for name in tensors[role]]
        arrays = dict(zip(names, session.run(names, {tensors["input"]: images})))
        roles = {role: [arrays[name] for name in tensors[role]] for role in ("scores", "boxes", "keypoints")}
        return [
            decode({role: [a[i] for a in found] for role, found in roles.items()}) for i in range(len(images))
        ]

    whole = load_batch(photos, metadata)
    reference = onnxruntime.InferenceSession(grafted, providers=["CPUExecutionProvider"])
    outputs = reference.run(["num_dets", "dets"], {"images": whole.images, "image_sizes": whole.image_sizes})
    num_compared = _same(run(whole.images), outputs[0].reshape(-1), outputs[1], whole.images.shape[-2:])
    times = {}
    for size in BATCHES["tensorrt"]:
        images = load_batch(list(islice(cycle(photos), size)), metadata).images

        def timed(images: np.ndarray = images) -> dict[str, float]:
            watch = Stopwatch()
            run(images)
            watch.lap("wall")
            return watch.ms

        times[str(size)] = repeated(timed, repeat=REPEAT, seconds=SECONDS, warmup=5)
    return {"providers": session.get_providers(), "compared": num_compared, "ms": times}


def _same(found: Sequence[Decoded], counts: np.ndarray, dets: np.ndarray, size: tuple[int, int]) -> int:
    """Return how many detections were compared, each expected one with the nearest found one that is left.

    Order says nothing: of scores that are almost equal, either is first in TF32.

    Raises:
        RuntimeError: there are none, or they differ.
    """
    if not counts.sum():
        raise RuntimeError("expected detections in the photos, found none")
    for (boxes, scores, _), count, rows in zip(found, counts, dets):
        if len(boxes) != count:
            raise RuntimeError(f"expected {count} detections, found {len(boxes)}")
        inside = boxes.clip(0, (size[1], size[0], size[1], size[0]))
        left = list(range(count))
        for row in rows[:count]:
            distances = np.abs(inside[left] - row[:4]).max(axis=1)
            nearest = left.pop(int(np.argmin(distances)))
            # Written so that NaN fails.
            if not distances.min() <= _BOX_PX:
                raise RuntimeError(f"expected corners {row[:4]}, found {inside[nearest]}")
            if not abs(scores[nearest] - row[4]) <= _SCORE:
                raise RuntimeError(f"expected score {row[4]} of {row[:4]}, found {scores[nearest]}")
    return int(counts.sum())


def _centers(stride: int, per_cell: int) -> np.ndarray:
    cells = SIDE // stride
    y, x = np.mgrid[:cells, :cells]
    return np.repeat(np.stack((x, y), -1).reshape(-1, 2), per_cell, axis=0).astype(np.float32)


_SCRFD_POINTS = [_centers(stride, SCRFD_PER_CELL) * stride for stride in STRIDES]
_RETINAFACE_CENTERS = np.concatenate(
    [
        (_centers(stride, len(sides)) + np.float32(0.5)) * stride
        for stride, sides in zip(STRIDES, RETINAFACE_ANCHORS)
    ]
)
_RETINAFACE_SIDES = np.concatenate(
    [np.tile(np.float32(sides), (SIDE // stride) ** 2) for stride, sides in zip(STRIDES, RETINAFACE_ANCHORS)]
)


def _decode_scrfd(outputs: Mapping[str, list[np.ndarray]]) -> Decoded:
    parts = []
    for level, (points, stride) in enumerate(zip(_SCRFD_POINTS, STRIDES)):
        scores = outputs["scores"][level].reshape(-1)
        rows = np.flatnonzero(scores > SCRFD_SCORE)
        near, distances = points[rows], outputs["boxes"][level][rows] * stride
        boxes = np.concatenate((near - distances[:, :2], near + distances[:, 2:]), 1)
        keypoints = near[:, None] + outputs["keypoints"][level][rows].reshape(-1, 5, 2) * stride
        parts.append((boxes, scores[rows], keypoints))
    boxes, scores, keypoints = (np.concatenate(arrays) for arrays in zip(*parts))
    return _suppressed(boxes, scores, keypoints, SCRFD_IOU)


def _decode_retinaface(outputs: Mapping[str, list[np.ndarray]]) -> Decoded:
    scores = outputs["scores"][0][:, 1]
    rows = np.flatnonzero(scores > RETINAFACE_SCORE)
    centers, sides = _RETINAFACE_CENTERS[rows], _RETINAFACE_SIDES[rows, None]
    offsets = outputs["boxes"][0][rows]
    middles = centers + offsets[:, :2] * VARIANCES[0] * sides
    halves = sides * np.exp(offsets[:, 2:] * VARIANCES[1]) / 2
    points = outputs["keypoints"][0][rows].reshape(-1, 5, 2)
    keypoints = centers[:, None] + points * VARIANCES[0] * sides[:, None]
    boxes = np.concatenate((middles - halves, middles + halves), 1)
    return _suppressed(boxes, scores[rows], keypoints, RETINAFACE_IOU)


def _suppressed(boxes: np.ndarray, scores: np.ndarray, keypoints: np.ndarray, threshold: float) -> Decoded:
    """Return what non-maximum suppression keeps."""
    order = np.argsort(-scores, kind="stable")
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = []
    while order.size:
        best, others = order[0], order[1:]
        kept.append(best)
        low = np.maximum(boxes[best, :2], boxes[others, :2])
        high = np.minimum(boxes[best, 2:], boxes[others, 2:])
        shared = np.prod((high - low).clip(0), axis=1)
        order = others[shared <= threshold * (areas[best] + areas[others] - shared)]
    return boxes[kept], scores[kept], keypoints[kept]


_DECODERS: dict[str, Callable[[Mapping[str, list[np.ndarray]]], Decoded]] = {
    "scrfd": _decode_scrfd,
    "retinaface": _decode_retinaface,
}


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m benchmarks.graft_baseline", doc=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("models", type=Path)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: %(default)s")
    parser.add_argument("--precision", choices=("tf32", "fp32"), help="of CUDA; default: tf32")
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
