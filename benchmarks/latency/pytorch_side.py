"""mmdet's own model in PyTorch, unpatched: FP32, TF32, FP16 autocast, and compiled by ``torch.compile``.

NMS and RoIAlign are mmcv's compiled ones where there are any, torchvision's otherwise. Two times are taken of the
same ``model.predict``: whole, with masks pasted at the network's size as mmdet does and the engine of ``--masks full``
does; and with pasting left out, so that masks end as 28x28 probabilities, as in the engine of ``--masks crop``.
"""

import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional
from unittest import mock

import numpy as np
import torch
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.structures.mask import encode_mask_results

from benchmarks.inference import data_samples
from benchmarks.latency import host
from benchmarks.latency.cases import Case, Options
from benchmarks.latency.inputs import dataset_of, first_paths, large_image, split, whole_batches
from benchmarks.latency.measure import Stopwatch, repeated
from benchmarks.latency.outputs import compared_outputs, record_detections
from export.metadata import metadata_from_model
from export.model import load_model
from export.recorded import WholeMasks
from patches.mmcv_ops import ensure_mmcv_ops
from runtime.comparison.sources import load_batch
from runtime.detections import Detections
from runtime.host.preprocess import Batch, prepare
from runtime.images import read_image

# Shapes that torch.compile compiles for take minutes: these alone.
COMPILED_BATCHES = (1, 8)
COMPILE_SECONDS = 240
# Batches whose stages are timed as well.
_STAGED_BATCHES = (1, 8)
_OUTPUTS_BATCH = 1
_DENSE_PARTS = ("backbone", "neck", "rpn_head", "roi_head.bbox_head", "roi_head.mask_head")


@dataclass(frozen=True)
class Mode:
    """How PyTorch runs.

    Attributes:
        tf32: convolutions and matrix products round their inputs to 10 bits.
        autocast: FP16 where PyTorch's autocast has it.
        tuned: channels last, and cuDNN times its algorithms for every shape.
        compiled: ``torch.compile`` of nothing, of the ``dense`` parts (backbone, neck, heads' layers), or of the
            ``whole`` predict.
    """

    tf32: bool = False
    autocast: bool = False
    tuned: bool = False
    compiled: str = ""


MODES = {
    "fp32": Mode(),
    "tf32": Mode(tf32=True),
    "autocast": Mode(autocast=True),
    "autocast_tuned": Mode(autocast=True, tuned=True),
    "compile": Mode(autocast=True, compiled="dense"),
    "compile_whole": Mode(autocast=True, compiled="whole"),
}


