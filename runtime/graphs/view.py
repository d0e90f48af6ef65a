"""A model's main graph tensor types, who makes a tensor and who reads it."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from runtime.graphs.load import import_onnx
from runtime.graphs.operators import OUTPUT_TYPES, SHAPE_OPS, type_of_input

if TYPE_CHECKING:
    import onnx

_MAX_ELEMENTS_OF_A_SHAPE = 64


class Graph:
    """Read-only view of a model's main graph. Nodes are known by their index in ``nodes``.

    Attributes:
        nodes: in topological order, the graph's own where that is one.
        inputs: of each node, the tensors that it reads, in a subgraph included.
        producer: tensor -> index of the node that makes it; inputs and initialisers have none.
        readers: tensor -> indices of the nodes that read it, the ones that do in a subgraph included.
        constants: tensors that depend on no input: initialisers and what is computed from them.
        vectors: initialisers of one dimension.
    """

    def __init__(self, model: "onnx.ModelProto") -> None:
        self.nodes = topological(model.graph.node)
        self.inputs = [tuple(tensors_read(node)) for node in self.nodes]
        self.producer = {name: i for i, node in enumerate(self.nodes) for name in node.output if name}
        self.readers: dict[str, list[int]] = {}
        for i, names in enumerate(self.inputs):
            for name in dict.fromkeys(names):
                self.readers.setdefault(name, []).append(i)
        self._types = element_types(model)
        self._float_types = float_types()
        self.vectors = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 1}
        self.constants = {tensor.name for tensor in model.graph.initializer}
        for names, node in zip(self.inputs, self.nodes):
            if all(name in self.constants for name in names) and not node.op_type.startswith("Random"):
                self.constants.update(node.output)

    def is_float(self, tensor: str) -> bool:
        """Return whether the tensor holds floats, of any width; False where nobody knows."""
        return self._types.get(tensor) in self._float_types

    def computes_on_floats(self, index: int) -> bool:
        """Return whether the node makes or reads floats. Constants and Shape do not compute."""
        node = self.nodes[index]
        if node.op_type in SHAPE_OPS or node.op_type == "Constant":
            return False
        return any(map(self.is_float, (*self.inputs[index], *node.output)))

    def before(self, index: int) -> Iterator[int]:
        """Yield the nodes whose outputs this one reads."""
        return (self.producer[name] for name in self.inputs[index] if name in self.producer)

    def after(self, index: int) -> Iterator[int]:
        """Yield the nodes that read this one's outputs."""
        return (reader for name in self.nodes[index].output for reader in self.readers.get(name, ()))

    def ancestors(self, tensors: Iterable[str]) -> set[int]:
        """Return the nodes that the tensors depend on."""
        return self._reached((self.producer[t] for t in tensors if t in self.producer), self.before)

    def descendants(self, indices: Iterable[int]) -> set[int]:
        """Return the nodes that depend on these, themselves excluded unless one depends on another."""
        return self._reached((after for i in indices for after in self.after(i)), self.after)

    @staticmethod
    def _reached(start: Iterable[int], step: Callable[[int], Iterable[int]]) -> set[int]:
        found: set[int] = set()
        pending = list(start)
        while pending:
            index = pending.pop()
            if index not in found:
                found.add(index)
                pending.extend(step(index))
        return found


def tensors_read(node: "onnx.NodeProto") -> list[str]:
    """Return the tensors that a node reads, those that its subgraphs take from outside included."""
    return [name for name in node.input if name] + captured(node)


def captured(node: "onnx.NodeProto") -> list[str]:
    """Return what the node's subgraphs (of If, Loop, Scan) take from outside, each once."""
    names: dict[str, None] = {}
    for graph in subgraphs(node):
        inside = {v.name for v in (*graph.input, *graph.initializer)}
        for inner in graph.node:
            names.update(dict.fromkeys(name for name in tensors_read(inner) if name not in inside))
            inside.update(inner.output)
        names.update(dict.fromkeys(output.name for output in graph.output if output.name not in inside))
    return list(names)


def subgraphs(node: "onnx.NodeProto") -> list["onnx.GraphProto"]:
    """Return the graphs among a node's attributes."""
    single = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return single + [graph for attribute in node.attribute for graph in attribute.graphs]


def tensor_types(model: "onnx.ModelProto") -> dict[str, "onnx.TypeProto"]:
    """Return the type of each tensor of the main graph, as far as it follows from the file.

    What the nodes say goes before what the file declares: a converter to half precision may have left types that are no
    longer true. What onnx does not know has outputs of the type of its features, or of its first input that has a type.
    """
    onnx = import_onnx()
    light = _without_weights(model)
    declared = {v.name: v.type for v in model.graph.value_info if v.type.tensor_type.elem_type}
    while True:
        types = _known_types(onnx.shape_inference.infer_shapes(light))
        new = {name: kind for name, kind in declared.items() if name not in types} or _guesses(light, types)
        if not new:
            return types
        light.graph.value_info.extend(onnx.helper.make_value_info(name, kind) for name, kind in new.items())


