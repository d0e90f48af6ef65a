"""Where the Q/DQ pairs go, and the model with them. onnxruntime's quantizer writes them.

``int8``, symmetric, for TensorRT and OpenVINO:

- A layer reads its activations and its weight through a pair each. The weight's has a scale for each output channel,
  and is the node's own: TensorRT does not fuse a quantized weight that several convolutions read, and runs them in
  FP32. The weight itself stays float in the file, as TensorRT 8 wants it.
- Biases and the outputs of layers stay float. So do the logits of every head.
- Of an addition that a convolution feeds, the other input (the shortcut of a residual block, the coarser level of an
  FPN) comes out of a pair too: TensorRT runs convolution, addition and ReLU as one INT8 kernel then. Where two
  convolutions feed it, as in the first block of a ResNet's stage, that is the smaller one's output.
- Who else reads such a tensor reads what comes out of the pair, so that one layer writes INT8 and nothing else.

``uint8``, with zero points, for onnxruntime on a CPU: weights are INT8 in the file, biases INT32; additions, ReLUs and
max pooling between layers are quantized, and outputs too, but for the heads' logits. onnxruntime fuses each group into
one integer kernel.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Optional

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import add_infer_metadata

from export.quantization.layers import Layers
from runtime.graphs.operators import DENSE
from runtime.graphs.view import Graph, float_types, tensor_types, topological
from runtime.precision.geometry import dense_path
from runtime.precision.plan import PrecisionPlan
from runtime.precision.prepare import replace

# Between layers, in onnxruntime: what it has integer kernels for.
_FUSED = frozenset({"Add", "Relu", "MaxPool"})
_INFERRED = "onnx.infer"

Range = tuple[float, float]


@dataclass(frozen=True)
class Placement:
    """What is quantized.

    Attributes:
        activations: ``int8`` or ``uint8``.
        nodes: names of the nodes whose inputs, and with ``uint8`` whose outputs, are.
        tensors: activations with a pair, in the graph's order.
        float_nodes: names of nodes that the precision plan keeps in FP32.
    """

    activations: str
    nodes: tuple[str, ...]
    tensors: tuple[str, ...]
    float_nodes: frozenset[str] = frozenset()

    @property
    def is_symmetric(self) -> bool:
        """Whether zero is 0."""
        return self.activations == "int8"


def place(
    model: onnx.ModelProto,
    layers: Layers,
    plan: PrecisionPlan,
    activations: str,
    ranges: Optional[Mapping[str, Range]] = None,
) -> Placement:
    """Return where a model is quantized; see the module.

    Args:
        model: float32.
        layers: of it.
        plan: what stays float in it.
        activations: ``int8`` or ``uint8``.
        ranges: least and greatest value of each tensor; None where they are to be found: of an addition of two
            convolutions both inputs are among the tensors then.
    """
    graph = Graph(model)
    if activations == "int8":
        nodes = [i for i, node in enumerate(graph.nodes) if node.name in layers.nodes]
        chosen = {graph.nodes[i].input[0] for i in nodes} | _residuals(graph, layers, ranges)
    else:
        nodes = _integer_nodes(graph, layers, plan)
        tensors = (t for i in nodes for t in (*graph.inputs[i], *graph.nodes[i].output))
        chosen = {t for t in tensors if t not in graph.constants} - _logits(graph)
    made = [value.name for value in model.graph.input] + [t for node in graph.nodes for t in node.output]
    return Placement(
        activations,
        tuple(graph.nodes[i].name for i in nodes),
        tuple(tensor for tensor in made if tensor in chosen and graph.is_float(tensor)),
        plan.nodes,
    )


def _integer_nodes(graph: Graph, layers: Layers, plan: PrecisionPlan) -> list[int]:
    """Return the layers, and the nodes between them that have an integer kernel."""
    dense, float_nodes = dense_path(graph), plan.nodes
    return [
        i
        for i, node in enumerate(graph.nodes)
        if node.name in layers.nodes
        or (i in dense and node.op_type in _FUSED and node.name not in float_nodes)
    ]


def _logits(graph: Graph) -> set[str]:
    """Return what comes out of layers and goes into no other, directly or through nodes between layers: the heads'.

    A Softmax ends them too: some heads take its mean with a convolution.
    """
    dense = dense_path(graph)
    going_on: set[str] = set()
    for i in sorted(dense, reverse=True):
        node = graph.nodes[i]
        goes_on = node.op_type != "Softmax" and any(tensor in going_on for tensor in node.output)
        if node.op_type in DENSE or goes_on:
            going_on.update(graph.inputs[i])
    return {tensor for i in dense for tensor in graph.nodes[i].output} - going_on


def _residuals(graph: Graph, layers: Layers, ranges: Optional[Mapping[str, Range]]) -> set[str]:
    """Return the other inputs of additions that a quantized convolution feeds."""
    dense = dense_path(graph)
    found = set()
    for index, node in enumerate(graph.nodes):
        if node.op_type != "Add" or index not in dense or len(set(graph.inputs[index])) != 2:
            continue
        makers = {tensor: _convolution(graph, tensor) for tensor in graph.inputs[index]}
        fed = [
            residual
            for residual in _candidates(makers)
            if residual not in graph.constants
            and any(m is not None and m.name in layers.nodes for t, m in makers.items() if t != residual)
        ]
        if ranges is not None and fed:
            # Its rounding goes into the sum as it is: the smaller one's is the finer.
            fed = [min(fed, key=lambda tensor: max(map(abs, ranges[tensor])))]
        found.update(fed)
    return found


def _convolution(graph: Graph, tensor: str) -> Optional[onnx.NodeProto]:
    """Return the convolution that makes a tensor, if one does."""
    node = graph.nodes[graph.producer[tensor]] if tensor in graph.producer else None
    return node if node is not None and node.op_type == "Conv" else None


def _candidates(makers: Mapping[str, Optional[onnx.NodeProto]]) -> list[str]:
    """Return the inputs of an addition of which one is quantized: what no convolution makes, or of two both.

    Which they are does not depend on what is quantized: so the tensors of fewer layers are some of all.
    """
    others = [tensor for tensor, maker in makers.items() if maker is None]
    return others[-1:] or list(makers)


class _Quantizer(QDQQuantizer):
    """onnxruntime's, which asks each operator what to quantize, for the tensors of a placement and no others."""

    def __init__(
        self, model: onnx.ModelProto, placement: Placement, ranges: TensorsData, *, reduce_range: bool
    ) -> None:
        symmetric = placement.is_symmetric
        self._tensors = frozenset(placement.tensors)
        super().__init__(
            model,
            per_channel=True,
            reduce_range=reduce_range,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QInt8 if symmetric else QuantType.QUInt8,
            tensors_range=ranges,
            nodes_to_quantize=list(placement.nodes),
            nodes_to_exclude=[],
            op_types_to_quantize=sorted(DENSE if symmetric else DENSE | _FUSED),
            extra_options={
                "ActivationSymmetric": symmetric,
                "WeightSymmetric": True,
                "OpTypesToExcludeOutputQuantization": sorted(DENSE) if symmetric else [],
                "AddQDQPairToWeight": symmetric,
                "QuantizeBias": not symmetric,
            },
        )

    def quantize_activation_tensor(self, tensor_name: str) -> None:
        """Mark a tensor, if it is one of the placement's."""
        if tensor_name in self._tensors:
            super().quantize_activation_tensor(tensor_name)

    def quantize_bias_tensor(self, *args: object, **kwargs: object) -> None:
        """Mark a bias, unless biases stay float; a bias that several nodes read would be copied even so."""
        if self.quantize_bias:
            super().quantize_bias_tensor(*args, **kwargs)


