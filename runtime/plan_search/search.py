"""Which nodes must stay FP32 where a plan is not enough: the smallest set that brings the detections back.

1. Measure every tensor in FP32 and in FP16 (``measure``), and evaluate the plan to start from. If that is within the
   tolerance, it is the answer.
2. Nodes that make or read a tensor beyond FP16's range become FP32.
3. Not enough: the other nodes in groups (``scopes``), those whose own error is largest first; bisect how many of the
   groups it takes.
4. Of these, drop groups, then single nodes, by halves, quarters and so on (delta debugging: Zeller and Hildebrandt,
   "Simplifying and isolating failure-inducing input", 2002), as long as the detections stay within the tolerance.

Neither the plan to start from nor what overflows is dropped: images on which FP16 geometry or an Inf does no harm say
nothing about other images.
"""

import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Optional

from runtime.graphs.view import Graph
from runtime.plan_search.agreement import Agreement, AgreementTolerance
from runtime.plan_search.measure import FP16_MAX, TensorFigures
from runtime.plan_search.scopes import scopes
from runtime.plan_search.tolerance import MAX_EVALUATIONS
from runtime.precision.plan import PrecisionGroup, PrecisionPlan
from runtime.precision.prepare import fp32_nodes

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Evaluation:
    """One try.

    Attributes:
        num_nodes: nodes that were FP32 besides those of the plan to start from.
        agreement: of its detections with the FP32 model's.
        within: whether that is within the tolerance.
        seconds: what it took.
    """

    num_nodes: int
    agreement: Agreement
    within: bool
    seconds: float


@dataclass(frozen=True)
class FoundGroup:
    """A group that the search put into the plan, and why.

    Attributes:
        group: with the reason in words.
        why: ``overflow`` or ``error``.
        worst: the figures of the group's worst tensor: the largest one, or the one of the largest own error.
    """

    group: PrecisionGroup
    why: str
    worst: TensorFigures


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        plan: the smallest plan within the tolerance; where none is, the one with every node in FP32.
        reached: whether it is within the tolerance.
        complete: whether the plan could be made no smaller; False where the evaluations were used up.
        found: what was added to the plan to start from.
        evaluations: every try, in order.
        figures: of each float tensor under the plan to start from.
    """

    plan: PrecisionPlan
    reached: bool
    complete: bool
    found: tuple[FoundGroup, ...]
    evaluations: tuple[Evaluation, ...]
    figures: tuple[TensorFigures, ...]


class PlanSearch:
    """A search for one model."""

    def __init__(
        self,
        model: "onnx.ModelProto",
        start: PrecisionPlan,
        evaluate: Callable[[PrecisionPlan], Agreement],
        measure: Callable[[], Sequence[TensorFigures]],
        tolerance: AgreementTolerance,
        *,
        max_evaluations: int = MAX_EVALUATIONS,
        report: Callable[[Evaluation], None] = lambda evaluation: None,
    ) -> None:
        """Prepare a search; ``run`` does it.

        Args:
            model: float32.
            start: what stays FP32 in any case.
            evaluate: makes and runs the model under a plan.
            measure: returns the figures under ``start``.
            tolerance: see there.
            max_evaluations: most calls of ``evaluate``.
            report: is told of each evaluation.

        Raises:
            ValueError: no node is FP16 under the plan to start from, so that there is nothing to search.
        """
        self._start = start
        self._evaluate = evaluate
        self._measure = measure
        self._tolerance = tolerance
        self._left = max_evaluations
        self._report = report
        self._graph = graph = Graph(model)
        is_fp32 = fp32_nodes(model, start)
        indices = [i for i, fp32 in enumerate(is_fp32) if not fp32 and graph.computes_on_floats(i)]
        self._candidates = [graph.nodes[i].name for i in indices]
        if not indices:
            raise ValueError(
                "precision search: expected nodes that are FP16 under the plan, found none; "
                "start from another plan with --plan, or from the default"
            )
        self._scope = scopes(self._candidates)
        self._tries: dict[frozenset[str], bool] = {}
        self._evaluations: list[Evaluation] = []
        self._best: Optional[frozenset[str]] = None

    def run(self) -> SearchResult:
        """Search."""
        figures = self._measure()
        complete = True
        try:
            if not self._within(()):
                overflowing = self._overflowing(figures)
                if not (overflowing and self._within(overflowing)):
                    self._shrink(overflowing, self._enough(overflowing, figures))
        except _UsedUp:
            complete = False
        reached = self._best is not None
        added = self._candidates if self._best is None else self._best
        found = self._found(frozenset(added), figures)
        return SearchResult(
            plan=PrecisionPlan(self._start.groups + tuple(part.group for part in found)),
            reached=reached,
            complete=complete,
            found=found,
            evaluations=tuple(self._evaluations),
            figures=tuple(figures),
        )

    def _enough(self, overflowing: Sequence[str], figures: Sequence[TensorFigures]) -> list[tuple[str, ...]]:
        """Return groups that are enough together with what overflows, not yet the fewest; the worst come first.

        Raises:
            _UsedUp: there are none.
        """
        groups = self._ranked(set(self._candidates) - set(overflowing), figures)

        def passes(count: int) -> bool:
            return self._within([*overflowing, *_flat(groups[:count])])

        fails, count = 0, 1
        while not passes(count):
            if count >= len(groups):
                raise _UsedUp
            fails, count = count, min(2 * count, len(groups))
        while count - fails > 1:
            middle = (fails + count) // 2
            fails, count = (fails, middle) if passes(middle) else (middle, count)
        return groups[:count]

    def _shrink(self, overflowing: Sequence[str], groups: Sequence[tuple[str, ...]]) -> None:
        """Look for fewer: by groups, the least suspicious first, then by nodes. ``_within`` keeps the best."""

        def passes(kept: Sequence[tuple[str, ...]]) -> bool:
            return self._within([*overflowing, *_flat(kept)])

        nodes = self._in_order(_flat(smallest(groups[::-1], passes)))
        smallest([(node,) for node in nodes], passes)

    def _overflowing(self, figures: Sequence[TensorFigures]) -> list[str]:
        """Return the FP16 nodes that make or read a tensor beyond FP16's range."""
        graph, found = self._graph, set()
        for tensor in figures:
            if tensor.overflows:
                found.add(tensor.node)
                found.update(graph.nodes[i].name for i in graph.readers.get(tensor.tensor, ()))
        return self._in_order(found)

    def _ranked(self, nodes: Iterable[str], figures: Sequence[TensorFigures]) -> list[tuple[str, ...]]:
        """Return the nodes in groups, those with the largest own error first."""
        errors = {tensor.node: tensor.own_error or 0.0 for tensor in figures}
        groups: dict[str, list[str]] = defaultdict(list)
        for node in self._in_order(nodes):
            groups[self._scope[node]].append(node)
        by_error = sorted(groups.values(), key=lambda group: -max(errors.get(node, 0.0) for node in group))
        return [tuple(group) for group in by_error]

    def _in_order(self, nodes: Iterable[str]) -> list[str]:
        nodes = set(nodes)
        return [node for node in self._candidates if node in nodes]

    def _within(self, added: Iterable[str]) -> bool:
        """Return whether the plan with these nodes is within the tolerance; remember the smallest that is."""
        key = frozenset(added)
        if key not in self._tries:
            if self._left == 0:
                raise _UsedUp
            self._left -= 1
            self._tries[key] = self._try(key)
        if self._tries[key] and (self._best is None or len(key) < len(self._best)):
            self._best = key
        return self._tries[key]

    def _try(self, added: frozenset[str]) -> bool:
        start = time.perf_counter()
        groups = (PrecisionGroup("tried", "", tuple(self._in_order(added))),) if added else ()
        agreement = self._evaluate(PrecisionPlan(self._start.groups + groups))
        within = agreement.within(self._tolerance)
        evaluation = Evaluation(len(added), agreement, within, time.perf_counter() - start)
        self._evaluations.append(evaluation)
        self._report(evaluation)
        return within

    def _found(self, added: frozenset[str], figures: Sequence[TensorFigures]) -> tuple[FoundGroup, ...]:
        """Return the added nodes in groups, with what speaks for each."""
        members: dict[str, list[str]] = defaultdict(list)
        for node in self._in_order(added):
            members[self._scope[node]].append(node)
        taken = {group.name for group in self._start.groups}
        overflowing = set(self._overflowing(figures))
        return tuple(
            _found_group(_unused(name, taken), nodes, overflowing, self._around(nodes, figures))
            for name, nodes in members.items()
        )

    def _around(self, nodes: Sequence[str], figures: Sequence[TensorFigures]) -> list[TensorFigures]:
        """Return the figures of what the nodes make and read."""
        graph = self._graph
        read = {t for i, node in enumerate(graph.nodes) if node.name in nodes for t in graph.inputs[i]}
        return [tensor for tensor in figures if tensor.node in nodes or tensor.tensor in read]


