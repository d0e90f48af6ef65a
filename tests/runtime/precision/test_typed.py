"""Strongly typed models: types by onnx's strict inference, values by NumPy and by the float32 model."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from export.functions import multi_level_roi_align_function, select_top_function
from runtime.backends import load_backend
from runtime.graphs import view
from runtime.graphs.load import save_model
from runtime.plan_search.agreement import AgreementTolerance, Judge
from runtime.precision import PrecisionGroup, PrecisionPlan, default_plan
from runtime.precision.typed import fp16_model
from tests.runtime.precision.graphs import (
    OPSET,
    element_types,
    made_tensors,
    model,
    random,
    run,
    with_outputs,
)
from tests.runtime.precision.test_geometry import old_form

FLOAT, FLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16


def plan_of(*nodes: str) -> PrecisionPlan:
    return PrecisionPlan((PrecisionGroup("all", "", nodes),) if nodes else ())


def checked(proto: onnx.ModelProto, plan: PrecisionPlan) -> onnx.ModelProto:
    """Convert, and check what holds for every model."""
    before = proto.SerializeToString()
    converted = fp16_model(proto, plan)
    assert proto.SerializeToString() == before
    onnx.checker.check_model(converted, full_check=True)
    assert list(converted.graph.input) == [
        value for value in proto.graph.input if value.name in {v.name for v in converted.graph.input}
    ]
    assert list(converted.graph.output) == list(proto.graph.output)
    assert list(converted.metadata_props) == list(proto.metadata_props)
    names = [node.name for node in proto.graph.node if node.op_type != "Constant"]
    assert [node.name for node in converted.graph.node if node.name in set(names)] == names
    return converted


def casts_of(converted: onnx.ModelProto, proto: onnx.ModelProto) -> set[tuple[str, str]]:
    """Return (from, to) of the casts that were added."""
    own = {node.name for node in proto.graph.node}
    added = [node for node in converted.graph.node if node.name not in own]
    assert {node.op_type for node in added} <= {"Cast"}
    return {(node.input[0], node.output[0]) for node in added}


@pytest.mark.parametrize("which", ["tiny", "tiny_dynamic", "embedded"])
def test_a_detector_is_fp16_outside_the_plan(which: str, request: pytest.FixtureRequest) -> None:
    proto = request.getfixturevalue(which)
    plan = default_plan(proto)
    converted = checked(proto, plan)
    types, before = element_types(converted), element_types(proto)
    for node in converted.graph.node:
        if node.name in plan.nodes:
            assert all(types[name] != FLOAT16 for name in (*node.input, *node.output) if name), node.name
        if node.op_type in ("Conv", "ConvTranspose", "Gemm"):
            assert {types[name] for name in (*node.input, *node.output)} == {FLOAT16}
        if node.op_type == "MultiLevelRoiAlign":
            rois, *features = node.input
            assert types[rois] == FLOAT
            assert {types[name] for name in (*features, *node.output)} == {FLOAT16}
    # A tensor has the name that it had, in whatever type its node makes it.
    for name in made_tensors(proto):
        assert types[name] in ((FLOAT, FLOAT16) if before[name] == FLOAT else (before[name],)), name
    # The images; scores and deltas of five levels; class scores, box deltas, and the classes' masks.
    assert len(casts_of(converted, proto)) == 1 + 2 * 5 + 3


def test_the_embedded_model_detects_the_same(
    embedded: onnx.ModelProto, embedded_path: Path, images: list[Path]
) -> None:
    tolerance = AgreementTolerance(box_px=0.1, score=0.005, mask=0.01, share=0.97)
    judge = Judge(load_backend(embedded_path), images, tolerance, threads=1)
    agreement = judge(fp16_model(embedded, default_plan(embedded)))
    assert agreement.total > 40
    assert agreement.within(tolerance), agreement


def test_a_batch_is_its_images(embedded: onnx.ModelProto) -> None:
    converted = fp16_model(embedded, default_plan(embedded))
    images = np.concatenate([random(1, 3, 448, 640, seed=seed) for seed in (0, 1)])
    sizes = np.array([[448, 640], [400, 600]], np.float32)
    both = run(converted, images=images, image_sizes=sizes)
    for i in range(2):
        single = run(converted, images=images[i : i + 1], image_sizes=sizes[i : i + 1])
        for name, value in single.items():
            np.testing.assert_allclose(both[name][i : i + 1], value, atol=1e-3, err_msg=name)


def test_coordinates_are_not_rounded_between_nodes_of_the_plan() -> None:
    """The converter alone casts to FP16 and back between any two of them: 3000.25 becomes 3000."""
    proto = model(
        "(float[1, 4] boxes) => (float[1, 4] moved, float[1, 4] out)",
        "shifted = Add(boxes, shift)\nmoved = Sub(shifted, shift)\nout = Relu(moved)",
        {"shift": np.full((1, 4), 70000, np.float32)},
    )
    converted = checked(proto, plan_of("shifted", "moved"))
    boxes = np.array([[3000.25, 1.125, 2049.5, 0.0]], np.float32)
    values = run(converted, boxes=boxes)
    np.testing.assert_array_equal(values["moved"], boxes)
    types = element_types(converted)
    assert types["moved"] == types["shifted"] == FLOAT
    assert types["moved_cast_to_fp16"] == types["graph_output_cast_1"] == FLOAT16
    assert casts_of(converted, proto) >= {("moved", "moved_cast_to_fp16")}


def test_one_cast_for_several_readers() -> None:
    """The converter writes one for each, all of one name, behind the nodes that read it."""
    proto = model(
        "(float[1, 4] x) => (float[1, 4] a, float[1, 4] b)",
        "h = Relu(x)\na = Exp(h)\nb = Add(h, a)",
    )
    converted = checked(proto, plan_of("a", "b"))
    assert casts_of(converted, proto) == {("x", "graph_input_cast_0"), ("h", "h_cast_to_fp32")}


@pytest.mark.parametrize("how", ["initializer", "Constant value", "Constant value_floats"])
def test_weights_of_both_types(how: str) -> None:
    """The converter would round them for the FP32 node too."""
    value = np.array([1.0001, 2.0001, 3.0001, 4.0001], np.float32)
    body = "half = Mul(x, w)\nsingle = Mul(x, w)"
    text = "{1.0001, 2.0001, 3.0001, 4.0001}"
    if how == "Constant value":
        body = f"w = Constant<value = float[4] {text}>()\n{body}"
    if how == "Constant value_floats":
        body = "w = Constant<value_floats = [1.0001, 2.0001, 3.0001, 4.0001]>()\n" + body
    proto = model(
        "(float[4] x) => (float[4] half, float[4] single)",
        body,
        {"w": value} if how == "initializer" else {},
    )
    converted = checked(proto, plan_of("single"))
    values = run(converted, x=np.ones(4, np.float32))
    np.testing.assert_array_equal(values["single"], value)
    np.testing.assert_array_equal(values["half"], value.astype(np.float16).astype(np.float32))


def test_a_float_constant_of_geometry_stays_float() -> None:
    proto = model("(float[1] x) => (float[1] y)", "c = Constant<value_float = 3000.25>()\ny = Add(x, c)")
    assert run(checked(proto, plan_of("y")), x=np.zeros(1, np.float32))["y"] == 3000.25


def test_resize_keeps_its_scales_in_float32() -> None:
    """1.1 in FP16 is 1.0996, and 10 rows become 10, not 11. A scale may also be computed."""
    proto = model(
        "(float[1, 1, 10, 10] x, float[4] dynamic) => (float[a, b, c, d] y, float[e, f, g, h] z)",
        """
        conv = Conv(x, w)
        fixed = Resize<mode = "nearest">(conv, , scales)
        y = Conv(fixed, w)
        computed = Mul(dynamic, scales)
        free = Resize<mode = "nearest">(conv, , computed)
        z = Conv(free, w)
        """,
        {"w": random(1, 1, 1, 1), "scales": np.array([1, 1, 1.1, 1.1], np.float32)},
    )
    converted = checked(proto, default_plan(proto))
    values = run(converted, x=random(1, 1, 10, 10), dynamic=np.ones(4, np.float32))
    assert values["y"].shape == values["z"].shape == (1, 1, 11, 11)
    types = element_types(converted)
    assert types["conv"] == types["fixed"] == types["free"] == FLOAT16
    assert types["scales"] == types["computed"] == FLOAT


def test_topk_is_float32_in_any_plan() -> None:
    """It has no FP16 kernel on a CPU."""
    proto = model(
        "(float[1, 4] x) => (float[1, 2] best, int64[1, 2] index)",
        "p = Sigmoid(x)\nbest, index = TopK(p, k)",
        {"k": np.array([2], np.int64)},
    )
    x = np.array([[3.0, 3.0001, 2.0, 1.0]], np.float32)
    converted = checked(proto, plan_of())
    assert element_types(converted)["p"] == FLOAT16
    assert casts_of(converted, proto) == {("x", "graph_input_cast_0"), ("p", "p_cast_to_fp32")}
    converted = checked(proto, plan_of("p", "best"))
    assert casts_of(converted, proto) == set()
    assert run(converted, x=x)["index"].tolist() == [[1, 0]]


def test_weights_beyond_the_range() -> None:
    """An epsilon that becomes 0 would divide by 0; a weight that becomes Inf would make NaN of a 0."""
    proto = model(
        "(float[2] x) => (float[2] y, float[2] z)",
        "y = Div(x, tiny)\nz = Mul(x, huge)",
        {"tiny": np.full(2, 1e-12, np.float32), "huge": np.full(2, 1e6, np.float32)},
    )
    stored = {t.name: numpy_helper.to_array(t) for t in checked(proto, plan_of()).graph.initializer}
    assert (stored["tiny"] > 0).all()
    assert stored["huge"].tolist() == [65504, 65504]
    exact = {t.name: numpy_helper.to_array(t) for t in checked(proto, plan_of("y", "z")).graph.initializer}
    assert exact["tiny"].tolist() == [np.float32(1e-12)] * 2


def test_subgraphs_stay_float32_with_what_they_read() -> None:
    proto = model(
        "(float[4] x, bool flag) => (float[4] out)",
        """
        h = Mul(x, w)
        g = Exp(h)
        chosen = If(flag)<
            then_branch = t () => (float[4] a) { s = Add(h, w) a = Add(s, g) },
            else_branch = e () => (float[4] b) { b = Mul(g, w) }>
        out = Relu(chosen)
        """,
        {"w": np.array([1.0001, 2, 3, 4], np.float32)},
    )
    x = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    for plan in (plan_of(), plan_of("g"), plan_of("h", "g")):
        converted = checked(proto, plan)
        for flag in (True, False):
            feeds = {"x": x, "flag": np.array(flag)}
            np.testing.assert_allclose(run(converted, **feeds)["out"], run(proto, **feeds)["out"], rtol=5e-3)


def test_weights_among_the_inputs() -> None:
    """As exporters wrote them for IR version 3: they are weights nevertheless."""
    proto = model("(float[4] x, float[4] w) => (float[4] y)", "y = Mul(x, w)", {"w": random(4)})
    converted = checked(proto, plan_of())
    assert [value.name for value in converted.graph.input] == ["x"]
    assert {t.data_type for t in converted.graph.initializer} == {FLOAT16}


def test_an_output_that_is_read_inside_as_well() -> None:
    proto = model(
        "(float[4] x) => (float[4] half, float[4] single, float[4] end)",
        "half = Exp(x)\nsingle = Exp(half)\nmore = Exp(single)\nend = Exp(more)",
    )
    x = np.array([-3.0, -2.0, -1.0, 0.0], np.float32)
    values = run(checked(proto, plan_of("single", "end")), x=x)
    half = np.exp(x.astype(np.float16).astype(np.float32)).astype(np.float16).astype(np.float32)
    np.testing.assert_allclose(values["half"], half, rtol=1e-3)
    np.testing.assert_allclose(values["end"], run(proto, x=x)["end"], rtol=1e-2)


ROI_ATTRIBUTES = """output_height = 2, output_width = 2, spatial_scales = [0.5, 0.25], finest_scale = 4.0,
    sampling_ratio = 2, mode = "avg", coordinate_transformation_mode = "half_pixel" """


def roi_model() -> onnx.ModelProto:
    proto = model(
        "(float[1, 2, 16, 16] a, float[1, 2, 8, 8] b, float[n, 5] boxes) => "
        "(float[n, 2, 2, 2] first, float[n, 2, 2, 2] second)",
        f"""
        fa = Relu(a)
        fb = Relu(b)
        rois = Mul(boxes, one)
        first = maskrcnn.MultiLevelRoiAlign<{ROI_ATTRIBUTES}>(rois, fa, fb)
        second = maskrcnn.MultiLevelRoiAlign<{ROI_ATTRIBUTES}>(rois, fa, fb)
        """,
        {"one": np.ones(5, np.float32)},
        domains=("maskrcnn",),
    )
    proto.functions.append(multi_level_roi_align_function(OPSET, 2))
    return proto


@pytest.mark.parametrize("plan", [("rois",), ("rois", "second"), ("rois", "first", "second"), ()])
def test_roi_align_takes_fp16_features_and_fp32_rois(plan: tuple[str, ...]) -> None:
    """As the plugin does; and with its body it still runs, whatever a second node of it is."""
    proto = roi_model()
    converted = checked(proto, plan_of(*plan))
    types = element_types(converted)
    nodes = {node.name: node for node in converted.graph.node}
    for name in ("first", "second"):
        rois, *features = nodes[name].input
        assert types[rois] == FLOAT
        assert {types[feature] for feature in features} == {FLOAT if name in plan else FLOAT16}
    feeds = {"a": random(1, 2, 16, 16), "b": random(1, 2, 8, 8, seed=1)}
    feeds["boxes"] = np.array([[0, 1.3, 2.1, 9.2, 12.4], [0, 3, 3, 24.7, 28.1]], np.float32)
    expected, found = run(proto, **feeds), run(converted, **feeds)
    for name, value in expected.items():
        # FP16's 11 bits, of features and results.
        np.testing.assert_allclose(found[name], value, atol=0 if len(plan) == 3 else 2e-3)


def test_bodies_may_be_missing(tiny: onnx.ModelProto) -> None:
    """TensorRT's builder drops them where plugins are; types are the same, and without a plan NMS stays FP32."""
    bare = onnx.ModelProto()
    bare.CopyFrom(tiny)
    del bare.functions[:]
    del bare.graph.value_info[:]
    plan = default_plan(tiny)
    assert fp16_model(bare, plan).graph.node == fp16_model(tiny, plan).graph.node
    assert fp16_model(bare, plan_of()).graph.node == fp16_model(tiny, plan_of()).graph.node
    converted = fp16_model(tiny, plan_of())
    types = element_types(converted)
    inputs = [name for node in converted.graph.node if node.op_type == "GroupedNMS" for name in node.input]
    assert [types[name] for name in inputs] == [FLOAT, FLOAT, TensorProto.INT32] * 2
    fused = ("DecodeProposals", "DecodeDetections", "SelectMasks")
    for node in converted.graph.node:
        if node.op_type in fused:
            assert {types[name] for name in (*node.input, *node.output)} <= {FLOAT, TensorProto.INT32}


