"""The ONNX as TensorRT gets it: plugins' nodes kept, everything else in standard operators."""

from collections.abc import Collection, Mapping
from typing import Any, Callable, Optional

import numpy as np

from runtime.engine.blocks import read_images_in_blocks
from runtime.engine.compat import TensorRT
from runtime.engine.every_level import align_on_every_level
from runtime.engine.quantized_rois import ROI_ALIGN, SCALES, quantize_rois
from runtime.graphs.inlining import inlined
from runtime.graphs.load import import_onnx, name_nodes
from runtime.graphs.operators import STANDARD_DOMAINS

# The parser finds a plugin by the node's name alone.
_MAX_NAMED = 8


def engine_model(
    model: Any,
    plugin_ops: Collection[str],
    tensorrt: TensorRT,
    *,
    attributes: Optional[Mapping[str, Collection[str]]] = None,
    kept: Collection[str] = (),
) -> Any:
    """Return a copy of the model that TensorRT's parser reads.

    The bodies of operators that a plugin provides are dropped, so that their nodes reach the plugin; all others are
    inlined, MultiLevelRoiAlign in shapes that TensorRT knows (``runtime.engine.every_level``). Outputs of type uint8,
    which TensorRT 8 does not have, are float32 there, and int8 where a plugin writes them. The first convolution of
    images of any size reads them in blocks (``runtime.engine.blocks``). RoI features of INT8 maps are quantized by a
    plugin that can (``runtime.engine.quantized_rois``).

    Args:
        model: an ``onnx.ModelProto``.
        plugin_ops: names of the operators that plugins provide.
        tensorrt: the release.
        attributes: that the plugins take, by operator; None: those of the model's nodes and no other.
        kept: names of nodes that a precision plan keeps FP32.

    Raises:
        ValueError: an operator has neither a body, nor a plugin, nor a standard meaning.
    """
    onnx = import_onnx()
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    dropped = [f for f in copy.functions if f.name in plugin_ops]
    for function in dropped:
        copy.functions.remove(function)
    for function in copy.functions:
        align_on_every_level(function)
    if copy.functions:
        copy = inlined(copy)
    name_nodes(copy)
    _constants_to_initializers(copy, onnx)
    _fold_integers(copy, onnx)
    _slice_shapes(copy, onnx)
    read_images_in_blocks(copy, plugin_ops)
    if SCALES.issubset((attributes or {}).get(ROI_ALIGN, ())):
        quantize_rois(copy, kept)
    _replace_uint8_outputs(copy, tensorrt, onnx)
    _check_operators(copy, plugin_ops)
    return copy


def _constants_to_initializers(model: Any, onnx: Any) -> None:
    """Turn Constant nodes into initializers.

    The parser of TensorRT 8.5 reads ``value_int`` and ``value_ints`` as floats, and takes zeros for them.
    """
    kinds = {
        "value_int": np.int64,
        "value_ints": np.int64,
        "value_float": np.float32,
        "value_floats": np.float32,
    }
    nodes = list(model.graph.node)
    others = []
    for node in nodes:
        attribute = (
            node.attribute[0] if node.op_type == "Constant" and node.domain in STANDARD_DOMAINS else None
        )
        if attribute is not None and attribute.name == "value":
            tensor = model.graph.initializer.add()
            tensor.CopyFrom(attribute.t)
            tensor.name = node.output[0]
        elif attribute is not None and attribute.name in kinds:
            value = np.array(onnx.helper.get_attribute_value(attribute), kinds[attribute.name])
            model.graph.initializer.append(onnx.numpy_helper.from_array(value, node.output[0]))
        else:
            others.append(node)
    del model.graph.node[:]
    model.graph.node.extend(others)


def _fold_integers(model: Any, onnx: Any) -> None:
    """Turn Unsqueeze and Slice of integer constants into initializers: TensorRT 8's parser takes TopK's k as one alone.

    An attribute of a function reaches TopK in no other way: as a scalar, or as one number of several.
    """
    integers = {t.name: t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT64}
    kept = []
    for node in model.graph.node:
        fold = _FOLDED.get(node.op_type) if node.domain in STANDARD_DOMAINS else None
        if fold is None or len(node.input) < 2 or not all(name in integers for name in node.input):
            kept.append(node)
            continue
        values = fold(*(onnx.numpy_helper.to_array(integers[name]) for name in node.input))
        folded = onnx.numpy_helper.from_array(np.ascontiguousarray(values), node.output[0])
        model.graph.initializer.append(folded)
        integers[folded.name] = folded
    del model.graph.node[:]
    model.graph.node.extend(kept)


def _sliced(
    values: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    axes: Optional[np.ndarray] = None,
    steps: Optional[np.ndarray] = None,
) -> np.ndarray:
    axes = np.arange(len(starts)) if axes is None else axes
    steps = np.ones_like(starts) if steps is None else steps
    where = [slice(None)] * values.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps):
        where[axis] = slice(start, end, step)
    return values[tuple(where)]


_FOLDED: dict[str, Callable[..., np.ndarray]] = {
    "Unsqueeze": lambda values, axes: np.expand_dims(values, tuple(axes.tolist())),
    "Slice": _sliced,
}


def _slice_shapes(model: Any, onnx: Any) -> None:
    """Turn Shape with ``start`` or ``end`` into Shape and Slice: the parser of TensorRT 8.5 overlooks the two."""
    nodes = []
    for node in model.graph.node:
        limits = {a.name: a.i for a in node.attribute} if node.op_type == "Shape" else {}
        nodes.append(node)
        if not limits:
            continue
        result = node.output[0]
        del node.attribute[:]
        node.output[0] = f"{result}_whole"
        inputs = [node.output[0]]
        for name, default in (("start", 0), ("end", np.iinfo(np.int32).max)):
            value = np.array([limits.get(name, default)], np.int64)
            inputs.append(f"{result}_{name}")
            model.graph.initializer.append(onnx.numpy_helper.from_array(value, inputs[-1]))
        nodes.append(onnx.helper.make_node("Slice", inputs, [result], name=f"{node.name}_slice"))
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _replace_uint8_outputs(model: Any, tensorrt: TensorRT, onnx: Any) -> None:
    tensor_type = onnx.TensorProto
    producers = {name: node for node in model.graph.node for name in node.output}
    for output in model.graph.output:
        kind = output.type.tensor_type
        if kind.elem_type != tensor_type.UINT8:
            continue
        node = producers.get(output.name)
        by_plugin = node is not None and node.domain not in STANDARD_DOMAINS
        if tensorrt.has_uint8_outputs:
            # What the plugin writes has the same bytes.
            kind.elem_type = tensor_type.INT8 if by_plugin else tensor_type.UINT8
            continue
        kind.elem_type = tensor_type.FLOAT
        if node is not None and node.op_type == "Cast":
            next(a for a in node.attribute if a.name == "to").i = tensor_type.FLOAT


def _check_operators(model: Any, plugin_ops: Collection[str]) -> None:
    missing: dict[str, str] = {}
    for node in model.graph.node:
        if node.domain not in STANDARD_DOMAINS and node.op_type not in plugin_ops:
            missing.setdefault(f"{node.domain}::{node.op_type}", node.name or node.output[0])
    if missing:
        named = ", ".join(f"{op} (node {node})" for op, node in list(missing.items())[:_MAX_NAMED])
        raise ValueError(
            f"model: expected a plugin for every operator that is not standard ONNX, found none for {named}; "
            "build the plugin library with `make plugins`, or name it with --plugins"
        )
