"""Channels of one size before they share a scale.

An activation has one scale for all its channels, and small channels get few of its 255 steps. Between two layers, with
nothing but ReLU in between, a channel can be any number of times larger, if the weights behind it are as many times
smaller: the network computes the same (M. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias
Correction", ICCV 2019; the balance of activations and weights is that of G. Xiao et al., "SmoothQuant", ICML 2023). The
numbers here are powers of two, so that it computes the same to the last bit.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np
import onnx

from export.quantization.calibration import CalibrationRequest, run_images
from export.quantization.layers import Layer, Layers
from runtime.graphs.operators import STANDARD_DOMAINS
from runtime.graphs.view import Graph
from runtime.metadata import ModelMetadata
from runtime.precision.prepare import replace

# Of the calibration images, those that channels are measured on.
MOST_IMAGES = 8
_LARGEST_EXPONENT = 6
# Of positive factors: f(a x) = a f(x).
_HOMOGENEOUS = frozenset({"Relu", "LeakyRelu"})
_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm"})
_SUFFIX, _AXES = "|channels", "|axes of "


@dataclass(frozen=True)
class Seam:
    """Activations whose channels may be scaled: what one layer makes, and other layers alone read.

    Attributes:
        maker: the layer.
        readers: the layers.
        tensors: what is read, one for each node of the maker.
    """

    maker: Layer
    readers: tuple[Layer, ...]
    tensors: tuple[str, ...]


def find_seams(model: onnx.ModelProto, layers: Layers) -> tuple[Seam, ...]:
    """Return where channels may be scaled, in the graph's order."""
    graph = Graph(model)
    outputs = {output.name for output in model.graph.output}
    indices = {node.name: i for i, node in enumerate(graph.nodes)}
    by_node = {node: layer for layer in layers.quantized for node in layer.nodes}
    seams = []
    for layer in layers.quantized:
        ends = [_end(graph, indices[name], outputs) for name in layer.nodes]
        tensors = tuple(tensor for tensor in ends if tensor is not None)
        read_by = [graph.nodes[i].name for tensor in tensors for i in graph.readers.get(tensor, ())]
        if len(tensors) < len(ends) or not read_by or not all(name in by_node for name in read_by):
            continue
        readers = tuple({by_node[name].weight: by_node[name] for name in read_by}.values())
        # Every node that has such a weight reads the channels, and nothing else has it.
        of_readers = {name for reader in readers for name in reader.nodes}
        is_whole = of_readers == set(read_by) and all(
            graph.nodes[indices[name]].input[0] in tensors for name in of_readers
        )
        alone = all(_is_alone(graph, each, indices) for each in (layer, *readers))
        fits = _can_make(graph, layer, indices) and all(_can_read(model, graph, r, indices) for r in readers)
        if is_whole and alone and layer not in readers and fits:
            seams.append(Seam(layer, readers, tensors))
    return tuple(seams)


def _end(graph: Graph, index: int, outputs: set[str]) -> Optional[str]:
    """Return what is read of a layer behind its ReLU; None where something else is in between."""
    tensor = graph.nodes[index].output[0]
    while tensor not in outputs:
        after = graph.readers.get(tensor, [])
        if len(after) != 1 or graph.nodes[after[0]].op_type not in _HOMOGENEOUS:
            return tensor
        tensor = graph.nodes[after[0]].output[0]
    return None


def _is_alone(graph: Graph, layer: Layer, indices: Mapping[str, int]) -> bool:
    """Return whether nothing but its nodes reads a layer's weight, and its biases."""
    nodes = {indices[name] for name in layer.nodes}
    constants = {name for i in nodes for name in graph.nodes[i].input[1:] if name}
    return all(set(graph.readers.get(name, ())) <= nodes for name in constants)


def _attributes(node: onnx.NodeProto) -> dict:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def _can_make(graph: Graph, layer: Layer, indices: Mapping[str, int]) -> bool:
    nodes = [graph.nodes[indices[name]] for name in layer.nodes]
    if layer.op_type not in _LAYERS:
        return False
    biases = [node.input[2] for node in nodes if len(node.input) > 2 and node.input[2]]
    # Of one number for each channel.
    return all(bias in graph.vectors for bias in biases) and _is_plain(nodes)


def _is_plain(nodes: Sequence[onnx.NodeProto]) -> bool:
    """Return whether products are not scaled besides."""
    found = [_attributes(node) for node in nodes]
    return all(
        a.get("alpha", 1.0) == 1.0 and a.get("beta", 1.0) == 1.0 and not a.get("transA", 0) for a in found
    )


def _can_read(model: onnx.ModelProto, graph: Graph, layer: Layer, indices: Mapping[str, int]) -> bool:
    nodes = [graph.nodes[indices[name]] for name in layer.nodes]
    if layer.op_type not in _LAYERS or not _is_plain(nodes):
        return False
    groups = {_attributes(node).get("group", 1) for node in nodes}
    if groups == {1}:
        return True
    shape = next(tuple(t.dims) for t in model.graph.initializer if t.name == layer.weight)
    # A filter for each channel.
    return layer.op_type == "Conv" and groups == {shape[0]} and shape[1] == 1


