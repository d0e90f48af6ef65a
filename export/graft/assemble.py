"""A network and a head, joined: the inputs of the contract, the network, decoding, selection, NMS, outputs."""

from collections.abc import Mapping
from typing import Optional

import onnx
from onnx import TensorProto, helper

from export.functions import DOMAIN_VERSION, functions_for
from export.graft.builder import FLOAT, PREFIX, Builder
from export.graft.free import NetworkInput
from export.graft.grid import Grid, Size
from export.graft.head import Head
from export.graft.match import Match
from export.graft.tail import BATCH, append_tail
from runtime.contract import contract_inputs, contract_outputs
from runtime.graphs.operators import DOMAIN
from runtime.metadata import KEY, ModelMetadata


def assembled(
    network: onnx.ModelProto, given: NetworkInput, head: Head, matched: Match, metadata: ModelMetadata
) -> onnx.ModelProto:
    """Return the network with decoding, selection and NMS, and the contract's inputs and outputs.

    Args:
        network: whose batch is free.
        given: its input.
        head: what to append.
        matched: the outputs that it reads.
        metadata: of the result.
    """
    model = onnx.ModelProto()
    model.CopyFrom(network)
    (opset,) = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    names = _renamed(model.graph, given, metadata)
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.output}
    _replace_input(model.graph, given, names.get(given.name, given.name), metadata.size)
    del model.graph.output[:]
    builder = Builder(model.graph)
    tensors = {
        role: [_as_float(builder, names.get(n, n), kinds) for n in outputs]
        for role, outputs in matched.tensors.items()
    }
    found = head.form.decode(builder, Grid(builder, "images", metadata.size), tensors, len(head.keypoints))
    append_tail(builder, found, head, matched.num_classes, _num_candidates(head, metadata.size))
    model.opset_import.append(helper.make_opsetid(DOMAIN, DOMAIN_VERSION))
    model.functions.extend(functions_for(model.graph.node, opset))
    helper.set_model_props(model, {KEY: metadata.to_json()})
    model.producer_name = "maskrcnn-deploy"
    model.producer_version = metadata.versions.get("maskrcnn-deploy", "")
    onnx.checker.check_model(model)
    return model


def _renamed(graph: onnx.GraphProto, given: NetworkInput, metadata: ModelMetadata) -> dict[str, str]:
    """Rename the network's tensors that are called as the contract's, and return their new names by the old ones."""
    reserved = {*contract_inputs(metadata), *contract_outputs(metadata)}
    names = {name: f"network/{name}" for name in reserved}
    used: set[str] = set()
    _rename(graph, names, used)
    return {name: names[name] for name in used}


def _rename(graph: onnx.GraphProto, names: Mapping[str, str], used: set[str]) -> None:
    for named in (*graph.input, *graph.output, *graph.initializer):
        if named.name in names:
            used.add(named.name)
            named.name = names[named.name]
    for node in graph.node:
        for tensors in (node.input, node.output):
            for index, name in enumerate(tensors):
                if name in names:
                    used.add(name)
                    tensors[index] = names[name]
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *((attribute.g,) if attribute.HasField("g") else ())):
                _rename(inner, names, used)


def _replace_input(graph: onnx.GraphProto, given: NetworkInput, name: str, size: Optional[Size]) -> None:
    """Put the contract's inputs before the network, and between them what makes its own of them."""
    height, width = size or ("height", "width")
    del graph.input[:]
    graph.input.extend(
        (
            helper.make_tensor_value_info("images", TensorProto.FLOAT, [BATCH, 3, height, width]),
            helper.make_tensor_value_info("image_sizes", TensorProto.FLOAT, [BATCH, 2]),
        )
    )
    nodes = [("Transpose", {"perm": [0, 2, 3, 1]})] if given.is_nhwc else []
    if given.kind != TensorProto.FLOAT:
        nodes.append(("Cast", {"to": given.kind}))
    nodes = nodes or [("Identity", {})]
    tensor = "images"
    for index, (kind, attributes) in enumerate(nodes):
        out = name if index == len(nodes) - 1 else f"{PREFIX}/input_{index}"
        node = helper.make_node(kind, [tensor], [out], f"{PREFIX}/input_{kind}", **attributes)
        graph.node.insert(index, node)
        tensor = out


def _as_float(builder: Builder, tensor: str, kinds: Mapping[str, int]) -> str:
    return tensor if kinds.get(tensor) == FLOAT else builder.float(tensor)


def _num_candidates(head: Head, size: Optional[Size]) -> Optional[int]:
    return None if size is None else head.form.num_candidates(size)
