"""The ONNX as TensorRT gets it."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, parser

from runtime.engine.lowering import engine_model
from runtime.graphs.load import load_onnx, metadata_of
from runtime.metadata import KEY
from tests.export.test_graph import export
from tests.models import structured_photos, tiny_model
from tests.runtime import fakes as models
from tests.runtime.engine import fakes
from tests.runtime.engine.conftest import PLUGIN_OPS

TRT8 = fakes.library(fakes.V8_5).tensorrt
TRT10 = fakes.library(fakes.V10_0).tensorrt


def _feeds() -> dict[str, np.ndarray]:
    """Two different images, one of them padded."""
    images = np.zeros((2, 3, 128, 192), np.float32)
    for index, photo in enumerate(structured_photos((128, 192), (96, 150))):
        height, width = photo.shape[:2]
        images[index, :, :height, :width] = (photo.transpose(2, 0, 1) - 120.0) / 58
    return {"images": images, "image_sizes": np.array([[128, 192], [96, 150]], np.float32)}


def _run(model: onnx.ModelProto, feeds: dict) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds)))


def _op_types(model: onnx.ModelProto) -> set[str]:
    return {node.op_type for node in model.graph.node}


@pytest.mark.parametrize("tensorrt", [TRT8, TRT10], ids=["8", "10"])
def test_an_inlined_graph_computes_the_same(exported: onnx.ModelProto, tensorrt: object) -> None:
    graph = engine_model(exported, (), tensorrt)
    assert not graph.functions
    assert {node.domain for node in graph.graph.node} <= {"", "ai.onnx"}
    onnx.checker.check_model(graph, full_check=True)
    found, expected = _run(graph, _feeds()), _run(exported, _feeds())
    assert expected["num_dets"].min() > 3
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name].astype(array.dtype), array, err_msg=name)


def test_bodies_of_plugins_operators_are_dropped(exported: onnx.ModelProto) -> None:
    graph = engine_model(exported, PLUGIN_OPS, TRT8)
    assert not graph.functions
    count = sum(node.domain == "maskrcnn" for node in graph.graph.node)
    assert (count, set(PLUGIN_OPS) - _op_types(graph)) == (8, {"SelectTop"})
    assert not _op_types(graph) & {"NonMaxSuppression", "RoiAlign", "NonZero", "TopK"}


def test_what_no_plugin_provides_is_inlined(exported: onnx.ModelProto) -> None:
    graph = engine_model(exported, ("GroupedNMS",), TRT8)
    assert {node.op_type for node in graph.graph.node if node.domain} == {"GroupedNMS"}
    assert "RoiAlign" in _op_types(graph)


def test_the_callers_model_stays_as_it_was(exported: onnx.ModelProto) -> None:
    before = exported.SerializeToString(deterministic=True)
    engine_model(exported, ("GroupedNMS",), TRT8)
    assert exported.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(
    ("tensorrt", "ops", "expected"),
    [
        (TRT8, (), TensorProto.FLOAT),
        (TRT8, PLUGIN_OPS, TensorProto.FLOAT),
        (TRT10, (), TensorProto.UINT8),
        (TRT10, PLUGIN_OPS, TensorProto.INT8),
    ],
    ids=["8", "8 with plugins", "10", "10 with plugins"],
)
def test_uint8_outputs_have_a_type_that_the_release_has(
    exported: onnx.ModelProto, tensorrt: object, ops: Sequence[str], expected: int
) -> None:
    outputs = {o.name: o.type.tensor_type for o in engine_model(exported, ops, tensorrt).graph.output}
    assert outputs["masks"].elem_type == expected
    assert [d.dim_value or d.dim_param for d in outputs["masks"].shape.dim] == ["batch", 100, 128, 192]
    assert outputs["num_dets"].elem_type == TensorProto.INT32


CONSTANTS = """<ir_version: 8, opset_import: ["": 17]>
net (float[2, 3] x) => (
    float[2, 3] tensor, float[2, 3] single, float[1, 2, 3, 1] axes, float[3] several, int64[1] one
) {
    t = Constant<value = float[2, 3] {1, 2, 3, 4, 5, 6}>()
    tensor = Add(x, t)
    f = Constant<value_float = 2.5>()
    single = Mul(x, f)
    a = Constant<value_ints = [0, 3]>()
    axes = Unsqueeze(x, a)
    fs = Constant<value_floats = [0.5, 1.5, -1.0]>()
    row = Constant<value_int = 1>()
    picked = Gather<axis = 0>(x, row)
    several = Add(picked, fs)
    shape = Shape(x)
    first = Constant<value_ints = [0]>()
    one = Gather<axis = 0>(shape, first)
}"""


def test_constants_become_initializers_of_their_types() -> None:
    """TensorRT 8.5's parser reads value_int and value_ints as floats."""
    model = parser.parse_model(CONSTANTS)
    graph = engine_model(model, (), TRT8)
    onnx.checker.check_model(graph, full_check=True)
    assert "Constant" not in _op_types(graph)
    found = {t.name: (TensorProto.DataType.Name(t.data_type), list(t.dims)) for t in graph.graph.initializer}
    assert found == {
        "t": ("FLOAT", [2, 3]),
        "f": ("FLOAT", []),
        "a": ("INT64", [2]),
        "fs": ("FLOAT", [3]),
        "row": ("INT64", []),
        "first": ("INT64", [1]),
    }
    x = np.array([[1, -2, 3], [4, 5, -6]], np.float32)
    outputs = _run(graph, {"x": x})
    np.testing.assert_array_equal(outputs["tensor"], x + [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(outputs["single"], x * 2.5)
    np.testing.assert_array_equal(outputs["axes"], x[None, :, :, None])
    np.testing.assert_array_equal(outputs["several"], x[1] + np.float32([0.5, 1.5, -1]))
    np.testing.assert_array_equal(outputs["one"], [2])


UNSQUEEZED = """<ir_version: 8, opset_import: ["": 17]>
net (float[2, 8] x, int64[1] given) => (
    float[2, 3] best, int64[1, 1, 1] deep, float[1, 1, 8] float_row, int64[1, 1] own, int64[1] kept
) {
    k = Constant<value_int = 3>()
    axis = Constant<value_ints = [0]>()
    k_vector = Unsqueeze(k, axis)
    best, index = TopK<axis = 1>(x, k_vector)
    axes = Constant<value_ints = [0, -1]>()
    deep = Unsqueeze(k_vector, axes)
    row = Constant<value = float[1, 8] {0, 1, 2, 3, 4, 5, 6, 7}>()
    float_row = Unsqueeze(row, axis)
    own = Unsqueeze(given, axis)
    kept = Identity(k_vector)
}"""


def test_what_is_unsqueezed_of_integer_constants_is_an_initializer() -> None:
    """TensorRT 8.5 refuses TopK where k is the result of a node."""
    graph = engine_model(parser.parse_model(UNSQUEEZED), (), TRT8)
    onnx.checker.check_model(graph, full_check=True)
    values = {t.name: onnx.numpy_helper.to_array(t) for t in graph.graph.initializer}
    assert [n.op_type for n in graph.graph.node] == ["TopK", "Unsqueeze", "Unsqueeze", "Identity"]
    for name, shape in (("k_vector", (1,)), ("deep", (1, 1, 1))):
        assert (values[name].dtype, values[name].shape, values[name].item()) == (np.int64, shape, 3)
    x = np.array([[5, 1, 9, 3, 9, 0, 7, 8], [1, 1, 1, 1, 1, 1, 1, 1]], np.float32)
    outputs = _run(graph, {"x": x, "given": np.array([4])})
    np.testing.assert_array_equal(outputs["best"], [[9, 9, 8], [1, 1, 1]])
    np.testing.assert_array_equal(outputs["deep"], [[[3]]])
    np.testing.assert_array_equal(outputs["float_row"], np.arange(8.0).reshape(1, 1, 8))
    np.testing.assert_array_equal(outputs["own"], [[4]])


def test_k_of_inlined_proposals_is_an_initializer(exported: onnx.ModelProto) -> None:
    """Three levels of five have more than ``nms_pre`` anchors."""
    graph = engine_model(exported, [op for op in PLUGIN_OPS if op != "DecodeProposals"], TRT8)
    values = {t.name: onnx.numpy_helper.to_array(t) for t in graph.graph.initializer}
    found = [values[node.input[1]].tolist() for node in graph.graph.node if node.op_type == "TopK"]
    assert found == [[200], [200], [200], [72], [18]]


def test_k_of_an_inlined_select_top_is_an_initializer(tmp_path: Path) -> None:
    graph = engine_model(export(tiny_model(sigmoid_rpn=False), tmp_path / "m.onnx"), (), TRT8)
    values = {t.name: onnx.numpy_helper.to_array(t) for t in graph.graph.initializer}
    found = [values[node.input[1]].tolist() for node in graph.graph.node if node.op_type == "TopK"]
    assert found == [[200]] * 3


def test_slices_of_integer_constants_are_folded() -> None:
    """Only those: slices of floats, and of what is computed, stay."""
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> net (float[8] x, int64[8] given) => '
        "(int64[N] y, int64[M] back, float[K] cut, int64[J] own) {\n"
        "  numbers = Constant<value_ints = [4, 5, 6, 7]>()\n  one = Constant<value_ints = [1]>()\n"
        "  three = Constant<value_ints = [3]>()\n  zero = Constant<value_ints = [0]>()\n"
        "  minus = Constant<value_ints = [-1]>()\n  least = Constant<value_ints = [-9]>()\n"
        "  a = Slice(numbers, one, three)\n  y = Identity(a)\n"
        "  b = Slice(numbers, minus, least, zero, minus)\n  back = Identity(b)\n"
        "  cut = Slice(x, one, three)\n  own = Slice(given, one, three)\n}"
    )
    graph = engine_model(model, (), TRT8)
    assert [n.op_type for n in graph.graph.node] == ["Identity", "Identity", "Slice", "Slice"]
    outputs = _run(graph, {"x": np.arange(8, dtype=np.float32), "given": np.arange(8)})
    assert [outputs[name].tolist() for name in ("y", "back", "cut", "own")] == [
        [5, 6],
        [7, 6, 5, 4],
        [1.0, 2.0],
        [1, 2],
    ]


def test_other_constants_and_operators_of_that_name_stay() -> None:
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17, "mine": 1]> net (float[1] x) => (float[1] y, float[1] z) '
        '{ text = Constant<value_string = "a">() y = mine.Constant<value = float[1] {1}>() z = Relu(x) }'
    )
    graph = engine_model(model, ("Constant",), TRT8)
    assert [(n.domain, n.op_type) for n in graph.graph.node] == [
        ("", "Constant"),
        ("mine", "Constant"),
        ("", "Relu"),
    ]


