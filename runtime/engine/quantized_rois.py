"""INT8 on both sides of the plugin for RoI features.

TensorRT computes QuantizeLinear and DequantizeLinear together with layers of its own, never with a plugin: beside one
they read and write every value, which on an H200 takes as long as RoIAlign itself. So MultiLevelRoiAlign rounds what it
writes, and reads what convolutions have rounded. It does both or neither: where a plugin writes INT8 and reads floats,
TensorRT 8.5 builds no engine ("typeConstraint == DataType::kINT8 failed").
"""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Optional

import numpy as np

from runtime.graphs.load import import_onnx
from runtime.graphs.operators import DOMAIN, SHAPE_OPS, STANDARD_DOMAINS
from runtime.graphs.view import tensors_read

if TYPE_CHECKING:
    import onnx

ROI_ALIGN = "MultiLevelRoiAlign"
OUTPUT_SCALE = "output_scale"
FEATURE_SCALES = "feature_scales"
SCALES = frozenset({OUTPUT_SCALE, FEATURE_SCALES})
# Of one tensor: the values stay as they are, quantized or not.
_MOVES = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})

Readers = Mapping[str, list["onnx.NodeProto"]]
Constants = Mapping[str, "onnx.TensorProto"]


def quantize_rois(model: "onnx.ModelProto", kept: Collection[str] = ()) -> None:
    """Let MultiLevelRoiAlign read and write INT8 where its maps and its features are quantized.

    Each map comes from a DequantizeLinear: the node reads what that one does, with the scales as its attribute
    ``feature_scales``. DequantizeLinear stays where others read it.

    All that reads the features is one QuantizeLinear, or several of a scale: it becomes the attribute ``output_scale``,
    and QuantizeLinear goes. What reads the features first may be a Flatten or another operator that moves values, which
    moves INT8 then. DequantizeLinear behind it stays where it is.

    Args:
        model: is changed. Constants are initializers.
        kept: names of nodes that read and write floats in any case.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in dict.fromkeys(tensors_read(node)):
            readers.setdefault(name, []).append(node)
    producers = {name: node for node in graph.node for name in node.output}
    outputs = {output.name for output in graph.output}
    dropped: list[onnx.NodeProto] = []
    passed: list[onnx.NodeProto] = []
    quantized: list[str] = []
    for node in graph.node:
        if (node.domain, node.op_type) != (DOMAIN, ROI_ALIGN) or node.name in kept or _has_scale(node):
            continue
        dequantizers = [producers.get(name) for name in node.input[1:]]
        feature_scales = [_dequantized_by(each, constants) for each in dequantizers]
        tensors, quantizers = _ways_out(node.output[0], readers, outputs)
        scale = _common_scale(quantizers, readers, constants, outputs)
        if scale is None or None in feature_scales:
            continue
        _set_scales(node, scale, feature_scales)
        for place, dequantizer in enumerate(dequantizers, 1):
            node.input[place] = dequantizer.input[0]
        for quantizer in quantizers:
            for dequantizer in readers.get(quantizer.output[0], ()):
                dequantizer.input[0] = quantizer.input[0]
        dropped += quantizers
        passed += dequantizers
        quantized += tensors
    _drop(graph, dropped)
    _declare_int8(graph, quantized)
    read = {name for node in graph.node for name in tensors_read(node)} | outputs
    _drop(graph, [node for node in passed if node.output[0] not in read])


def _has_scale(node: "onnx.NodeProto") -> bool:
    return any(attribute.name in SCALES for attribute in node.attribute)


def _set_scales(node: "onnx.NodeProto", output: np.float32, features: list[np.float32]) -> None:
    make_attribute = import_onnx().helper.make_attribute
    node.attribute.append(make_attribute(OUTPUT_SCALE, float(output)))
    node.attribute.append(make_attribute(FEATURE_SCALES, [float(scale) for scale in features]))


def _ways_out(
    features: str, readers: Readers, outputs: Collection[str]
) -> tuple[list[str], list["onnx.NodeProto"]]:
    """Return the tensors that hold the features, moved or not, and the QuantizeLinear nodes at their ends.

    Returns:
        Neither where anything else reads the values; the shape may be read.
    """
    tensors: list[str] = []
    quantizers: list[onnx.NodeProto] = []
    pending = [features]
    while pending:
        tensor = pending.pop()
        tensors.append(tensor)
        if tensor in outputs:
            return [], []
        for node in readers.get(tensor, ()):
            read = tensors_read(node)
            if node.op_type in SHAPE_OPS:
                continue
            if node.domain not in STANDARD_DOMAINS or read[0] != tensor or read.count(tensor) > 1:
                return [], []
            if node.op_type == "QuantizeLinear":
                quantizers.append(node)
            elif node.op_type in _MOVES:
                pending.append(node.output[0])
            else:
                return [], []
    return tensors, quantizers


def _common_scale(
    quantizers: list["onnx.NodeProto"], readers: Readers, constants: Constants, outputs: Collection[str]
) -> Optional[np.float32]:
    """Return the one scale of the nodes, and of all that dequantizes what they make; None without."""
    dequantizers = [node for quantizer in quantizers for node in readers.get(quantizer.output[0], ())]
    has_others = any(node.op_type != "DequantizeLinear" for node in dequantizers)
    if has_others or any(quantizer.output[0] in outputs for quantizer in quantizers):
        return None
    scales = {_int8_scale(node, constants) for node in (*quantizers, *dequantizers)}
    return scales.pop() if len(scales) == 1 else None


def _dequantized_by(node: Optional["onnx.NodeProto"], constants: Constants) -> Optional[np.float32]:
    """Return the scale of a DequantizeLinear as ``_int8_scale`` does; None of any other node, and of none."""
    return _int8_scale(node, constants) if node is not None and node.op_type == "DequantizeLinear" else None


def _int8_scale(node: "onnx.NodeProto", constants: Constants) -> Optional[np.float32]:
    """Return the scale of a node that quantizes a whole tensor to INT8 around 0, or back; None of another one."""
    if len(node.input) != 3 or not all(name in constants for name in node.input[1:]):
        return None
    scale, zero = (import_onnx().numpy_helper.to_array(constants[name]) for name in node.input[1:])
    if scale.dtype != np.float32 or scale.size != 1 or zero.dtype != np.int8 or zero.any():
        return None
    value = np.float32(scale.item())
    return value if value > 0 and np.isfinite(value) else None


def _drop(graph: "onnx.GraphProto", nodes: list["onnx.NodeProto"]) -> None:
    gone = {name for node in nodes for name in node.output}
    kept_nodes = [node for node in graph.node if gone.isdisjoint(node.output)]
    kept_values = [value for value in graph.value_info if value.name not in gone]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(kept_nodes)
    graph.value_info.extend(kept_values)


def _declare_int8(graph: "onnx.GraphProto", tensors: list[str]) -> None:
    onnx = import_onnx()
    int8 = onnx.TensorProto.INT8
    declared = {value.name: value for value in graph.value_info}
    for name in tensors:
        if name in declared:
            declared[name].type.tensor_type.elem_type = int8
        else:
            graph.value_info.append(onnx.helper.make_tensor_value_info(name, int8, None))