def smallest(
    items: Sequence[tuple[str, ...]], passes: Callable[[Sequence[tuple[str, ...]]], bool]
) -> list[tuple[str, ...]]:
    """Return items of which none can be dropped, where all of them together pass (Zeller's ddmin, complements only).

    Args:
        items: what is dropped or kept; the first are tried first.
        passes: is asked about parts of them, in the same order; never about none.
    """
    kept, parts = list(items), 2
    while len(kept) > 1:
        size = -(-len(kept) // parts)
        rests = (kept[:at] + kept[at + size :] for at in range(0, len(kept), size))
        rest = next((rest for rest in rests if passes(rest)), None)
        if rest is not None:
            kept, parts = rest, max(parts - 1, 2)
        elif size == 1:
            break
        else:
            parts = min(2 * parts, len(kept))
    return kept


class _UsedUp(Exception):
    """No evaluation is left, or nothing to try."""


def _flat(groups: Iterable[Iterable[str]]) -> list[str]:
    return [node for group in groups for node in group]


def _unused(name: str, taken: set[str]) -> str:
    """Return the name, with a number where the plan has such a group already."""
    names = itertools.chain((name,), (f"{name} ({number})" for number in itertools.count(2)))
    return next(name for name in names if name not in taken)


def _found_group(
    name: str, nodes: Sequence[str], overflowing: set[str], figures: Sequence[TensorFigures]
) -> FoundGroup:
    if overflowing.intersection(nodes):
        worst = max(figures, key=lambda tensor: tensor.max_abs)
        reason = f"overflows in FP16: {worst.tensor} reaches {worst.max_abs:.3g}, FP16 ends at {FP16_MAX:.0f}"
        return FoundGroup(PrecisionGroup(name, reason, tuple(nodes)), "overflow", worst)
    own = [tensor for tensor in figures if tensor.node in nodes]
    worst = max(own or figures, key=lambda tensor: tensor.own_error or 0.0)
    error = worst.own_error or 0.0
    reason = f"in FP16 the detections leave the tolerance: {worst.tensor} alone has a relative error of {error:.1e}"
    return FoundGroup(PrecisionGroup(name, reason, tuple(nodes)), "error", worst)
