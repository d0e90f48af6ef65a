"""A float model and images -> a model with Q/DQ pairs: the command ``python -m export.quantize`` as a function."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Optional, Union

import numpy as np
import onnx
import onnxruntime

from export.arguments import SUFFIX, check_output
from export.quantization.accuracy import (
    REASON,
    AccuracyRequest,
    Trial,
    ap_dataset,
    fewest_left_out,
    shared_images,
)
from export.quantization.cache import load_cache, save_cache
from export.quantization.calibration import Calibration, CalibrationRequest, calibrate
from export.quantization.choices import ACTIVATIONS, DEFAULT_METHOD
from export.quantization.equalization import MOST_IMAGES, Seam, equalized, find_seams, measure_channels
from export.quantization.layers import ASKED, Layers, find_layers
from export.quantization.placement import Placement, Range, place, quantized_model
from export.quantization.sensitivity import LayerFigures, rank_layers, with_agreement
from runtime.backends import load_backend
from runtime.comparison.detections import Progress, no_progress
from runtime.contract import EXPORT_COMMAND, GRAFT_COMMAND, NOT_OURS_REMEDY, check_takes_floats
from runtime.files import refuse_inputs, write_whole
from runtime.graphs.load import OnnxFile, metadata_of, save_model
from runtime.graphs.operators import DENSE
from runtime.messages import listed
from runtime.metadata import ModelMetadata
from runtime.precision.choice import chosen_plan
from runtime.precision.plan import PrecisionPlan, plan_path
from runtime.precision.prepare import check_float32
from runtime.quantization import QDQ_OPS, Quantization, is_quantized, quantization_of, set_quantization

# Of the calibration images, those that layers are ranked on.
RANKING_IMAGES = 4
PathLike = Union[str, Path]


@dataclass(frozen=True)
class QuantizeOptions:
    """How a model is quantized.

    Attributes:
        activations: ``int8`` for TensorRT and OpenVINO, ``uint8`` for onnxruntime on a CPU; see
            ``export.quantization.placement``.
        reduce_range: weights of 7 bits, for x86 processors without VNNI.
        equalize: between layers, make channels of one size first; see ``export.quantization.equalization``.
        leave_out: names of layers that stay float.
        plan: path of a precision plan, whose nodes stay float; None takes the one beside the model, or the default.
        cache: path of ranges: read where it is there, else written.
        num_worst: of the layers that lose most, how many are tried alone; 0 ranks them by their outputs only, None does
            not rank them.
        ap_drop: most that box and mask AP may lose, of 1; the worst layers are left out until that is so.
        dataset: for ``ap_drop``: annotations in COCO's format beside their images, or the folder of both.
        limit: only the first so many images of it.
    """

    activations: str = "int8"
    reduce_range: bool = False
    equalize: bool = True
    leave_out: Sequence[str] = ()
    plan: Optional[Path] = None
    cache: Optional[Path] = None
    num_worst: Optional[int] = None
    ap_drop: Optional[float] = None
    dataset: Optional[Path] = None
    limit: Optional[int] = None

    def __post_init__(self) -> None:
        if self.activations not in ACTIVATIONS:
            raise ValueError(
                f"activations: expected one of {', '.join(ACTIVATIONS)}, found {self.activations!r}"
            )
        if (self.ap_drop is None) != (self.dataset is None):
            given, missing = ("ap_drop", "dataset") if self.dataset is None else ("dataset", "ap_drop")
            raise ValueError(f"ap_drop, dataset: expected both or neither, found only {given}; add {missing}")


@dataclass(frozen=True)
class QuantizeResult:
    """What was made.

    Attributes:
        path: of the model.
        num_bytes: of its file.
        record: what the file says of it.
        num_nodes: convolutions and fully connected layers that are quantized, every node counted.
        num_detections: in the images that ranges were found on; 0 for a model that was quantized already.
        ranking: the layers' figures, the worst first; empty where they were not asked for.
        trials: of ``ap_drop``, in order.
        from_cache: whether ranges were read.
    """

    path: Path
    num_bytes: int
    record: Quantization
    num_nodes: int
    num_detections: int = 0
    ranking: tuple[LayerFigures, ...] = ()
    trials: tuple[Trial, ...] = ()
    from_cache: bool = False


@dataclass(frozen=True, eq=False)
class _Source:
    """A model of ours, and the plan of what stays float in it."""

    path: Path
    sha256: str
    model: onnx.ModelProto
    metadata: ModelMetadata
    plan: PrecisionPlan = field(default_factory=lambda: PrecisionPlan(()))


def quantize_model(
    model: PathLike,
    output: PathLike,
    images: Sequence[PathLike],
    *,
    options: Optional[QuantizeOptions] = None,
    method: str = DEFAULT_METHOD,
    percentile: Optional[float] = None,
    batch: int = 1,
    threads: Optional[int] = None,
    progress: Progress = no_progress,
) -> QuantizeResult:
    """Quantize an exported model to INT8, with explicit Q/DQ pairs, calibrated on images.

    Args:
        model: path of the float32 .onnx.
        output: path of the new one.
        images: files to calibrate on; they need no annotations, and should not be those that it is judged by.
        options: what is quantized, and what it may cost; None: the defaults.
        method: ``average``, ``minmax``, ``entropy`` or ``percentile``.
        percentile: of absolute values that stay inside the range; None: 99.99.
        batch: images at once.
        threads: CPU threads of onnxruntime; None lets it choose.
        progress: shows how far it is.

    Raises:
        FileNotFoundError: no such model or image.
        OSError: a file cannot be read or written.
        ValueError: not a model of ours, one that is quantized already, images that cannot be used, a cache of another
            model, an output that is an input, or no model within ``options.ap_drop``.
        RuntimeError: onnx, onnxruntime or pycocotools is missing, or onnxruntime failed.
    """
    path, output, options = Path(model), Path(output), options or QuantizeOptions()
    request = CalibrationRequest(
        tuple(map(Path, images)),
        method,
        CalibrationRequest.percentile if percentile is None else percentile,
        batch,
        threads,
        progress,
    )
    _check_output(output, [path, *request.images], options)
    source = _open(path, options.plan)
    every_layer = find_layers(source.model, source.plan)
    layers = every_layer.without(options.leave_out, ASKED)
    seams = _seams(source, every_layer, options) if options.equalize else ()
    job = _Job(source, layers, seams, options, request)
    layers, trials = job.kept()
    made = job.build(layers)
    record = job.record(layers)
    set_quantization(made, record)
    _write(made, output, path, options.plan)
    return QuantizeResult(
        path=output,
        num_bytes=output.stat().st_size,
        record=record,
        num_nodes=len(layers.nodes),
        num_detections=job.calibration.num_detections,
        ranking=job.ranking,
        trials=trials,
        from_cache=job.from_cache,
    )


def accept_quantized(model: PathLike, output: PathLike) -> QuantizeResult:
    """Write down that a model with Q/DQ pairs of another tool, or of training, is quantized; nothing else changes.

    Raises:
        FileNotFoundError: no such model.
        ValueError: not a model of ours, or no quantized one.
    """
    path, output = Path(model), Path(output)
    _check_output(output, [path], QuantizeOptions())
    source = _open(path, None, quantized=True)
    weights = _quantized_weights(source.model)
    record = quantization_of(source.model) or Quantization(
        activations="as is", method="as is", num_layers=len(set(weights)), source_sha256=source.sha256
    )
    set_quantization(source.model, record)
    _write(source.model, output, path, None)
    return QuantizeResult(output, output.stat().st_size, record, len(weights))


def _quantized_weights(model: onnx.ModelProto) -> list[str]:
    """Return, for each layer that reads quantized activations and a quantized weight, the weight."""
    makers = {name: node for node in model.graph.node if node.op_type in QDQ_OPS for name in node.output}
    found = []
    for node in model.graph.node:
        if node.op_type in DENSE and all(name in makers for name in node.input[:2]):
            weight = node.input[1]
            while weight in makers:
                weight = makers[weight].input[0]
            found.append(weight)
    return found


def _seams(source: _Source, layers: Layers, options: QuantizeOptions) -> tuple[Seam, ...]:
    """Return where channels are equalized; the same whatever is left out."""
    if options.activations == "int8":
        return find_seams(source.model, layers)
    return find_seams(
        source.model, layers, place(source.model, layers, source.plan, options.activations).tensors
    )


class _Job:
    """A calibrated model, of which variants are built.

    Attributes:
        calibration: of all layers.
        from_cache: whether it was read.
        ranking: the layers, the worst first; empty where nobody needs it.
    """

    def __init__(
        self,
        source: _Source,
        layers: Layers,
        seams: Sequence[Seam],
        options: QuantizeOptions,
        request: CalibrationRequest,
    ) -> None:
        self._source, self._layers, self._options, self._request = source, layers, options, request
        self._seams = seams
        placement = self._placement(layers)
        self.from_cache = options.cache is not None and options.cache.is_file()
        self.calibration = self._calibrated(placement)
        self.ranking = self._ranked()

    def _placement(self, layers: Layers, ranges: Optional[Mapping[str, Range]] = None) -> Placement:
        return place(self._source.model, layers, self._source.plan, self._options.activations, ranges)

    def _calibrated(self, placement: Placement) -> Calibration:
        source, cache, request = self._source, self._options.cache, self._request
        if cache is not None and self.from_cache:
            found = load_cache(cache, placement, request, source.sha256, [s.name for s in self._seams])
            self._equalize(found.channels)
            return found
        channels: dict[str, np.ndarray] = {}
        if self._seams:
            few = replace(request, images=request.images[:MOST_IMAGES])
            channels = measure_channels(source.model, source.metadata, self._seams, few)
        self._equalize(channels)
        found = calibrate(self._source.model, source.metadata, placement, request, source.sha256)
        found = replace(found, channels={weight: tuple(sizes.tolist()) for weight, sizes in channels.items()})
        if cache is not None:
            save_cache(cache, found)
        return found

    def _equalize(self, channels: Mapping[str, Sequence[float]]) -> None:
        sizes = {weight: np.asarray(found, np.float32) for weight, found in channels.items()}
        self._source = replace(self._source, model=equalized(self._source.model, self._seams, sizes))

    def build(self, layers: Layers) -> onnx.ModelProto:
        """Return the model with these layers quantized."""
        return quantized_model(
            self._source.model,
            layers,
            self._placement(layers, self.calibration.ranges),
            self.calibration.ranges,
            reduce_range=self._options.reduce_range,
        )

    def _ranked(self) -> tuple[LayerFigures, ...]:
        options, request, source = self._options, self._request, self._source
        if options.num_worst is None and options.ap_drop is None:
            return ()
        images = request.images[:RANKING_IMAGES]
        run = {"threads": request.threads, "progress": request.progress}
        whole = self.build(self._layers)
        figures = rank_layers(source.model, whole, self._layers, source.metadata, images, **run)
        return tuple(with_agreement(source.path, figures, self._alone, images, options.num_worst or 0, **run))

    def _alone(self, figure: LayerFigures) -> onnx.ModelProto:
        others = [layer.name for layer in self._layers.quantized if layer.name != figure.layer]
        return self.build(self._layers.without(others, ASKED))

    def kept(self) -> tuple[Layers, tuple[Trial, ...]]:
        """Return the layers that are quantized in the end, and what was tried for the AP."""
        options = self._options
        if options.ap_drop is None or options.dataset is None:
            return self._layers, ()
        dataset = ap_dataset(options.dataset, options.limit)
        shared = shared_images(dataset, self._request.images)
        if shared:
            raise ValueError(
                f"--dataset {options.dataset}: expected images that are not calibration images, found "
                f"{listed([str(path) for path in shared], 3)} in both; give others to --images"
            )
        accuracy = AccuracyRequest(
            dataset, options.ap_drop, self._request.batch, self._request.threads, self._request.progress
        )
        count, trials = fewest_left_out(
            self._source.path, len(self._layers.quantized), lambda n: self.build(self._without(n)), accuracy
        )
        return self._without(count), trials

    def _without(self, count: int) -> Layers:
        return self._layers.without([figure.layer for figure in self.ranking[:count]], REASON)

    def record(self, layers: Layers) -> Quantization:
        """Return what the file says of its quantization."""
        calibration = self.calibration
        return Quantization(
            activations=self._options.activations,
            method=calibration.method,
            num_layers=len(layers.quantized),
            left_out=dict(layers.left_out),
            num_images=calibration.num_images,
            images_sha256=calibration.images_sha256,
            source_sha256=self._source.sha256,
            reduce_range=self._options.reduce_range,
            equalized=len(self._seams),
            percentile=calibration.percentile,
            versions={"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__},
        )


def _open(path: Path, plan: Optional[Path], *, quantized: bool = False) -> _Source:
    """Read a model of ours, which onnxruntime loads and whose inputs and outputs are the contract's."""
    file = OnnxFile(path)
    sha256, model = file.sha256, file.model
    metadata = metadata_of(model, path)
    if metadata is None:
        raise ValueError(
            f"model {path}: expected one that `{EXPORT_COMMAND}` or `{GRAFT_COMMAND}` wrote, found none of its "
            f"metadata; {NOT_OURS_REMEDY}"
        )
    check_takes_floats(path, metadata, "calibration")
    if is_quantized(model) != quantized:
        if quantized:
            raise ValueError(
                f"model {path}: expected Q/DQ operators, found none; leave --as-is out and give --images"
            )
        raise ValueError(
            f"model {path}: expected a float model, found one that is quantized already; runtime.* takes it as it is, "
            "and --as-is writes down that it is quantized"
        )
    load_backend(path, "onnxruntime").close()
    if quantized:
        return _Source(path, sha256, model, metadata)
    check_float32(model)
    return _Source(path, sha256, model, metadata, chosen_plan(path, model, plan))


def _check_output(output: Path, inputs: Sequence[Path], options: QuantizeOptions) -> None:
    check_output(output)
    read = [path for path in (options.plan, options.dataset) if path is not None]
    refuse_inputs(output, [*inputs, *read, *(path for path in (options.cache,) if path is not None)])
    if options.cache is not None:
        refuse_inputs(options.cache, [*inputs, *read])


def _write(model: onnx.ModelProto, output: Path, source: Path, plan: Optional[Path]) -> None:
    """Write the model, and the plan that is beside the source beside it: nodes have kept their names."""
    onnx.checker.check_model(model, full_check=True)
    save_model(model, output)
    chosen = plan or plan_path(source)
    if chosen.is_file() and chosen.resolve() != plan_path(output).resolve():
        write_whole(plan_path(output), chosen.read_bytes())


def default_output(model: Path, activations: str) -> Path:
    """Return where a quantized model goes: ``model.onnx`` -> ``model.int8.onnx``."""
    return model.with_suffix(f".{activations}{SUFFIX}")
