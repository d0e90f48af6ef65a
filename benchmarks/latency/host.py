"""The host path of a backend: read, prepare, run, paste and encode, one after the other in one thread."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Callable

import numpy as np

from benchmarks.latency.measure import Stopwatch, gpu_load, repeated
from runtime.detections import Detections
from runtime.host.postprocess import detections_from_outputs
from runtime.host.preprocess import prepare
from runtime.images import read_image
from runtime.runner import Backend


def stages(backend: Backend, paths: Sequence[Path], *, repeat: int, seconds: float) -> dict[str, Any]:
    """Time one batch stage by stage: ``decode``, ``preprocess``, ``run``, ``to_rle``."""

    def once() -> dict[str, float]:
        watch = Stopwatch()
        images = [read_image(path) for path in paths]
        watch.lap("decode")
        _to_rle(backend, images, watch)
        return watch.ms

    return repeated(once, repeat=repeat, seconds=seconds)


def image_to_rle(backend: Backend, image: np.ndarray, *, repeat: int, seconds: float) -> dict[str, Any]:
    """Time one image from host memory to COCO's run lengths: the stages and the ``total``."""

    def once() -> dict[str, float]:
        watch = Stopwatch()
        _to_rle(backend, [image], watch)
        return {**watch.ms, "total": sum(watch.ms.values())}

    return repeated(once, repeat=repeat, seconds=seconds)


def detected(backend: Backend, batches: Sequence[Sequence[Path]]) -> Iterator[tuple[Path, Detections]]:
    """Yield what the backend finds in each file."""
    for paths in batches:
        batch = prepare([read_image(path) for path in paths], backend.metadata)
        outputs = backend.run(batch.images, batch.image_sizes)
        yield from zip(paths, detections_from_outputs(outputs, batch, backend.metadata))


def throughput(run: Callable[[Sequence[Path]], int], paths: Sequence[Path], seconds: float) -> dict[str, Any]:
    """Measure images per second from files to run lengths.

    Args:
        run: takes files, returns how many detections it encoded.
        paths: of the dataset.
        seconds: the files are gone through as often as fits; once at least.
    """
    start = time.perf_counter()
    run(paths)  # the warm-up; the files are in the page cache from now on
    rounds = max(1, round(seconds / (time.perf_counter() - start)))
    with gpu_load() as load:
        start = time.perf_counter()
        found = run([path for _ in range(rounds) for path in paths])
        spent = time.perf_counter() - start
    num_images = rounds * len(paths)
    return {
        "images": num_images,
        "detections": found,
        "wall_s": spent,
        "images_per_s": num_images / spent,
        "gpu_busy_nvidia_smi": load.share,
        "gpu_busy_problem": load.problem,
    }


def _to_rle(backend: Backend, images: Sequence[np.ndarray], watch: Stopwatch) -> None:
    batch = prepare(images, backend.metadata)
    watch.lap("preprocess")
    outputs = backend.run(batch.images, batch.image_sizes)
    watch.lap("run")
    for detections in detections_from_outputs(outputs, batch, backend.metadata):
        detections.rle()
    watch.lap("to_rle")
