"""TensorRT engines: the backend on its own, and the device path (images prepared and masks encoded on the GPU)."""

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np

from benchmarks.latency import host
from benchmarks.latency.cases import Case, Options
from benchmarks.latency.inputs import dataset_of, first_paths, large_image, split, whole_batches
from benchmarks.latency.layers import not_dense_share
from benchmarks.latency.measure import Stopwatch, repeated
from benchmarks.latency.outputs import compared_outputs, record_detections
from runtime import build
from runtime.comparison.sources import load_batch
from runtime.cuda.binding import open_cuda
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.engine.inspection import count_by_precision, dense_flops, layers_from
from runtime.engine.library import open_library
from runtime.engine.session import EngineSession
from runtime.engine.sidecar import Sidecar
from runtime.graphs.load import load_onnx
from runtime.host.preprocess import prepare
from runtime.images import read_image

THREADS = (1, 2, 3)
_BUSY_STAGES = ("prepare", "engine", "encode")
_BATCH = 8
_BUILD_SECONDS = 180.0
_OPEN_SECONDS = 4.0


@dataclass(frozen=True)
class Variant:
    """An engine and how it is launched.

    Attributes:
        precision: of ``runtime.build``.
        masks: ``crop`` or ``full``.
        cuda_graphs: launched as one CUDA graph.
        is_whole: measured in every way; others only for latency and outputs.
    """

    precision: str
    masks: str = "crop"
    cuda_graphs: bool = False
    is_whole: bool = False


VARIANTS = {
    "fp16": Variant("fp16"),
    "fp16_graph": Variant("fp16", cuda_graphs=True, is_whole=True),
    "fp16_full": Variant("fp16", masks="full"),
    "fp16_full_graph": Variant("fp16", masks="full", cuda_graphs=True),
    "tf32": Variant("tf32"),
    "fp32": Variant("fp32"),
}


