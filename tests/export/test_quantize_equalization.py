"""Channels of one size: the network computes the same, only where it may, and INT8 loses less."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Optional

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper, parser

from export import quantize_model
from export.quantization import equalization
from export.quantization.api import QuantizeOptions
from export.quantization.cache import load_cache
from export.quantization.equalization import Seam, equalized, find_seams
from export.quantization.layers import find_layers
from runtime.precision.plan import PrecisionPlan
from runtime.quantization import quantization_of

SIZE = 6
ROUNDING = 1e-5  # of float32, through three layers
# Bodies from x, (B, 4, 6, 6), to y; weights are named w*, biases b*, and how many channels each has.
SHARED = {
    "one pair": (
        "f = Conv(x, w0, b0) g = Relu(f) y = Conv(g, w1, b1)",
        {"w0": (5, 4, 3, 3), "b0": (5,), "w1": (3, 5, 1, 1), "b1": (3,)},
        {"w0": ["w1"]},
    ),
    "three in a row": (
        "f = Conv(x, w0, b0) g = LeakyRelu<alpha = 0.125>(f) h = Conv(g, w1) i = Relu(h) y = Conv(i, w2, b2)",
        {"w0": (5, 4, 3, 3), "b0": (5,), "w1": (6, 5, 1, 1), "w2": (2, 6, 2, 2), "b2": (2,)},
        {"w0": ["w1"], "w1": ["w2"]},
    ),
    "two readers": (
        "f = Conv(x, w0, b0) g = Relu(f) h = Conv(g, w1, b1) i = Conv(g, w2) y = Concat<axis = 1>(h, i)",
        {"w0": (5, 4, 1, 1), "b0": (5,), "w1": (3, 5, 1, 1), "b1": (3,), "w2": (2, 5, 1, 1)},
        {"w0": ["w1", "w2"]},
    ),
    "a weight of two nodes": (
        """small = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(x)
        f = Conv(x, w0, b0) g = Relu(f) h = Conv(g, w1)
        i = Conv(small, w0, b0) j = Relu(i) k = Conv(j, w1)
        l = GlobalMaxPool(h) m = GlobalMaxPool(k) y = Add(l, m)""",
        {"w0": (5, 4, 1, 1), "b0": (5,), "w1": (3, 5, 1, 1)},
        {"w0": ["w1"]},
    ),
    "a filter for each channel": (
        "f = Conv(x, w0, b0) g = Relu(f) h = Conv<group = 5>(g, w1, b1) i = Relu(h) y = Conv(i, w2)",
        {"w0": (5, 4, 1, 1), "b0": (5,), "w1": (5, 1, 3, 3), "b1": (5,), "w2": (3, 5, 1, 1)},
        {"w0": ["w1"], "w1": ["w2"]},
    ),
    "transposed": (
        "f = ConvTranspose(x, w0, b0) g = Relu(f) h = ConvTranspose(g, w1) i = Relu(h) y = Conv(i, w2)",
        {"w0": (4, 5, 2, 2), "b0": (5,), "w1": (5, 6, 2, 2), "w2": (3, 6, 1, 1)},
        {"w0": ["w1"], "w1": ["w2"]},
    ),
    "a stage of a ResNet": (
        """f = Conv(x, w0, b0) g = Conv(x, w1, b1) h = Add(f, g) i = Relu(h)
        j = Conv(i, w2, b2) k = Relu(j) l = Conv(k, w3, b3) m = Add(l, i) n = Relu(m)
        o = Conv(n, w4, b4) p = Conv(n, w5) y = Add(o, p)""",
        {
            **{
                "w0": (5, 4, 1, 1),
                "b0": (5,),
                "w1": (5, 4, 1, 1),
                "b1": (5,),
                "w2": (3, 5, 1, 1),
                "b2": (3,),
            },
            **{"w3": (5, 3, 1, 1), "b3": (5,), "w4": (2, 5, 1, 1), "b4": (2,), "w5": (2, 5, 1, 1)},
        },
        {"w0": ["w2", "w4", "w5"], "w2": ["w3"]},
    ),
    "levels of an FPN": (
        """small = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(x) f = Conv(x, w0, b0) g = Conv(small, w1)
        shape = Shape(f) h = Resize<mode = "nearest">(g, , , shape) i = Add(f, h)
        j = Conv(i, w2, b2) k = Conv(g, w3) l = GlobalMaxPool(j) m = GlobalMaxPool(k) y = Add(l, m)""",
        {
            "w0": (5, 4, 1, 1),
            "b0": (5,),
            "w1": (5, 4, 1, 1),
            "w2": (3, 5, 3, 3),
            "b2": (3,),
            "w3": (3, 5, 1, 1),
        },
        {"w0": ["w2", "w3"]},
    ),
    "pooling": (
        "f = Conv(x, w0, b0) g = Relu(f) h = MaxPool<kernel_shape = [2, 2]>(g) y = Conv(h, w1)",
        {"w0": (5, 4, 3, 3), "b0": (5,), "w1": (3, 5, 1, 1)},
        {"w0": ["w1"]},
    ),
    "fully connected": (
        """v = Flatten<axis = 1>(x) f = Gemm<transB = 1>(v, w0, b0) g = Relu(f) h = Gemm(g, w1, b1) i = Relu(h)
        y = Gemm<transB = 1>(i, w2)""",
        {"w0": (5, 144), "b0": (5,), "w1": (5, 6), "b1": (6,), "w2": (3, 6)},
        {"w0": ["w1"], "w1": ["w2"]},
    ),
}
OTHERS = {
    "an addition": "f = Conv(x, w0, b0) g = Relu(f) h = Add(g, x) y = Conv(h, w1)",
    "a residual": "f = Conv(x, w0, b0) g = Relu(f) h = Conv(g, w1) y = Add(h, g)",
    "a limit": "f = Conv(x, w0, b0) g = Clip(f, low, high) y = Conv(g, w1)",
    "another operator": "f = Conv(x, w0, b0) g = Sigmoid(f) y = Conv(g, w1)",
    "a constant that is added": "f = Conv(x, w0, b0) g = Add(f, low) y = Conv(g, w1)",
    "other channels": "f = Conv(x, w0, b0) g = Conv(x, w_single) h = Add(f, g) y = Conv(h, w1)",
    "groups": "f = Conv(x, w0, b0) g = Relu(f) y = Conv<group = 2>(g, w_grouped)",
    "a bias that others read": "f = Conv(x, w0, b0) g = Relu(f) h = Conv(g, w1) y = Add(h, b_broadcast)",
    "a weight that others read": "f = Conv(x, w0, b0) g = Relu(f) h = Conv(g, w1) y = Conv(x, w1)",
    "itself": "f = Conv(x, w0, b0) g = Relu(f) y = Conv(g, w0, b0)",
    "a scaled product": """
        v = Flatten<axis = 1>(x) f = Gemm<alpha = 0.5>(v, w_flat) g = Relu(f) y = Gemm(g, w_square)""",
}


def _model(
    body: str, shapes: dict[str, tuple[int, ...]], makers: Mapping[str, int] = MappingProxyType({})
) -> onnx.ModelProto:
    """Return the network with random weights; of those in ``makers``, channels along the axis are of many sizes."""
    model = parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> net (float[B, 4, {SIZE}, {SIZE}] x) => (float y) {{ {body} }}'
    )
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        values = rng.standard_normal(shape)
        if name in makers:  # channels whose sizes are far apart
            axis = makers[name]
            values *= np.exp2(rng.uniform(-6, 6, [n if i == axis else 1 for i, n in enumerate(shape)]))
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None))
    for node in model.graph.node:
        node.name = f"/{node.output[0]}"
    return model


def _seams(model: onnx.ModelProto) -> tuple[Seam, ...]:
    return find_seams(model, find_layers(model, PrecisionPlan(())))


def _run(model: onnx.ModelProto, outputs: list[str], x: Optional[np.ndarray] = None) -> list[np.ndarray]:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = {value.name for value in copy.graph.output}
    copy.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in outputs
        if name not in known
    )
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        copy.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    if x is None:
        x = np.random.default_rng(1).standard_normal((32, 4, SIZE, SIZE)).astype(np.float32)
    return session.run(outputs, {"x": x})


def _sizes(model: onnx.ModelProto, seams: tuple[Seam, ...]) -> dict[str, np.ndarray]:
    found = {}
    for seam in seams:
        arrays = _run(model, list(seam.tensors))
        by_channel = [np.abs(a).max(axis=tuple(i for i in range(a.ndim) if i != 1)) for a in arrays]
        found[seam.name] = np.max(by_channel, axis=0)
    return found


@pytest.mark.parametrize("name", SHARED)
def test_results_stay_and_channels_are_alike(name: str) -> None:
    body, shapes, expected = SHARED[name]
    axes = {"transposed": {"w0": 1, "w1": 1}, "fully connected": {"w0": 0, "w1": 1}}
    model = _model(body, shapes, axes.get(name, dict.fromkeys(expected, 0)))
    seams = _seams(model)
    assert {seam.name: [reader.weight for reader in seam.readers] for seam in seams} == expected
    before = _sizes(model, seams)
    made = equalized(model, seams, before)
    expected_y = _run(model, ["y"])[0]
    np.testing.assert_allclose(
        _run(made, ["y"])[0], expected_y, rtol=0, atol=ROUNDING * np.abs(expected_y).max()
    )
    for weight, after in _sizes(made, seams).items():
        used = before[weight] > 0
        assert used.any()
        assert np.ptp(np.log2(after[used])) < np.ptp(np.log2(before[weight][used]))


def test_what_is_quantized_is_measured() -> None:
    """Of a stage what layers read; with outputs of layers quantized too, these as well, in the graph's order."""
    body, shapes, _ = SHARED["a stage of a ResNet"]
    model = _model(body, shapes)
    layers = find_layers(model, PrecisionPlan(()))
    assert [seam.tensors for seam in find_seams(model, layers)] == [("i", "n"), ("k",)]
    assert [seam.tensors for seam in find_seams(model, layers, ("f", "l", "x", "y"))] == [
        ("f", "i", "l", "n"),
        ("k",),
    ]


