"""``python -m benchmarks.cpp_engine MODEL --programs FOLDER --images FOLDER``: the C++ library beside Python's.

Both open the same file, an engine or an ONNX, in the same run. The C++ side are the programs of ``examples/cpp``, built
against the library. Four parts, each of which needs ``--out``'s JSON alone and may be run by itself:

- ``agreement``: what both find in the same pixels, in batches of 1 and of ``--batch``: boxes, scores, labels, run
  lengths, to the last bit.
- ``latency``: from pixels in host memory to detections with run lengths, ms; the two take turns.
- ``endurance``: host and device memory, threads and file descriptors of the C++ program over many calls.
- ``company``: whether C++ detectors side by side, each in a thread, find what one alone finds.

The plugin library that engines need is named by ``MASKRCNN_PLUGINS``, for both; TensorRT's libraries lie in
``LD_LIBRARY_PATH``. Needs no PyTorch.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable, Optional

import cv2
import numpy as np

from benchmarks.latency.measure import spread
from runtime.cli import CommandParser
from runtime.console import say, write_json
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.image_files import find_images
from runtime.images import read_image

ENGINE_SUFFIX = ".engine"
# An engine's third batch of a size becomes a CUDA graph; the C++ program warms up as often.
NUM_WARM_UPS = 4
SECONDS = 1800.0
FIGURES = ("resident_bytes", "threads", "file_descriptors", "device_bytes")


@dataclass(frozen=True)
class Difference:
    """How far two lists of detections of the same images are from each other, pair by pair in their order.

    Attributes:
        images: that were compared.
        expected, found: numbers of detections, of Python and of C++.
        counts: how many images have more detections on one side than on the other.
        box_px: largest difference of an edge's place or of a width or height; NaN if there is one on either side.
        score: largest difference; NaN likewise.
        labels, run_lengths: how many are others.
    """

    images: int
    expected: int
    found: int
    counts: int
    box_px: float
    score: float
    labels: int
    run_lengths: int

    @property
    def is_none(self) -> bool:
        """Whether there is something to compare, and all of it is the same to the last bit."""
        unlike = (self.counts, self.box_px, self.score, self.labels, self.run_lengths)
        return self.expected == self.found > 0 and not any(unlike)


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
        model: an engine or an ONNX.
        programs: folder of ``maskrcnn_detect`` and ``maskrcnn_benchmark``.
        images: BGR pixels.
        files: the same as PPM, for the programs.
        batch: images at once, beside 1.
        threads: of the CPU; None for an engine.
        seconds: after which a program is ended.
    """

    model: Path
    programs: Path
    images: Sequence[np.ndarray]
    files: Sequence[Path]
    batch: int
    threads: Optional[int] = None
    seconds: float = SECONDS

    def detector(self) -> Detector:
        """Open the model in Python, with as large batches as the C++ program has."""
        if self.threads is None:
            return Detector(self.model, "tensorrt", batch_size=self.batch)
        return Detector(self.model, "openvino", batch_size=self.batch, threads=self.threads)

    def run(self, program: str, *options: object) -> str:
        """Run a program on the model and all images; return what it printed.

        Raises:
            RuntimeError: it failed.
        """
        command = [self.programs / f"maskrcnn_{program}", self.model, *self.files, *options]
        done = subprocess.run(
            [str(part) for part in command], capture_output=True, text=True, timeout=self.seconds
        )
        if done.returncode != 0:
            raise RuntimeError(
                f"{command[0]}: expected it to end with 0, found {done.returncode}: {done.stderr[-2000:].strip()}"
            )
        return done.stdout

    def measured(self, *options: object) -> dict[str, Any]:
        """Run the C++ benchmark; return its JSON."""
        threads = () if self.threads is None else ("--threads", self.threads)
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "measured.json"
            say(self.run("benchmark", "--batch", self.batch, "--json", out, *threads, *options).rstrip())
            return json.loads(out.read_text())