def quantized_model(
    model: onnx.ModelProto,
    layers: Layers,
    placement: Placement,
    ranges: Mapping[str, Range],
    *,
    reduce_range: bool = False,
) -> onnx.ModelProto:
    """Return the model with Q/DQ pairs. Inputs, outputs, function bodies, metadata and names stay as they are.

    Args:
        model: float32; it is not changed.
        layers: of the model.
        placement: of these layers.
        ranges: least and greatest value of each tensor of the placement.
        reduce_range: weights of 7 bits, for x86 processors whose 8-bit products saturate (without VNNI).
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _declare_types(copy, model)
    originals = _own_weights(copy, layers, placement)
    add_infer_metadata(copy)
    quantizer = _Quantizer(copy, placement, _as_data(ranges, placement), reduce_range=reduce_range)
    for tensor in placement.tensors if placement.is_symmetric else ():
        quantizer.quantize_activation_tensor(tensor)  # residual inputs, which no layer asks for
    found = quantizer.quantize_model()
    _share_floats(found, originals)
    if placement.is_symmetric:
        _read_floats(found, model, placement)
    return _restored(found, model)


def _declare_types(copy: onnx.ModelProto, model: onnx.ModelProto) -> None:
    """Write down the float tensors: the quantizer leaves out what has no known type, behind our own operators."""
    kinds = float_types()
    inputs = {value.name for value in (*model.graph.input, *model.graph.output)}
    values = [
        onnx.helper.make_value_info(name, kind)
        for name, kind in tensor_types(model).items()
        if kind.tensor_type.elem_type in kinds and name not in inputs
    ]
    replace(copy.graph.value_info, values)


def _own_weights(model: onnx.ModelProto, layers: Layers, placement: Placement) -> dict[str, str]:
    """Give nodes that must not share a weight copies of it; return copy -> weight.

    Of a layer with ``int8`` each node has its own, as TensorRT wants it; with ``uint8`` all have the same. What stays
    float keeps the weight itself.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input[1:2]:
            readers.setdefault(name, []).append(node)
    originals = {}
    for layer in layers.quantized:
        nodes = [node for node in readers[layer.weight] if node.name in layer.nodes]
        is_shared = len(nodes) < len(readers[layer.weight])
        groups = [[node] for node in nodes] if placement.is_symmetric else [nodes]
        for number, group in enumerate(groups if is_shared else groups[1:], 1):
            copy = model.graph.initializer.add()
            copy.CopyFrom(tensors[layer.weight])
            copy.name = f"{layer.weight}_copy_{number}"
            originals[copy.name] = layer.weight
            for node in group:
                node.input[1] = copy.name
    return originals


