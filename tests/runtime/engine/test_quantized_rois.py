"""RoI features that the plugin quantizes, of maps that it dequantizes, are what Q/DQ pairs made; all others stay."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from export.functions import multi_level_roi_align_function
from runtime.engine.builder import build_engine
from runtime.engine.config import EngineConfig
from runtime.engine.lowering import engine_model
from runtime.engine.plugins import PluginLibrary
from runtime.engine.quantized_rois import quantize_rois
from runtime.precision.plan import PrecisionGroup, PrecisionPlan
from tests.runtime.engine import fakes

ROI_ALIGN = (
    "maskrcnn.MultiLevelRoiAlign<output_height = 3, output_width = 2, spatial_scales = [0.25, 0.125], "
    'finest_scale = 56.0, sampling_ratio = 2, mode = "avg", coordinate_transformation_mode = "half_pixel">'
)
# The largest features are beyond 127 of it.
SCALE = 0.08
OPSET = 16
SCALES = ("output_scale", "feature_scales")

# What reads the RoI features `f`; the last line makes the output `y`.
CHAINS = {
    "a convolution's": """
        q = QuantizeLinear(f, s, z)
        d = DequantizeLinear(q, s, z)
        y = Conv<kernel_shape = [3, 2]>(d, kernel)""",
    "a fully connected layer's": """
        g = Flatten<axis = 1>(f)
        q = QuantizeLinear(g, s, z)
        d = DequantizeLinear(q, s, z)
        y = MatMul(d, weight)""",
    "a shape that is read": """
        shape = Shape(f)
        g = Reshape(f, shape)
        h = Transpose<perm = [0, 2, 3, 1]>(g)
        q = QuantizeLinear(h, s, z)
        y = DequantizeLinear(q, s, z)""",
    "two readers of one scale": """
        g = Flatten<axis = 1>(f)
        q = QuantizeLinear(g, s, z)
        d = DequantizeLinear(q, s, z)
        u = MatMul(d, weight)
        r = QuantizeLinear(f, s_again, z)
        e = DequantizeLinear(r, s, z)
        v = Conv<kernel_shape = [3, 2]>(e, kernel)
        w = Flatten<axis = 1>(v)
        y = Add(u, w)""",
    "two readers of what is quantized": """
        q = QuantizeLinear(f, s, z)
        d = DequantizeLinear(q, s, z)
        e = DequantizeLinear(q, s, z)
        y = Add(d, e)""",
}

OTHERS = {
    "read as floats too": "q = QuantizeLinear(f, s, z) d = DequantizeLinear(q, s, z) y = Add(d, f)",
    "read by a layer": "r = Relu(f) q = QuantizeLinear(r, s, z) y = DequantizeLinear(q, s, z)",
    "an output": "q = QuantizeLinear(f, s, z) d = DequantizeLinear(q, s, z) y = Identity(f)",
    "another scale of another reader": """
        q = QuantizeLinear(f, s, z) d = DequantizeLinear(q, s, z)
        r = QuantizeLinear(f, s_other, z) e = DequantizeLinear(r, s_other, z) y = Add(d, e)""",
    "dequantized by another scale": "q = QuantizeLinear(f, s, z) y = DequantizeLinear(q, s_other, z)",
    "a scale of each channel": """
        q = QuantizeLinear<axis = 1>(f, s_channels, z_channels)
        y = DequantizeLinear<axis = 1>(q, s_channels, z_channels)""",
    "uint8": "q = QuantizeLinear(f, s, z_uint8) y = DequantizeLinear(q, s, z_uint8)",
    "uint8 by default": "q = QuantizeLinear(f, s) y = DequantizeLinear(q, s)",
    "around another number": "q = QuantizeLinear(f, s, z_one) y = DequantizeLinear(q, s, z_one)",
    "a scale that is computed": """
        t = ReduceMax<keepdims = 0>(rois) q = QuantizeLinear(f, t, z) y = DequantizeLinear(q, t, z)""",
    "joined with others": """
        g = Concat<axis = 1>(f, f) q = QuantizeLinear(g, s, z) y = DequantizeLinear(q, s, z)""",
    "integers that are read": """
        q = QuantizeLinear(f, s, z) c = Cast<to = 1>(q) d = DequantizeLinear(q, s, z) y = Add(c, d)""",
    "float": "y = Identity(f)",
}

# What makes the maps `ma` and `mb` of the images `a` and `b`.
PAIRS = """
    qa = QuantizeLinear(a, s_maps, z)
    ma = DequantizeLinear(qa, s_maps, z)
    qb = QuantizeLinear(b, s_other, z)
    mb = DequantizeLinear(qb, s_other, z)"""
FLOAT_MAPS = {
    "one of them": "qa = QuantizeLinear(a, s_maps, z) ma = DequantizeLinear(qa, s_maps, z) mb = Identity(b)",
    "both": "ma = Identity(a) mb = Identity(b)",
    "channel by channel": """
        qa = QuantizeLinear<axis = 1>(a, s_channels, z_channels)
        ma = DequantizeLinear<axis = 1>(qa, s_channels, z_channels)
        qb = QuantizeLinear(b, s_other, z) mb = DequantizeLinear(qb, s_other, z)""",
    "uint8": """
        qa = QuantizeLinear(a, s_maps, z_uint8) ma = DequantizeLinear(qa, s_maps, z_uint8)
        qb = QuantizeLinear(b, s_other, z) mb = DequantizeLinear(qb, s_other, z)""",
}


def _model(chain: str, *, outputs: Sequence[str] = ("y",), maps: str = PAIRS) -> onnx.ModelProto:
    model = parser.parse_model(
        f'<ir_version: 8, opset_import: ["": {OPSET}, "maskrcnn": 1]>\n'
        "net (float[R, 5] rois, float[B, 4, H, W] a, float[B, 4, h, w] b) => (float y)\n"
        f"{{ {maps} f = {ROI_ALIGN}(rois, ma, mb) {chain} }}"
    )
    rng = np.random.default_rng(0)
    values = {
        "s": np.float32(SCALE),
        "s_again": np.array([SCALE], np.float32),
        "s_other": np.float32(2 * SCALE),
        "s_maps": np.float32(0.3),
        "s_channels": np.full(4, SCALE, np.float32),
        "z": np.int8(0),
        "z_channels": np.zeros(4, np.int8),
        "z_uint8": np.uint8(0),
        "z_one": np.int8(1),
        "kernel": rng.standard_normal((5, 4, 3, 2)).astype(np.float32),
        "weight": rng.standard_normal((24, 5)).astype(np.float32),
    }
    read = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name) for name, value in values.items() if name in read
    )
    del model.graph.output[:]
    model.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs
    )
    model.graph.value_info.append(helper.make_tensor_value_info("f", TensorProto.FLOAT, ["R", 4, 3, 2]))
    for node in model.graph.node:
        node.name = f"/{node.output[0]}"
    return model


def _rewritten(model: onnx.ModelProto, kept: Sequence[str] = ()) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    quantize_rois(copy, kept)
    return copy


def _with_body(model: onnx.ModelProto) -> onnx.ModelProto:
    """Put the operator's body in the plugin's place, with DequantizeLinear and QuantizeLinear for its scales."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.functions.append(multi_level_roi_align_function(OPSET, 2))
    nodes = []
    for node in copy.graph.node:
        scales = {a.name: list(a.floats) or [a.f] for a in node.attribute if a.name in SCALES}
        others = [a for a in node.attribute if a.name not in SCALES]
        del node.attribute[:]
        node.attribute.extend(others)
        for place, scale in enumerate(scales.get("feature_scales", ()), 1):
            pair = _pair(copy, scale, f"map_{place}")
            dequantizer = helper.make_node("DequantizeLinear", [node.input[place], *pair], [f"map_{place}"])
            node.input[place] = f"map_{place}"
            nodes.append(dequantizer)
        nodes.append(node)
        if "output_scale" in scales:
            pair = _pair(copy, scales["output_scale"][0], "floats")
            nodes.append(helper.make_node("QuantizeLinear", ["floats", *pair], [node.output[0]]))
            node.output[0] = "floats"
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


