"""What comes before a model is typed or emulated: which nodes stay FP32, and a copy in which weights are settled."""

from collections.abc import Iterable
from types import ModuleType
from typing import TYPE_CHECKING, Any, Optional

from runtime.graphs.load import import_onnx
from runtime.graphs.operators import (
    CONTROL_FLOW,
    DENSE,
    FP32_COORDINATES,
    FP32_PLUGINS,
    MIXED_FUNCTIONS,
    is_nms,
)
from runtime.precision.plan import PrecisionPlan
from runtime.quantization import is_quantized

if TYPE_CHECKING:
    import onnx

FP32, FP16 = 1, 10  # onnx.TensorProto.FLOAT and FLOAT16


def fp32_nodes(model: "onnx.ModelProto", plan: PrecisionPlan) -> list[bool]:
    """Return for each node of the main graph whether it stays FP32: by the plan, or as it has no FP16 form."""
    ops, nodes = blocked_ops(model), plan.nodes
    return [node.op_type in ops or node.name in nodes for node in model.graph.node]


def blocked_ops(model: "onnx.ModelProto") -> set[str]:
    """Return the operators that stay FP32 in any plan: the converter's list, functions, NMS, and control flow."""
    functions = {function.name for function in model.functions} - MIXED_FUNCTIONS
    # Without their bodies, as TensorRT gets them, these are no functions; the plugins take float32 nevertheless.
    plugins = {node.op_type for node in model.graph.node if is_nms(node.op_type)} | FP32_PLUGINS
    return functions | plugins | CONTROL_FLOW | set(converter().DEFAULT_OP_BLOCK_LIST)


def converter() -> ModuleType:
    """Return onnxruntime's float16 converter.

    Raises:
        RuntimeError: the package onnx or onnxruntime is not installed.
    """
    import_onnx()
    try:
        from onnxruntime.transformers import float16
    except ImportError as error:
        raise RuntimeError(
            f"FP16 models: expected onnxruntime with its float16 converter, found none ({error}); "
            "install it: `pip install onnxruntime`"
        ) from None
    return float16


def check_float32(model: "onnx.ModelProto") -> None:
    """Refuse a model that is quantized, or in half precision already.

    Raises:
        ValueError: names the first weight of half precision.
    """
    if is_quantized(model):
        raise ValueError(
            "model: expected float32 weights, found a model that is quantized already; give the float32 export"
        )
    kinds = import_onnx().TensorProto
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for node in model.graph.node:
        for name in node.input if node.op_type in DENSE else ():
            if types.get(name) in (kinds.FLOAT16, kinds.BFLOAT16):
                raise ValueError(
                    f"model: expected float32 weights, found {kinds.DataType.Name(types[name])} in {name}; "
                    "give the float32 export"
                )


def prepared(model: "onnx.ModelProto", plan: PrecisionPlan) -> "onnx.ModelProto":
    """Return a copy in which float constants are initialisers, and none is read in FP16 and in FP32.

    Raises:
        ValueError: see ``check_float32``.
    """
    check_float32(model)
    copy = import_onnx().ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    _make_initializers_of_constants(graph)
    initializers = {tensor.name for tensor in graph.initializer}
    replace(graph.value_info, [value for value in graph.value_info if value.name not in initializers])
    # Old exporters list weights among the inputs, and inputs keep their type.
    replace(graph.input, [value for value in graph.input if value.name not in initializers])
    _split_shared_initializers(graph, fp32_nodes(copy, plan))
    return copy


def _make_initializers_of_constants(graph: "onnx.GraphProto") -> None:
    """Turn float constants into initialisers: the converter decides on these by their readers."""
    onnx = import_onnx()
    outputs = {value.name for value in graph.output}
    kept = []
    for node in graph.node:
        value = _constant_value(node) if node.output[:1] and node.output[0] not in outputs else None
        if value is None:
            kept.append(node)
            continue
        tensor = onnx.TensorProto()
        tensor.CopyFrom(value)
        tensor.name = node.output[0]
        graph.initializer.append(tensor)
    replace(graph.node, kept)


def _constant_value(node: "onnx.NodeProto") -> Optional["onnx.TensorProto"]:
    """Return the value of a float32 Constant, else None."""
    helper = import_onnx().helper
    if node.op_type != "Constant" or len(node.attribute) != 1:
        return None
    (attribute,) = node.attribute
    if attribute.name == "value" and attribute.t.data_type == FP32:
        return attribute.t
    if attribute.name == "value_float":
        return helper.make_tensor("", FP32, [], [attribute.f])
    if attribute.name == "value_floats":
        return helper.make_tensor("", FP32, [len(attribute.floats)], attribute.floats)
    return None


def _split_shared_initializers(graph: "onnx.GraphProto", is_fp32: Iterable[bool]) -> None:
    """Give FP32 nodes copies of the weights that FP16 nodes read too."""
    floats = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == FP32}
    single: dict[str, list[tuple[Any, int]]] = {}
    half: set[str] = set()
    for node, fp32 in zip(graph.node, is_fp32):
        for i, name in enumerate(node.input):
            if name not in floats:
                continue
            if fp32 or i in FP32_COORDINATES.get(node.op_type, ()):
                single.setdefault(name, []).append((node, i))
            else:
                half.add(name)
    for name in half & set(single):
        tensor = graph.initializer.add()
        tensor.CopyFrom(floats[name])
        tensor.name = f"{name}_fp32"
        for node, i in single[name]:
            node.input[i] = tensor.name


def replace(field: Any, values: Iterable[Any]) -> None:
    """Set a repeated protobuf field to copies of these messages, which may be its own."""
    values = list(values)
    del field[:]
    field.extend(values)
