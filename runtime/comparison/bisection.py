"""The first tensor at which two runs of a network part: intermediate tensors by name, bisected.

Both sides are ONNX models, which may differ (a typed FP16 copy with added casts, changed weights), each with
something that runs it. Tensors are marked as extra outputs, a few at a time, since marking all of them is what fails
in practice: memory, or an engine that no longer fuses or builds. Every difference has its origin in a tensor whose
inputs still agree, so the search goes back from tensors that differ, and stops at those that agree.

Where a node orders rows by data (TopK, NMS), two scores that are equal but for rounding swap their rows, and comparing
row by row means little from there on. If everything before agrees, the first side's order is fed to both. What such a
node computes besides the order (the boxes of DecodeProposals) is compared before that, each row with the nearest.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Optional

import numpy as np

from runtime.comparison.row_pairs import pair_rows
from runtime.graphs.load import import_onnx
from runtime.graphs.operators import BY_NAME, orders_rows
from runtime.graphs.session import one_line
from runtime.graphs.view import Graph, float_types, node_label, tensor_types
from runtime.runner import Feeds, LayerRunnerFactory

if TYPE_CHECKING:
    import onnx

# Told how many tensors are measured, and how many are marked next.
Listener = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Side:
    """One of the two: a model, and what runs it."""

    model: "onnx.ModelProto"
    runner: LayerRunnerFactory


@dataclass(frozen=True)
class TensorError:
    """How far one tensor differs.

    Attributes:
        name: of the tensor.
        node, op: name and type of the node that makes it.
        position: of that node in the graph's topological order.
        shape, found_shape: of the two tensors.
        relative: ``absolute`` by ``scale``; infinite for NaN on one side only, or for different shapes.
        absolute: largest difference of two values.
        scale: largest finite absolute value of the expected tensor, 1 if all are 0.
        share: share of the values that differ by more than the tolerance.
        index: where the difference is largest.
        expected, found: the values there.
        ordered_by: the first node before it whose order of rows depends on the data (TopK, NMS), and is not the same
            on both sides; empty without. Comparing such rows one by one means little.
    """

    name: str
    node: str
    op: str
    position: int
    shape: tuple[int, ...]
    found_shape: tuple[int, ...]
    relative: float
    absolute: float
    scale: float
    share: float
    index: tuple[int, ...]
    expected: float
    found: float
    ordered_by: str


@dataclass(frozen=True)
class LayerReport:
    """Where two networks part.

    Attributes:
        first: the first tensor beyond the tolerance; None if all that were measured agree.
        measured: all that were measured, in topological order.
        same_order: tensors that order rows by data, which the first side gave to both once everything before them
            agreed; empty if that was not needed, or not possible. Boxes among them were compared before, each with the
            nearest.
        order_problem: why it was not possible, in words; else empty.
        num_tensors: float tensors that depend on the input and that both sides have.
        num_marked: tensors marked as extra outputs, all runs together.
        num_runs: times that each side was made and run.
        unmeasured: tensors that no run could deliver, and why.
    """

    first: Optional[TensorError]
    measured: tuple[TensorError, ...]
    same_order: tuple[str, ...]
    order_problem: str
    num_tensors: int
    num_marked: int
    num_runs: int
    unmeasured: dict[str, str]


def compare_layers(
    expected: Side,
    found: Side,
    feeds: Feeds,
    *,
    tolerance: float = 1e-3,
    chunk: int = 8,
    listener: Optional[Listener] = None,
) -> LayerReport:
    """Find the first tensor at which two networks part.

    Args:
        expected, found: the two; the order of the nodes is the first one's.
        feeds: inputs by name, the same for both.
        tolerance: largest difference of two values of a tensor, relative to its largest value.
        chunk: most tensors that are marked at once.
        listener: told of progress.

    Raises:
        ValueError: the two have no tensor in common, or ``chunk`` is less than 1.
        RuntimeError, ValueError: a side does not run even without extra outputs.
    """
    if chunk < 1:
        raise ValueError(f"chunk: expected at least 1, found {chunk}")
    search = _Search(expected, found, feeds, tolerance, chunk, listener or (lambda measured, marked: None))
    names = search.names
    first = search.first([name for name in search.names if not search.order.ordered_by[name]])
    same_order: tuple[str, ...] = ()
    if first is None:
        same_order = search.give_same_order()
        first = search.first_of(same_order) or search.first(search.names)
    return LayerReport(
        first=first,
        measured=tuple(search.measured[name] for name in names if name in search.measured),
        same_order=same_order,
        order_problem=search.order_problem,
        num_tensors=len(names),
        num_marked=search.num_marked,
        num_runs=search.num_runs,
        unmeasured=search.unmeasured,
    )


def with_outputs(
    model: "onnx.ModelProto", names: Collection[str], types: Mapping[str, "onnx.TypeProto"]
) -> "onnx.ModelProto":
    """Return a copy of the model with more outputs.

    Args:
        model: unchanged.
        names: tensors of the main graph; those that are outputs already stay so.
        types: type of each. TensorRT's parser takes an output without a type for float.
    """
    onnx = import_onnx()
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    present = {output.name for output in copy.graph.output}
    copy.graph.output.extend(
        onnx.helper.make_value_info(name, types[name]) for name in names if name not in present
    )
    return copy


def with_inputs(
    model: "onnx.ModelProto", values: Feeds, types: Mapping[str, "onnx.TypeProto"], feeds: Feeds
) -> "onnx.ModelProto":
    """Return a copy of the model that is given some of its own tensors.

    Args:
        model: unchanged.
        values: the tensors by name. Nodes that make nothing else are removed.
        types: type of each.
        feeds: the model's own inputs. All inputs get exactly these arrays' shapes: an engine's other batch sizes would
            not fit the given tensors.
    """
    onnx = import_onnx()
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in list(copy.graph.node):
        outputs = [name for name in node.output if name]
        if all(name in values for name in outputs):
            copy.graph.node.remove(node)
            continue
        for index, name in enumerate(node.output):
            if name in values:
                node.output[index] = f"{name}/replaced"
    kept = [output for output in copy.graph.output if output.name not in values]
    inputs = [
        (v.name, v.type.tensor_type.elem_type, feeds[v.name].shape)
        for v in copy.graph.input
        if v.name in feeds
    ]
    inputs += [(name, types[name].tensor_type.elem_type, value.shape) for name, value in values.items()]
    del copy.graph.output[:], copy.graph.input[:]
    copy.graph.output.extend(kept)
    copy.graph.input.extend(onnx.helper.make_tensor_value_info(*item) for item in inputs)
    return copy


def measure(expected: np.ndarray, found: np.ndarray, tolerance: float) -> dict[str, Any]:
    """Return ``TensorError``'s figures for two arrays.

    Equal infinities, and NaN on both sides, do not differ; NaN on one side does, infinitely.
    """
    a, b = (np.asarray(v).astype(np.float32, copy=False) for v in (expected, found))
    if a.shape != b.shape:
        return _figures(np.inf, 1.0, 1.0, (), float("nan"), float("nan"))
    if not a.size:
        return _figures(0.0, 1.0, 0.0, (), 0.0, 0.0)
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(a - b)
    difference[(a == b) | (np.isnan(a) & np.isnan(b))] = 0
    difference[np.isnan(difference)] = np.inf
    scale = float(np.abs(a, where=np.isfinite(a), out=np.zeros_like(a)).max()) or 1.0
    index = tuple(int(v) for v in np.unravel_index(int(difference.argmax()), a.shape))
    share = float(np.count_nonzero(difference > tolerance * scale) / a.size)
    return _figures(float(difference[index]), scale, share, index, float(a[index]), float(b[index]))


def _figures(
    absolute: float, scale: float, share: float, index: tuple[int, ...], expected: float, found: float
) -> dict[str, Any]:
    return {
        "relative": absolute / scale,
        "absolute": absolute,
        "scale": scale,
        "share": share,
        "index": index,
        "expected": expected,
        "found": found,
    }


class _Order:
    """What orders rows by data in the first model's main graph, and what depends on its inputs.

    Attributes:
        graph: its view.
        depends: tensors that depend on an input.
        orders: tensors that nodes which order by data make.
        ordered_by: tensor -> the first node before it that orders by data, or "".
    """

    def __init__(self, model: "onnx.ModelProto") -> None:
        self.graph = graph = Graph(model)
        constants = {tensor.name for tensor in model.graph.initializer}
        self.depends = {value.name for value in model.graph.input} - constants
        self.orders = [
            name for node in graph.nodes if orders_rows(node.op_type) for name in node.output if name
        ]
        self.ordered_by: dict[str, str] = {}
        for node, inputs in zip(graph.nodes, graph.inputs):
            before = next((self.ordered_by[n] for n in inputs if self.ordered_by.get(n)), "")
            label = before or (node_label(node) if orders_rows(node.op_type) else "")
            self.ordered_by.update(dict.fromkeys(node.output, label))
            if not self.depends.isdisjoint(inputs):
                self.depends.update(name for name in node.output if name)

    def label(self, name: str) -> tuple[int, str, str]:
        """Return position, name and type of the node that makes a tensor."""
        position = self.graph.producer[name]
        node = self.graph.nodes[position]
        return position, node_label(node), node.op_type

    def before(self, name: str) -> Sequence[str]:
        """Return the inputs of the node that makes a tensor; none for a graph input or an initializer."""
        return self.graph.inputs[self.graph.producer[name]] if name in self.graph.producer else ()


class _Search:
    """Measures tensors, each at most once, until the first that differs is known."""

    def __init__(
        self, expected: Side, found: Side, feeds: Feeds, tolerance: float, chunk: int, listener: Listener
    ) -> None:
        self._feeds = feeds
        self._open((expected, found))
        self._whole = self.order
        self._tolerance = tolerance
        self._chunk = chunk
        self._listener = listener
        self.names = self._comparable()
        self.measured: dict[str, TensorError] = {}
        self.unmeasured: dict[str, str] = {}
        self.num_marked = self.num_runs = 0
        self.order_problem = ""
        self._measure_outputs()

    def _open(self, sides: tuple[Side, Side]) -> None:
        self._sides = sides
        self.order = _Order(sides[0].model)
        self._types = tuple(tensor_types(side.model) for side in sides)

    def _measure_outputs(self) -> None:
        """Without extra outputs first: what fails here would fail for every tensor."""
        self._run([n for n in self.names if all(n in _outputs(side.model) for side in self._sides)])

    def give_same_order(self) -> tuple[str, ...]:
        """Give both sides the first one's tensors that order rows, and forget what was measured behind them.

        Returns:
            The tensors' names; none if there are none, or if that does not run (``order_problem``). Nothing has changed
            then.
        """
        made = {name for node in self._sides[1].model.graph.node for name in node.output}
        names = [n for n in self.order.orders if n in made and all(n in types for types in self._types)]
        if not names:
            return ()
        before = (self._sides, self._feeds, self.names, self.measured)
        try:
            self._replace(names)
            self._measure_outputs()
        except (RuntimeError, ValueError) as error:
            self.order_problem = one_line(error)
            sides, self._feeds, self.names, self.measured = before
            self._open(sides)
            return ()
        return tuple(names)

    def _replace(self, names: Sequence[str]) -> None:
        self.num_runs += 1
        self.num_marked += len(names)
        outputs = self._outputs(self._sides[0], self._types[0], names)
        values = {name: outputs[name] for name in names}
        rows = self._compare_rows(values)
        expected, found = (
            Side(with_inputs(side.model, values, types, self._feeds), side.runner)
            for side, types in zip(self._sides, self._types)
        )
        self._feeds = {**self._feeds, **values}
        self._open((expected, found))
        self.names = self._comparable()
        self.measured = {n: error for n, error in self.measured.items() if not error.ordered_by} | rows

    def _compare_rows(self, values: Mapping[str, np.ndarray]) -> dict[str, TensorError]:
        """Compare boxes and scores that are about to be replaced, each row with the nearest."""
        nodes = [
            n for n in self.order.graph.nodes if _decodes_boxes(n) and all(o in values for o in n.output)
        ]
        if not nodes:
            return {}
        onnx = import_onnx()
        names = [name for node in nodes for name in node.output]
        others = self._outputs(self._sides[1], self._types[1], names)
        rows = {}
        for node in nodes:
            boxes, scores = node.output
            lengths = next(onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == "top")
            expected, found = ((v[boxes], v[scores]) for v in (values, others))
            paired = pair_rows(expected, found, lengths, self._tolerance)
            for name, a, b in zip(node.output, expected, paired):
                rows[name] = self._error(name, a, b, ordered_by="")
        return rows

    def first_of(self, names: Sequence[str]) -> Optional[TensorError]:
        """Return the first of these tensors that was measured and differs."""
        return next((self.measured[name] for name in names if self._differs(name)), None)

    def first(self, scope: Sequence[str]) -> Optional[TensorError]:
        """Return the first tensor of the scope that differs, all before it that lead to one agreeing."""
        self._measure(self._ends(scope))
        while True:
            differing = [name for name in scope if self._differs(name)]
            if not differing:
                return None
            candidates = self._candidates(scope, differing)
            if not candidates:
                return self.measured[differing[0]]
            self._measure(_spread(candidates, self._chunk))

    def _comparable(self) -> list[str]:
        """Return the float tensors that both have and that depend on an input, in topological order."""
        floats = float_types()
        made = {name for node in self._sides[1].model.graph.node for name in node.output}

        def is_float(types: Mapping[str, "onnx.TypeProto"], name: str) -> bool:
            return name in types and types[name].tensor_type.elem_type in floats

        names = [
            name
            for name in self.order.graph.producer
            if name in self.order.depends
            and name in made
            and all(is_float(types, name) for types in self._types)
        ]
        if not names:
            raise ValueError(
                "layers: expected two models with float tensors of the same names, found none in common; "
                "compare exports of the same checkpoint"
            )
        return names

    def _ends(self, scope: Sequence[str]) -> list[str]:
        """Return the tensors of the scope that lead to no other one of it: whatever is amiss shows there."""
        inside = set(scope)
        leads: set[str] = set()  # tensors from which one of the scope is made
        for position in reversed(range(len(self.order.graph.nodes))):
            outputs = self.order.graph.nodes[position].output
            if any(name in inside or name in leads for name in outputs):
                leads.update(self.order.graph.inputs[position])
        return [name for name in scope if name not in leads]

    def _candidates(self, scope: Sequence[str], differing: Sequence[str]) -> list[str]:
        """Return the tensors not measured yet, before the first that differs, from which a difference may come."""
        reached: set[str] = set()
        waiting = [source for name in differing for source in self.order.before(name)]
        while waiting:
            name = waiting.pop()
            agrees = name in self.measured and not self._differs(name)
            if name in reached or agrees:
                continue
            reached.add(name)
            waiting.extend(self.order.before(name))
        earlier = scope[: scope.index(differing[0])]
        return [n for n in earlier if n in reached and n not in self.measured and n not in self.unmeasured]

    def _differs(self, name: str) -> bool:
        return name in self.measured and not self.measured[name].relative <= self._tolerance

    def _measure(self, names: Sequence[str]) -> None:
        wanted = [name for name in names if name not in self.measured and name not in self.unmeasured]
        for start in range(0, len(wanted), self._chunk):
            self._try(wanted[start : start + self._chunk])

    def _try(self, names: Sequence[str]) -> None:
        """Measure tensors; of those that cannot be outputs together, each half."""
        try:
            self._run(names)
        except (RuntimeError, ValueError) as error:
            if len(names) == 1:
                self.unmeasured[names[0]] = one_line(error)
                return
            middle = len(names) // 2
            self._try(names[:middle])
            self._try(names[middle:])

    def _run(self, names: Sequence[str]) -> None:
        self._listener(len(self.measured), len(names))
        self.num_runs += 1
        outputs = [self._outputs(side, types, names) for side, types in zip(self._sides, self._types)]
        present = _outputs(self._sides[0].model)
        self.num_marked += sum(name not in present for name in names)
        for name in names:
            expected, found = (values[name] for values in outputs)
            self.measured[name] = self._error(name, expected, found, self.order.ordered_by[name])

    def _error(self, name: str, expected: np.ndarray, found: np.ndarray, ordered_by: str) -> TensorError:
        position, node, op = self._whole.label(name)
        return TensorError(
            name=name,
            node=node,
            op=op,
            position=position,
            shape=tuple(expected.shape),
            found_shape=tuple(found.shape),
            ordered_by=ordered_by,
            **measure(expected, found, self._tolerance),
        )

    def _outputs(
        self, side: Side, types: Mapping[str, "onnx.TypeProto"], names: Sequence[str]
    ) -> Mapping[str, np.ndarray]:
        runner = side.runner(with_outputs(side.model, names, types))
        try:
            return runner(self._feeds)
        finally:
            getattr(runner, "close", lambda: None)()


def _decodes_boxes(node: "onnx.NodeProto") -> bool:
    return node.op_type in BY_NAME and BY_NAME[node.op_type].decodes_boxes


def _outputs(model: "onnx.ModelProto") -> set[str]:
    return {output.name for output in model.graph.output}


def _spread(names: Sequence[str], count: int) -> list[str]:
    """Return up to ``count`` of the names, evenly spaced, which cut the others into equal parts."""
    if len(names) <= count:
        return list(names)
    return [names[(i + 1) * len(names) // (count + 1)] for i in range(count)]
