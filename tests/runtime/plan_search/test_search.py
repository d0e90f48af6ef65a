"""The search, on a graph by hand, on a made-up landscape of what passes, and on the embedded detector."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from runtime.backends import load_backend
from runtime.plan_search.agreement import Agreement, AgreementTolerance, Judge
from runtime.plan_search.emulation import Emulator
from runtime.plan_search.measure import TensorFigures, measure
from runtime.plan_search.search import PlanSearch, SearchResult, smallest
from runtime.precision import PrecisionGroup, PrecisionPlan, default_plan
from tests.runtime.precision.graphs import model, random, run

TOLERANCE = AgreementTolerance()
EMPTY = PrecisionPlan(())


def letters(text: str) -> list[tuple[str, ...]]:
    return [(letter,) for letter in text]


@pytest.mark.parametrize(
    ("items", "needed"),
    [
        ("a", "a"),
        ("ab", "b"),
        ("abcdefgh", "c"),
        ("abcdefgh", "ah"),
        ("abcdefgh", "bdf"),
        ("abcdefgh", "abcdefgh"),
        ("abcdefghijklmnopqrstuvwxyz", "kq"),
    ],
)
def test_smallest_drops_what_is_not_needed(items: str, needed: str) -> None:
    asked = []

    def passes(kept: Sequence[tuple[str, ...]]) -> bool:
        asked.append(kept)
        return set(letters(needed)) <= set(kept)

    assert smallest(letters(items), passes) == letters(needed)
    assert [] not in asked
    assert len(asked) <= len(items) * (2 + len(needed))


def layers(num_layers: int, overflowing: int, scale: float = 2.0**15) -> onnx.ModelProto:
    """Return a chain of layers of 16 channels; the given one makes values beyond FP16, the next takes them back."""
    weights = {f"w{i}": random(16, 16, scale=0.35, seed=i) for i in range(num_layers)}
    weights[f"w{overflowing}"] *= np.float32(scale)
    weights[f"w{overflowing + 1}"] /= np.float32(scale)
    body = "h0 = MatMul(x, w0)\n"
    for i in range(1, num_layers):
        body += f"a{i} = LeakyRelu(h{i - 1})\nh{i} = MatMul(a{i}, w{i})\n"
    body += f"y = Identity(h{num_layers - 1})"
    proto = model("(float[n, 16] x) => (float[n, 16] y)", body, weights)
    for node in proto.graph.node:
        number = node.output[0][1:]
        if number:
            node.name = f"/net/block.{int(number) // 2}/{node.output[0]}/{node.op_type}"
    return proto


X = random(64, 16)


def searched(
    proto: onnx.ModelProto, start: PrecisionPlan = EMPTY, limit: float = 0.02, **options: object
) -> SearchResult:
    """Search with the relative error of the output in the place of detections."""
    emulator = Emulator(proto)
    expected = run(proto, x=X)["y"]

    def evaluate(plan: PrecisionPlan) -> Agreement:
        found = run(emulator.model(plan), x=X)["y"]
        if not np.isfinite(found).all():
            return Agreement(1, 0, problem="NaN")
        error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
        return Agreement(1, int(error <= limit))

    return PlanSearch(
        proto, start, evaluate, lambda: measure(emulator, start, [{"x": X}]), TOLERANCE, **options
    ).run()


@pytest.mark.parametrize("overflowing", [0, 3, 6])
def test_the_layer_that_overflows_is_found(overflowing: int) -> None:
    result = searched(layers(8, overflowing))
    assert (result.reached, result.complete) == (True, True)
    # The layer, the activation that reads it, and the layer that takes it back.
    made, read, back = f"h{overflowing}", f"a{overflowing + 1}", f"h{overflowing + 1}"
    assert {node.split("/")[3] for node in result.plan.nodes} == {made, read, back}
    assert {part.why for part in result.found} == {"overflow"}
    for part in result.found:
        assert part.worst.max_abs > 65504
        assert part.group.reason.startswith(f"overflows in FP16: {part.worst.tensor} reaches")
    assert {tensor.tensor for tensor in result.figures if tensor.overflows} == {made, read}
    assert not result.evaluations[0].within
    assert result.evaluations[0].agreement.problem == "NaN"
    assert result.evaluations[1].within
    assert len(result.evaluations) == 2


def test_the_layer_that_loses_its_values_is_found() -> None:
    """Nothing overflows; a layer makes numbers that FP16 does not tell from its smallest."""
    result = searched(layers(8, 3, scale=2.0**-24))
    assert result.reached
    assert {node.split("/")[3] for node in result.plan.nodes} <= {"h3", "a4", "h4"}
    assert {part.why for part in result.found} == {"error"}
    assert "has a relative error of" in result.found[0].group.reason
    assert len(result.evaluations) <= 12


def test_a_plan_that_is_enough() -> None:
    result = searched(layers(4, 1, scale=1.0))
    assert result.plan == EMPTY
    assert result.reached
    assert result.found == ()
    assert len(result.evaluations) == 1
    assert len(result.figures) == 8


def test_what_was_in_the_plan_stays() -> None:
    start = PrecisionPlan((PrecisionGroup("net/block.1", "wanted", ("/net/block.0/h1/MatMul", "y")),))
    result = searched(layers(6, 2), start)
    assert result.plan.groups[0] == start.groups[0]
    assert result.reached
    assert {group.name for group in result.plan.groups[1:]} == {"net/block.1 (2)"}
    assert {node.split("/")[3] for node in result.plan.nodes - start.nodes} == {"h2", "a3", "h3"}


def test_no_plan_is_good_enough() -> None:
    result = searched(layers(4, 1), limit=-1.0)
    assert not result.reached
    assert result.plan.nodes == {node.name for node in layers(4, 1).graph.node}
    assert all(not evaluation.within for evaluation in result.evaluations)


def test_the_evaluations_are_used_up() -> None:
    proto = layers(8, 3, scale=2.0**-24)
    result = searched(proto, max_evaluations=3)
    assert len(result.evaluations) == 3
    assert result.reached
    assert not result.complete
    assert result.plan.nodes > searched(proto).plan.nodes
    assert not searched(proto, max_evaluations=1).reached


def test_overflow_and_another_layer() -> None:
    """What overflows stays, also where leaving it out would do: here it does not reach the output."""
    body = """
        h0 = MatMul(x, w0)
        a = Sigmoid(h0)
        small = MatMul(a, w1)
        y = MatMul(small, w2)
    """
    weights = {
        "w0": np.full((16, 16), 30000, np.float32),
        "w1": random(16, 16, seed=1, scale=2.0**-28),
        "w2": random(16, 16, seed=2, scale=2.0**10),
    }
    proto = model("(float[n, 16] x) => (float[n, 16] y)", body, weights)
    result = searched(proto)
    assert result.reached
    assert result.plan.nodes >= {"h0", "a", "small"}
    assert {tensor.tensor for tensor in result.figures if tensor.overflows} == {"h0"}


def figures(**own_errors: float) -> Callable[[], list[TensorFigures]]:
    return lambda: [TensorFigures(n, n, "MatMul", 1.0, e, e) for n, e in own_errors.items()]


def test_several_layers_that_matter_only_together() -> None:
    """By groups first, those with the largest error of their own; then by nodes."""
    proto = model(
        "(float[4] x) => (float[4] t7)",
        "t0 = Exp(x)\n" + "\n".join(f"t{i} = Exp(t{i - 1})" for i in range(1, 8)),
    )
    for i, node in enumerate(proto.graph.node):
        node.name = f"/block.{i // 2}/t{i}/Exp"
    needed = {"/block.1/t2/Exp", "/block.3/t7/Exp"}
    told = []
    result = PlanSearch(
        proto,
        EMPTY,
        lambda plan: Agreement(10, 10 if needed <= plan.nodes else 3),
        figures(**{f"/block.{i // 2}/t{i}/Exp": e for i, e in enumerate((0.1, 0, 0.3, 0, 0.2, 0, 0, 0))}),
        TOLERANCE,
        report=told.append,
    ).run()
    assert result.plan.nodes == needed
    assert [group.name for group in result.plan.groups] == ["block.1", "block.3"]
    assert told == list(result.evaluations)
    assert len({id(e) for e in told}) <= 14


def test_a_plan_that_leaves_nothing_is_refused(tiny: onnx.ModelProto) -> None:
    everything = PrecisionPlan((PrecisionGroup("all", "", tuple(n.name for n in layers(3, 0).graph.node)),))
    with pytest.raises(
        ValueError, match="expected nodes that are FP16 under the plan, found none; start from"
    ):
        searched(layers(3, 0), everything)


def scale_layers(proto: onnx.ModelProto, first: str, second: str, factor: float) -> onnx.ModelProto:
    """Return a copy in which one convolution makes larger values, and the next takes that back."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    nodes = {node.name: node for node in copy.graph.node}
    weights = {tensor.name: tensor for tensor in copy.graph.initializer}
    for node, names, f in (
        (first, nodes[first].input[1:], factor),
        (second, nodes[second].input[1:2], 1 / factor),
    ):
        assert nodes[node].op_type == "Conv"
        for name in names:
            value = numpy_helper.to_array(weights[name]) * np.float32(f)
            weights[name].CopyFrom(numpy_helper.from_array(value, name))
    return copy