def _share_floats(model: onnx.ModelProto, originals: Mapping[str, str]) -> None:
    """Have the pairs of a weight's copies read the weight itself: the file need not hold it five times."""
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] in originals:
            node.input[0] = originals[node.input[0]]
    replace(model.graph.initializer, [t for t in model.graph.initializer if t.name not in originals])


def _read_floats(found: onnx.ModelProto, model: onnx.ModelProto, placement: Placement) -> None:
    """Have layers that are left out, and what the plan keeps in FP32, read what is not quantized."""
    quantized = set(placement.nodes)
    sources = {node.name: node for node in model.graph.node}
    for node in found.graph.node:
        is_left_out = node.op_type in DENSE and node.name not in quantized
        if node.name in sources and (is_left_out or node.name in placement.float_nodes):
            node.input[:] = sources[node.name].input


def _as_data(ranges: Mapping[str, Range], placement: Placement) -> TensorsData:
    return TensorsData(
        CalibrationMethod.MinMax,
        {
            tensor: TensorData(
                lowest=np.array(ranges[tensor][0], np.float32),
                highest=np.array(ranges[tensor][1], np.float32),
            )
            for tensor in placement.tensors
        },
    )


def _restored(found: onnx.ModelProto, model: onnx.ModelProto) -> onnx.ModelProto:
    """Sort the nodes, and give back what the quantizer has changed besides."""
    replace(found.graph.node, topological(found.graph.node))
    tensors = {name for node in found.graph.node for name in node.output}
    replace(found.graph.value_info, [v for v in model.graph.value_info if v.name in tensors])
    replace(found.metadata_props, [p for p in found.metadata_props if p.key != _INFERRED])
    found.producer_name, found.producer_version = model.producer_name, model.producer_version
    return found
