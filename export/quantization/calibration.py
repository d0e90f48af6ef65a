"""The ranges of a model's activations over images, in bounded memory.

Each tensor is reduced inside the graph, right behind the node that makes it: ``average`` and ``minmax`` to two numbers,
``entropy`` and ``percentile`` to every n-th value, of which they keep histograms.
"""

import contextlib
import hashlib
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

import numpy as np
import onnx
from onnxruntime.quantization.calibrate import HistogramCollector

from export.quantization.choices import DEFAULT_METHOD, DEFAULT_PERCENTILE, METHODS
from export.quantization.placement import Placement, Range
from runtime.comparison.detections import Progress, no_progress
from runtime.comparison.sources import batches, load_batch
from runtime.files import sha256_of
from runtime.graphs.session import open_session
from runtime.metadata import ModelMetadata
from runtime.precision.prepare import replace

_NUM_BINS = {"entropy": 128, "percentile": 2048}
_NUM_QUANTIZED_BINS = 128
_COUNT = "num_dets"
# Of a tensor of one batch, about; over 24 images, 99.99 % leaves 600 outside.
_NUM_SAMPLES = 2**18


@dataclass(frozen=True)
class Calibration:
    """What images say of a model's activations.

    Attributes:
        source_sha256: of the model's file.
        activations: ``int8`` or ``uint8``: which tensors, and whether ranges are symmetric.
        method: ``average``, ``minmax``, ``entropy`` or ``percentile``.
        percentile: of ``percentile``, else None.
        batch: images at once, which share their padding.
        num_images: how many.
        images_sha256: of their bytes, in order.
        num_detections: found in them.
        ranges: tensor -> least and greatest value.
        channels: weight -> sizes of the channels that it makes, before they were equalized (where several layers make
            them, the first one's weight); empty where they were not.
    """

    source_sha256: str
    activations: str
    method: str
    percentile: Optional[float]
    batch: int
    num_images: int
    images_sha256: str
    num_detections: int
    ranges: Mapping[str, Range]
    channels: Mapping[str, Sequence[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class CalibrationRequest:
    """How to calibrate.

    Attributes:
        images: files.
        method, percentile, batch: see ``Calibration``.
        threads: CPU threads of onnxruntime; None lets it choose.
        progress: shows how far it is.
    """

    images: Sequence[Path]
    method: str = DEFAULT_METHOD
    percentile: float = DEFAULT_PERCENTILE
    batch: int = 1
    threads: Optional[int] = None
    progress: Progress = no_progress

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method: expected one of {', '.join(METHODS)}, found {self.method!r}")
        if not 0 < self.percentile <= 100:
            raise ValueError(f"percentile: expected more than 0 and at most 100, found {self.percentile:g}")
        if not self.images:
            raise ValueError(
                "calibration images: expected one or more, found none; give images of what the model will see"
            )


def images_sha256(images: Iterable[Path]) -> str:
    """Return the SHA-256 of files' contents, in their order.

    Raises:
        OSError: one cannot be read.
    """
    digest = hashlib.sha256()
    for path in images:
        digest.update(sha256_of(path).encode())
    return digest.hexdigest()


def calibrate(
    model: onnx.ModelProto,
    metadata: ModelMetadata,
    placement: Placement,
    request: CalibrationRequest,
    source_sha256: str,
) -> Calibration:
    """Run images through a float model and return the ranges of the tensors of a placement.

    Raises:
        OSError, ValueError: an image cannot be read or does not fit into the model, nothing is detected in any of them,
            or an activation is not finite.
        RuntimeError: onnxruntime failed.
    """
    by_extremes = {"average": _MeanExtremes, "minmax": _Extremes}.get(request.method)
    collector = by_extremes(placement.tensors) if by_extremes else _Histograms(placement, request)
    measuring = _measuring_model(model, placement.tensors, _extremes if by_extremes else _samples)
    num_detections = 0
    for outputs in run_images(measuring, metadata, request):
        num_detections += int(outputs.pop(_COUNT).sum())
        collector.add(outputs)
    if not num_detections:
        raise ValueError(
            f"calibration images: expected objects that the model finds, found none in {len(request.images)} images; "
            "its heads would be calibrated on nothing: give images of what it was trained for"
        )
    return Calibration(
        source_sha256=source_sha256,
        activations=placement.activations,
        method=request.method,
        percentile=request.percentile if request.method == "percentile" else None,
        batch=request.batch,
        num_images=len(request.images),
        images_sha256=images_sha256(request.images),
        num_detections=num_detections,
        ranges=_checked(collector.ranges()),
    )


def run_images(
    model: onnx.ModelProto, metadata: ModelMetadata, request: CalibrationRequest
) -> Iterator[dict[str, np.ndarray]]:
    """Yield a model's outputs for each batch of the images; the progress is in batches.

    Raises:
        OSError, ValueError: an image cannot be read or does not fit into the model.
        RuntimeError: onnxruntime failed.
    """
    groups = list(batches(request.images, request.batch))
    with open_session(model, threads=request.threads, in_file_order=True) as session:
        for paths in request.progress(groups, len(groups), "calibrating"):
            batch = load_batch(paths, metadata)
            yield session.run({"images": batch.images, "image_sizes": batch.image_sizes})


class _Extremes:
    """The least and the greatest value of each tensor."""

    def __init__(self, tensors: Sequence[str]) -> None:
        self._ranges = dict.fromkeys(tensors, (math.inf, -math.inf))

    def add(self, outputs: Mapping[str, np.ndarray]) -> None:
        for tensor, (low, high) in self._ranges.items():
            found = float(outputs[f"{tensor}|min"]), float(outputs[f"{tensor}|max"])
            # np: a NaN stays one.
            self._ranges[tensor] = float(np.minimum(low, found[0])), float(np.maximum(high, found[1]))

    def ranges(self) -> dict[str, Range]:
        return self._ranges


class _MeanExtremes:
    """The mean, over the batches, of the least and of the greatest value of each tensor."""

    def __init__(self, tensors: Sequence[str]) -> None:
        self._sums = {tensor: np.zeros(2) for tensor in tensors}
        self._num_batches = 0

    def add(self, outputs: Mapping[str, np.ndarray]) -> None:
        self._num_batches += 1
        for tensor, total in self._sums.items():
            total += float(outputs[f"{tensor}|min"]), float(outputs[f"{tensor}|max"])

    def ranges(self) -> dict[str, Range]:
        return {tensor: tuple(total / self._num_batches) for tensor, total in self._sums.items()}


class _Histograms:
    """onnxruntime's histograms, and the ranges that lose least."""

    def __init__(self, placement: Placement, request: CalibrationRequest) -> None:
        self._collector = HistogramCollector(
            method=request.method,
            symmetric=placement.is_symmetric,
            num_bins=_NUM_BINS[request.method],
            num_quantized_bins=_NUM_QUANTIZED_BINS,
            percentile=request.percentile,
            scenario="same",
        )

    def add(self, outputs: dict[str, np.ndarray]) -> None:
        for tensor in list(outputs):
            name, value = tensor[: -len("|samples")], outputs.pop(tensor)
            _check_finite(name, bool(np.isfinite(value).all()))
            with contextlib.redirect_stdout(io.StringIO()):  # it says what it does, for each tensor
                self._collector.collect({name: value})

    def ranges(self) -> dict[str, Range]:
        with contextlib.redirect_stdout(io.StringIO()):
            found = self._collector.compute_collection_result()
        return {tensor: (float(values[0]), float(values[1])) for tensor, values in found.items()}


Reduction = Callable[[str], list[onnx.NodeProto]]


def _measuring_model(model: onnx.ModelProto, tensors: Sequence[str], reduction: Reduction) -> onnx.ModelProto:
    """Return the model whose outputs are what is left of each tensor, and how many detections there are."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    wanted = set(tensors)
    nodes = [n for value in copy.graph.input if value.name in wanted for n in reduction(value.name)]
    for node in model.graph.node:
        nodes += [node, *(n for tensor in node.output if tensor in wanted for n in reduction(tensor))]
    replace(copy.graph.node, nodes)
    count = [value for value in copy.graph.output if value.name == _COUNT]
    names = [name for node in nodes for name in node.output if name.endswith(_RESULTS)]
    make = onnx.helper.make_tensor_value_info
    replace(copy.graph.output, [*count, *(make(name, onnx.TensorProto.FLOAT, None) for name in names)])
    constants = {"|flat": -1, "|share": 2 * _NUM_SAMPLES, "|two": 2, "|one": 1, "|start": 0, "|end": 2**62}
    copy.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.array([value], np.int64), name) for name, value in constants.items()
    )
    return copy


_RESULTS = ("|min", "|max", "|samples")


def _extremes(tensor: str) -> list[onnx.NodeProto]:
    make = onnx.helper.make_node
    return [
        make(f"Reduce{kind}", [tensor], [f"{tensor}|{kind.lower()}"], keepdims=0) for kind in ("Min", "Max")
    ]


def _samples(tensor: str) -> list[onnx.NodeProto]:
    """Return what takes every n-th value; n is odd, so that it goes through all columns of an even width."""
    make = onnx.helper.make_node
    return [
        make("Reshape", [tensor, "|flat"], [f"{tensor}|values"]),
        make("Size", [tensor], [f"{tensor}|size"]),
        make("Div", [f"{tensor}|size", "|share"], [f"{tensor}|half"]),
        make("Mul", [f"{tensor}|half", "|two"], [f"{tensor}|even"]),
        make("Add", [f"{tensor}|even", "|one"], [f"{tensor}|step"]),
        make(
            "Slice", [f"{tensor}|values", "|start", "|end", "|start", f"{tensor}|step"], [f"{tensor}|samples"]
        ),
    ]


def _checked(ranges: Mapping[str, Range]) -> Mapping[str, Range]:
    for tensor, (low, high) in ranges.items():
        _check_finite(tensor, math.isfinite(low) and math.isfinite(high))
    return ranges


def _check_finite(tensor: str, is_finite: bool) -> None:
    if not is_finite:
        raise ValueError(
            f"calibration: expected finite activations, found NaN or infinity in {tensor}; is the model trained?"
        )
