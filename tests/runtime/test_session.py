"""Models of any inputs and outputs, by name: onnxruntime, and TensorRT as a fake."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from runtime import Session
from runtime.contract import Tensor
from runtime.engine.config import EngineConfig
from runtime.engine.files import engine_path
from tests.runtime.engine import fakes as engine_fakes
from tests.runtime.engine.fake_cuda import Device

# Outputs not in alphabetical order, of four dtypes; a name that is no identifier; an input of the last layout.
MODEL = """<ir_version: 8, opset_import: ["": 17]>
net (float[B, 4, 5, 3] images, int64[B] ids)
=> (float[B, 3] means, int64[B] next_ids, bool[B, 3] bright, float16[B, 4, 5, 3] half) {
    means = ReduceMean<axes = [1, 2], keepdims = 0>(images)
    one = Constant<value = int64 {1}>()
    next_ids = Add(ids, one)
    zero = Constant<value = float {0}>()
    bright = Greater(means, zero)
    half = Cast<to = 10>(images)
}"""
FP32 = EngineConfig(batch=(1, 2, 4), precision="fp32")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "any.onnx"
    onnx.save(parser.parse_model(MODEL), path)
    return path


@pytest.fixture(params=["onnxruntime", "openvino", "tensorrt", "engine"])
def session(
    request: pytest.FixtureRequest, model: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Session]:
    if request.param in ("onnxruntime", "openvino"):
        pytest.importorskip(request.param)
        opened = Session(model, request.param, threads=1)
    else:
        engine_fakes.install(monkeypatch, engine_fakes.V8_5, Device())
        opened = Session(model, "tensorrt", config=FP32)
    if request.param == "engine":
        opened.close()
        opened = Session(engine_path(model))
    with opened:
        yield opened


def _feeds(batch: int = 2) -> dict:
    rng = np.random.default_rng(batch)
    images = rng.standard_normal((batch, 4, 5, 3)).astype(np.float32)
    return {"images": images, "ids": np.arange(batch, dtype=np.int64) - 5}


def test_names_order_dtypes_and_shapes_are_the_files(session: Session) -> None:
    assert list(session.inputs.items()) == [
        ("images", Tensor("float32", (None, 4, 5, 3))),
        ("ids", Tensor("int64", (None,))),
    ]
    assert [(name, tensor.dtype) for name, tensor in session.outputs.items()] == [
        ("means", "float32"),
        ("next_ids", "int64"),
        ("bright", "bool"),
        ("half", "float16"),
    ]


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_outputs_are_numpys(batch: int, session: Session) -> None:
    feeds = _feeds(batch)
    found = session(feeds)
    assert list(found) == ["means", "next_ids", "bright", "half"]
    assert {name: (str(a.dtype), a.shape) for name, a in found.items()} == {
        "means": ("float32", (batch, 3)),
        "next_ids": ("int64", (batch,)),
        "bright": ("bool", (batch, 3)),
        "half": ("float16", (batch, 4, 5, 3)),
    }
    means = feeds["images"].mean((1, 2), dtype=np.float64)
    np.testing.assert_allclose(found["means"], means, atol=1e-6)
    np.testing.assert_array_equal(found["next_ids"], feeds["ids"] + 1)
    np.testing.assert_array_equal(found["bright"], means > 0)
    np.testing.assert_array_equal(found["half"], feeds["images"].astype(np.float16))


def test_results_stay_the_callers(session: Session) -> None:
    first = session(_feeds(2))
    copy = {name: array.copy() for name, array in first.items()}
    session({**_feeds(2), "ids": np.array([7, 8])})
    for name, array in first.items():
        np.testing.assert_array_equal(array, copy[name])


IMAGES = np.zeros((2, 4, 5, 3), np.float32)
IDS = np.zeros(2, np.int64)


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        (
            {"images": IMAGES},
            r"the inputs 'images': float32 \(\?, 4, 5, 3\), 'ids': int64 \(\?\), found 'images'",
        ),
        ({"images": IMAGES, "id": IDS}, "expected the inputs .* found 'images', 'id'"),
        ({}, "expected the inputs .* found none"),
        (
            {"images": IMAGES.astype(np.uint8), "ids": IDS},
            r"input images: expected float32 \(\?, 4, 5, 3\), found uint8 \(2, 4, 5, 3\); convert it, and scale it as "
            r"the model was trained: array.astype\('float32'\)",
        ),
        (
            {"images": IMAGES.astype(np.float64), "ids": IDS},
            "input images: expected float32 .* found float64",
        ),
        ({"images": IMAGES, "ids": IDS.astype(np.int32)}, "input ids: expected int64 .* found int32"),
        (
            {"images": IMAGES.transpose(0, 3, 1, 2), "ids": IDS},
            r"input images: expected float32 \(\?, 4, 5, 3\), found float32 \(2, 3, 4, 5\); bring it to that size",
        ),
        (
            {"images": IMAGES[0], "ids": IDS},
            r"found float32 \(4, 5, 3\); add or remove dimensions: array\[None\]",
        ),
        ({"images": IMAGES.tolist(), "ids": IDS}, "input images: expected a NumPy array, .* found a list"),
    ],
)
def test_feeds_that_do_not_fit_are_refused_alike(feeds: dict, message: str, session: Session) -> None:
    with pytest.raises(ValueError, match=message):
        session(feeds)
    session(_feeds())


def test_a_closed_session_says_so(session: Session) -> None:
    session.close()
    session.close()
    with pytest.raises(RuntimeError, match="expected an open"):
        session(_feeds())


def test_an_engine_holds_int64_as_int32_and_says_what_does_not_fit(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine_fakes.install(monkeypatch, engine_fakes.V8_5, Device())
    with Session(model, "tensorrt", config=FP32) as session:
        message = r"input ids: expected whole numbers that int32 holds, .* found 1 to 1099511627776; run the ONNX with"
        with pytest.raises(ValueError, match=message):
            session({**_feeds(2), "ids": np.array([1, 1 << 40])})


def _batch_model(path: Path, sizes: list, shape: list) -> Path:
    """A network that reshapes (B, 2, 3) to ``sizes``, declared as ``shape``."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2, 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
    constant = numpy_helper.from_array(np.array(sizes, np.int64), "sizes")
    graph = helper.make_graph([helper.make_node("Reshape", ["x", "sizes"], ["y"])], "g", [x], [y], [constant])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_images_that_run_into_each_other_are_seen(tmp_path: Path) -> None:
    with Session(
        _batch_model(tmp_path / "m.onnx", [1, -1], ["batch", 6]), "onnxruntime", threads=1
    ) as session:
        assert session({"x": np.zeros((1, 2, 3), np.float32)})["y"].shape == (1, 6)
        message = (
            r"output y: expected float32 \(.*, 6\) as the file declares, found \(1, 12\); inside the file"
        )
        with pytest.raises(RuntimeError, match=message):
            session({"x": np.zeros((2, 2, 3), np.float32)})


