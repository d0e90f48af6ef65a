"""A strongly typed FP16 ONNX: the precision plan as casts in the file.

onnxruntime's converter (``onnxruntime.transformers.float16``) does the types, with the plan's nodes as its block list.
What it leaves to be done:

- Between two nodes that stay FP32 it casts to FP16 and back, which would round every coordinate. Such pairs go.
- Weights that FP16 and FP32 nodes share become FP16 for both. They are split first.
- It writes a cast once for each reader, and all casts at the end of the file. One stays, in order.
- A tensor made by an FP32 node keeps its name in FP32; ``<name>_cast_to_fp16`` is its copy for FP16 readers.

Operators of the domain ``maskrcnn``: ``MultiLevelRoiAlign`` gets FP16 features and FP32 RoIs and makes FP16, which is
what the TensorRT plugin takes. Its body, written for float32, is given casts at its features and its output, so that
the same file runs in onnxruntime. ``DecodeProposals``, ``DecodeDetections``, ``SelectMasks``, ``GroupedNMS``,
``SelectTop``, ``PasteMasks`` and any other function of the file stay FP32; what FP16 layers hand them is cast.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from runtime.graphs.load import import_onnx
from runtime.graphs.operators import FP32_COORDINATES, MIXED_FUNCTIONS, SHAPE_OPS
from runtime.graphs.view import captured, element_types, subgraphs, tensors_read
from runtime.precision.plan import PrecisionPlan, check_plan
from runtime.precision.prepare import (
    FP16,
    FP32,
    blocked_ops,
    converter,
    fp32_nodes,
    prepared,
    replace,
)

if TYPE_CHECKING:
    import onnx


def fp16_model(model: "onnx.ModelProto", plan: PrecisionPlan) -> "onnx.ModelProto":
    """Return the model in FP16 but for the plan's nodes, with the casts that this takes.

    Inputs, outputs, metadata and the nodes' names are the model's. Operators without an FP16 form
    (``NonMaxSuppression``, ``TopK``, ``Range``, ONNX's ``RoiAlign``) stay FP32 in any plan, an empty one included.
    Weights beyond FP16's range become its largest numbers; none that is not zero becomes zero, so that an epsilon
    stays one.

    onnxruntime's CPU provider has hardly any FP16 kernels: it computes in FP32, and leaves out the roundings between
    neighbours. ``runtime.plan_search.emulation`` makes models that do round there.

    Args:
        model: float32; it is not changed.
        plan: of this model.

    Raises:
        ValueError: the plan is another model's, or the model is in half precision already.
        RuntimeError: the package onnx or onnxruntime is not installed.
    """
    check_plan(plan, model)
    types = element_types(model)
    copy = prepared(model, plan)
    _declare_floats(copy, types)
    is_fp32 = fp32_nodes(copy, plan)
    names = [list(node.output) for node in copy.graph.node]
    is_float = [[types.get(name) == FP32 for name in outputs] for outputs in names]
    converted = converter().convert_float_to_float16(
        copy,
        keep_io_types=True,
        disable_shape_infer=True,
        op_block_list=sorted(blocked_ops(model)),
        node_block_list=sorted(plan.nodes),
    )
    nodes, casts = converted.graph.node[: len(names)], converted.graph.node[len(names) :]
    casts = _rewired(converted.graph, nodes, casts, is_fp32, names)
    half = _fp16_tensors(converted.graph, nodes, is_fp32, is_float)
    casts += _casts_for_subgraphs(nodes, half)
    replace(converted.graph.node, _sorted(nodes, casts))
    replace(converted.graph.value_info, _value_info(model, half))
    if any(node.op_type in MIXED_FUNCTIONS and not fp32 for node, fp32 in zip(nodes, is_fp32)):
        _let_roi_align_take_fp16(converted)
    return converted


def _declare_floats(model: "onnx.ModelProto", types: Mapping[str, int]) -> None:
    """Write down which tensors are float32: where the converter does not know it, it leaves out the cast."""
    make = import_onnx().helper.make_tensor_value_info
    graph = model.graph
    known = {value.name for value in (*graph.value_info, *graph.output)}
    made = (name for node in graph.node for name in node.output if types.get(name) == FP32)
    graph.value_info.extend(make(name, FP32, None) for name in made if name not in known)


def _rewired(
    graph: "onnx.GraphProto",
    nodes: "list[onnx.NodeProto]",
    casts: "list[onnx.NodeProto]",
    is_fp32: list[bool],
    names: list[list[str]],
) -> "list[onnx.NodeProto]":
    """Lead FP32 nodes to FP32 tensors without a detour through FP16, and give tensors their names back.

    Args:
        graph: as the converter left it.
        nodes: its nodes but for the converter's casts.
        casts: these.
        is_fp32: for each node.
        names: for each node, what its outputs were called before.

    Returns:
        The casts that are still needed.
    """
    to_half, to_single = _sources(casts, FP16), _sources(casts, FP32)
    detours = {name: to_half[half] for name, half in to_single.items() if half in to_half}
    made_half = {tensor.name for tensor in graph.initializer if tensor.data_type == FP16}
    made_half |= {name for node, fp32 in zip(nodes, is_fp32) if not fp32 for name in node.output}
    for node in nodes:
        node.input[:] = [detours.get(name, name) for name in node.input]
        to_single.update(_read_fp32(node, to_half, made_half))
    outputs = {value.name for value in graph.output}
    read = {name for node in nodes for name in node.input} | (outputs - set(detours))
    to_single = {name: half for name, half in to_single.items() if name in read}
    read.update(to_single.values())
    to_half = {name: full for name, full in to_half.items() if name in read}

    renamed = {
        after: name
        for node, fp32, before in zip(nodes, is_fp32, names)
        for name, after in zip(before, node.output)
        if fp32 and name != after
    }
    renamed.update({n: f"{renamed[full]}_cast_to_fp16" for n, full in to_half.items() if full in renamed})
    # Older converters give each reader a cast of its own, under a name of its own.
    renamed.update({n: f"{half}_cast_to_fp32" for n, half in to_single.items() if n not in outputs})
    for node in nodes:
        for tensors in (node.input, node.output):
            tensors[:] = [renamed.get(name, name) for name in tensors]
    return [
        *_casts({renamed.get(n, n): renamed.get(half, half) for n, half in to_single.items()}, FP32),
        *_casts({renamed.get(n, n): renamed.get(full, full) for n, full in to_half.items()}, FP16),
    ]


def _sources(casts: "Iterable[onnx.NodeProto]", kind: int) -> dict[str, str]:
    """Return result -> source of the casts to this type."""
    return {cast.output[0]: cast.input[0] for cast in casts if cast.attribute[0].i == kind}


def _casts(sources: Mapping[str, str], kind: int) -> "list[onnx.NodeProto]":
    """Return the casts of result -> source."""
    return [_cast(source, name, kind) for name, source in sources.items()]


def _read_fp32(
    node: "onnx.NodeProto", to_half: Mapping[str, str], made_half: Collection[str]
) -> dict[str, str]:
    """Have an FP16 node read its coordinates, and Shape its tensor, in FP32; return the casts that takes."""
    casts = {}
    coordinates = FP32_COORDINATES.get(node.op_type, ())
    for i, name in enumerate(node.input):
        if name in to_half and (i in coordinates or node.op_type in SHAPE_OPS):
            node.input[i] = to_half[name]
        elif name in made_half and i in coordinates:
            node.input[i] = f"{name}_cast_to_fp32"
            casts[node.input[i]] = name
    return casts


def _cast(source: str, name: str, kind: int) -> "onnx.NodeProto":
    return import_onnx().helper.make_node("Cast", [source], [name], name=f"{name}_node", to=kind)


def _fp16_tensors(
    graph: "onnx.GraphProto", nodes: "list[onnx.NodeProto]", is_fp32: list[bool], is_float: list[list[bool]]
) -> set[str]:
    """Return the tensors that are FP16 now, but for the casts' own."""
    half = {tensor.name for tensor in graph.initializer if tensor.data_type == FP16}
    for node, fp32, floats in zip(nodes, is_fp32, is_float):
        if not fp32:
            half.update(name for name, is_one in zip(node.output, floats) if is_one)
    return half


def _casts_for_subgraphs(nodes: "list[onnx.NodeProto]", half: set[str]) -> "list[onnx.NodeProto]":
    """Cast what the subgraphs of If, Loop and Scan, which stay FP32, take from outside."""
    casts = {}
    for node in nodes:
        renamed = {name: f"{name}_cast_to_fp32" for name in captured(node) if name in half}
        casts.update({name: _cast(source, name, FP32) for source, name in renamed.items()})
        for graph in subgraphs(node):
            _rename_captured(graph, renamed)
    return list(casts.values())


def _rename_captured(graph: "onnx.GraphProto", renamed: Mapping[str, str]) -> None:
    inside = {value.name for value in (*graph.input, *graph.initializer)}
    inside.update(name for node in graph.node for name in node.output)
    renamed = {name: new for name, new in renamed.items() if name not in inside}
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        for inner in subgraphs(node):
            _rename_captured(inner, renamed)
    for output in graph.output:
        output.name = renamed.get(output.name, output.name)


def _sorted(nodes: "list[onnx.NodeProto]", casts: "list[onnx.NodeProto]") -> "list[onnx.NodeProto]":
    """Return the nodes in their order, and each cast before its first reader."""
    pending = {cast.output[0]: cast for cast in casts}
    ordered: list[onnx.NodeProto] = []

    def add(node: "onnx.NodeProto") -> None:
        for name in tensors_read(node):
            cast = pending.pop(name, None)
            if cast is not None:
                add(cast)
        ordered.append(node)

    for node in nodes:
        add(node)
    return ordered + list(pending.values())  # those that make the model's outputs


def _value_info(model: "onnx.ModelProto", half: Collection[str]) -> "list[onnx.ValueInfoProto]":
    """Return the shapes that the model knew, of tensors that are still there, with their new types."""
    onnx = import_onnx()
    constants = {name for node in model.graph.node if node.op_type == "Constant" for name in node.output}
    values = []
    for value in model.graph.value_info:
        if value.name in constants:
            continue
        copy = onnx.ValueInfoProto()
        copy.CopyFrom(value)
        if value.name in half:
            copy.type.tensor_type.elem_type = FP16
        values.append(copy)
    return values


def _let_roi_align_take_fp16(model: "onnx.ModelProto") -> None:
    """Give MultiLevelRoiAlign's body casts at its features and its output: inside it is float32, as written."""
    helper = import_onnx().helper
    for function in model.functions:
        if function.name not in MIXED_FUNCTIONS:
            continue
        features, output = list(function.input)[1:], function.output[0]
        renamed = {name: f"{name}_fp32" for name in (*features, output)}
        for node in function.node:
            for tensors in (node.input, node.output):
                tensors[:] = [renamed.get(name, name) for name in tensors]
        before = [_cast(name, renamed[name], FP32) for name in features]
        after = helper.make_node("CastLike", [renamed[output], features[0]], [output], name=f"{output}_node")
        replace(function.node, [*before, *function.node, after])
        for node in function.node:
            node.name = f"{function.name}/{node.output[0]}"  # onnxruntime wants names that differ