def element_types(model: "onnx.ModelProto") -> dict[str, int]:
    """Return the element type of each tensor of the main graph; see ``tensor_types``."""
    return {name: kind.tensor_type.elem_type for name, kind in tensor_types(model).items()}


def _without_weights(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """Return a copy in which weights are inputs: types need no values, and protobuf ends at 2 GB."""
    onnx = import_onnx()
    light = onnx.ModelProto(ir_version=max(model.ir_version, 4), opset_import=model.opset_import)
    light.functions.extend(model.functions)
    graph, source = light.graph, model.graph
    graph.name = source.name or "graph"
    graph.node.extend(source.node)
    graph.output.extend(source.output)
    initializers = {tensor.name for tensor in source.initializer}
    graph.input.extend(value for value in source.input if value.name not in initializers)
    for tensor in source.initializer:
        if math.prod(tensor.dims) <= _MAX_ELEMENTS_OF_A_SHAPE:
            graph.initializer.append(tensor)
        else:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return light


def _known_types(model: "onnx.ModelProto") -> dict[str, "onnx.TypeProto"]:
    graph = model.graph
    make = import_onnx().helper.make_tensor_type_proto
    types = {tensor.name: make(tensor.data_type, tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.tensor_type.elem_type:
            types[value.name] = value.type
    return types


def _guesses(model: "onnx.ModelProto", types: Mapping[str, "onnx.TypeProto"]) -> dict[str, "onnx.TypeProto"]:
    """Return types of the outputs of operators that onnx does not know, where their inputs' types are known."""
    onnx = import_onnx()
    guesses: dict[str, int] = {}
    for node in model.graph.node:
        unknown = [name for name in node.output if name and name not in types]
        if not unknown or onnx.defs.has(node.op_type, node.domain):
            continue
        if node.op_type in OUTPUT_TYPES:
            own = dict(zip(node.output, OUTPUT_TYPES[node.op_type]))
            guesses.update((name, own[name]) for name in unknown)
            continue
        preferred = node.input[type_of_input(node.op_type) :][:1]
        known = [types[name].tensor_type.elem_type for name in (*preferred, *node.input) if name in types]
        if known:
            guesses.update(dict.fromkeys(unknown, known[0]))
    return {name: onnx.helper.make_tensor_type_proto(kind, None) for name, kind in guesses.items()}


def topological(nodes: Sequence["onnx.NodeProto"]) -> list["onnx.NodeProto"]:
    """Return the nodes in topological order, as they are where they are so: converters append their casts."""
    makers = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    order: dict[int, None] = {}
    for start in range(len(nodes)):
        waiting = [start]
        while waiting:
            index = waiting[-1]
            needed = [makers[name] for name in tensors_read(nodes[index]) if name in makers]
            # Nodes that wait already are a cycle, which no runtime takes.
            missing = [i for i in needed if i not in order and i not in waiting]
            if missing:
                waiting.append(missing[0])
                continue
            order[waiting.pop()] = None
    return [nodes[index] for index in order]


def sort_nodes(graph: "onnx.GraphProto") -> None:
    """Bring the nodes into topological order, in graphs inside the graph too.

    Raises:
        ValueError: a tensor is read that nothing makes before it can be; names it.
    """
    _sort(graph)
    made = {value.name for value in (*graph.input, *graph.initializer)}
    made.update(tensor.values.name for tensor in graph.sparse_initializer)
    for node in graph.node:
        missing = next((name for name in tensors_read(node) if name not in made), None)
        if missing is not None:
            raise ValueError(
                f"node {node_label(node)}: expected inputs that are made before it, found {missing!r}, which nothing "
                "makes, or which depends on the node itself"
            )
        made.update(node.output)


def _sort(graph: "onnx.GraphProto") -> None:
    before = list(graph.node)
    for node in before:
        for inner in subgraphs(node):
            _sort(inner)
    after = topological(before)
    if any(a is not b for a, b in zip(before, after)):
        copies = [copy.deepcopy(node) for node in after]
        del graph.node[:]
        graph.node.extend(copies)


def node_label(node: "onnx.NodeProto") -> str:
    """Return a node's name, or where it has none its first output's."""
    return node.name or next((name for name in node.output if name), node.op_type)


def float_types() -> frozenset[int]:
    """Return the element types that hold floats."""
    kinds = import_onnx().TensorProto
    return frozenset({kinds.FLOAT, kinds.FLOAT16, kinds.BFLOAT16, kinds.DOUBLE})