def difference(expected: Sequence[Detections], found: Sequence[Sequence[dict]]) -> Difference:
    """Compare Python's detections with the COCO results of each image that the C++ program wrote.

    Raises:
        ValueError: of another number of images.
    """
    if len(expected) != len(found):
        raise ValueError(
            f"results: expected those of {len(expected)} images, found those of {len(found)}; compare the same images"
        )
    boxes, scores, labels, run_lengths = [0.0], [0.0], 0, 0
    others = sum(len(theirs) != len(ours) for theirs, ours in zip(expected, found))
    for theirs, ours in zip(expected, found):
        corners = theirs.boxes.astype(np.float32)
        edges = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        counts = [rle["counts"] for rle in theirs.rle()] if theirs.has_masks else [None] * len(theirs)
        for box, score, label, count, result in zip(edges, theirs.scores, theirs.labels, counts, ours):
            boxes.append(float(np.abs(box - np.array(result["bbox"], np.float32)).max()))
            scores.append(float(abs(score - np.float32(result["score"]))))
            labels += int(label) + 1 != result["category_id"]
            run_lengths += count != result.get("segmentation", {}).get("counts")
    return Difference(
        images=len(expected),
        expected=sum(map(len, expected)),
        found=sum(map(len, found)),
        counts=others,
        box_px=float(np.max(boxes)),
        score=float(np.max(scores)),
        labels=labels,
        run_lengths=run_lengths,
    )


def agreement(subject: Subject) -> dict[str, Any]:
    """Return the ``Difference`` for each size of batches."""
    found = {}
    with subject.detector() as detector:
        for size in (1, subject.batch):
            expected = [
                detections
                for start in range(0, len(subject.images), size)
                for detections in detector(subject.images[start : start + size])
            ]
            compared = difference(expected, _results(subject, size))
            found[str(size)] = {**asdict(compared), "is_none": compared.is_none}
            say(f"agreement in batches of {size}: {compared}")
    return found


