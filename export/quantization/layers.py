"""Which layers of a model are quantized: convolutions and fully connected layers, all but what has a reason."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Optional

import onnx

from runtime.graphs.operators import DENSE, DOMAIN
from runtime.graphs.view import Graph
from runtime.messages import listed
from runtime.precision.geometry import dense_path
from runtime.precision.plan import PrecisionPlan

ASKED = "left out as asked"


@dataclass(frozen=True)
class Layer:
    """A layer: one weight, and the nodes that read it. The RPN's head has five, a level each.

    Attributes:
        name: of the first node.
        op_type: ``Conv``, ``ConvTranspose``, ``Gemm`` or ``MatMul``.
        weight: the initialiser.
        nodes: names, in the graph's order.
    """

    name: str
    op_type: str
    weight: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Layers:
    """The layers of a model.

    Attributes:
        quantized: in the graph's order.
        left_out: names of layers with weights that stay float, and why.
    """

    quantized: tuple[Layer, ...]
    left_out: Mapping[str, str]

    @property
    def nodes(self) -> frozenset[str]:
        """The names of all nodes that are quantized."""
        return frozenset(node for layer in self.quantized for node in layer.nodes)

    def without(self, names: Collection[str], reason: str) -> "Layers":
        """Return the layers with some of them left out.

        Raises:
            ValueError: there is no such layer.
        """
        known = {node: layer.name for layer in self.quantized for node in layer.nodes}
        unknown = [name for name in names if name not in known and name not in self.left_out]
        if unknown:
            raise ValueError(
                f"layers: expected names of convolutions and fully connected layers, found {listed(unknown)}; those of "
                f"the model are {listed([layer.name for layer in self.quantized])}"
            )
        gone = {known[name] for name in names if name in known}
        kept = tuple(layer for layer in self.quantized if layer.name not in gone)
        return Layers(kept, {**self.left_out, **dict.fromkeys(sorted(gone), reason)})


def find_layers(model: onnx.ModelProto, plan: PrecisionPlan) -> Layers:
    """Return the layers with weights on the activations' way, without those that the plan keeps in FP32.

    Raises:
        ValueError: the model has no layer that can be.
    """
    graph = Graph(model)
    weights = {
        tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT
    }
    reasons = {node: group.reason for group in plan.groups for node in group.nodes}
    members: dict[str, list[onnx.NodeProto]] = {}
    left_out: dict[str, str] = {}
    for node in _with_weights(graph):
        reason = reasons.get(node.name) or _obstacle(node, weights)
        if reason:
            left_out[node.name] = reason
        else:
            members.setdefault(node.input[1], []).append(node)
    if not members:
        raise ValueError(
            f"model: expected convolutions or fully connected layers to quantize, found {len(left_out)} that stay "
            f"float ({listed(list(left_out))}); give an export of float32"
        )
    layers = (
        Layer(nodes[0].name, nodes[0].op_type, weight, tuple(node.name for node in nodes))
        for weight, nodes in members.items()
    )
    return Layers(tuple(layers), left_out)


def _with_weights(graph: Graph) -> Iterator[onnx.NodeProto]:
    dense = dense_path(graph)
    for index, node in enumerate(graph.nodes):
        is_layer = node.op_type in DENSE and any(name in graph.constants for name in node.input[:2])
        if is_layer and index in dense or (node.domain == DOMAIN and node.op_type == "DeformConv2d"):
            yield node


def _obstacle(node: onnx.NodeProto, weights: Collection[str]) -> Optional[str]:
    """Return why a layer cannot be quantized, None where it can."""
    if node.domain == DOMAIN:
        return "the operator has no INT8 form"
    if node.input[1] not in weights:
        return "its weight is computed in the graph, or is its first input"
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    if node.op_type == "ConvTranspose" and groups != 1:
        return "a transposed convolution in groups has no scale for each output channel"
    return None