class TensorRTSide:
    """Fulfils ``Side``. Nothing stays open between cases, so that one's memory is not another's."""

    def __init__(self, options: Options) -> None:
        """Look for TensorRT, the device and the models.

        Raises:
            RuntimeError: no TensorRT, no CUDA or no GPU.
        """
        self._options, self._dataset = options, dataset_of(options)
        self._cuda = open_cuda()
        self.circumstances = {
            "tensorrt": open_library().tensorrt.version,
            "gpu": self._cuda.device(),
            "cuda_binding": self._cuda.binding,
            "numpy": np.__version__,
        }
        self.skipped: dict[str, str] = {}
        if options.full is None:
            full = [name for name, variant in VARIANTS.items() if variant.masks == "full"]
            self.skipped = dict.fromkeys(full, "no --full")

    def cases(self) -> list[Case]:
        """Return every variant's cases, those of FP16 first; what is most worth comes before what takes long."""
        return [
            case
            for variant in VARIANTS
            if variant not in self.skipped
            for case in self._variant_cases(variant)
        ]

    def _variant_cases(self, variant: str) -> list[Case]:
        options, num_images = self._options, len(self._dataset.images)
        limit = options.seconds + _OPEN_SECONDS

        def case(kind: str, seconds: float, run: Callable[[], dict[str, Any]]) -> Case:
            built = self._engine(variant).is_file()
            return Case("tensorrt", variant, kind, seconds + (0 if built else _BUILD_SECONDS), run)

        batches = [b for b in options.batches if b <= options.profile[2]]
        cases = [case(f"batch-{b}", 2 * limit, lambda b=b: self._batch(variant, b)) for b in batches]
        if not VARIANTS[variant].cuda_graphs:  # what is the engine's own, once
            outputs = case("outputs", 0.3 * num_images + limit, lambda: self._outputs(variant))
            layers = case("layers", 2 * limit, lambda: self._layers(variant))
            cases = [case("build", 5, lambda: self._build(variant)), *cases, outputs, layers]
        if not VARIANTS[variant].is_whole:
            return cases
        return [
            *cases,
            case("memory", limit, lambda: self._memory(variant)),
            *(case(f"device-{b}", limit, lambda b=b: self._device(variant, b)) for b in batches),
            case("image_device", limit, lambda: self._image_device(variant)),
            case("end_to_end_device", 3 * limit, lambda: self._end_to_end_device(variant)),
            case("outputs_device", 0.3 * num_images + limit, lambda: self._outputs_device(variant)),
            case("image", limit, lambda: self._image(variant)),
            *(case(f"threads-{n}", 3 * limit, lambda n=n: self._threads(variant, n)) for n in THREADS),
            case("end_to_end", 2 * limit, lambda: self._end_to_end(variant)),
        ]

    def _model(self, variant: str) -> Path:
        return self._options.full if VARIANTS[variant].masks == "full" else self._options.model

    def _engine(self, variant: str) -> Path:
        return self._options.folder / f"{self._model(variant).stem}_{VARIANTS[variant].precision}.engine"

    def _build(self, variant: str) -> dict[str, Any]:
        options, engine = self._options, self._engine(variant)
        command = [str(self._model(variant)), "-o", str(engine), "--precision", VARIANTS[variant].precision]
        command += ["--batch", *map(str, options.profile)]
        if options.timing_cache is not None:
            command += ["--timing-cache", str(options.timing_cache)]
        if options.tactic_sources is not None:
            command += ["--tactic-sources", options.tactic_sources]
        was_there = engine.is_file()
        start = time.monotonic()
        if build.main(command) != 0:
            raise RuntimeError(f"{variant}: expected runtime.build to build {engine}, found that it refused")
        return {
            "build": Sidecar.load(engine).build,
            "engine_was_there": was_there,
            "timing_cache": options.timing_cache is not None,
            "seconds_here": time.monotonic() - start,
        }

    def _open(self, variant: str, batch: int) -> Detector:
        graphs = VARIANTS[variant].cuda_graphs
        if not self._engine(variant).is_file():
            self._build(variant)
        return Detector(self._engine(variant), "tensorrt", batch_size=batch, cuda_graphs=graphs)

    def _batch(self, variant: str, size: int) -> dict[str, Any]:
        """Time one batch: ``copy_in``, ``engine``, ``copy_out`` by events, the rest by the wall."""
        options, paths = self._options, first_paths(self._dataset, size)
        with self._open(variant, size) as detector:
            batch = load_batch(paths, detector.metadata)

            def run() -> dict[str, float]:
                spent: dict[str, float] = {}
                watch = Stopwatch()
                detector.backend.run(batch.images, batch.image_sizes, spent)
                watch.lap("run")
                return {**spent, **watch.ms}

            ms = repeated(run, repeat=options.repeat, seconds=options.seconds, warmup=5)
            figures = {"batch": size, "ms": ms, "cuda_graph_failure": detector.backend.cuda_graph_failure}
            if VARIANTS[variant].is_whole:
                stages = host.stages(detector.backend, paths, repeat=10, seconds=options.seconds)
                figures["stages_ms"] = stages
        return figures

    def _device(self, variant: str, size: int) -> dict[str, Any]:
        """Time one batch on the device path: its stages by events, ``total`` from host memory to run lengths."""
        options = self._options
        paths = first_paths(self._dataset, size)
        with self._open(variant, size) as detector:
            watch = Stopwatch()
            images = [read_image(path) for path in paths]
            watch.lap("decode")
            ms = repeated(
                lambda: _device_run(detector, images),
                repeat=options.repeat,
                seconds=options.seconds,
                warmup=5,
            )
            failure = detector.device_failure
        return {"batch": size, "ms": ms, "decode_ms": watch.ms["decode"], "device_failure": failure}

    def _image_device(self, variant: str) -> dict[str, Any]:
        options, image = self._options, large_image(self._dataset)
        with self._open(variant, 1) as detector:
            ms = repeated(
                lambda: _device_run(detector, [image]),
                repeat=options.repeat,
                seconds=options.seconds,
                warmup=5,
            )
            return {"batch": 1, "ms": ms, "device_failure": detector.device_failure}

    def _image(self, variant: str) -> dict[str, Any]:
        options, image = self._options, large_image(self._dataset)
        with self._open(variant, 1) as detector:
            limits = {"repeat": options.repeat, "seconds": options.seconds}
            return {"batch": 1, "ms": host.image_to_rle(detector.backend, image, **limits)}

    def _memory(self, variant: str) -> dict[str, Any]:
        """Measure the GPU memory that the whole way takes at batch 8 (cudaMemGetInfo before and after)."""
        before, total = self._cuda.memory_info()
        images = [read_image(path) for path in first_paths(self._dataset, _BATCH)]
        with self._open(variant, _BATCH) as detector:
            for _ in range(5):  # with the CUDA graph, which comes with the third
                _device_run(detector, images)
            after, _ = self._cuda.memory_info()
        mib = 1 << 20
        return {"batch": _BATCH, "device_mib": (before - after) / mib, "total_mib": total / mib}

    def _layers(self, variant: str) -> dict[str, Any]:
        """Time every layer at batch 1 and 8, and say what is not dense."""
        engine = self._engine(variant)
        if not engine.is_file():
            self._build(variant)
        metadata, flops = Sidecar.load(engine).metadata, dense_flops(load_onnx(self._model(variant)))
        found: dict[str, Any] = {"layer_ms": {}, "sum_ms": {}, "not_dense_share": {}}
        for size in sorted({1, min(_BATCH, self._options.profile[2])}):
            batch = load_batch(first_paths(self._dataset, size), metadata)
            with EngineSession(engine.read_bytes()) as session:
                layers = layers_from(session.layer_information())
                times = session.layer_times({"images": batch.images, "image_sizes": batch.image_sizes})
            found["layer_ms"][str(size)] = times
            found["sum_ms"][str(size)] = sum(times.values())
            found["not_dense_share"][str(size)] = not_dense_share(times, flops)
        return {**found, "layers": len(layers), "layers_by_precision": count_by_precision(layers)}

    def _outputs(self, variant: str) -> dict[str, Any]:
        batches = split([image.path for image in self._dataset.images], self._outputs_batch)
        with self._open(variant, self._outputs_batch) as detector:
            return self._recorded(variant, "outputs", host.detected(detector.backend, batches), detector)

    def _outputs_device(self, variant: str) -> dict[str, Any]:
        paths = [image.path for image in self._dataset.images]
        with self._open(variant, self._outputs_batch) as detector:
            return self._recorded(variant, "outputs_device", _detected_files(detector, paths), detector)

    @property
    def _outputs_batch(self) -> int:
        return min(_BATCH, self._options.profile[2])

    def _recorded(
        self, variant: str, kind: str, found: Iterator[tuple[Path, Detections]], detector: Detector
    ) -> dict[str, Any]:
        recording = self._options.recording("tensorrt", variant, kind)
        source = f"TensorRT {self.circumstances['tensorrt']}, {variant}"
        record_detections(found, recording, detector.metadata, source)
        return compared_outputs(recording, self._options.reference, self._dataset)

    def _threads(self, variant: str, num: int) -> dict[str, Any]:
        """Measure images per second of several threads with an engine session each, both paths, batch 1 and 8."""
        found: dict[str, Any] = {"threads": num, "images_per_s": {}, "images_per_s_device": {}}
        for size in (1, _BATCH):
            detectors = [self._open(variant, size) for _ in range(num)]
            try:
                host_path, device_path = self._calls_per_second(detectors, size)
            finally:
                for detector in detectors:
                    detector.close()
            found["images_per_s"][str(size)] = size * host_path
            found["images_per_s_device"][str(size)] = size * device_path
        return found

    def _calls_per_second(self, detectors: Sequence[Detector], size: int) -> tuple[float, float]:
        seconds, paths = self._options.seconds, first_paths(self._dataset, size)
        images = [read_image(path) for path in paths]
        batch = prepare(images, detectors[0].metadata)
        host_path = [lambda d=d: d.backend.run(batch.images, batch.image_sizes) for d in detectors]
        device_path = [lambda d=d: _device_run(d, images) for d in detectors]
        return calls_per_second(host_path, seconds), calls_per_second(device_path, seconds)

    def _end_to_end_device(self, variant: str) -> dict[str, Any]:
        """Measure JPEG files to run lengths through the runtime's pipeline, and the GPU's share of the wall time."""
        with self._open(variant, _BATCH) as detector:
            timings: dict[str, float] = {}

            def run(paths: Sequence[Path]) -> int:
                timings.clear()  # of the latest call: the one that counts
                found = _detected_files(detector, paths, timings)
                return sum(len(detections.rle()) for _, detections in found)

            figures = host.throughput(run, whole_batches(self._dataset, _BATCH), 2 * self._options.seconds)
            failure = detector.device_failure
        busy = sum(timings.get(stage, 0.0) for stage in _BUSY_STAGES) / 1e3 / figures["wall_s"]
        return {
            "batch": _BATCH,
            **figures,
            "stages_ms_in_all": timings,
            "gpu_busy_events": None if failure else busy,
            "device_failure": failure,
        }

    def _end_to_end(self, variant: str) -> dict[str, Any]:
        with self._open(variant, _BATCH) as detector:

            def run(paths: Sequence[Path]) -> int:
                found = host.detected(detector.backend, split(paths, _BATCH))
                return sum(len(detections.rle()) for _, detections in found)

            figures = host.throughput(run, whole_batches(self._dataset, _BATCH), self._options.seconds)
        return {"batch": _BATCH, **figures}

    def close(self) -> None:
        """Do nothing: every case closes what it opens."""


