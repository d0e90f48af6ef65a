"""The precision plan on a weakly typed network: which of its layers belong to the plan's nodes."""

import re
from collections.abc import Sequence
from typing import Any

from runtime.engine.compat import TensorRT
from runtime.graphs.operators import DENSE, FP16_LOGITS
from runtime.precision.plan import PrecisionPlan

# What the parser names layers that no node is called after: "(Unnamed Layer* 119) [Shuffle]".
_UNNAMED = re.compile(r"^\(Unnamed Layer\*")


def constrain_layers(network: Any, graph: Any, plan: PrecisionPlan, tensorrt: TensorRT) -> int:
    """Tell the layers of the plan's nodes to stay FP32; return how many have float outputs.

    Plugins that write float32 in any case, and read what layers wrote in either type (``FP16_LOGITS``), are told
    nothing, unless one of those layers is the plan's. What they read of constants (anchors) stays FP32 too.

    Args:
        network: parsed from ``graph``, before it is built.
        graph: the ``onnx.ModelProto``.
        plan: see ``PrecisionPlan``.
        tensorrt: the release.
    """
    nodes = [node.name for node in graph.graph.node]
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    owners = layer_owners([layer.name for layer in layers], nodes)
    plugins = [node for node in graph.graph.node if node.op_type in FP16_LOGITS and node.name in plan.nodes]
    names = {node.name for node in plugins}
    for layer, owner in zip(layers, owners):
        if owner in names:
            _keep_constants_of(layer, layers, tensorrt)
    # Told to stay FP32, a plugin would be handed FP32 inputs as well, each by a reformat.
    in_float32 = {
        output
        for node in graph.graph.node
        if node.op_type in DENSE and node.name in plan.nodes
        for output in node.output
    }
    kept = plan.nodes - {node.name for node in plugins if in_float32.isdisjoint(node.input)}
    return sum(tensorrt.keep_float32(layer) for layer, owner in zip(layers, owners) if owner in kept)


def _keep_constants_of(reader: Any, layers: Sequence[Any], tensorrt: TensorRT) -> None:
    """Have the constants that a layer reads stored in FP32: halves are half a pixel off beyond 1024 px."""
    read = {reader.get_input(i).name for i in range(reader.num_inputs) if reader.get_input(i) is not None}
    for layer in layers:
        if tensorrt.is_constant(layer) and layer.get_output(0).name in read:
            tensorrt.store_float32(layer)


def layer_owners(layers: Sequence[str], nodes: Sequence[str]) -> list[str]:
    """Return the ONNX node that each layer was made for, "" where that is not known.

    A layer has its node's name, or that name and a number where a node became several. Layers without a name are
    helpers (reshapes before a broadcast, say), which the parser adds before the layer that they help.

    Args:
        layers: names in the network's order.
        nodes: names of the ONNX nodes.
    """
    known = set(nodes)
    owners = [_owner(layer, known) for layer in layers]
    following = ""
    for index in range(len(owners) - 1, -1, -1):
        if owners[index]:
            following = owners[index]
        elif _UNNAMED.match(layers[index]):
            owners[index] = following
    return owners


def _owner(layer: str, nodes: set) -> str:
    if layer in nodes:
        return layer
    base = re.sub(r"_\d+$", "", layer)
    return base if base in nodes else ""