def test_operators_that_nobody_has_are_named() -> None:
    """An operator without a body, as mmcv 1.x exports it."""
    nodes = [
        helper.make_node("MMCVRoiAlign", ["x"], ["a"], name="/roi", domain="mmcv"),
        helper.make_node("MMCVRoiAlign", ["a"], ["b"], name="/roi_1", domain="mmcv"),
        helper.make_node("grid_sampler", ["b"], ["y"], domain="mmcv"),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    model = helper.make_model(helper.make_graph(nodes, "old", values[:1], values[1:]))
    message = (
        "model: expected a plugin for every operator that is not standard ONNX, found none for mmcv::MMCVRoiAlign "
        r"\(node /roi\), mmcv::grid_sampler \(node y\); build the plugin library with `make plugins`, or name it with "
        "--plugins"
    )
    with pytest.raises(ValueError, match=message):
        engine_model(model, (), TRT8)
    with pytest.raises(ValueError, match=r"found none for mmcv::grid_sampler \(node y\); build"):
        engine_model(model, ("MMCVRoiAlign",), TRT8)
    assert len(engine_model(model, ("MMCVRoiAlign", "grid_sampler"), TRT8).graph.node) == 3


def test_nodes_without_a_name_of_their_own_get_one(tmp_path: Path) -> None:
    """Precision plans, and shares of FLOPs, go by names; onnx demands none."""
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> net (float[1] x) => (float[1] y) '
        "{ a = Relu(x) b = Relu(a) c = Relu(b) d = Relu(c) y = Relu(d) }"
    )
    for node, name in zip(model.graph.node, ("twice", "twice", "", "own", "c")):
        node.name = name
    onnx.save(model, str(tmp_path / "m.onnx"))
    names = ["a", "b", "c_", "own", "c"]
    assert [node.name for node in load_onnx(tmp_path / "m.onnx").graph.node] == names
    assert [node.name for node in engine_model(model, (), TRT8).graph.node] == names


