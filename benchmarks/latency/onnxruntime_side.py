"""onnxruntime on the CPU, and on a GPU where its CUDA provider is installed."""

from pathlib import Path
from typing import Any, Callable, Optional

import onnxruntime

from benchmarks.latency import host
from benchmarks.latency.cases import Case, Options
from benchmarks.latency.inputs import dataset_of, first_paths, large_image, split, whole_batches
from benchmarks.latency.measure import Stopwatch, repeated
from benchmarks.latency.outputs import compared_outputs, record_detections
from runtime.backends.onnxruntime import OnnxRuntimeBackend
from runtime.comparison.sources import load_batch

VARIANTS = ("cpu", "cuda")
_THROUGHPUT_BATCH = 8


class OnnxRuntimeSide:
    """Fulfils ``Side``."""

    def __init__(self, options: Options) -> None:
        """Find out which providers there are."""
        self._options = options
        self._dataset = dataset_of(options)
        self._backend: Optional[OnnxRuntimeBackend] = None
        self._variant = ""
        self.circumstances = {"onnxruntime": onnxruntime.__version__}
        self.skipped: dict[str, str] = {}
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            providers = ", ".join(onnxruntime.get_available_providers())
            self.skipped["cuda"] = f"onnxruntime {onnxruntime.__version__} here has only {providers}"

    def cases(self) -> list[Case]:
        """Return the sweep, one large image, end to end, and the outputs, per provider."""
        return [
            case
            for variant in VARIANTS
            if variant not in self.skipped
            for case in self._variant_cases(variant)
        ]

    def _variant_cases(self, variant: str) -> list[Case]:
        options = self._options
        cost = 1.0 if variant == "cpu" else 0.1  # seconds an image takes, about

        def case(kind: str, images: float, run: Callable[[], dict[str, Any]]) -> Case:
            return Case("onnxruntime", variant, kind, 5 + options.seconds + cost * images, run)

        sweep = [case(f"batch-{b}", 5 * b, lambda b=b: self._batch(variant, b)) for b in options.batches]
        return [
            case("image", 5, lambda: self._image(variant)),
            *sweep,
            case("outputs", len(self._dataset.images), lambda: self._outputs(variant)),
            case("end_to_end", 2 * len(self._dataset.images), lambda: self._end_to_end(variant)),
        ]

    def _batch(self, variant: str, size: int) -> dict[str, Any]:
        backend, options = self._open(variant), self._options
        paths = first_paths(self._dataset, size)
        batch = load_batch(paths, backend.metadata)

        def run() -> dict[str, float]:
            watch = Stopwatch()
            backend.run(batch.images, batch.image_sizes)
            watch.lap("engine")
            return watch.ms

        ms = repeated(run, repeat=options.repeat, seconds=options.seconds, warmup=1)
        return {"batch": size, "ms": ms}

    def _image(self, variant: str) -> dict[str, Any]:
        image, limits = large_image(self._dataset), self._limits()
        return {"batch": 1, "ms": host.image_to_rle(self._open(variant), image, **limits)}

    def _outputs(self, variant: str) -> dict[str, Any]:
        options, backend = self._options, self._open(variant)
        recording = options.recording("onnxruntime", variant, "outputs")
        batches = [[image.path] for image in self._dataset.images]
        source = f"onnxruntime {onnxruntime.__version__}, {variant}"
        record_detections(host.detected(backend, batches), recording, backend.metadata, source)
        return compared_outputs(recording, options.reference, self._dataset)

    def _end_to_end(self, variant: str) -> dict[str, Any]:
        backend = self._open(variant)

        def run(paths: list[Path]) -> int:
            found = host.detected(backend, split(paths, _THROUGHPUT_BATCH))
            return sum(len(detections.rle()) for _, detections in found)

        paths = whole_batches(self._dataset, _THROUGHPUT_BATCH)
        return {"batch": _THROUGHPUT_BATCH, **host.throughput(run, paths, self._options.seconds)}

    def _limits(self) -> dict[str, Any]:
        return {"repeat": self._options.repeat, "seconds": self._options.seconds}

    def _open(self, variant: str) -> OnnxRuntimeBackend:
        if variant != self._variant:
            self.close()
            self._backend = OnnxRuntimeBackend(
                self._options.model, device=variant, threads=self._options.threads
            )
            self._variant = variant
        return self._backend

    def close(self) -> None:
        """Release the session."""
        if self._backend is not None:
            self._backend.close()
        self._backend, self._variant = None, ""