@pytest.mark.parametrize("name", OTHERS)
def test_elsewhere_nothing_is_scaled(name: str) -> None:
    shapes = {
        "w0": (4, 4, 1, 1),
        "b0": (4,),
        "w1": (4, 4, 1, 1),
        "w_grouped": (4, 2, 1, 1),
        "low": (),
        "high": (),
        "w_flat": (144, 4),
        "w_square": (4, 3),
        "w_single": (1, 4, 1, 1),
    }
    body = OTHERS[name]
    if name == "a bias that others read":
        body = body.replace("b_broadcast", "shift").replace(
            "f = Conv", "shift = Unsqueeze(b0, axes) f = Conv"
        )
    read = {n: s for n, s in shapes.items() if n in body}
    model = _model(body, read)
    if "axes" in body:
        model.graph.initializer.append(numpy_helper.from_array(np.array([1, 2], np.int64), "axes"))
    assert _seams(model) == ()


def test_an_output_of_the_model_keeps_its_size() -> None:
    body, shapes, _ = SHARED["one pair"]
    model = _model(body, shapes)
    assert len(_seams(model)) == 1
    model.graph.output.append(onnx.helper.make_tensor_value_info("g", onnx.TensorProto.FLOAT, None))
    assert _seams(model) == ()


def test_channels_that_are_always_zero_stay() -> None:
    body, shapes, _ = SHARED["one pair"]
    model = _model(body, shapes)
    seams = _seams(model)
    sizes = np.array([0, 1, 4, np.nan, 16], np.float32)
    made = equalized(model, seams, {"w0": sizes})
    old, new = (
        numpy_helper.to_array(next(t for t in m.graph.initializer if t.name == "w0")) for m in (model, made)
    )
    np.testing.assert_array_equal(new[[0, 3]], old[[0, 3]])
    assert (new[[1, 2, 4]] != old[[1, 2, 4]]).any()