class PyTorchSide:
    """Fulfils ``Side``."""

    def __init__(self, options: Options) -> None:
        """Load the model.

        Raises:
            RuntimeError: no such device.
            FileNotFoundError, ValueError: see ``load_model``.
        """
        if options.device == "cuda" and not torch.cuda.is_available():
            raise RuntimeError(
                "--device: expected a GPU that PyTorch sees, found none; for a trial `--device cpu`"
            )
        if options.device == "cpu" and options.threads is not None:
            torch.set_num_threads(options.threads)
        self._options, self._dataset = options, dataset_of(options)
        self._cuda = options.device == "cuda"
        self._free_at_start = self._free_bytes()
        self._loaded = load_model(options.config, options.checkpoint, device=options.device)
        self._model = self._loaded.model
        self._metadata = metadata_from_model(self._loaded, size=options.size, masks="crop")
        self._compiled = _Compiled(self._model)
        self.circumstances = {
            "torch": torch.__version__,
            "mmcv_ops": ensure_mmcv_ops(),
            "gpu": torch.cuda.get_device_name() if self._cuda else None,
        }
        self.skipped: dict[str, str] = {}
        if not self._cuda:
            self.skipped = {mode: "no GPU" for mode in MODES if mode != "fp32"}

    def cases(self) -> list[Case]:
        """Return the reference first, then every mode's sweep, outputs, one large image and end to end."""
        return [case for mode in MODES if mode not in self.skipped for case in self._mode_cases(mode)]

    def _mode_cases(self, mode: str) -> list[Case]:
        options = self._options
        compiling = COMPILE_SECONDS / 2 if MODES[mode].compiled else 0.0
        images = len(self._dataset.images) * (0.2 if self._cuda else 2.0)

        def case(kind: str, seconds: float, run: Any) -> Case:
            return Case("pytorch", mode, kind, seconds, run)

        batches = [b for b in options.batches if not MODES[mode].compiled or b in COMPILED_BATCHES]
        limit = 2 * options.seconds
        sweep = [case(f"batch-{b}", 3 + limit + compiling, lambda b=b: self._batch(mode, b)) for b in batches]
        outputs = case("outputs", 5 + images + compiling, lambda: self._outputs(mode))
        if MODES[mode].compiled:  # one shape for outputs
            return [*sweep, outputs]
        return [
            outputs,
            *sweep,
            case("image", 3 + options.seconds, lambda: self._image(mode)),
            case("end_to_end-1", 5 + images + limit, lambda: self._end_to_end(mode, 1)),
            case("end_to_end-8", 5 + images + limit, lambda: self._end_to_end(mode, 8)),
        ]

    def _batch(self, mode: str, size: int) -> dict[str, Any]:
        """Time ``predict`` on images that are on the device already, and the stages around it."""
        options = self._options
        paths = first_paths(self._dataset, size)
        batch = load_batch(paths, self._metadata)
        limits = {"repeat": options.repeat, "seconds": options.seconds}
        ms = {}
        with self._mode(mode):
            self._reset_memory()
            images = self._to_device(batch)
            ms.update(repeated(lambda: self._timed(images, batch, "network_and_paste"), **limits))
            memory = self._memory()
            with without_pasting():
                ms.update(repeated(lambda: self._timed(images, batch, "network"), **limits))
            figures = {"batch": size, "ms": ms, "memory": memory}
            if size in _STAGED_BATCHES and not MODES[mode].compiled:
                stages = repeated(lambda: self._stages(paths), repeat=10, seconds=options.seconds)
                figures["stages_ms"] = stages
        return figures

    def _timed(self, images: torch.Tensor, batch: Batch, stage: str) -> dict[str, float]:
        watch = Stopwatch()
        self._predict(images, batch, rescale=False)
        self._synchronize()
        watch.lap(stage)
        return watch.ms

    def _stages(self, paths: Sequence[Path]) -> dict[str, float]:
        watch = Stopwatch()
        images = [read_image(path) for path in paths]
        watch.lap("decode")
        self._to_rle(images, watch)
        return watch.ms

    def _to_rle(self, images: Sequence[np.ndarray], watch: Stopwatch) -> int:
        """Go mmdet's way: masks pasted at the original size on the device, copied, encoded by pycocotools."""
        batch = prepare(images, self._metadata)
        watch.lap("preprocess")
        on_device = self._to_device(batch)
        self._synchronize()
        watch.lap("copy_in")
        samples = self._predict(on_device, batch, rescale=True)
        self._synchronize()
        watch.lap("network_and_paste")
        found = [sample.pred_instances.to("cpu") for sample in samples]
        watch.lap("copy_out")
        num_masks = sum(len(encode_mask_results(instances.masks.numpy())) for instances in found)
        watch.lap("to_rle")
        return num_masks

    def _image(self, mode: str) -> dict[str, Any]:
        image = large_image(self._dataset)

        def once() -> dict[str, float]:
            watch = Stopwatch()
            self._to_rle([image], watch)
            return {**watch.ms, "total": sum(watch.ms.values())}

        with self._mode(mode):
            ms = repeated(once, repeat=self._options.repeat, seconds=self._options.seconds)
        return {"batch": 1, "ms": ms}

    def _outputs(self, mode: str) -> dict[str, Any]:
        options = self._options
        recording = options.recording("pytorch", mode, "outputs")
        with self._mode(mode):
            source = f"PyTorch {torch.__version__}, {self._loaded.name}, {options.device}, {mode}"
            record_detections(self._detected(_OUTPUTS_BATCH), recording, self._metadata, source)
        return compared_outputs(recording, options.reference, self._dataset)

    def _detected(self, batch_size: int) -> Iterator[tuple[Path, Detections]]:
        for paths in split([image.path for image in self._dataset.images], batch_size):
            batch = load_batch(paths, self._metadata)
            samples = self._predict(self._to_device(batch), batch, rescale=True)
            for path, sample, size in zip(paths, samples, batch.original_sizes):
                instances = sample.pred_instances.to("cpu")
                yield (
                    path,
                    Detections(
                        instances.bboxes.float().numpy(),
                        instances.scores.float().numpy(),
                        instances.labels.numpy().astype(np.int32),
                        size,
                        self._metadata.classes,
                        WholeMasks(instances.masks.numpy()),
                    ),
                )

    def _end_to_end(self, mode: str, size: int) -> dict[str, Any]:
        def run(paths: Sequence[Path]) -> int:
            return sum(
                self._to_rle([read_image(path) for path in part], Stopwatch()) for part in split(paths, size)
            )

        with self._mode(mode):
            figures = host.throughput(run, whole_batches(self._dataset, size), self._options.seconds)
        return {"batch": size, **figures}

    def _predict(self, images: torch.Tensor, batch: Batch, *, rescale: bool) -> list:
        with torch.no_grad():
            return self._compiled.predict(images, data_samples(batch, images.shape[2:]), rescale=rescale)

    @contextmanager
    def _mode(self, name: str) -> Iterator[None]:
        mode = MODES[name]
        switches = (
            (torch.backends.cudnn, "allow_tf32", mode.tf32),
            (torch.backends.cuda.matmul, "allow_tf32", mode.tf32),
            (torch.backends.cudnn, "benchmark", mode.tuned),
        )
        with ExitStack() as stack:
            for owner, switch, value in switches:
                stack.callback(setattr, owner, switch, getattr(owner, switch))
                setattr(owner, switch, value)
            if mode.tuned:
                self._model.to(memory_format=torch.channels_last)
                stack.callback(self._model.to, memory_format=torch.contiguous_format)
            if mode.compiled:
                stack.enter_context(_time_limit(COMPILE_SECONDS))
                stack.enter_context(self._compiled.active(mode.compiled))
            stack.enter_context(torch.autocast("cuda", torch.float16) if mode.autocast else nullcontext())
            yield

    def _to_device(self, batch: Batch) -> torch.Tensor:
        return torch.from_numpy(batch.images).to(self._options.device)

    def _synchronize(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()

    def _free_bytes(self) -> Optional[int]:
        return torch.cuda.mem_get_info()[0] if self._cuda else None

    def _reset_memory(self) -> None:
        if self._cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def _memory(self) -> Optional[dict[str, float]]:
        """Return the peak: weights included, CUDA's context not."""
        if not self._cuda:
            return None
        mib = 1 << 20
        return {
            "device_mib": (self._free_at_start - self._free_bytes())
            / mib,  # cudaMemGetInfo, before the model and now
            "max_reserved_mib": torch.cuda.max_memory_reserved() / mib,
            "max_allocated_mib": torch.cuda.max_memory_allocated() / mib,
        }

    def close(self) -> None:
        """Release the model."""
        self._model = self._loaded = self._compiled = None


class _Compiled:
    """The model's ``predict``, with parts that ``torch.compile`` has compiled while ``active``."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._made: dict[str, Any] = {}
        self.predict = model.predict

    @contextmanager
    def active(self, what: str) -> Iterator[None]:
        """Use compiled parts, ``dense`` or ``whole``, compiled at first use and kept."""
        with ExitStack() as stack:
            if what == "whole":
                compiled = self._once("predict", self._model.predict)
                stack.enter_context(mock.patch.object(self, "predict", compiled))
            for name in _DENSE_PARTS if what == "dense" else ():
                part = self._model.get_submodule(name)
                stack.enter_context(mock.patch.object(part, "forward", self._once(name, part.forward)))
            yield

    def _once(self, name: str, function: Any) -> Any:
        if name not in self._made:
            # One shape per batch, but for what sees detections, whose number is the image's.
            dynamic = None if name in ("predict", "roi_head.mask_head") else False
            self._made[name] = torch.compile(function, dynamic=dynamic)
        return self._made[name]


@contextmanager
def _time_limit(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in the main thread when the body takes longer."""

    def stop(number: int, frame: Any) -> None:
        raise TimeoutError(f"expected torch.compile to be done in {seconds} s, found it still at work")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def without_pasting() -> Iterator[None]:
    """Have mmdet's mask head return each detection's probabilities, (n, 28, 28), instead of pasted masks."""

    def probabilities(
        self: FCNMaskHead, mask_preds: torch.Tensor, bboxes: torch.Tensor, labels: torch.Tensor, **_: Any
    ) -> torch.Tensor:
        channels = torch.zeros_like(labels) if self.class_agnostic else labels
        return mask_preds.sigmoid()[torch.arange(len(labels), device=labels.device), channels]

    with mock.patch.object(FCNMaskHead, "_predict_by_feat_single", probabilities):
        yield
