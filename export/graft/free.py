"""A network whose batch, and where that is asked for its size, is free: what was fixed when it was traced is rewritten.

Rewritten: the declared shapes of input and outputs, weights that are declared as inputs, constants of Reshape that hold
the batch (or the size), constant sizes of Resize. That the result computes the same is proven by running it
(``export.graft.proof``), not here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, version_converter

from export.graft.grid import Size
from export.graft.tail import BATCH

MIN_OPSET = 16
CONTRACT_NAMES = ("images", "image_sizes", "num_dets", "dets", "labels", "keypoints", "masks")


@dataclass(frozen=True)
class NetworkInput:
    """The one input of a network.

    Attributes:
        name: of the tensor.
        kind: element type, of ``onnx.TensorProto``.
        batch, size: as declared, None where free; (height, width) px.
        is_nhwc: channels come last.
    """

    name: str
    kind: int
    batch: Optional[int]
    size: tuple[Optional[int], Optional[int]]
    is_nhwc: bool = False

    def shape(self, batch: object, height: object, width: object) -> list:
        """Return its shape with these lengths."""
        return [batch, height, width, 3] if self.is_nhwc else [batch, 3, height, width]

    def array(self, images: np.ndarray) -> np.ndarray:
        """Return (B, 3, H, W) float32 images as the network takes them."""
        arranged = images.transpose(0, 2, 3, 1) if self.is_nhwc else images
        return np.ascontiguousarray(arranged, helper.tensor_dtype_to_np_dtype(self.kind))


def network_input(model: onnx.ModelProto, name: str) -> NetworkInput:
    """Return the model's input; weights that are declared as inputs do not count.

    Args:
        model: anybody's.
        name: of its file, for messages.

    Raises:
        ValueError: it has several, or one that takes no colour images.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise ValueError(
            f"{name}: expected one input, the images, found {names}; export the network without its others"
        )
    tensor = inputs[0].type.tensor_type
    dims = [
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in tensor.shape.dim
    ]
    is_nhwc = len(dims) == 4 and dims[3] == 3 and dims[1] != 3
    good_kind = tensor.elem_type in (TensorProto.FLOAT, TensorProto.FLOAT16)
    if len(dims) != 4 or not good_kind or dims[3 if is_nhwc else 1] not in (3, None):
        found = f"{helper.tensor_dtype_to_string(tensor.elem_type)} {dims}"
        raise ValueError(
            f"{name}: input {inputs[0].name}: expected float images (B, 3, H, W) or (B, H, W, 3), found {found}; "
            "export the network so that it takes them"
        )
    size = (dims[1], dims[2]) if is_nhwc else (dims[2], dims[3])
    return NetworkInput(inputs[0].name, tensor.elem_type, dims[0], size, is_nhwc)


def converted(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Return a copy of at least opset ``MIN_OPSET``, which the bodies of the operators are written in.

    Raises:
        ValueError: onnx cannot convert it; says why.
    """
    (opset,) = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")] or [1]
    if opset >= MIN_OPSET:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        return copy
    try:
        return version_converter.convert_version(_with_plain_inputs(model), MIN_OPSET)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"{name}: expected a graph of opset {MIN_OPSET} or more, or one that onnx converts, found opset {opset}: "
            f"{' '.join(str(error).split())}; export the network with a newer opset"
        ) from error


def freed(model: onnx.ModelProto, given: NetworkInput, known: Size, size: Optional[Size]) -> onnx.ModelProto:
    """Return a copy whose batch is free, at another size or any.

    Args:
        model: of opset ``MIN_OPSET`` or more.
        given: its input.
        known: (height, width) px at which its constants are right.
        size: (height, width) px that it is to have; None for any.
    """
    model = _with_plain_inputs(model)
    _expand_constants(model.graph)
    shapes = _shapes(model, given, known)
    changes_size = size is None or tuple(size) != tuple(known)
    rewriter = _Rewriter(model.graph, shapes, given.batch or 1, changes_size)
    rewriter.rewrite()
    _drop_unused(model.graph)
    height, width = size or ("height", "width")
    _declare(model.graph.input[0], given.shape(BATCH, height, width))
    del model.graph.value_info[:]
    for output in model.graph.output:
        rank = len(shapes.get(output.name) or output.type.tensor_type.shape.dim)
        _declare(output, [BATCH, *(None for _ in range(rank - 1))])
    return model


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Remove constants that nothing reads any more; onnxruntime names each of them in a warning."""
    used = {value.name for value in graph.output} | _read_names(graph)
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _read_names(graph: onnx.GraphProto) -> set[str]:
    names: set[str] = set()
    for node in graph.node:
        names.update(node.input)
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *((attribute.g,) if attribute.HasField("g") else ())):
                names |= _read_names(inner) | {value.name for value in inner.output}
    return names


