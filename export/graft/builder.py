"""Nodes appended to a graph: standard operators, and the project's own."""

from collections.abc import Iterable, Sequence
from typing import Any, Union

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from runtime.graphs.operators import DOMAIN

PREFIX = "graft"
FLOAT, INT32, INT64 = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64
# A tensor's name, or a constant.
Value = Union[str, float, int, Sequence[float], np.ndarray]


class Builder:
    """Appends nodes to a graph; every method returns the name of a tensor.

    Numbers among the inputs of ``op`` become float32 constants: what is integer is made with ``ints``.
    """

    def __init__(self, graph: onnx.GraphProto, prefix: str = PREFIX) -> None:
        self.graph, self._prefix = graph, prefix
        self._count = 0
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def op(self, kind: str, *inputs: Value, **attributes: Any) -> str:
        """Append a node of one output."""
        return self.node(kind, inputs, 1, **attributes)[0]

    def node(
        self, kind: str, inputs: Iterable[Value], outputs: int, domain: str = "", **attributes: Any
    ) -> list[str]:
        """Append a node."""
        self._count += 1
        name = f"{self._prefix}/{kind}_{self._count}"
        made = [f"{name}_{index}" for index in range(outputs)]
        names = [self._name(value) for value in inputs]
        self.graph.node.append(helper.make_node(kind, names, made, name, domain=domain, **attributes))
        return made

    def own(self, kind: str, inputs: Iterable[Value], outputs: int, **attributes: Any) -> list[str]:
        """Append a node of the domain ``maskrcnn``."""
        return self.node(kind, inputs, outputs, DOMAIN, **attributes)

    def ints(self, *values: int) -> str:
        """Return a constant (n,) int64."""
        return self._constant(np.array(values, np.int64))

    def int32(self, value: int) -> str:
        """Return a constant () int32."""
        return self._constant(np.array(value, np.int32))

    def rename(self, tensor: str, name: str) -> None:
        """Make a tensor available under a name, as the graph's outputs need it."""
        self.graph.node.append(helper.make_node("Identity", [tensor], [name], f"{self._prefix}/{name}"))

    # What the forms have in common.

    def columns(self, tensor: str, start: int, stop: int, axis: int = -1) -> str:
        """Return a slice of one axis."""
        return self.op("Slice", tensor, self.ints(start), self.ints(stop), self.ints(axis), self.ints(1))

    def concat(self, tensors: Sequence[str], axis: int) -> str:
        """Return tensors one after the other; one alone is itself."""
        return tensors[0] if len(tensors) == 1 else self.op("Concat", *tensors, axis=axis)

    def float(self, tensor: str) -> str:
        """Return a tensor as float32."""
        return self.op("Cast", tensor, to=FLOAT)

    def corners(self, centers: str, sizes: str) -> str:
        """Return (..., 4) corners of (..., 2) centres, widths and heights."""
        half = self.op("Mul", sizes, 0.5)
        return self.op("Concat", self.op("Sub", centers, half), self.op("Add", centers, half), axis=-1)

    def activated(self, tensor: str, activation: str) -> str:
        """Return a tensor after ``none``, ``sigmoid`` or ``softmax`` (over the last axis)."""
        kinds = {"sigmoid": "Sigmoid", "softmax": "Softmax"}
        if activation == "none":
            return tensor
        return self.op(kinds[activation], tensor, **({"axis": -1} if activation == "softmax" else {}))

    def _name(self, value: Value) -> str:
        return value if isinstance(value, str) else self._constant(np.asarray(value, np.float32))

    def _constant(self, array: np.ndarray) -> str:
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = self._constants[key] = f"{self._prefix}/constant_{len(self._constants)}"
            self.graph.initializer.append(numpy_helper.from_array(array, name))
        return self._constants[key]