SELECT_TOP = model(
    "(float[2, 9] x) => (float[2, 3] best, int32[2, 3] index, float[2, 3] more)",
    "p = Exp(x)\nbest, index = maskrcnn.SelectTop<k = 3>(p)\nmore = Exp(best)",
    domains=("maskrcnn",),
)


@pytest.mark.parametrize("with_body", [True, False])
def test_select_top_is_float32_in_any_plan(with_body: bool) -> None:
    """So is its plugin, whose second output is integers, which nothing but its name says where the body is gone."""
    proto = onnx.ModelProto()
    proto.CopyFrom(SELECT_TOP)
    if with_body:
        proto.functions.append(select_top_function(OPSET))
    assert [view.element_types(proto).get(name) for name in ("best", "index", "more")] == [
        FLOAT,
        TensorProto.INT32,
        FLOAT,
    ]
    assert default_plan(proto).nodes == {"p", "best", "more"}
    converted = fp16_model(proto, plan_of())
    assert casts_of(converted, proto) == {
        ("x", "graph_input_cast_0"),
        ("p", "p_cast_to_fp32"),
        ("best", "best_cast_to_fp16"),
        ("graph_output_cast_2", "more"),
    }
    assert casts_of(fp16_model(proto, default_plan(proto)), proto) == set()
    if with_body:
        x = np.array([[3, 1, 4, 1, 5, 9, 2, 6, 5], [0, 0, 0, 0, 0, 0, 0, 0, 0]], np.float32) / 8
        values = run(checked(proto, plan_of()), x=x)
        assert values["index"].tolist() == [[5, 7, 4], [0, 1, 2]]
        half = np.exp(x.astype(np.float16).astype(np.float32)).astype(np.float16).astype(np.float32)
        np.testing.assert_allclose(values["best"], -np.sort(-half, axis=1)[:, :3], rtol=1e-3)


