"""onnxruntime on the CPU, and on a GPU where its CUDA provider is installed."""

from dataclasses import dataclass
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
from runtime.graphs.load import load_onnx, save_model
from runtime.host.preprocess import Batch
from runtime.precision.choice import chosen_plan
from runtime.precision.typed import fp16_model


@dataclass(frozen=True)
class Variant:
    """A device and what it computes in.

    Attributes:
        device: ``cpu`` or ``cuda``.
        precision: of float32.
        is_half: the file is a strongly typed FP16 one.
    """

    device: str
    precision: Optional[str] = None
    is_half: bool = False


VARIANTS = {
    "cpu": Variant("cpu"),
    "cuda_tf32": Variant("cuda", "tf32"),
    "cuda_fp16": Variant("cuda", is_half=True),
    "cuda_fp32": Variant("cuda", "fp32"),
}
_THROUGHPUT_BATCH = 8


def run_on_device(
    session: onnxruntime.InferenceSession, batch: Batch, device: str = "cuda"
) -> Callable[[], None]:
    """Return what runs a batch that lies in the device's memory, and leaves the results there."""
    binding = session.io_binding()
    for name in ("images", "image_sizes"):
        binding.bind_ortvalue_input(
            name, onnxruntime.OrtValue.ortvalue_from_numpy(getattr(batch, name), device, 0)
        )
    for output in session.get_outputs():
        binding.bind_output(output.name, device)

    def run() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return run


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
            why = f"onnxruntime {onnxruntime.__version__} here has only {providers}"
            self.skipped.update({name: why for name, variant in VARIANTS.items() if variant.device == "cuda"})

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
        cost = 1.0 if VARIANTS[variant].device == "cpu" else 0.1  # seconds an image takes, about

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
        """Time the network alone, ``engine``; on a GPU ``run`` has the copies too."""
        backend, options = self._open(variant), self._options
        batch = load_batch(first_paths(self._dataset, size), backend.metadata)
        on_device = None
        if VARIANTS[variant].device != "cpu":
            on_device = run_on_device(backend._session.here(), batch)

        def run() -> dict[str, float]:
            watch = Stopwatch()
            if on_device is not None:
                on_device()
                watch.lap("engine")
            backend.run(batch.images, batch.image_sizes)
            watch.lap("engine" if on_device is None else "run")
            return watch.ms

        ms = repeated(
            run, repeat=options.repeat, seconds=options.seconds, warmup=1 if on_device is None else 3
        )
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
            chosen = VARIANTS[variant]
            self._backend = OnnxRuntimeBackend(
                self._half_model() if chosen.is_half else self._options.model,
                device=chosen.device,
                threads=self._options.threads,
                precision=chosen.precision,
            )
            self._variant = variant
        return self._backend

    def _half_model(self) -> Path:
        """Return the strongly typed FP16 file of the model, made where there is none that is as new."""
        source = self._options.model
        path = self._options.folder / f"{source.stem}.typed.onnx"
        if not path.is_file() or path.stat().st_mtime < source.stat().st_mtime:
            model = load_onnx(source)
            save_model(fp16_model(model, chosen_plan(source, model, None)), path)
        return path

    def close(self) -> None:
        """Release the session."""
        if self._backend is not None:
            self._backend.close()
        self._backend, self._variant = None, ""