def test_the_file_says_so_and_float_results_stay(
    embedded_path: Path, calibration_images: list, tmp_path: Path
) -> None:
    """The embedded model: what the quantized file computes without its pairs is what the float file computes."""
    images = calibration_images[:2]
    cache = tmp_path / "ranges.json"
    files = {}
    for equalize in (True, False):
        files[equalize] = tmp_path / f"{equalize}.onnx"
        options = QuantizeOptions(equalize=equalize, cache=cache if equalize else None)
        quantize_model(embedded_path, files[equalize], images, options=options)
    records = {e: quantization_of(onnx.load(path)) for e, path in files.items()}
    assert records[True].equalized == 21
    assert records[False].equalized == 0
    again = tmp_path / "again.onnx"
    quantize_model(embedded_path, again, images, options=QuantizeOptions(cache=cache, equalize=True))
    assert again.read_bytes() == files[True].read_bytes()
    with pytest.raises(ValueError, match="expected channels of 0 places that are equalized, found"):
        quantize_model(embedded_path, again, images, options=QuantizeOptions(cache=cache, equalize=False))


def test_small_channels_lose_less() -> None:
    """A hundred networks of two layers: the error of what INT8 makes of the activations in between is smaller."""
    errors = {True: [], False: []}
    for seed in range(100):
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((64, 8)).astype(np.float32)
        w0 = (rng.standard_normal((8, 16)) * np.exp2(rng.uniform(-4, 4, 16))).astype(np.float32)
        w1 = rng.standard_normal((16, 4)).astype(np.float32)
        text = "f = Gemm(x, w0) g = Relu(f) y = Gemm(g, w1)"
        model = parser.parse_model(
            f'<ir_version: 8, opset_import: ["": 17]> net (float[B, 8] x) => (float[B, 4] y) {{ {text} }}'
        )
        model.graph.initializer.extend([numpy_helper.from_array(w0, "w0"), numpy_helper.from_array(w1, "w1")])
        for node in model.graph.node:
            node.name = f"/{node.output[0]}"
        hidden = np.maximum(x @ w0, 0)
        made = equalized(model, _seams(model), {"w0": hidden.max(0)})
        new = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
        for is_equal, (a, b) in {False: (w0, w1), True: (new["w0"], new["w1"])}.items():
            middle = np.maximum(x @ a, 0)
            step, steps = middle.max() / 127, np.abs(b).max(0) / 127
            found = (np.rint(middle / step) * step) @ (np.rint(b / steps) * steps)
            errors[is_equal].append(np.square(found - hidden @ w1).mean() / np.square(hidden @ w1).mean())
    assert np.median(errors[True]) < 0.5 * np.median(errors[False])


