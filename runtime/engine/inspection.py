"""What is in an engine: its layers, their precision, and how much of the dense arithmetic runs in FP16."""

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np

from runtime.engine.blocks import in_standard_operators
from runtime.graphs.load import import_onnx
from runtime.graphs.operators import BY_NAME, DENSE
from runtime.graphs.view import Graph

# Layers that a name may join: "conv + relu" are fused, "a || b" run side by side. Each profile has its own.
_JOINED = re.compile(r" \+ | \|\| ")
_PROFILE = re.compile(r" \[profile \d+\]$")
# In order of trust: the weights' type, the kernel's name (operands come first: f16f16_f16f32_f32), the input's format.
_WEIGHTS = {"Half": "fp16", "Float": "fp32", "Int8": "int8"}
_KERNELS = (
    ("fp16", re.compile("_f16f16|_h884|_h1688|_hmma")),
    ("int8", re.compile("_i8i8")),
    ("fp32", re.compile("_f32f32|_tf32")),
)
_FORMATS = (
    ("fp16", re.compile("FP16|Half")),
    ("fp32", re.compile("FP32|Float")),
    ("int8", re.compile("Int8")),
)
# Images whose arithmetic is counted: of 1 and a size that it does not know inference cannot tell which is broadcast.
_BATCH = 2
# From slow to fast; what is not known may be any.
_SPEED = ("fp32", "fp16", "int8", "other")
_MOVES_ONLY = ("Reformat", "NoOp", "Constant", "ShapeHostToDevice", "Shuffle", "Slice")


@dataclass(frozen=True)
class Layer:
    """One layer of an engine.

    Attributes:
        name: the ONNX nodes that it computes, joined by `` + ``.
        kind: TensorRT's name for its type, such as ``CaskConvolution``.
        precision: ``fp16``, ``fp32``, ``int8``, or ``other`` where TensorRT does not say.
    """

    name: str
    kind: str
    precision: str

    @property
    def nodes(self) -> tuple[str, ...]:
        """The joined names."""
        return tuple(_JOINED.split(_PROFILE.sub("", self.name)))


def layers_from(information: str) -> list[Layer]:
    """Read what ``EngineSession.layer_information`` returns.

    Raises:
        ValueError: it is not TensorRT's JSON with layer details (the engine was built without them).
    """
    try:
        entries = json.loads(information)["Layers"]
        return [Layer(e["Name"], e["LayerType"], _precision(e)) for e in entries]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"engine: expected detailed layer information, found {information[:80]!r} ({error}); build it with "
            "`python -m runtime.build`"
        ) from error


def _precision(entry: Mapping[str, Any]) -> str:
    weights = (entry.get("Weights") or {}).get("Type")
    if weights in _WEIGHTS:
        return _WEIGHTS[weights]
    formats = [str(t.get("Format/Datatype", "")) for t in (*entry["Inputs"], *entry["Outputs"])]
    for texts, patterns in (([entry.get("TacticName", "")], _KERNELS), (formats, _FORMATS)):
        for text in texts:
            for name, pattern in patterns:
                if pattern.search(text):
                    return name
    return "other"


def count_by_precision(layers: list[Layer]) -> dict[str, int]:
    """Return how many layers compute in each precision; those that only move data are left out."""
    return dict(Counter(layer.precision for layer in layers if layer.kind not in _MOVES_ONLY))


def dense_share(layers: list[Layer], flops: Mapping[str, float], precision: str = "fp16") -> float:
    """Return the share of the dense FLOPs that runs in a precision, 0 to 1.

    A node that no layer is named after (it may be hidden in a compiled region) counts as not in that precision.

    Args:
        layers: of the engine.
        flops: by ONNX node; see ``dense_flops``.
        precision: ``fp16``, ``fp32`` or ``int8``.
    """
    found = {node for layer in layers if layer.precision == precision for node in layer.nodes}
    total = sum(flops.values())
    return sum(count for node, count in flops.items() if node in found) / total if total else 0.0


def node_precisions(layers: list[Layer], nodes: Collection[str]) -> dict[str, str]:
    """Return what each node computes in, in the profile where it is slowest; ``other`` where no layer has its name.

    Args:
        layers: of the engine.
        nodes: names of ONNX nodes.
    """
    found: dict[str, str] = {}
    for layer in layers:
        if layer.kind in _MOVES_ONLY:  # named after the layer that they serve
            continue
        for node in set(layer.nodes) & set(nodes):
            found[node] = min(found.get(node, layer.precision), layer.precision, key=_SPEED.index)
    return {node: found.get(node, "other") for node in nodes}


