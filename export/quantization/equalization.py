"""Channels of one size before they share a scale.

An activation has one scale for all its channels, and small channels get few of its 255 steps. Between layers, with
nothing but ReLU, additions, pooling and resizing in between, a channel can be any number of times larger, if the
weights that read it are as many times smaller: the network computes the same, but for the rounding of floats (M. Nagel
et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019; the balance of activations
and weights is that of G. Xiao et al., "SmoothQuant", ICML 2023).

What is added has one scale for each channel: so all blocks of a ResNet's stage are one such place, the shortcut's
convolution and what leaves the stage included, and all levels of an FPN. Nearly all of the noise of INT8 arises there,
since each addition rounds anew what the whole network behind it reads.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np
import onnx

from export.quantization.calibration import CalibrationRequest, run_images
from export.quantization.layers import Layer, Layers
from runtime.graphs.operators import SHAPE_OPS, STANDARD_DOMAINS
from runtime.graphs.view import Graph
from runtime.metadata import ModelMetadata
from runtime.precision.prepare import replace

# Of the calibration images, those that channels are measured on.
MOST_IMAGES = 8
_LARGEST_EXPONENT = 6
# Share of the activations in the factors. Weights have a scale for each output channel, and lose less than
# activations, which have one in all: at 1/2 both would lose alike if they had equally many. Of the features of an FPN
# on a Mask R-CNN R50, 0.75 leaves less noise than 0.6 and 1.
_BALANCE = 0.75
# Of positive factors, channel by channel: f(a x) = a f(x); how many inputs are features.
_HOMOGENEOUS = {
    "Relu": 1,
    "LeakyRelu": 1,
    "MaxPool": 1,
    "AveragePool": 1,
    "Resize": 1,
    "Add": 2,
}
_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm"})
_SUFFIX, _AXES = "|channels", "|axes of "


@dataclass(frozen=True)
class Seam:
    """Activations whose channels may be scaled together: what layers make, and other layers alone read.

    Attributes:
        makers: the layers that make them. Behind a residual connection there are several: what is added has one scale
            for each channel.
        readers: the layers that read them.
        tensors: what is quantized of it: what readers read, and with ``uint8`` what is added.
    """

    makers: tuple[Layer, ...]
    readers: tuple[Layer, ...]
    tensors: tuple[str, ...]

    @property
    def name(self) -> str:
        """The first maker's weight."""
        return self.makers[0].weight


def find_seams(model: onnx.ModelProto, layers: Layers, quantized: Collection[str] = ()) -> tuple[Seam, ...]:
    """Return where channels may be scaled, in the graph's order.

    Args:
        model: float32.
        layers: of it.
        quantized: tensors that are quantized though no layer reads them.
    """
    graph = Graph(model)
    outputs = {output.name for output in model.graph.output}
    indices = {node.name: i for i, node in enumerate(graph.nodes)}
    by_index = {indices[node]: layer for layer in layers.quantized for node in layer.nodes}
    ways = _Ways(graph, by_index, indices, quantized)
    seams: list[Seam] = []
    seen: set[str] = set()
    for layer in layers.quantized:
        start = graph.nodes[indices[layer.nodes[0]]].output[0]
        if start in seen:
            continue
        tensors = ways.connected(start)
        seen |= tensors
        seam = None if tensors & outputs else ways.seam(tensors)
        if seam is not None and _fits(model, graph, seam, indices):
            seams.append(seam)
    return tuple(seams)


