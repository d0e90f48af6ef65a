"""The precision plan on a weakly typed network: which of its layers belong to the plan's nodes."""

import re
from collections.abc import Sequence
from typing import Any

from runtime.engine.compat import TensorRT
from runtime.precision.operators import FP16_LOGITS
from runtime.precision.plan import PrecisionPlan

# What the parser names layers that no node is called after: "(Unnamed Layer* 119) [Shuffle]".
_UNNAMED = re.compile(r"^\(Unnamed Layer\*")


def constrain_layers(network: Any, graph: Any, plan: PrecisionPlan, tensorrt: TensorRT) -> int:
    """Tell the layers of the plan's nodes to stay FP32; return how many have float outputs.

    Plugins that write float32 in any case, and read what layers wrote in either type, are told nothing.

    Args:
        network: parsed from ``graph``, before it is built.
        graph: the ``onnx.ModelProto``.
        plan: see ``PrecisionPlan``.
        tensorrt: the release.
    """
    nodes = [node.name for node in graph.graph.node]
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    owners = layer_owners([layer.name for layer in layers], nodes)
    # Told to stay FP32, a plugin would be handed FP32 inputs as well, each by a reformat.
    kept = plan.nodes - {node.name for node in graph.graph.node if node.op_type in FP16_LOGITS}
    return sum(tensorrt.keep_float32(layer) for layer, owner in zip(layers, owners) if owner in kept)


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
