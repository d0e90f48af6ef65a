"""Attributes of an ONNX that end the process when onnxruntime gets them: looked at in the file, before it is loaded.

onnxruntime divides by some of them, or allocates by them, without a look (1.31: SIGFPE of ConvTranspose's ``group`` 0
and DepthToSpace's ``blocksize`` 2**40, an abort of RoiAlign's ``sampling_ratio`` 2**40).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Union

from runtime.graphs.wire import MOST_DEPTH, NoProtobuf, fields, file_bytes, packed, text
from runtime.messages import shown

# Name -> least and largest value. Of lists, of each.
_SANE = {
    "group": (1, 1 << 31),
    "num_groups": (1, 1 << 31),
    "blocksize": (1, 1 << 15),
    "sampling_ratio": (0, 1 << 15),
    "output_height": (1, 1 << 15),
    "output_width": (1, 1 << 15),
    "kernel_shape": (1, 1 << 31),
    "strides": (1, 1 << 31),
    "dilations": (1, 1 << 31),
}
# Fields of onnx.proto.
_MODEL_GRAPH, _MODEL_FUNCTIONS = 7, 25
_GRAPH_NODE, _FUNCTION_NODE = 1, 7
_NODE_OP_TYPE, _NODE_ATTRIBUTE = 4, 5
_NAME, _INT, _INTS, _GRAPH, _GRAPHS = 1, 3, 8, 6, 11


def check_attributes(path: Path) -> None:
    """Refuse an ONNX with such an attribute. What is no ONNX is left to who loads it.

    Raises:
        ValueError: names the file, the operator and the attribute.
        OSError: it cannot be read.
    """
    try:
        found = next(_insane_of_model(file_bytes(path)), None)
    except (NoProtobuf, IndexError):
        return
    if found is not None:
        operator, name, value = found
        low, high = _SANE[name]
        raise ValueError(
            f"model {path}: {operator}, {name}: expected {low} to {high}, found {shown(value)}; the file is damaged, "
            "make it again"
        )


Insane = tuple[str, str, int]


def _insane_of_model(data: memoryview) -> Iterator[Insane]:
    for number, value in fields(data):
        if number == _MODEL_GRAPH:
            yield from _insane_of_nodes(value, _GRAPH_NODE, 0)
        elif number == _MODEL_FUNCTIONS:
            yield from _insane_of_nodes(value, _FUNCTION_NODE, 0)


def _insane_of_nodes(data: Union[int, memoryview], node: int, depth: int) -> Iterator[Insane]:
    if depth > MOST_DEPTH:
        raise NoProtobuf
    for number, value in fields(data):
        if number == node:
            yield from _insane_of_node(value, depth)


def _insane_of_node(data: Union[int, memoryview], depth: int) -> Iterator[Insane]:
    operator, attributes = "", []
    for number, value in fields(data):
        if number == _NODE_OP_TYPE:
            operator = text(value)
        elif number == _NODE_ATTRIBUTE:
            attributes.append(value)
    for attribute in attributes:
        name, values, graphs = _attribute(attribute)
        low, high = _SANE.get(name, (0, 0))
        yield from ((operator, name, v) for v in values if high and not low <= v <= high)
        for graph in graphs:
            yield from _insane_of_nodes(graph, _GRAPH_NODE, depth + 1)


def _attribute(data: Union[int, memoryview]) -> tuple[str, list[int], list[Union[int, memoryview]]]:
    name = ""
    values: list[int] = []
    graphs: list[Union[int, memoryview]] = []
    for number, value in fields(data):
        if number == _NAME:
            name = text(value)
        elif number in (_INT, _INTS):
            values.extend([value] if isinstance(value, int) else packed(value))
        elif number in (_GRAPH, _GRAPHS):
            graphs.append(value)
    return name, [v - (1 << 64) if v >> 63 else v for v in values], graphs