def test_operators_that_onnx_does_not_know() -> None:
    """A graph of mmcv 1.x has no bodies. The plugin MMCVRoiAlign takes FP16 features and FP32 RoIs as well."""
    proto = old_form()
    converted = fp16_model(proto, default_plan(proto))
    onnx.checker.check_model(converted)
    types = {v.name: v.type.tensor_type.elem_type for v in converted.graph.value_info}
    produced = {name: node for node in converted.graph.node for name in node.output}
    assert types.get("proposals_any", FLOAT) == FLOAT
    for node in converted.graph.node:
        if node.op_type == "MMCVRoiAlign":
            assert node.input[0] == "fpn"
            assert produced[node.input[1]].op_type == "Concat"
        if node.op_type == "Gemm":
            assert produced[node.input[0]].op_type == "Flatten"  # no cast: FP16 since RoIAlign
    assert casts_of(converted, proto) == {
        ("images", "graph_input_cast_0"),
        ("delta_f", "delta_f_cast_to_fp32"),
        ("score_f", "score_f_cast_to_fp32"),
        ("logits", "logits_cast_to_fp32"),
        ("reg", "reg_cast_to_fp32"),
        ("mask_logits", "mask_logits_cast_to_fp32"),
    }


def test_a_plan_of_another_model_is_refused(tiny: onnx.ModelProto) -> None:
    with pytest.raises(ValueError, match="others: gone; the plan is another model's"):
        fp16_model(tiny, plan_of("gone"))