class _Ways:
    """What lies between layers.

    Args:
        graph: the model's.
        by_index: the layer of each node that may be scaled.
        indices: of the nodes, by name.
        quantized: see ``find_seams``.
    """

    def __init__(
        self,
        graph: Graph,
        by_index: Mapping[int, Layer],
        indices: Mapping[str, int],
        quantized: Collection[str],
    ) -> None:
        self._graph, self._by_index, self._indices = graph, by_index, indices
        self._quantized = quantized

    def connected(self, start: str) -> set[str]:
        """Return the tensors whose channels have one size with this one's.

        Homogeneous operators are between them, or layers of one weight make or read them.
        """
        found: set[str] = set()
        pending = [start]
        while pending:
            tensor = pending.pop()
            if tensor not in found:
                found.add(tensor)
                pending += self._beside(tensor)
        return found

    def _beside(self, tensor: str) -> Iterator[str]:
        nodes, makers = self._graph.nodes, self._graph.producer
        for index in (*self._graph.readers.get(tensor, ()), *([makers[tensor]] if tensor in makers else [])):
            features = _features(nodes[index])
            is_made = tensor in nodes[index].output
            if features and (is_made or tensor in features):
                yield from (*features, *nodes[index].output)
            elif index in self._by_index and (is_made or self._reads(index, tensor)):
                others = [nodes[self._indices[name]] for name in self._by_index[index].nodes]
                yield from (node.output[0] if is_made else node.input[0] for node in others)

    def _reads(self, index: int, tensor: str) -> bool:
        """Return whether a node reads a tensor as its features and as nothing else."""
        names = list(self._graph.inputs[index])
        return names.count(tensor) == 1 and names[0] == tensor

    def seam(self, tensors: set[str]) -> Optional[Seam]:
        """Return the layers that make and read connected tensors; None where others do."""
        graph, makers, readers = self._graph, set[int](), dict[int, str]()
        for tensor in tensors:
            maker = graph.producer.get(tensor)
            if maker is None:
                return None
            if not _features(graph.nodes[maker]):
                makers.add(maker)
            for index in graph.readers.get(tensor, ()):
                node = graph.nodes[index]
                if tensor in _features(node) or node.op_type in SHAPE_OPS:
                    continue
                if not self._reads(index, tensor):
                    return None
                readers[index] = tensor
        if not readers or not self._by_index.keys() >= {*makers, *readers}:
            return None
        measured = sorted(tensors & {*readers.values(), *self._quantized}, key=graph.producer.__getitem__)
        return Seam(self._layers(makers), self._layers(readers), tuple(measured))

    def _layers(self, indices: Iterable[int]) -> tuple[Layer, ...]:
        found = (self._by_index[index] for index in sorted(indices))
        return tuple({layer.weight: layer for layer in found}.values())


def _features(node: onnx.NodeProto) -> list[str]:
    """Return the inputs of a homogeneous operator whose channels are its output's; none of any other operator."""
    if node.domain not in STANDARD_DOMAINS or len(node.output) > 1:
        return []
    if _attributes(node).get("coordinate_transformation_mode") == b"tf_crop_and_resize":
        return []  # a constant outside
    return list(node.input[: _HOMOGENEOUS.get(node.op_type, 0)])


def _fits(model: onnx.ModelProto, graph: Graph, seam: Seam, indices: Mapping[str, int]) -> bool:
    """Return whether weights and biases can take the factors, and nobody else reads them."""
    layers = (*seam.makers, *seam.readers)
    if not (
        all(_is_alone(graph, layer, indices) for layer in layers)
        and all(_can_make(graph, maker, indices) for maker in seam.makers)
        and all(_can_read(model, graph, reader, indices) for reader in seam.readers)
    ):
        return False
    nodes = {name: graph.nodes[indices[name]] for layer in layers for name in layer.nodes}
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    counts = {shapes[layer.weight][_output_axis(layer, nodes)] for layer in seam.makers}
    counts |= {shapes[layer.weight][_input_axis(layer, nodes)] for layer in seam.readers}
    # One rank, and one number of channels: no addition repeats a channel, or takes another axis for it.
    return len(counts) == 1 == len({_rank(model, layer) for layer in layers})


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
    """Run images through a float model; return the channels' sizes at each seam, by its name.

    Returns:
        (C,) float32 each: the largest absolute value, over all tensors that are quantized, its mean over the batches.

    Raises:
        OSError, ValueError, RuntimeError: see ``export.quantization.calibration.calibrate``.
    """
    ranks = {t: _rank(model, seam.readers[0]) for seam in seams for t in seam.tensors}
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
            sums[seam.name] = sums.get(seam.name, np.float32(0)) + found
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
    """Return the model with the channels at the seams scaled; it computes what it did, but for the rounding of floats.

    A channel is divided by its size to the power of 0.75 over that of the weights that read it to the power of 0.25,
    relative to the mean of all channels.

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
        factors = _factors(sizes[seam.name], weights)
        for layer, array, axis in zip(seam.readers, read, axes):
            _write(tensors[layer.weight], array * _along(factors, axis, array.ndim))
        for maker in seam.makers:
            made = onnx.numpy_helper.to_array(tensors[maker.weight])
            _write(tensors[maker.weight], made / _along(factors, _output_axis(maker, nodes), made.ndim))
            for bias in _biases(maker, nodes):
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
    """Return (C,) what channels are divided by; 1 of what is always 0 or never read."""
    is_used = (sizes > 0) & (weights > 0) & np.isfinite(sizes) & np.isfinite(weights)
    factors = np.ones(len(sizes), np.float32)
    if is_used.any():
        logarithms = _BALANCE * np.log2(sizes[is_used]) - (1 - _BALANCE) * np.log2(weights[is_used])
        exponents = (logarithms - logarithms.mean()).clip(-_LARGEST_EXPONENT, _LARGEST_EXPONENT)
        factors[is_used] = np.exp2(exponents)
    return factors


def _write(tensor: onnx.TensorProto, array: np.ndarray) -> None:
    tensor.CopyFrom(onnx.numpy_helper.from_array(array.astype(np.float32), tensor.name))