def _pair(model: onnx.ModelProto, scale: float, name: str) -> list[str]:
    """Add a scale and the zero point 0; return their names."""
    values = {f"{name}_plugin_s": np.float32(scale), f"{name}_plugin_z": np.int8(0)}
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), n) for n, v in values.items())
    return [*values]


def _run(model: onnx.ModelProto) -> np.ndarray:
    rng = np.random.default_rng(1)
    corners = rng.uniform(-10, 90, (40, 2))
    sides = np.exp(rng.uniform(np.log(4), np.log(300), (40, 2)))
    rois = np.hstack([rng.integers(0, 2, (40, 1)), corners, corners + sides]).astype(np.float32)
    a, b = (10 * rng.standard_normal((2, 4, *size)).astype(np.float32) for size in ((32, 24), (16, 12)))
    # As written: onnxruntime would move and join what it knows of quantized models.
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (y,) = session.run(["y"], {"rois": rois, "a": a, "b": b})
    return y


def _scales(model: onnx.ModelProto) -> list[float]:
    return [a.f for node in model.graph.node for a in node.attribute if a.name == "output_scale"]


def _feature_scales(model: onnx.ModelProto) -> list[float]:
    return [f for node in model.graph.node for a in node.attribute for f in a.floats if a.name == SCALES[1]]


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_the_plugin_reads_and_writes_int8_and_results_stay(chain: str) -> None:
    model = _model(chain)
    found = _rewritten(model)
    assert _scales(found) == [np.float32(SCALE)]
    assert _feature_scales(found) == [np.float32(0.3), np.float32(2 * SCALE)]
    node = next(node for node in found.graph.node if node.op_type == "MultiLevelRoiAlign")
    assert list(node.input) == ["rois", "qa", "qb"]
    # Of what is gone, two made the maps; the two QuantizeLinear of the maps stay.
    before, after = (Counter(node.op_type for node in m.graph.node) for m in (model, found))
    assert before - after == {"QuantizeLinear": before["QuantizeLinear"] - 2, "DequantizeLinear": 2}
    assert not after - before
    expected = _run(_with_body(model))
    assert len(np.unique(expected)) > 100
    np.testing.assert_array_equal(_run(_with_body(found)), expected)


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_what_is_quantized_is_declared_int8(chain: str) -> None:
    found = _rewritten(_model(chain))
    kinds = {value.name: value.type.tensor_type for value in found.graph.value_info}
    assert kinds["f"].elem_type == TensorProto.INT8
    assert [d.dim_value or d.dim_param for d in kinds["f"].shape.dim] == ["R", 4, 3, 2]
    read = [node.input[0] for node in found.graph.node if node.op_type == "DequantizeLinear"]
    assert read
    assert all(kinds[name].elem_type == TensorProto.INT8 for name in read)
    onnx.shape_inference.infer_shapes(_with_body(found), check_type=True, strict_mode=True)


