"""Small graphs in ONNX's text form, whose nodes are called after their first output."""

from collections.abc import Iterator, Mapping
from typing import Optional

import numpy as np
import onnx
from onnx import numpy_helper, parser

OPSET = 17


def model(
    signature: str,
    body: str,
    weights: Optional[Mapping[str, np.ndarray]] = None,
    *,
    opset: int = OPSET,
    domains: tuple[str, ...] = (),
    functions: str = "",
) -> onnx.ModelProto:
    """Return a model.

    Args:
        signature: ``(float[N, 4] x) => (float[N, 4] y)``.
        body: the nodes.
        weights: initialisers by name.
        opset: of ONNX's own operators.
        domains: other domains that occur.
        functions: local functions in text.
    """
    imports = ", ".join(f'"{domain}": {1 if domain else opset}' for domain in ("", *domains))
    proto = parser.parse_model(
        f"<ir_version: 8, opset_import: [{imports}]>\nsmall {signature} {{\n{body}\n}}\n{functions}"
    )
    for node in proto.graph.node:
        node.name = node.output[0]
    for name, value in (weights or {}).items():
        proto.graph.initializer.append(numpy_helper.from_array(value, name))
    return proto


def random(*shape: int, scale: float = 1.0, seed: int = 0) -> np.ndarray:
    """Return float32 normal values."""
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def run(proto: onnx.ModelProto, **feeds: np.ndarray) -> dict[str, np.ndarray]:
    """Run a model with onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds)))


def with_outputs(proto: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """Return a copy that also puts out these tensors."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    known = {output.name for output in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    return copy


def made_tensors(proto: onnx.ModelProto) -> list[str]:
    """Return the tensors that the main graph's nodes make, but for constants."""
    return [name for node in proto.graph.node if node.op_type != "Constant" for name in node.output if name]


def element_types(proto: onnx.ModelProto) -> dict[str, int]:
    """Return tensor -> element type, by onnx's strict inference."""
    inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    graph = inferred.graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        types[value.name] = value.type.tensor_type.elem_type
    return types


def nodes_by_name(proto: onnx.ModelProto) -> Iterator[tuple[str, onnx.NodeProto]]:
    """Yield (name, node)."""
    return ((node.name, node) for node in proto.graph.node)
