"""A model without local functions, whose bodies stand in the places of their nodes."""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from runtime.graphs.load import import_onnx, name_nodes

if TYPE_CHECKING:
    import onnx

# What is larger is a weight: onnx's inliner gets the model as one string, which ends at 2 GB and takes seconds.
_LARGE_BYTES = 1024


def inlined(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """Return the model in standard operators: what was a function is its body. The model itself stays.

    Inlined nodes have names of their own; the others, and all tensors of the main graph, keep theirs.
    """
    onnx = import_onnx()
    light, graph = onnx.ModelProto(), model.graph
    _copy_fields(model, light, without=("graph",))
    _copy_fields(graph, light.graph, without=("initializer",))
    weights = [tensor for tensor in graph.initializer if len(tensor.raw_data) > _LARGE_BYTES]
    light.graph.initializer.extend(t for t in graph.initializer if len(t.raw_data) <= _LARGE_BYTES)
    if light.functions:
        light = onnx.inliner.inline_local_functions(light)
    light.graph.initializer.extend(weights)
    name_nodes(light)
    return light


def _copy_fields(source: Any, target: Any, without: Collection[str]) -> None:
    """Copy a protobuf message's fields."""
    for field, value in source.ListFields():
        if field.name in without:
            continue
        if isinstance(value, (bool, int, float, str, bytes)):
            setattr(target, field.name, value)
        else:
            getattr(target, field.name).MergeFrom(value)