def _results(subject: Subject, size: int) -> list[list[dict]]:
    """Return the C++ program's COCO results by image."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "results.json"
        subject.run("detect", "--min-score", 0, "--batch", size, "--out", out)
        found: list[list[dict]] = [[] for _ in subject.files]
        for result in json.loads(out.read_text()):
            found[result["image_id"] - 1].append(result)
    return found


def latency(subject: Subject, *, runs: int, rounds: int) -> dict[str, Any]:
    """Time both, by turns; each round has ``runs`` batches of either size of either.

    Returns:
        For each size the ``spread`` of both in ms, and the medians of each round.
    """
    cpp: dict[int, list[list[float]]] = {1: [], subject.batch: []}
    python: dict[int, list[list[float]]] = {1: [], subject.batch: []}
    with subject.detector() as detector:
        for _ in range(rounds):
            for found in subject.measured("--runs", runs)["latency"]:
                cpp[found["batch"]].append([a + b for a, b in zip(found["detect_ms"], found["masks_ms"])])
            for size, times in python.items():
                times.append(_python_ms(detector, subject, size, runs))
    return {str(size): _beside(cpp[size], python[size]) for size in cpp}


def _python_ms(detector: Detector, subject: Subject, size: int, runs: int) -> list[float]:
    images = [subject.images[i % len(subject.images)] for i in range(size)]
    times = []
    for run in range(-NUM_WARM_UPS, runs):
        start = time.perf_counter()
        found = detector(images)
        for detections in found:
            if detections.has_masks:
                detections.rle()
        if run >= 0:
            times.append((time.perf_counter() - start) * 1e3)
    return times


def _beside(cpp: list[list[float]], python: list[list[float]]) -> dict[str, Any]:
    found = {
        name: {**spread(np.concatenate(rounds)), "rounds": [statistics.median(times) for times in rounds]}
        for name, rounds in (("cpp_ms", cpp), ("python_ms", python))
    }
    say(f"latency: C++ {found['cpp_ms']['median']:.2f} ms, Python {found['python_ms']['median']:.2f} ms")
    return {**found, "is_not_above": found["cpp_ms"]["median"] <= found["python_ms"]["median"]}


def endurance(subject: Subject, *, calls: int) -> dict[str, Any]:
    """Return what the C++ program holds ten times along its calls, and how much that grew from the first time on."""
    found = subject.measured("--runs", 1, "--calls", calls)["endurance"]
    first, last = found["figures"][0], found["figures"][-1]
    grown = {name: last[name] - first[name] for name in FIGURES if first[name] is not None}
    say(f"endurance: {calls} calls, grown by {grown}, {found['unlike']} results unlike the first")
    return {**found, "grown": grown}


def company(subject: Subject, *, detectors: int) -> dict[str, Any]:
    """Return how many results of detectors side by side are others than those of one alone."""
    found = subject.measured("--runs", 1, "--detectors", detectors)["company"]
    say(f"company: {found}")
    return found


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Measure, write the JSON after every part, return 0 or, if a part failed, 1."""
    args = _parser().parse_args(argv)
    paths = find_images([str(path) for path in args.images])[: args.num_images]
    images = [read_image(path) for path in paths]
    status = 0
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{i:04d}.ppm" for i in range(len(images))]
        for file, image in zip(files, images):
            cv2.imwrite(str(file), image)
        threads = None if args.model.suffix == ENGINE_SUFFIX else args.threads
        subject = Subject(
            args.model.resolve(), args.programs.resolve(), images, files, args.batch, threads, args.seconds
        )
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "agreement": lambda: agreement(subject),
            "latency": lambda: latency(subject, runs=args.runs, rounds=args.rounds),
            "endurance": lambda: endurance(subject, calls=args.calls),
            "company": lambda: company(subject, detectors=args.detectors),
        }
        result: dict[str, Any] = json.loads(args.out.read_text()) if args.out.is_file() else {}
        result.update(
            model=args.model.name, images=len(images), shapes=sorted({image.shape[:2] for image in images})
        )
        result.update(_circumstances(subject))
        for name in args.parts:
            try:
                result[name] = parts[name]()
            except (OSError, RuntimeError, ValueError, subprocess.TimeoutExpired) as error:
                traceback.print_exc()
                result[name], status = {"error": str(error)}, 1
            write_json(args.out, result)
    return status


def _circumstances(subject: Subject) -> dict[str, Any]:
    found: dict[str, Any] = {"python": sys.version.split()[0], "numpy": np.__version__}
    if subject.threads is None:
        from runtime.cuda.binding import open_cuda
        from runtime.engine.library import open_library

        return {**found, "backend": open_library().tensorrt.name, "gpu": open_cuda().device()}
    return {**found, "backend": "openvino", "threads": subject.threads}


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m benchmarks.cpp_engine", doc=__doc__)
    parser.add_argument("model", type=Path, help="an .engine with its sidecar, or an .onnx for OpenVINO")
    parser.add_argument("--programs", type=Path, required=True, help="folder of the built examples/cpp")
    parser.add_argument("--images", type=Path, nargs="+", required=True, help="image files or folders")
    parser.add_argument("--num-images", type=int, default=16, help="the first so many (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="images at once (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=50, help="batches in a round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of either side (default: %(default)s)")
    parser.add_argument("--calls", type=int, default=10_000, help="of the endurance (default: %(default)s)")
    parser.add_argument("--detectors", type=int, default=2, help="side by side (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of an ONNX (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="limit of a program (default: %(default)s)"
    )
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=("agreement", "latency", "endurance", "company"),
        default=("agreement", "latency", "endurance", "company"),
        help="what to measure (default: all)",
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON, to which the parts are added")
    return parser


if __name__ == "__main__":
    sys.exit(main())
