"""Nodes of a quantized network that TensorRT has no INT8 kernel for.

Between DequantizeLinear and QuantizeLinear every operator becomes an INT8 layer, also one without such a kernel at its
number of channels; TensorRT then builds nothing, and names it.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Optional

from runtime.graphs.operators import DENSE
from runtime.graphs.view import tensors_read

if TYPE_CHECKING:
    import onnx

# Not of {ForeignNode[first...last]}, a part of the graph.
_NO_KERNEL = re.compile(r"Could not find any implementation for node (?!\{ForeignNode)(.+)")
# What TensorRT puts around and between the names of the nodes that a layer computes: "PWN(/relu) + /conv".
_BETWEEN = re.compile(r"[\s(),]+|\.\)|\.$")


def without_kernel(errors: Sequence[str], model: "onnx.ModelProto") -> list[str]:
    """Return the nodes of the model that TensorRT names as having no kernel, but for convolutions and products."""
    named = {
        name for error in errors for names in _NO_KERNEL.findall(error) for name in _BETWEEN.split(names)
    }
    return [node.name for node in model.graph.node if node.name in named and node.op_type not in DENSE]


def leave_float(model: "onnx.ModelProto", names: Collection[str]) -> list[str]:
    """Take the pairs of QuantizeLinear and DequantizeLinear away on both sides of nodes, which are float layers then.

    Args:
        model: is changed. Others that read a pair go on to do so.
        names: of nodes.

    Returns:
        The nodes that had a pair.
    """
    graph = model.graph
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for tensor in tensors_read(node):
            readers.setdefault(tensor, []).append(node)
    makers = {tensor: node for node in graph.node for tensor in node.output}
    constants = {tensor.name for tensor in graph.initializer}
    changed = []
    for node in graph.node:
        if node.name not in names:
            continue
        pairs = [
            (dequantizer.output[0], tensor)
            for tensor in node.output
            for quantizer in readers.get(tensor, ())
            if quantizer.op_type == "QuantizeLinear"
            for dequantizer in readers.get(quantizer.output[0], ())
            if dequantizer.op_type == "DequantizeLinear"
        ]
        for place, name in enumerate(node.input):
            source = _source(name, makers)
            if source is not None and source not in constants:
                node.input[place] = source
                changed.append(node.name)
        for after, before in pairs:
            for reader in readers.get(after, ()):
                for place, name in enumerate(reader.input):
                    if name == after:
                        reader.input[place] = before
                        changed.append(node.name)
    _drop_unread(graph)
    return list(dict.fromkeys(changed))


def _source(tensor: str, makers: Mapping[str, "onnx.NodeProto"]) -> Optional[str]:
    """Return what was quantized and dequantized into a tensor; None of another."""
    dequantizer = makers.get(tensor)
    if dequantizer is None or dequantizer.op_type != "DequantizeLinear":
        return None
    quantizer = makers.get(dequantizer.input[0])
    return quantizer.input[0] if quantizer is not None and quantizer.op_type == "QuantizeLinear" else None


def _drop_unread(graph: "onnx.GraphProto") -> None:
    """Remove the pairs that nothing reads any more."""
    for op_type in ("DequantizeLinear", "QuantizeLinear"):
        read = {name for node in graph.node for name in tensors_read(node)} | {o.name for o in graph.output}
        left = [node for node in graph.node if node.op_type != op_type or node.output[0] in read]
        del graph.node[:]
        graph.node.extend(left)
