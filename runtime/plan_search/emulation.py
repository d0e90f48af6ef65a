"""FP16 on a CPU: a float32 model that rounds wherever the strongly typed FP16 model does.

onnxruntime's CPU provider has hardly any FP16 kernels. It computes a typed model in float32 and leaves out the casts
between neighbours: a product beyond 65504 that the next layer scales down again gives a good number there, and Inf on
a GPU. Here every tensor that is FP16 passes through a cast to float16 and back of the file's own, which onnxruntime
keeps. So overflow, vanishing values and the rounding of every tensor and weight are those of FP16, and sums inside an
operator are float32, as tensor cores accumulate. What a GPU's fused kernels never write to memory is rounded here all
the same: the emulation errs on the careful side.
"""

from typing import TYPE_CHECKING

import numpy as np

from runtime.graphs.load import import_onnx
from runtime.graphs.operators import EXACT, FP32_COORDINATES, SHAPE_OPS
from runtime.graphs.view import element_types, tensors_read
from runtime.precision.plan import PrecisionPlan, check_plan
from runtime.precision.prepare import FP16, FP32, converter, fp32_nodes, prepared, replace

if TYPE_CHECKING:
    import onnx


class Emulator:
    """Makes emulated models of one model; rounded weights are kept from one to the next."""

    def __init__(self, model: "onnx.ModelProto") -> None:
        """Take a float32 model; it is not changed.

        Raises:
            RuntimeError: the package onnx or onnxruntime is not installed.
        """
        self.original = model
        self._types = element_types(model)
        self._rounded: dict[str, onnx.TensorProto] = {}

    def model(self, plan: PrecisionPlan) -> "onnx.ModelProto":
        """Return the float32 model that computes what ``fp16_model(model, plan)`` stands for.

        Raises:
            ValueError: the plan is another model's.
        """
        check_plan(plan, self.original)
        copy = prepared(self.original, plan)
        writer = HalfWriter(self, copy)
        for node, fp32 in zip(copy.graph.node, fp32_nodes(copy, plan)):
            if fp32:
                writer.nodes.append(node)
            else:
                writer.add_half(node)
        writer.write()
        return copy

    def is_float(self, tensor: str) -> bool:
        """Return whether the tensor is float32 in the model."""
        return self._types.get(tensor) == FP32

    def rounded(self, tensor: "onnx.TensorProto", name: str) -> "onnx.TensorProto":
        """Return a weight with FP16's values in float32, rounded as the converter does, by this name."""
        numpy_helper = import_onnx().numpy_helper
        if name not in self._rounded:
            values = numpy_helper.to_array(tensor)
            half = converter().convert_np_to_float16(values.ravel())
            self._rounded[name] = numpy_helper.from_array(half.astype(np.float32).reshape(values.shape), name)
        return self._rounded[name]


class HalfWriter:
    """Writes nodes that compute in FP16 into a float32 graph.

    Attributes:
        nodes: what the graph will consist of, in order.
    """

    def __init__(self, emulator: Emulator, model: "onnx.ModelProto") -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._emulator = emulator
        self._graph = model.graph
        self._weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self._halves: dict[str, str] = {}
        self._roundings: set[str] = set()

    def add_half(self, node: "onnx.NodeProto", suffix: str = "", *, from_half: bool = True) -> None:
        """Add a copy of a node whose weights, activations and results are FP16.

        Args:
            node: of the float32 model; it is not changed.
            suffix: goes behind the names of the results.
            from_half: read the results of nodes that were added so before, and not the float32 model's.
        """
        copy = import_onnx().NodeProto()
        copy.CopyFrom(node)
        copy.name = f"{node.name}{suffix}"
        coordinates = FP32_COORDINATES.get(node.op_type, ())
        for i, name in enumerate(node.input):
            if self._emulator.is_float(name) and i not in coordinates and node.op_type not in SHAPE_OPS:
                copy.input[i] = self._half(name, from_half)
        self.nodes.append(copy)
        for i, name in enumerate(node.output):
            result = copy.output[i] = f"{name}{suffix}" if name else ""
            if not self._emulator.is_float(name):
                continue
            if node.op_type not in EXACT:
                copy.output[i] = f"{result}|exact"
                self._add_rounding(copy.output[i], result)
            if from_half:
                self._halves[name] = result

    def write(self) -> None:
        """Put the nodes into the graph, and leave out the weights that none of them reads."""
        read = {name for node in self.nodes for name in tensors_read(node)}
        read |= {value.name for value in self._graph.output}
        replace(self._graph.node, self.nodes)
        replace(self._graph.initializer, [t for name, t in self._weights.items() if name in read])

    def _half(self, name: str, from_half: bool) -> str:
        """Return the name of a tensor's FP16 values."""
        half = f"{name}|half"
        if name in self._weights:
            self._weights[half] = self._emulator.rounded(self._weights[name], half)
        elif from_half and name in self._halves:
            half = self._halves[name]
        elif half not in self._roundings:
            self._add_rounding(name, half)
        return half

    def _add_rounding(self, name: str, result: str) -> None:
        make = import_onnx().helper.make_node
        between = f"{result}|fp16"
        self.nodes.append(make("Cast", [name], [between], name=f"{between}_node", to=FP16))
        self.nodes.append(make("Cast", [between], [result], name=f"{result}|fp32_node", to=FP32))
        self._roundings.add(result)