def _with_plain_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose weights are not declared as inputs, as files of IR 3 have them."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    weights = {tensor.name for tensor in copy.graph.initializer}
    inputs = [value for value in copy.graph.input if value.name not in weights]
    del copy.graph.input[:]
    copy.graph.input.extend(inputs)
    copy.ir_version = max(copy.ir_version, 8)
    return copy


def _expand_constants(graph: onnx.GraphProto) -> None:
    """Make initializers of Constant nodes, so that there is one place to look for either."""
    kept = []
    for node in graph.node:
        values = [a for a in node.attribute if a.name == "value"] if node.op_type == "Constant" else []
        if values and not node.domain:
            tensor = TensorProto()
            tensor.CopyFrom(values[0].t)
            tensor.name = node.output[0]
            graph.initializer.append(tensor)
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)


def _shapes(model: onnx.ModelProto, given: NetworkInput, size: Size) -> dict[str, list[Optional[int]]]:
    """Return the shape of each tensor at the declared batch and a size; None for what inference does not say."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    for output in copy.graph.output:
        output.type.tensor_type.ClearField("shape")
    _declare(copy.graph.input[0], given.shape(given.batch or 1, *size))
    inferred = onnx.shape_inference.infer_shapes(copy, data_prop=True).graph
    return {
        value.name: [
            d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim
        ]
        for value in (*inferred.input, *inferred.value_info, *inferred.output)
        if value.type.tensor_type.HasField("shape")
    }


def _declare(value: onnx.ValueInfoProto, shape: Sequence[object]) -> None:
    tensor = value.type.tensor_type
    tensor.shape.Clear()
    for length in shape:
        dim = tensor.shape.dim.add()
        if isinstance(length, int):
            dim.dim_value = length
        elif isinstance(length, str):
            dim.dim_param = length


class _Rewriter:
    """Takes the batch, and the size where that changes, out of a graph's constants."""

    def __init__(
        self, graph: onnx.GraphProto, shapes: Mapping[str, Sequence[Optional[int]]], batch: int, size: bool
    ) -> None:
        self._graph, self._shapes, self._batch, self._size = graph, shapes, batch, size
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._outputs = {value.name for value in graph.output}

    def rewrite(self) -> None:
        """Do it."""
        nodes = list(self._graph.node)
        del self._graph.node[:]
        for node in nodes:
            if node.op_type == "Reshape" and not node.domain:
                self._reshape(node)
            elif node.op_type == "Resize" and not node.domain:
                self._resize(node)
            self._graph.node.append(node)

    def _constant(self, name: str) -> Optional[np.ndarray]:
        return numpy_helper.to_array(self._constants[name]) if name in self._constants else None

    def _set(self, node: onnx.NodeProto, index: int, values: np.ndarray) -> None:
        """Give a node a constant of its own: others may share the old one."""
        name = f"{node.output[0]}/freed"
        self._graph.initializer.append(numpy_helper.from_array(values, name))
        node.input[index] = name

    def _reshape(self, node: onnx.NodeProto) -> None:
        target, shape = self._constant(node.input[1]), self._shapes.get(node.input[0])
        if target is None or not shape or shape[0] != self._batch or target.size == 0:
            return
        new = target.astype(np.int64).tolist()
        if new[0] == self._batch:
            new[0] = 0  # as many as come in
        elif new[0] == -1 and -1 not in new[1:] and node.output[0] in self._outputs and self._batch == 1:
            # An output without a batch of its own, as InsightFace exports them.
            new = [0, *new]
        if self._size and new[0] == 0 and -1 not in new:
            new = self._without_size(new, shape)
        if new != target.tolist():
            self._set(node, 1, np.array(new, np.int64))
            del node.attribute[:]  # allowzero, were it there, would make none of 0

    def _without_size(self, new: list[int], shape: Sequence[Optional[int]]) -> list[int]:
        """Leave the last length open: where it is no place of the image, it is found to be the same."""
        return [*new[:-1], -1] if len(new) > 1 else new

    def _resize(self, node: onnx.NodeProto) -> None:
        """Constant sizes become the scales that they are."""
        if len(node.input) < 4:
            return
        sizes, shape = self._constant(node.input[3]), self._shapes.get(node.input[0])
        if sizes is None or not shape or None in shape or any(a.name == "axes" for a in node.attribute):
            return
        scales = np.array([out / into for out, into in zip(sizes.tolist(), shape)], np.float32)
        del node.input[3:]
        self._set(node, 2, scales)
