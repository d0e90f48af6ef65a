"""Divisions of whole numbers that end the process: looked for in the file, before a runtime gets it.

A processor raises an exception for a quotient that it has no bits for, and a runtime that does not look before it
divides does not survive it (SIGFPE): onnxruntime 1.31 of the least int32 or int64 by -1, onnxruntime 1.19 of anything
by 0, OpenVINO 2026.4 of either where both are constants. What is computed while the model runs cannot be seen here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional, Union

import numpy as np

from runtime.graphs.wire import MOST_DEPTH, NoProtobuf, fields, file_bytes, packed, text

_DIVISIONS = ("Div", "Mod")
# Fields of onnx.proto.
_MODEL_GRAPH, _MODEL_FUNCTIONS = 7, 25
_GRAPH_NODE, _GRAPH_INITIALIZER, _FUNCTION_NODE = 1, 5, 7
_INPUT, _OUTPUT, _NODE_NAME, _OP_TYPE, _ATTRIBUTE = 1, 2, 3, 4, 5
_ATTRIBUTE_NAME, _INT, _TENSOR, _GRAPH, _INTS, _GRAPHS = 1, 3, 5, 6, 8, 11
_DATA_TYPE, _INT32S, _INT64S, _TENSOR_NAME, _RAW, _UINT64S = 2, 5, 7, 8, 9, 11
# TensorProto.DataType of whole numbers.
_DTYPES = {2: "u1", 3: "i1", 4: "<u2", 5: "<i2", 6: "<i4", 7: "<i8", 12: "<u4", 13: "<u8"}

# A message's bytes; a number, which is none, is found out by ``fields``.
Bytes = Union[int, memoryview]
# A TensorProto, or the numbers of a Constant's value_int(s).
Constant = Union[Bytes, np.ndarray]


@dataclass
class _Node:
    """What of a node matters here."""

    operator: str = ""
    name: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    constant: Optional[Constant] = None
    graphs: list[Bytes] = field(default_factory=list)


def check_divisors(path: Path) -> None:
    """Refuse an ONNX with such a division, in the graph, in one inside it, or in a function. No ONNX is left alone.

    Raises:
        ValueError: names the file, the operator and the numbers.
        OSError: it cannot be read.
    """
    try:
        found = next(_found_in_model(file_bytes(path)), None)
    except (NoProtobuf, IndexError, RecursionError):
        return
    if found is not None:
        raise ValueError(
            f"model {path}: {found}, which ends the process; the file is damaged or was exported wrongly, make it again"
        )


def _found_in_model(data: memoryview) -> Iterator[str]:
    for number, value in fields(data):
        if number == _MODEL_GRAPH:
            yield from _found_in_graph(value, _GRAPH_NODE, {}, 0)
        elif number == _MODEL_FUNCTIONS:
            yield from _found_in_graph(value, _FUNCTION_NODE, {}, 0)


def _found_in_graph(data: Bytes, node: int, outer: Mapping[str, Constant], depth: int) -> Iterator[str]:
    """Yield what is wrong; ``outer`` are the constants of the graphs around this one."""
    if depth > MOST_DEPTH:
        raise NoProtobuf
    constants, nodes = dict(outer), []
    for number, value in fields(data):
        if number == node:
            nodes.append(_node(value))
        elif number == _GRAPH_INITIALIZER and node == _GRAPH_NODE:
            constants[_name_of(value)] = value
    constants.update({n.outputs[0]: n.constant for n in nodes if n.constant is not None and n.outputs})
    for found in nodes:
        if found.operator in _DIVISIONS and len(found.inputs) == 2:
            words = _wrong(*(constants.get(name) for name in found.inputs))
            if words:
                yield f"{found.operator} {found.name or ', '.join(found.outputs)}: {words}"
        for graph in found.graphs:
            yield from _found_in_graph(graph, _GRAPH_NODE, constants, depth + 1)


def _wrong(dividend: Optional[Constant], divisor: Optional[Constant]) -> str:
    """Return what is wrong with a division of two tensors, None for one that is computed."""
    by = None if divisor is None else _numbers(divisor)
    if by is None:
        return ""
    if (by == 0).any():
        return f"expected no division of {by.dtype.name} by 0, found one"
    of = None if dividend is None else _numbers(dividend)
    if of is None or by.dtype.kind != "i" or of.dtype != by.dtype:
        return ""
    least = np.iinfo(by.dtype).min
    if (by == -1).any() and (of == least).any():
        return f"expected quotients that {by.dtype.name} holds, found {least} by -1"
    return ""


def _node(data: Bytes) -> _Node:
    node, attributes = _Node(), []
    for number, value in fields(data):
        if number == _OP_TYPE:
            node.operator = text(value)
        elif number == _NODE_NAME:
            node.name = text(value)
        elif number in (_INPUT, _OUTPUT):
            (node.inputs if number == _INPUT else node.outputs).append(_name(value))
        elif number == _ATTRIBUTE:
            attributes.append(value)
    for attribute in attributes:
        constant, graphs = _attribute(attribute)
        node.graphs += graphs
        if node.operator == "Constant" and constant is not None:
            node.constant = constant
    return node


def _attribute(data: Bytes) -> tuple[Optional[Constant], list[Bytes]]:
    """Return the constant that an attribute of Constant is, and the graphs that one of others is."""
    name, tensor = "", None
    numbers: list[int] = []
    graphs: list[Bytes] = []
    for number, value in fields(data):
        if number == _ATTRIBUTE_NAME:
            name = text(value)
        elif number == _TENSOR:
            tensor = value
        elif number in (_INT, _INTS):
            numbers.extend([value] if isinstance(value, int) else packed(value))
        elif number in (_GRAPH, _GRAPHS):
            graphs.append(value)
    if name in ("value_int", "value_ints"):
        return np.array(numbers, np.uint64).view(np.int64), graphs
    return (tensor if name == "value" else None), graphs


def _numbers(constant: Constant) -> Optional[np.ndarray]:
    """Return the whole numbers of a constant in one dimension; None for other types, and for data in another file."""
    if isinstance(constant, np.ndarray):
        return constant
    kind, raw = 0, memoryview(b"")
    numbers: list[int] = []
    for number, value in fields(constant):
        if number == _DATA_TYPE and isinstance(value, int):
            kind = value
        elif number == _RAW and not isinstance(value, int):
            raw = value
        elif number in (_INT32S, _INT64S, _UINT64S):
            numbers.extend([value] if isinstance(value, int) else packed(value))
    if kind not in _DTYPES:
        return None
    dtype = np.dtype(_DTYPES[kind])
    if numbers:  # of 64 bits without a sign, whatever the type is
        return np.array(numbers, np.uint64).astype(dtype)
    return np.frombuffer(raw, dtype, len(raw) // dtype.itemsize)


def _name_of(tensor: Bytes) -> str:
    return next((_name(value) for number, value in fields(tensor) if number == _TENSOR_NAME), "")


def _name(value: Bytes) -> str:
    """Return a whole name: tensors' are compared."""
    return "" if isinstance(value, int) else bytes(value).decode("utf-8", "replace")