def measure_channels(
    model: onnx.ModelProto, metadata: ModelMetadata, seams: Sequence[Seam], request: CalibrationRequest
) -> dict[str, np.ndarray]:
    """Run images through a float model; return the channels' sizes at each seam, by its maker's weight.

    Returns:
        (C,) float32 each: the largest absolute value, over all nodes of the maker, its mean over the batches.

    Raises:
        OSError, ValueError, RuntimeError: see ``export.quantization.calibration.calibrate``.
    """
    ranks = {t: _rank(model, seam.maker) for seam in seams for t in seam.tensors}
    measuring = onnx.ModelProto()
    measuring.CopyFrom(model)
    nodes: list[onnx.NodeProto] = []
    opset = max(o.version for o in model.opset_import if o.domain in STANDARD_DOMAINS)
    for node in model.graph.node:
        nodes += [node, *(n for t in node.output if t in ranks for n in _reduced(t, ranks[t], opset))]
    replace(measuring.graph.node, nodes)
    measuring.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.array(_axes(rank), np.int64), f"{_AXES}{rank}")
        for rank in set(ranks.values())
    )
    make = onnx.helper.make_tensor_value_info
    replace(measuring.graph.output, [make(f"{t}{_SUFFIX}", onnx.TensorProto.FLOAT, None) for t in ranks])
    sums: dict[str, np.ndarray] = {}
    count = 0
    for outputs in run_images(measuring, metadata, request):
        count += 1
        for seam in seams:
            found = np.max([outputs[f"{tensor}{_SUFFIX}"] for tensor in seam.tensors], axis=0)
            sums[seam.maker.weight] = sums.get(seam.maker.weight, np.float32(0)) + found
    return {weight: (total / count).astype(np.float32) for weight, total in sums.items()}


def _rank(model: onnx.ModelProto, layer: Layer) -> int:
    if layer.op_type == "Gemm":
        return 2
    return next(len(t.dims) for t in model.graph.initializer if t.name == layer.weight)


def _axes(rank: int) -> list[int]:
    return [0, *range(2, rank)]


def _reduced(tensor: str, rank: int, opset: int) -> list[onnx.NodeProto]:
    make = onnx.helper.make_node
    absolute = f"{tensor}|absolute"
    # An input from opset 18 on.
    read, axes = ([absolute], {"axes": _axes(rank)}) if opset < 18 else ([absolute, f"{_AXES}{rank}"], {})
    return [
        make("Abs", [tensor], [absolute]),
        make("ReduceMax", read, [f"{tensor}{_SUFFIX}"], keepdims=0, **axes),
    ]


def equalized(
    model: onnx.ModelProto, seams: Sequence[Seam], sizes: Mapping[str, np.ndarray]
) -> onnx.ModelProto:
    """Return the model with the channels at the seams scaled; it computes what it did, normal floats to the last bit.

    A channel is divided by the square root of its size over that of the weights that read it, both near their geometric
    mean then, rounded to a power of two.

    Args:
        model: float32.
        seams: of it.
        sizes: see ``measure_channels``.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    tensors = {tensor.name: tensor for tensor in copy.graph.initializer}
    nodes = {node.name: node for node in copy.graph.node}
    for seam in seams:
        read = [onnx.numpy_helper.to_array(tensors[layer.weight]) for layer in seam.readers]
        axes = [_input_axis(layer, nodes) for layer in seam.readers]
        weights = np.max([_by_channel(array, axis) for array, axis in zip(read, axes)], axis=0)
        factors = _factors(sizes[seam.maker.weight], weights)
        for layer, array, axis in zip(seam.readers, read, axes):
            _write(tensors[layer.weight], array * _along(factors, axis, array.ndim))
        made = onnx.numpy_helper.to_array(tensors[seam.maker.weight])
        axis = _output_axis(seam.maker, nodes)
        _write(tensors[seam.maker.weight], made / _along(factors, axis, made.ndim))
        for bias in _biases(seam.maker, nodes):
            _write(tensors[bias], onnx.numpy_helper.to_array(tensors[bias]) / factors)
    return copy


def _biases(layer: Layer, nodes: Mapping[str, onnx.NodeProto]) -> Iterator[str]:
    found = (
        nodes[name].input[2] for name in layer.nodes if len(nodes[name].input) > 2 and nodes[name].input[2]
    )
    yield from dict.fromkeys(found)


def _input_axis(layer: Layer, nodes: Mapping[str, onnx.NodeProto]) -> int:
    attributes = _attributes(nodes[layer.nodes[0]])
    if layer.op_type == "Gemm":
        return 1 if attributes.get("transB", 0) else 0
    # A filter for each channel has one input, its own.
    return 0 if layer.op_type == "ConvTranspose" or attributes.get("group", 1) > 1 else 1


def _output_axis(layer: Layer, nodes: Mapping[str, onnx.NodeProto]) -> int:
    if layer.op_type == "Gemm":
        return 0 if _attributes(nodes[layer.nodes[0]]).get("transB", 0) else 1
    return 1 if layer.op_type == "ConvTranspose" else 0


def _by_channel(weight: np.ndarray, axis: int) -> np.ndarray:
    return np.abs(weight).max(axis=tuple(i for i in range(weight.ndim) if i != axis))


def _along(factors: np.ndarray, axis: int, rank: int) -> np.ndarray:
    return factors.reshape([-1 if i == axis else 1 for i in range(rank)])


def _factors(sizes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return (C,) powers of two that channels are divided by; 1 of what is always 0 or never read."""
    is_used = (sizes > 0) & (weights > 0) & np.isfinite(sizes) & np.isfinite(weights)
    factors = np.ones(len(sizes), np.float32)
    if is_used.any():
        exponents = (np.log2(sizes[is_used]) - np.log2(weights[is_used])) / 2
        rounded = np.rint(exponents - exponents.mean()).clip(-_LARGEST_EXPONENT, _LARGEST_EXPONENT)
        factors[is_used] = np.exp2(rounded)
    return factors


def _write(tensor: onnx.TensorProto, array: np.ndarray) -> None:
    tensor.CopyFrom(onnx.numpy_helper.from_array(array.astype(np.float32), tensor.name))
