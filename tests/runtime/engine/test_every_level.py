"""RoI features without a plugin: every RoI on every level, and the right row taken."""

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from export.functions import multi_level_roi_align_function, select_top_function
from runtime.engine.every_level import align_on_every_level
from runtime.graphs.inlining import inlined

OPSET = 17
SIZE = 128  # of the image, px
FINEST = 8.0  # RoIs of twice this side and more are for the second map, px


def _model(
    function: onnx.FunctionProto, num_levels: int, outputs: Sequence[str] = ("out",)
) -> onnx.ModelProto:
    """Return a model of one node, with feature maps of strides 4, 8, ..."""
    features = [f"feature_{i}" for i in range(num_levels)]
    node = helper.make_node(
        "MultiLevelRoiAlign",
        ["rois", *features],
        list(outputs),
        domain="maskrcnn",
        output_height=3,
        output_width=3,
        spatial_scales=[1 / 4 / 2**i for i in range(num_levels)],
        finest_scale=FINEST,
        sampling_ratio=2,
        mode="avg",
        coordinate_transformation_mode="half_pixel",
    )
    inputs = [helper.make_tensor_value_info("rois", TensorProto.FLOAT, ["n", 5])]
    inputs += [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2, SIZE // 4 >> i, SIZE // 4 >> i])
        for i, name in enumerate(features)
    ]
    graph = helper.make_graph(
        [node], "g", inputs, [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 2, 3, 3])]
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("maskrcnn", 1)]
    return helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=8)


def _feeds(num_levels: int, num_rois: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(num_levels)
    sides = 2 ** rng.uniform(1, 7, num_rois)
    corner = rng.uniform(0, SIZE - sides, (2, num_rois))
    rois = np.stack([rng.integers(0, 2, num_rois), *corner, *(corner + sides)], 1).astype(np.float32)
    maps = {
        f"feature_{i}": rng.normal(size=(2, 2, SIZE // 4 >> i, SIZE // 4 >> i)).astype(np.float32)
        for i in range(num_levels)
    }
    return {"rois": rois, **maps}


def _run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    return onnxruntime.InferenceSession(model.SerializeToString()).run(["out"], feeds)[0]


@pytest.mark.parametrize("num_levels", [1, 2, 4])
def test_rows_are_those_of_each_roi_s_own_level(num_levels: int) -> None:
    function = multi_level_roi_align_function(OPSET, num_levels)
    feeds = _feeds(num_levels, 64)
    expected = _run(_model(function, num_levels), feeds)
    assert align_on_every_level(function)
    model = inlined(_model(function, num_levels))
    assert not {node.op_type for node in model.graph.node} & {"NonZero", "ScatterElements", "Range"}
    assert np.abs(expected).max() > 0.5
    np.testing.assert_array_equal(_run(model, feeds), expected)
    # Every level has RoIs.
    sides = feeds["rois"][:, 3] - feeds["rois"][:, 1]
    assert len(np.unique(np.clip(np.floor(np.log2(sides / FINEST)), 0, num_levels - 1))) == num_levels


def test_casts_stay() -> None:
    function = multi_level_roi_align_function(OPSET, 2)
    gather = function.node[-1]
    gather.output[0] = "rows"
    function.node.append(helper.make_node("Cast", ["rows"], ["halved"], to=TensorProto.FLOAT16))
    function.node.append(helper.make_node("Cast", ["halved"], ["output"], to=TensorProto.FLOAT))
    feeds = _feeds(2, 32)
    expected = _run(_model(function, 2), feeds)
    assert align_on_every_level(function)
    np.testing.assert_array_equal(_run(_model(function, 2), feeds), expected)


def test_other_bodies_stay() -> None:
    other = select_top_function(OPSET)
    changed = multi_level_roi_align_function(OPSET, 2)
    nonzero = next(node for node in changed.node if node.op_type == "NonZero")
    nonzero.op_type = "Abs"
    for function in (other, changed):
        before = function.SerializeToString()
        assert not align_on_every_level(function)
        assert function.SerializeToString() == before