@pytest.mark.parametrize("chain", OTHERS.values(), ids=OTHERS)
def test_everything_else_stays(chain: str) -> None:
    model = _model(chain, outputs=("y", "f") if chain == OTHERS["an output"] else ("y",))
    assert _rewritten(model) == model


def test_maps_that_others_read_are_still_dequantized_for_them() -> None:
    chain = "q = QuantizeLinear(f, s, z) d = DequantizeLinear(q, s, z) k = ReduceSum(ma) y = Add(d, k)"
    model = _model(chain)
    found = _rewritten(model)
    made = {name for node in found.graph.node for name in node.output}
    assert ("ma" in made, "mb" in made) == (True, False)
    np.testing.assert_array_equal(_run(_with_body(found)), _run(_with_body(model)))


@pytest.mark.parametrize("maps", FLOAT_MAPS.values(), ids=FLOAT_MAPS)
@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_with_other_maps_everything_stays(chain: str, maps: str) -> None:
    model = _model(chain, maps=maps)
    assert _rewritten(model) == model


def test_maps_that_are_inputs_stay() -> None:
    model = _model(CHAINS["a convolution's"])
    node = next(node for node in model.graph.node if node.op_type == "MultiLevelRoiAlign")
    node.input[1:] = ["a", "b"]
    assert _rewritten(model) == model


def test_an_integer_output_stays() -> None:
    model = _model("q = QuantizeLinear(f, s, z) y = DequantizeLinear(q, s, z)", outputs=("y", "q"))
    model.graph.output[1].type.tensor_type.elem_type = TensorProto.INT8
    assert _rewritten(model) == model


def test_operators_of_others_and_nodes_that_are_kept_stay() -> None:
    model = _model(CHAINS["a convolution's"])
    assert _rewritten(model, kept=["/f"]) == model
    assert _rewritten(model, kept=["/q"]) != model
    node = next(node for node in model.graph.node if node.op_type == "MultiLevelRoiAlign")
    node.domain = "elsewhere"
    assert _rewritten(model) == model


def test_a_second_time_changes_nothing() -> None:
    found = _rewritten(_model(CHAINS["a fully connected layer's"]))
    assert _rewritten(found) == found


def test_only_a_plugin_with_both_attributes_is_given_them() -> None:
    model = _model(CHAINS["a convolution's"])
    before = model.SerializeToString(deterministic=True)
    tensorrt, ops = fakes.library().tensorrt, ("MultiLevelRoiAlign",)
    for attributes, scales in (
        (None, []),
        ({}, []),
        ({"MultiLevelRoiAlign": {"mode"}}, []),
        ({"Other": {*SCALES}}, []),
        ({"MultiLevelRoiAlign": {"mode", "output_scale"}}, []),
        ({"MultiLevelRoiAlign": {"mode", "feature_scales"}}, []),
        ({"MultiLevelRoiAlign": {"mode", *SCALES}}, [np.float32(SCALE)]),
    ):
        found = engine_model(model, ops, tensorrt, attributes=attributes)
        assert _scales(found) == scales
        assert len(_feature_scales(found)) == 2 * len(scales)
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("version", [fakes.V8_5, fakes.V10_13])
@pytest.mark.parametrize("planned", [False, True])
def test_an_engine_has_it_unless_a_plan_keeps_the_operator(
    version: str, planned: bool, tmp_path: object
) -> None:
    ops = frozenset({"MultiLevelRoiAlign"})
    attributes = {"MultiLevelRoiAlign": frozenset(SCALES)}
    plugins = PluginLibrary(tmp_path, "0" * 64, ops, attributes=attributes)
    plan = PrecisionPlan((PrecisionGroup("some", "because", ("/f",)),)) if planned else PrecisionPlan(())
    shapes = {"rois": (9, 5), "a": (1, 4, 32, 24), "b": (1, 4, 16, 12)}
    built = build_engine(
        _model(CHAINS["a convolution's"]),
        EngineConfig(precision="int8", shapes=tuple((n, (s, s, s)) for n, s in shapes.items())),
        plan=plan,
        plugins=plugins,
        library=fakes.library(version, plugins=tuple(ops)),
    )
    assert _scales(fakes.onnx_in(built.data)) == ([] if planned else [np.float32(SCALE)])
