"""Which layers lose most by INT8.

First a cheap figure for each layer alone, in one run of an image: beside the layer stands its quantized copy, which
reads the float model's activations, and the signal-to-noise ratio of its output is taken inside the graph. Then, for
the worst, what it does to the detections when no other layer is quantized.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import numpy as np
import onnx

from export.quantization.layers import Layer, Layers
from runtime.backends import load_backend
from runtime.comparison.detections import Progress, no_progress
from runtime.comparison.sources import load_batch
from runtime.graphs.session import open_session
from runtime.metadata import ModelMetadata
from runtime.plan_search.agreement import Agreement, AgreementTolerance, Judge
from runtime.precision.prepare import replace
from runtime.quantization import QDQ_OPS

# Of a detection of the quantized model beside the float model's, to agree with it.
TOLERANCE = AgreementTolerance(box_px=2.0, score=0.05, mask=0.05)


@dataclass(frozen=True)
class LayerFigures:
    """What INT8 does to one layer.

    Attributes:
        layer: its name.
        op_type: of its nodes.
        num_nodes: that read its weight.
        snr_db: signal-to-noise ratio of its output where it alone is quantized, over all nodes and images; infinite
            without noise.
        agreement: of the model's detections, where it alone is quantized; None for layers that were not tried.
    """

    layer: str
    op_type: str
    num_nodes: int
    snr_db: float
    agreement: Optional[Agreement] = None


def rank_layers(
    model: onnx.ModelProto,
    quantized: onnx.ModelProto,
    layers: Layers,
    metadata: ModelMetadata,
    images: Sequence[Path],
    *,
    threads: Optional[int] = None,
    progress: Progress = no_progress,
) -> list[LayerFigures]:
    """Return the figures of each quantized layer, the worst first.

    Args:
        model: float32.
        quantized: the same with Q/DQ pairs.
        layers: of both.
        metadata: the model's facts.
        images: files, each a batch of its own.
        threads: CPU threads of onnxruntime; None lets it choose.
        progress: shows how far it is.

    Raises:
        OSError, ValueError: an image cannot be read or does not fit into the model.
        RuntimeError: onnxruntime failed.
    """
    measuring = _measuring_model(model, quantized, layers)
    squares: dict[str, float] = dict.fromkeys((value.name for value in measuring.graph.output), 0.0)
    with open_session(measuring, threads=threads, in_file_order=True) as session:
        for path in progress(images, len(images), "layers"):
            batch = load_batch([path], metadata)
            outputs = session.run({"images": batch.images, "image_sizes": batch.image_sizes})
            for name, value in outputs.items():
                squares[name] += float(np.square(value, dtype=np.float64))
    figures = (
        LayerFigures(layer.name, layer.op_type, len(layer.nodes), _snr_db(layer, squares))
        for layer in layers.quantized
    )
    return sorted(figures, key=lambda figure: figure.snr_db)


def with_agreement(
    path: Path,
    figures: Sequence[LayerFigures],
    build: Callable[[LayerFigures], onnx.ModelProto],
    images: Sequence[Path],
    num_worst: int,
    *,
    threads: Optional[int] = None,
    progress: Progress = no_progress,
) -> list[LayerFigures]:
    """Return the figures, the first few with what the layer alone does to the detections.

    Args:
        path: of the float model.
        figures: the worst first.
        build: returns the model in which only that layer is quantized.
        images: files, each a batch of its own; all of them are held in memory.
        num_worst: how many layers to try.
        threads: CPU threads of onnxruntime; None lets it choose.
        progress: shows how far it is.

    Raises:
        OSError, ValueError, RuntimeError: see ``runtime.plan_search.agreement.Judge``.
    """
    if not num_worst:
        return list(figures)
    backend = load_backend(path, "onnxruntime", threads=threads)
    try:
        judge = Judge(backend, images, TOLERANCE, threads=threads)
    finally:
        backend.close()
    tried = [
        LayerFigures(**{**vars(figure), "agreement": judge(build(figure))})
        for figure in progress(figures[:num_worst], num_worst, "detections")
    ]
    return [*tried, *figures[num_worst:]]


def _snr_db(layer: Layer, squares: Mapping[str, float]) -> float:
    signal = sum(squares[f"{node}|signal"] for node in layer.nodes)
    noise = sum(squares[f"{node}|noise"] for node in layer.nodes)
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def _measuring_model(model: onnx.ModelProto, quantized: onnx.ModelProto, layers: Layers) -> onnx.ModelProto:
    """Return the float model, with each layer's quantized copy and two norms right behind it."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    twins = {node.name: node for node in quantized.graph.node if node.name in layers.nodes}
    makers = {node.output[0]: node for node in quantized.graph.node if node.op_type in QDQ_OPS}
    written: set[str] = set()
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        nodes.append(node)
        if node.name in twins:
            twin = twins[node.name]
            nodes += _pairs(twin.input[:2], makers, written)
            nodes += _compared(node, twin)
    replace(copy.graph.node, nodes)
    known = {tensor.name for tensor in copy.graph.initializer}
    copy.graph.initializer.extend(t for t in quantized.graph.initializer if t.name not in known)
    make = onnx.helper.make_tensor_value_info
    outputs = [f"{node}|{kind}" for node in twins for kind in ("signal", "noise")]
    replace(copy.graph.output, [make(name, onnx.TensorProto.FLOAT, []) for name in outputs])
    return copy


def _pairs(
    tensors: Iterable[str], makers: Mapping[str, onnx.NodeProto], written: set[str]
) -> list[onnx.NodeProto]:
    """Return the pairs behind tensors that are not written yet, Q before DQ; they read the float model's tensors."""
    found = []
    for tensor in tensors:
        node = makers.get(tensor)
        if node is not None and tensor not in written:
            written.add(tensor)
            found += [*_pairs(node.input[:1], makers, written), node]
    return found


def _compared(node: onnx.NodeProto, twin: onnx.NodeProto) -> list[onnx.NodeProto]:
    make, name = onnx.helper.make_node, node.name
    copy = onnx.NodeProto()
    copy.CopyFrom(node)  # with its float bias: INT32 has no error to speak of
    copy.input[:2] = twin.input[:2]
    copy.name, copy.output[0] = f"{name}|int8", f"{name}|output"
    return [
        copy,
        make("Sub", [f"{name}|output", node.output[0]], [f"{name}|difference"]),
        make("ReduceL2", [node.output[0]], [f"{name}|signal"], keepdims=0),
        make("ReduceL2", [f"{name}|difference"], [f"{name}|noise"], keepdims=0),
    ]
