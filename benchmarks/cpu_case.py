"""One case of ``benchmarks.cpu_latency`` in a process of its own: ``python -m benchmarks.cpu_case JSON`` prints JSON.

PyTorch, where it is not what is measured, is not loaded: the peak of memory is what a box that runs the model sees.
"""

import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional

from runtime.backends import load_backend
from runtime.backends import openvino as openvino_backend
from runtime.host.postprocess import detections_from_outputs
from runtime.host.preprocess import Batch, prepare
from runtime.images import read_image
from runtime.metadata import ModelMetadata

RESULTS = Path(__file__).parent / "results"
CPUINFO, STATUS = Path("/proc/cpuinfo"), Path("/proc/self/status")
# What decides how fast FP32, BF16 and INT8 are.
FLAGS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        model: its name in the results.
        runtime: its name in the results.
        backend: ``pytorch``, ``onnxruntime`` or ``openvino``.
        file: the ONNX.
        metadata: JSON of the file of a fixed size, by which images are prepared for all.
        config, checkpoint: of PyTorch's model.
        images: files; batches go through them by turns.
        batch: images at once.
        threads, repetitions: of the CPU; of the batch, after one that warms up.
        options: the backend's own.
        own_network: of a model of any size in OpenVINO, let the size have a network of its own at once.
    """

    model: str
    runtime: str
    backend: str
    file: str
    metadata: str
    config: Optional[str]
    checkpoint: Optional[str]
    images: tuple[str, ...]
    batch: int
    threads: int
    repetitions: int
    options: dict[str, Any]
    own_network: bool = False


# Runs a batch; returns the detections, and the seconds of the network alone, or None where they are not apart.
Run = Callable[[Batch], tuple[int, Optional[float]]]


def main(argv: Sequence[str]) -> int:
    """Measure the case that is given as JSON, and print what came out."""
    print(json.dumps(measure(Case(**json.loads(argv[0])))))
    return 0


def measure(case: Case) -> dict[str, Any]:
    """Return seconds per image of each repetition, from the prepared batch to masks at the original resolution."""
    batches = _batches(case)
    run = _pytorch(case) if case.backend == "pytorch" else _exported(case)
    for _ in range(1 + case.own_network):
        run(batches[0])
    whole, network, found = [], [], 0
    for number in range(case.repetitions):
        start = time.perf_counter()
        detections, seconds = run(batches[number % len(batches)])
        whole.append((time.perf_counter() - start) / case.batch)
        network += [] if seconds is None else [seconds / case.batch]
        found += detections
    return {"whole": whole, "network": network, "detections": found, "peak_mib": peak_mib()}


def _batches(case: Case) -> list[Batch]:
    metadata = ModelMetadata.from_json(case.metadata)
    images = [read_image(path, metadata.load) for path in case.images]
    count = len(images) // case.batch * case.batch
    groups = [images[i : i + case.batch] for i in range(0, count, case.batch)] or [
        [images[i % len(images)] for i in range(case.batch)]
    ]
    return [prepare(group, metadata) for group in groups]


def _exported(case: Case) -> Run:
    if case.own_network:
        openvino_backend._SAVED_SHARE = float("inf")
    backend = load_backend(case.file, case.backend, threads=case.threads, **case.options)

    def run(batch: Batch) -> tuple[int, float]:
        start = time.perf_counter()
        outputs = backend.run(batch.images, batch.image_sizes)
        seconds = time.perf_counter() - start
        return sum(len(d.masks) for d in detections_from_outputs(outputs, batch, backend.metadata)), seconds

    return run


def _pytorch(case: Case) -> Run:
    import torch

    from benchmarks.inference import data_samples
    from export.model import load_model

    torch.set_num_threads(case.threads)
    loaded = load_model(case.config, Path(case.checkpoint))

    def run(batch: Batch) -> tuple[int, None]:
        images = torch.from_numpy(batch.images)
        with torch.no_grad():
            samples = loaded.model.predict(images, data_samples(batch, images.shape[2:]), rescale=True)
        return sum(len(sample.pred_instances.masks) for sample in samples), None

    return run


def peak_mib() -> int:
    """Return the most memory that this program had; ``getrusage`` knows of the program before it in this process."""
    return next(
        int(value.split()[0]) // 1024
        for key, value in _fields(STATUS.read_text().splitlines())
        if key == "VmHWM"
    )


def processor() -> dict[str, Any]:
    """Return the processor's name, how many cores there are, and which of ``FLAGS`` it has."""
    lines = CPUINFO.read_text().splitlines()
    names = [value for key, value in _fields(lines) if key == "model name"]
    flags = next((value.split() for key, value in _fields(lines) if key == "flags"), [])
    return {"cpu": names[0], "cores": len(names), "flags": [flag for flag in FLAGS if flag in flags]}


def _fields(lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        key, _, value = line.partition(":")
        yield key.strip(), value.strip()


def spread(times: Sequence[float]) -> dict[str, float]:
    """Return the median and the ends."""
    return {"median": statistics.median(times), "min": min(times), "max": max(times)}


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
