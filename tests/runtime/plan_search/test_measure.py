"""Figures of tensors, against NumPy."""

import numpy as np
import onnx
import pytest

from runtime.plan_search.emulation import Emulator
from runtime.plan_search.measure import TensorFigures, measure
from runtime.precision import PrecisionGroup, PrecisionPlan, default_plan
from tests.runtime.plan_search.test_emulation import LAYERS, half, scaled
from tests.runtime.precision.graphs import made_tensors, model, random, run, with_outputs


def figures_of(proto: onnx.ModelProto, plan: PrecisionPlan, *feeds: dict) -> dict[str, TensorFigures]:
    return {tensor.tensor: tensor for tensor in measure(Emulator(proto), plan, feeds, threads=1)}


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_errors_of_each_tensor() -> None:
    xs = [random(8, 16), 3 * random(8, 16, seed=5)]
    found = figures_of(LAYERS, PrecisionPlan(()), *({"x": x} for x in xs))
    assert list(found) == ["a", "b", "c", "y"]
    x = np.concatenate(xs)
    w1, w2 = random(16, 32, seed=1), random(32, 4, scale=0.1, seed=2)
    a, a16 = x @ w1, half(half(x) @ half(w1))
    b, b16 = np.maximum(a, 0), np.maximum(a16, 0)
    c, c16, own = b @ w2, half(b16 @ half(w2)), half(half(b) @ half(w2))
    for name, exact, so_far, alone in (("a", a, a16, a16), ("b", b, b16, b), ("c", c, c16, own)):
        assert found[name].max_abs == pytest.approx(np.abs(exact).max(), rel=1e-6)
        assert found[name].error == pytest.approx(relative(so_far, exact), rel=0.02)
        assert found[name].own_error == pytest.approx(relative(alone, exact), rel=0.02)
        assert not found[name].overflows
    assert found["b"].own_error == 0
    assert (found["c"].node, found["c"].op_type) == ("c", "MatMul")


def test_overflow_is_found_where_it_begins() -> None:
    found = figures_of(scaled(2.0**14), PrecisionPlan(()), {"x": random(8, 16)})
    assert {name for name, tensor in found.items() if tensor.overflows} == {"a", "b"}
    assert found["a"].own_error == found["a"].error == float("inf")
    assert found["c"].error == float("inf")
    # The second layer's own: it reads float32 values that FP16 has not got.
    assert found["c"].own_error == float("inf")
    assert found["y"].own_error < 1e-3


def test_tensors_of_the_plan_have_a_range_and_no_error() -> None:
    plan = PrecisionPlan((PrecisionGroup("first", "", ("a", "b", "c")),))
    found = figures_of(scaled(2.0**14), plan, {"x": random(8, 16)})
    assert found["a"].overflows
    assert [tensor.error for tensor in found.values()][:3] == [None] * 3
    assert found["y"].error == found["y"].own_error < 1e-3


def test_values_that_vanish() -> None:
    proto = model(
        "(float[4] x) => (float[4] y)",
        "small = Mul(x, w)\ny = Div(small, w)",
        {"w": np.full(4, 1e-9, np.float32)},
    )
    found = figures_of(proto, PrecisionPlan(()), {"x": np.ones(4, np.float32)})
    assert found["small"].own_error == pytest.approx(58.6, rel=0.01)  # 1e-9 became 5.96e-8


@pytest.mark.parametrize("size", [0, 1])
def test_tensors_of_no_elements_and_of_zeros(size: int) -> None:
    proto = model("(float[n] x) => (float[n] y)", "h = Relu(x)\ny = Exp(h)")
    found = figures_of(proto, PrecisionPlan(()), {"x": np.zeros(size, np.float32)})
    assert [tensor.max_abs for tensor in found.values()] == [0, size]
    assert [tensor.error for tensor in found.values()] == [0, 0]


def test_a_detector(tiny: onnx.ModelProto) -> None:
    """RoIs are those of FP32 on both sides, so that the heads' errors are FP16's and not of other RoIs."""
    plan = default_plan(tiny)
    feeds = {"images": random(2, 3, 128, 192), "image_sizes": np.array([[128, 192], [100, 180]], np.float32)}
    found = figures_of(tiny, plan, feeds)
    values = run(with_outputs(tiny, made_tensors(tiny)), **feeds)
    assert set(found) == {name for name, value in values.items() if value.dtype == np.float32}
    for name, tensor in found.items():
        assert tensor.max_abs == pytest.approx(np.abs(values[name]).max(), rel=1e-5), name
        assert (tensor.error is None) == (tensor.node in plan.nodes)
        if tensor.error is not None:
            assert tensor.error < 0.01, name
            assert tensor.own_error < 1e-3, name