def test_a_cache_of_before_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    path.write_text('{"format": 1}')
    with pytest.raises(ValueError, match="expected format 3, found 1"):
        load_cache(path, None, None, "")


@pytest.mark.parametrize("opset", [13, 17, 18, 20])
def test_channels_are_measured_in_every_opset(opset: int, monkeypatch: pytest.MonkeyPatch) -> None:
    body, shapes, _ = SHARED["fully connected"]
    body = body.replace(
        "v = Flatten<axis = 1>(x)", "c = Conv(x, w3) d = Relu(c) e = Conv(d, w4) v = Flatten<axis = 1>(e)"
    )
    model = _model(body, {**shapes, "w3": (3, 4, 1, 1), "w4": (4, 3, 1, 1)})
    model.opset_import[0].version = opset
    seams = _seams(model)
    assert {seam.name for seam in seams} == {"w3", "w0", "w1"}
    feeds = [
        np.random.default_rng(i).standard_normal((2, 4, SIZE, SIZE)).astype(np.float32) for i in range(3)
    ]

    def run_images(measuring: onnx.ModelProto, *_: object) -> Iterator[dict[str, np.ndarray]]:
        session = onnxruntime.InferenceSession(
            measuring.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        names = [output.name for output in session.get_outputs()]
        for x in feeds:
            yield dict(zip(names, session.run(names, {"x": x})))

    monkeypatch.setattr(equalization, "run_images", run_images)
    found = equalization.measure_channels(model, None, seams, None)
    for seam in seams:
        maxima = []
        for x in feeds:
            (array,) = _run(model, list(seam.tensors), x)
            maxima.append(np.abs(array).max(axis=tuple(i for i in range(array.ndim) if i != 1)))
        np.testing.assert_allclose(found[seam.name], np.mean(maxima, axis=0), rtol=1e-5)