def _device_run(detector: Detector, images: Sequence[np.ndarray]) -> dict[str, float]:
    spent: dict[str, float] = {}
    watch = Stopwatch()
    for detections in detector(images, timings=spent):
        detections.rle()
    watch.lap("total")
    return {**spent, **watch.ms}


def _detected_files(
    detector: Detector, paths: Sequence[Path], timings: Optional[dict[str, float]] = None
) -> Iterator[tuple[Path, Detections]]:
    for result in detector.detect_files(paths, timings=timings):
        if result.detections is None:
            raise RuntimeError(f"{result.path}: expected detections, found: {result.error}")
        yield result.path, result.detections


def calls_per_second(runs: Sequence[Callable[[], Any]], seconds: float) -> float:
    """Call every function again and again, each in a thread of its own; return calls per second of all together."""
    barrier = threading.Barrier(len(runs))
    calls, spent, failures = [0] * len(runs), [0.0] * len(runs), []

    def work(index: int) -> None:
        try:
            for _ in range(5):
                runs[index]()
            barrier.wait()
            start = time.perf_counter()
            while not calls[index] or spent[index] < seconds:
                runs[index]()
                calls[index] += 1
                spent[index] = time.perf_counter() - start
        except Exception as error:  # raised in the calling thread below
            failures.append(error)
            barrier.abort()

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(runs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return sum(count / time for count, time in zip(calls, spent))