def test_metadata_is_read_and_need_not_be_there() -> None:
    facts = models.metadata(masks="full")
    assert metadata_of(models.model(facts), "m.onnx") == facts
    assert metadata_of(models.model(with_metadata=False), "m.onnx") is None
    damaged = models.model(with_metadata=False)
    helper.set_model_props(damaged, {KEY: '{"format": 3}'})
    with pytest.raises(ValueError, match="model metadata: expected format 1 or 2, found 3"):
        metadata_of(damaged, "m.onnx")


def test_a_missing_file_names_the_command_that_makes_it(tmp_path: Path) -> None:
    message = r"none.onnx: expected a file, found nothing; make it with `python -m export.maskrcnn`"
    with pytest.raises(FileNotFoundError, match=message):
        load_onnx(tmp_path / "none.onnx")


@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1\n", b"", b"\x00" * 100])
def test_what_is_not_an_onnx_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model .*broken.onnx: expected an ONNX file, found"):
        load_onnx(path)


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(share: float, fake_model: Path, tmp_path: Path) -> None:
    data = fake_model.read_bytes()
    path = tmp_path / "half.onnx"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match=r"model .*half.onnx: expected an ONNX file, found something else"):
        load_onnx(path)


def test_without_the_package_onnx_its_use_is_said(fake_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(
        RuntimeError, match=r"onnx: expected the Python package, found none .*`pip install onnx`"
    ):
        load_onnx(fake_model)