def test_a_model_in_half_precision_is_refused(tiny: onnx.ModelProto) -> None:
    converted = fp16_model(tiny, default_plan(tiny))
    message = "model: expected float32 weights, found FLOAT16 in .*; give the float32 export"
    with pytest.raises(ValueError, match=message):
        fp16_model(converted, default_plan(tiny))


def test_without_onnxruntime(tiny: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime.transformers", None)
    message = "expected onnxruntime with its float16 converter, found none .*pip install onnxruntime"
    with pytest.raises(RuntimeError, match=message):
        fp16_model(tiny, plan_of())


@pytest.mark.parametrize("large", [False, True])
def test_files(large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights beyond what one file holds go beside it, twice over as well."""
    monkeypatch.setattr("runtime.graphs.load.LARGE_BYTES", 1000 if large else 1 << 40)
    path = tmp_path / "m.onnx"
    w = random(64, 64)
    for _ in range(2):
        save_model(model("(float[1, 64] x) => (float[1, 64] y)", "y = MatMul(x, w)", {"w": w}), path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"][: 1 + large]
    if large:
        assert (tmp_path / "m.onnx.data").stat().st_size == w.nbytes
    np.testing.assert_array_equal(numpy_helper.to_array(onnx.load(path).graph.initializer[0]), w)
    with pytest.raises(OSError):
        save_model(model("(float[4] x) => (float[4] y)", "y = Relu(x)"), tmp_path / "m.onnx" / "m.onnx")


def test_every_tensor_is_close_to_float32(tiny: onnx.ModelProto) -> None:
    """Up to the first SelectTop, behind which proposals may change places."""
    converted = fp16_model(tiny, default_plan(tiny))
    names = [name for name in made_tensors(tiny) if name.startswith(("/backbone", "/neck", "/rpn_head"))]
    feeds = {"images": random(1, 3, 128, 192), "image_sizes": np.array([[128, 192]], np.float32)}
    expected = run(with_outputs(tiny, names), **feeds)
    found = run(with_outputs(converted, names), **feeds)
    assert len(names) > 80
    for name in names:
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(found[name], expected[name], atol=1e-2 * float(scale), err_msg=name)