def test_a_batch_that_is_fixed_inside_is_named(tmp_path: Path) -> None:
    with (
        Session(_batch_model(tmp_path / "m.onnx", [1, 6], ["batch", 6]), "onnxruntime", threads=1) as session,
        pytest.raises(RuntimeError, match=r"failed on x \(2, 2, 3\): .* fixed inside it \(a Reshape\)"),
    ):
        session({"x": np.zeros((2, 2, 3), np.float32)})


def test_a_declared_batch_of_one_does_no_harm(tmp_path: Path) -> None:
    path = _batch_model(tmp_path / "m.onnx", [-1, 6], [1, 6])
    with Session(path, "onnxruntime", threads=1) as session:
        assert session({"x": np.zeros((3, 2, 3), np.float32)})["y"].shape == (3, 6)


def test_a_batch_that_is_fixed_outside_is_named(tmp_path: Path) -> None:
    model = parser.parse_model(MODEL.replace("[B", "[1"))
    onnx.save(model, tmp_path / "m.onnx")
    with Session(tmp_path / "m.onnx", "onnxruntime", threads=1) as session:
        message = "the file was exported for that batch alone"
        with pytest.raises(ValueError, match=message):
            session(_feeds(2))


def test_outputs_that_are_no_tensors_are_refused(tmp_path: Path) -> None:
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[4] x) => (seq(float[4]) y) { y = SequenceConstruct(x) }"""
    )
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ValueError, match=r"output y: expected a tensor, found seq\(tensor\(float\)\)"):
        Session(tmp_path / "m.onnx", "onnxruntime")


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"model .*m\.onnx: expected an ONNX file"):
        Session(tmp_path / "m.onnx", "onnxruntime")
    with pytest.raises(FileNotFoundError, match="expected a file, found nothing"):
        Session(tmp_path / "none.onnx", "onnxruntime")


def _cast(path: Path, source: int, target: int) -> Path:
    kinds = {
        name: helper.make_tensor_value_info(name, kind, [3]) for name, kind in (("x", source), ("y", target))
    }
    is_same = source == target
    node = (
        helper.make_node("Identity", ["x"], ["y"])
        if is_same
        else helper.make_node("Cast", ["x"], ["y"], to=target)
    )
    graph = helper.make_graph([node], "g", [kinds["x"]], [kinds["y"]])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


NUMPYS = [
    "BOOL",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "FLOAT16",
    "FLOAT",
    "DOUBLE",
]
NOT_NUMPYS = ["BFLOAT16", "FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "INT4", "UINT4"]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", NUMPYS)
def test_every_type_that_numpy_has_is_taken(name: str, backend: str, tmp_path: Path) -> None:
    pytest.importorskip(backend)
    kind = getattr(TensorProto, name)
    for source, target in ((kind, TensorProto.FLOAT), (TensorProto.FLOAT, kind)):
        with Session(_cast(tmp_path / "m.onnx", source, target), backend, threads=1) as session:
            given = np.array([1, 0, 1]).astype(session.inputs["x"].dtype)
            found = session({"x": given})["y"]
        assert found.dtype == helper.tensor_dtype_to_np_dtype(target)
        assert found.tolist() == [1, 0, 1]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", NOT_NUMPYS)
def test_a_type_that_numpy_has_not_is_refused_by_name(name: str, backend: str, tmp_path: Path) -> None:
    """onnxruntime makes no array of it, OpenVINO one of other values."""
    pytest.importorskip(backend)
    kind = getattr(TensorProto, name)
    cases = (
        (kind, TensorProto.FLOAT, "input x", "behind"),
        (TensorProto.FLOAT, kind, "output y", "before"),
    )
    for source, target, tensor, place in cases:
        found = rf"found \w*{name[:4].lower()}\w*; make it float32, with a Cast {place} it"
        message = rf"m\.onnx: {tensor}: expected a type that NumPy has, {found}"
        with pytest.raises(ValueError, match=message):
            Session(_cast(tmp_path / "m.onnx", source, target), backend, threads=1)


def test_strings_are_onnxruntimes_alone(tmp_path: Path) -> None:
    path = _cast(tmp_path / "m.onnx", TensorProto.STRING, TensorProto.STRING)
    with Session(path, "onnxruntime", threads=1) as session:
        assert session.inputs["x"] == Tensor("object", (3,))
        found = session({"x": np.array(["a", "", "é"], object)})["y"]
        assert found.tolist() == ["a", "", "é"]
    pytest.importorskip("openvino")
    with pytest.raises(ValueError, match="found strings; use --backend onnxruntime"):
        Session(path, "openvino", threads=1)