def asked_precisions(model: Any, precision: str, plan_nodes: Collection[str]) -> dict[str, str]:
    """Return what the dense nodes of a model are meant to compute in; those that stay FP32 are left out.

    Args:
        model: an ``onnx.ModelProto``.
        precision: of the engine. Of ``int8`` a node whose data and weight are quantized is meant to be INT8, another
            one FP16; ``fp32`` and ``tf32`` mean nothing.
        plan_nodes: that stay FP32.
    """
    if precision not in ("fp16", "int8"):
        return {}
    dequantized = {
        name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output
    }
    return {
        node.name: "int8" if precision == "int8" and dequantized.issuperset(node.input[:2]) else "fp16"
        for node in model.graph.node
        if node.op_type in DENSE and node.name not in plan_nodes
    }


def slower_shares(
    found: Mapping[str, str], asked: Mapping[str, str], flops: Mapping[str, float]
) -> dict[str, float]:
    """Return the nodes that run in a slower precision than they are meant to, the largest first.

    What TensorRT does not say (``other``: it may be hidden in a compiled region) is not known to be slower.

    Args:
        found: see ``node_precisions``.
        asked: see ``asked_precisions``.
        flops: see ``dense_flops``.

    Returns:
        Each one's share of the FLOPs of all nodes that are asked, 0 to 1.
    """
    total = sum(flops.get(node, 0.0) for node in asked)
    slower = {
        node: flops[node] / total
        for node, precision in asked.items()
        if flops.get(node) and _SPEED.index(found.get(node, "other")) < _SPEED.index(precision)
    }
    return dict(sorted(slower.items(), key=lambda item: -item[1]))


def dense_flops(model: Any, sizes: Optional[Mapping[str, int]] = None) -> dict[str, float]:
    """Return the arithmetic of every Conv, ConvTranspose, Gemm and MatMul with weights, for one image.

    Args:
        model: an ``onnx.ModelProto``; bodies of functions are not looked into.
        sizes: values for free dimensions by their names, besides ``batch``, which is 1.

    Returns:
        Floating-point operations (two per multiply-add) by node name. A node whose sizes are not known is left out.
    """
    onnx = import_onnx()
    shapes = _shapes(model, {**(sizes or {}), "batch": _BATCH}, onnx)
    constants = Graph(model).constants
    counts = {}
    for node in model.graph.node:
        has_weights = node.op_type in DENSE and node.input[1] in constants
        count = _flops(node, shapes) if has_weights else None
        if count is not None:
            counts[node.name] = count / _BATCH
    return counts


def _shapes(model: Any, sizes: Mapping[str, int], onnx: Any) -> dict[str, tuple[Optional[int], ...]]:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in copy.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in sizes:
                dim.dim_value = sizes[dim.dim_param]
    del copy.graph.value_info[:]
    in_standard_operators(copy)
    _declare_selections(copy, sizes["batch"], onnx)
    for output in copy.graph.output:
        output.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(copy, data_prop=True).graph
    shapes = {t.name: tuple(t.dims) for t in inferred.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        dims = value.type.tensor_type.shape.dim
        shapes[value.name] = tuple(d.dim_value if d.HasField("dim_value") else None for d in dims)
    return shapes


def _declare_selections(model: Any, batch: int, onnx: Any) -> None:
    """Make inputs of known size of what selects rows: inference does not follow how many into the bodies."""
    others = []
    for node in model.graph.node:
        operator = BY_NAME.get(node.op_type)
        if operator is None or operator.selected_shapes is None:
            others.append(node)
            continue
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        shapes = operator.selected_shapes(batch, attributes)
        for name, kind, shape in zip(node.output, operator.outputs or (), shapes):
            model.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, shape))
    del model.graph.node[:]
    model.graph.node.extend(others)


def _flops(node: Any, shapes: Mapping[str, tuple]) -> Optional[float]:
    data, weights, output = (shapes.get(name) for name in (node.input[0], node.input[1], node.output[0]))
    if weights is None or None in weights or data is None or output is None:
        return None
    # Rows times the weights' other dimensions: each output element of a row costs one product per weight in its column.
    rows = data if node.op_type == "ConvTranspose" else output
    if node.op_type in ("Conv", "ConvTranspose"):
        places = [rows[0], *rows[2:]]
        return None if None in places else 2.0 * float(np.prod(places)) * float(np.prod(weights))
    return None if None in output[:-1] else 2.0 * float(np.prod(output[:-1])) * float(np.prod(weights))
