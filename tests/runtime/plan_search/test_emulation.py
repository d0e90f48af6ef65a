"""Emulated FP16 against NumPy's float16, and against the types of the strongly typed model."""

import numpy as np
import onnx
import pytest

from runtime.plan_search.emulation import Emulator
from runtime.precision import PrecisionGroup, PrecisionPlan, default_plan
from runtime.precision.typed import fp16_model
from tests.runtime.precision.graphs import made_tensors, model, random, run, with_outputs


def plan_of(*nodes: str) -> PrecisionPlan:
    return PrecisionPlan((PrecisionGroup("all", "", nodes),) if nodes else ())


def half(value: np.ndarray) -> np.ndarray:
    """Round as FP16 does."""
    with np.errstate(over="ignore"):
        return value.astype(np.float16).astype(np.float32)


LAYERS = model(
    "(float[8, 16] x) => (float[8, 4] y)",
    """
    a = MatMul(x, w1)
    b = Relu(a)
    c = MatMul(b, w2)
    y = Sigmoid(c)
    """,
    {"w1": random(16, 32, seed=1), "w2": random(32, 4, scale=0.1, seed=2)},
)


def numpy_layers(x: np.ndarray, fp32: tuple[str, ...] = (), scale: float = 1.0) -> np.ndarray:
    """Compute ``LAYERS`` with a rounding behind every FP16 node, and before it where an FP32 value comes in."""
    names = ("a", "b", "c", "y")
    w1, w2 = random(16, 32, seed=1) * np.float32(scale), random(32, 4, scale=0.1, seed=2) / np.float32(scale)
    compute = {
        "a": lambda v, exact: v @ (w1 if exact else half(w1)),
        "b": lambda v, exact: np.maximum(v, 0),
        "c": lambda v, exact: v @ (w2 if exact else half(w2)),
        "y": lambda v, exact: 1 / (1 + np.exp(-v.astype(np.float64))).astype(np.float32),
    }
    value = x
    for name in names:
        exact = name in fp32
        value = compute[name](value if exact else half(value), exact)
        value = value if exact else half(value)
    return value


@pytest.mark.parametrize("fp32", [(), ("a",), ("c", "y"), ("b",), ("a", "b", "c", "y")])
def test_every_tensor_and_weight_is_rounded(fp32: tuple[str, ...]) -> None:
    x = random(8, 16)
    found = run(Emulator(LAYERS).model(plan_of(*fp32)), x=x)["y"]
    # One unit of FP16's last place, where a float32 sum in another order falls to the other side of a tie.
    np.testing.assert_allclose(found, numpy_layers(x, fp32), atol=2.0**-11)
    assert (np.abs(found - numpy_layers(x, fp32)) < 1e-6).mean() > 0.9


def scaled(scale: float) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    proto.CopyFrom(LAYERS)
    for tensor, factor in zip(proto.graph.initializer, (scale, 1 / scale)):
        value = onnx.numpy_helper.to_array(tensor) * np.float32(factor)
        tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    return proto


def test_overflow_is_emulated_where_onnxruntime_hides_it() -> None:
    """The first layer reaches 200 000, the second brings it down again: good in FP32, Inf in FP16."""
    proto, x = scaled(2.0**14), random(8, 16)
    expected = run(proto, x=x)["y"]
    assert np.isfinite(expected).all()
    typed = run(fp16_model(proto, plan_of()), x=x)["y"]
    assert np.abs(typed - expected).max() < 0.1  # onnxruntime does not see it
    assert not np.isfinite(run(with_outputs(Emulator(proto).model(plan_of()), ["c"]), x=x)["c"]).all()
    kept = run(Emulator(proto).model(plan_of("a", "b", "c")), x=x)["y"]
    np.testing.assert_allclose(kept, expected, atol=2.0**-11)


def test_values_too_small_are_emulated() -> None:
    proto, x = scaled(2.0**-24), random(8, 16)
    expected = run(proto, x=x)["y"]
    found = run(Emulator(proto).model(plan_of()), x=x)["y"]
    assert np.abs(found - expected).max() > 0.05


@pytest.mark.parametrize("which", ["tiny", "tiny_dynamic"])
def test_it_rounds_where_the_typed_model_is_fp16(which: str, request: pytest.FixtureRequest) -> None:
    """A tensor of the typed model is FP16 where, and only where, the emulated one has FP16 values."""
    proto = request.getfixturevalue(which)
    plan = default_plan(proto)
    names = made_tensors(proto)
    feeds = {"images": random(1, 3, 128, 192), "image_sizes": np.array([[128, 191]], np.float32)}
    typed = run(with_outputs(fp16_model(proto, plan), names), **feeds)
    emulated = run(with_outputs(Emulator(proto).model(plan), names), **feeds)
    for name in names:
        values = emulated[name]
        if typed[name].dtype == np.float16:
            np.testing.assert_array_equal(values, half(values), err_msg=name)
            scale = max(1e-6, float(np.abs(values).max()))
            if name.startswith(("/backbone", "/neck", "/rpn_head")):
                np.testing.assert_allclose(typed[name], values, atol=1e-2 * scale, err_msg=name)
    rounded = [
        n for n in names if emulated[n].dtype == np.float32 and (emulated[n] == half(emulated[n])).all()
    ]
    wide = {n for n in names if typed[n].dtype == np.float32} - set(rounded)
    assert len(wide) > 15  # FP32 values that FP16 has not got


def test_fp32_everywhere_is_the_model(tiny: onnx.ModelProto) -> None:
    plan = plan_of(*(node.name for node in tiny.graph.node))
    feeds = {"images": random(1, 3, 128, 192), "image_sizes": np.array([[128, 192]], np.float32)}
    expected, found = run(tiny, **feeds), run(Emulator(tiny).model(plan), **feeds)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_weights_are_those_of_the_typed_model() -> None:
    """The converter's own rounding: what is too small becomes the smallest number, what is too large the largest."""
    w = np.array([1e-12, -1e-12, 1e6, 0.1, 0.0], np.float32)
    scalar = np.array(1e-9, np.float32)
    proto = model(
        "(float[5] x) => (float[5] y)", "z = Add(x, scalar)\ny = Mul(z, w)", {"w": w, "scalar": scalar}
    )
    typed = {t.name: onnx.numpy_helper.to_array(t) for t in fp16_model(proto, plan_of()).graph.initializer}
    for tensor in Emulator(proto).model(plan_of()).graph.initializer:
        value = onnx.numpy_helper.to_array(tensor)
        np.testing.assert_array_equal(value, typed[tensor.name.split("|")[0]].astype(np.float32))
        assert value.shape == typed[tensor.name.split("|")[0]].shape


def test_scales_and_rois_are_not_rounded() -> None:
    proto = model(
        "(float[1, 1, 10, 10] x) => (float[a, b, c, d] y)",
        'h = Relu(x)\nresized = Resize<mode = "nearest">(h, , scales)\ny = Conv(resized, w)',
        {"scales": np.array([1, 1, 1.1, 1.1], np.float32), "w": random(1, 1, 1, 1)},
    )
    assert run(Emulator(proto).model(plan_of()), x=random(1, 1, 10, 10))["y"].shape == (1, 1, 11, 11)


def test_a_plan_of_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match="others: gone; the plan is another model's"):
        Emulator(LAYERS).model(plan_of("gone"))
