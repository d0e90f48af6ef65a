"""RoI features that the plugin quantizes are those that QuantizeLinear made; all others stay as they are."""

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


def _model(chain: str, *, outputs: Sequence[str] = ("y",)) -> onnx.ModelProto:
    model = parser.parse_model(
        f'<ir_version: 8, opset_import: ["": {OPSET}, "maskrcnn": 1]>\n'
        "net (float[R, 5] rois, float[B, 4, H, W] a, float[B, 4, h, w] b) => (float y)\n"
        f"{{ f = {ROI_ALIGN}(rois, a, b) {chain} }}"
    )
    rng = np.random.default_rng(0)
    values = {
        "s": np.float32(SCALE),
        "s_again": np.array([SCALE], np.float32),
        "s_other": np.float32(2 * SCALE),
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
    """Put the operator's body, and a QuantizeLinear where it has ``output_scale``, in the place of the plugin."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.functions.append(multi_level_roi_align_function(OPSET, 2))
    node = copy.graph.node[0]
    scales = [a.f for a in node.attribute if a.name == "output_scale"]
    if scales:
        others = [a for a in node.attribute if a.name != "output_scale"]
        del node.attribute[:]
        node.attribute.extend(others)
        node.output[0] = "floats"
        pair = {"plugin_s": np.float32(scales[0]), "plugin_z": np.int8(0)}
        copy.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), n) for n, v in pair.items())
        nodes = [*copy.graph.node]
        nodes.insert(1, helper.make_node("QuantizeLinear", ["floats", *pair], ["f"], name="/plugin"))
        del copy.graph.node[:]
        copy.graph.node.extend(nodes)
    return copy


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


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_the_plugin_quantizes_and_results_stay(chain: str) -> None:
    model = _model(chain)
    found = _rewritten(model)
    assert _scales(found) == [np.float32(SCALE)]
    before, after = (Counter(node.op_type for node in m.graph.node) for m in (model, found))
    assert before - after == {"QuantizeLinear": before["QuantizeLinear"]}
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


def test_an_integer_output_stays() -> None:
    model = _model("q = QuantizeLinear(f, s, z) y = DequantizeLinear(q, s, z)", outputs=("y", "q"))
    model.graph.output[1].type.tensor_type.elem_type = TensorProto.INT8
    assert _rewritten(model) == model


def test_operators_of_others_and_nodes_that_are_kept_stay() -> None:
    model = _model(CHAINS["a convolution's"])
    assert _rewritten(model, kept=["/f"]) == model
    assert _rewritten(model, kept=["/q"]) != model
    model.graph.node[0].domain = "elsewhere"
    assert _rewritten(model) == model


def test_a_second_time_changes_nothing() -> None:
    found = _rewritten(_model(CHAINS["a fully connected layer's"]))
    assert _rewritten(found) == found


def test_only_a_plugin_with_the_attribute_is_given_it() -> None:
    model = _model(CHAINS["a convolution's"])
    before = model.SerializeToString(deterministic=True)
    tensorrt, ops = fakes.library().tensorrt, ("MultiLevelRoiAlign",)
    for attributes, scales in (
        (None, []),
        ({}, []),
        ({"MultiLevelRoiAlign": {"mode"}}, []),
        ({"Other": {"output_scale"}}, []),
        ({"MultiLevelRoiAlign": {"mode", "output_scale"}}, [np.float32(SCALE)]),
    ):
        assert _scales(engine_model(model, ops, tensorrt, attributes=attributes)) == scales
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("version", [fakes.V8_5, fakes.V10_13])
@pytest.mark.parametrize("planned", [False, True])
def test_an_engine_has_it_unless_a_plan_keeps_the_operator(
    version: str, planned: bool, tmp_path: object
) -> None:
    ops = frozenset({"MultiLevelRoiAlign"})
    attributes = {"MultiLevelRoiAlign": frozenset({"output_scale"})}
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