BLOCK = "/backbone/layer2/layer2.1"


def test_the_stage_of_a_detector_that_overflows(
    embedded: onnx.ModelProto, images: list[Path], tmp_path: Path
) -> None:
    proto = scale_layers(embedded, f"{BLOCK}/conv1/Conv", f"{BLOCK}/conv2/Conv", 2.0**15)
    path = tmp_path / "scaled.onnx"
    onnx.save(proto, path)
    plan = default_plan(proto)
    emulator = Emulator(proto)
    judge = Judge(load_backend(path), images[:1], TOLERANCE)
    result = PlanSearch(
        proto,
        plan,
        lambda tried: judge(emulator.model(tried)),
        lambda: measure(emulator, plan, judge.feeds),
        TOLERANCE,
    ).run()
    assert result.reached
    assert result.plan.groups[: len(plan.groups)] == plan.groups
    assert result.plan.nodes - plan.nodes == {
        f"{BLOCK}/{part}" for part in ("conv1/Conv", "relu/Relu", "conv2/Conv")
    }
    assert [part.group.name for part in result.found] == ["backbone/layer2/layer2.1"]
    assert result.evaluations[0].agreement.share < 0.5
    assert len(result.evaluations) == 2
    # In FP32 the scaled model is the model as it was.
    agreement = judge(embedded)
    assert (agreement.total, agreement.agreeing) == (34, 34)
