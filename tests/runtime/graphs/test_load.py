"""Errors of graphs that are none, with the file's name; models that are saved with their weights beside them."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtime.backends import load_backend
from runtime.graphs import load
from runtime.graphs.load import graph_errors, load_onnx, metadata_of, save_model
from runtime.precision.__main__ import main as precision
from runtime.precision.choice import chosen_plan
from tests.runtime import fakes


def _cyclic(path: Path) -> Path:
    model = fakes.model()
    one, other = model.graph.node[-1], model.graph.node[-2]
    one.input[0], other.input[0] = other.output[0], one.output[0]
    path.write_bytes(model.SerializeToString())
    return path


def test_a_graph_that_is_none_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = _cyclic(tmp_path / "m.onnx")
    with pytest.raises(
        ValueError, match=f"model {path}: expected a valid ONNX graph, found .*; make it again"
    ):
        chosen_plan(path, load_onnx(path))
    for command in ("plan", "convert"):
        assert precision([command, str(path), "-o", str(tmp_path / "out")]) == 2
        assert f"error: model {path}: expected a valid ONNX graph, found " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_errors_of_a_valid_graph_stay_as_they_are() -> None:
    for error in (KeyError("ours"), ValueError("said"), OSError("said")):
        with pytest.raises(type(error), match=str(error)), graph_errors("m.onnx", fakes.model()):
            raise error


# Of a value within, an output, a weight, an operator, the graph, a dimension, the metadata's key and its text.
@pytest.mark.parametrize(
    "name", ["whwh3", "dets", "class_ids", "Unsqueeze", "fake", "BATCH", "maskrcnn", "circle"]
)
def test_names_that_are_not_utf_8_are_refused(name: str, tmp_path: Path) -> None:
    model = fakes.model()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "BATCH"
    data, path = model.SerializeToString(), tmp_path / "m.onnx"
    assert name.encode() in data
    path.write_bytes(data.replace(name.encode(), b"\xff" + name[1:].encode()))
    with pytest.raises(ValueError, match=f"model {path}: expected names in UTF-8, found other bytes"):
        load_onnx(path)


@pytest.mark.parametrize("name", ["dets", "circle"])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_backends_refuse_names_that_are_not_utf_8(name: str, backend: str, tmp_path: Path) -> None:
    pytest.importorskip(backend, reason=f"{backend} is not installed")
    path = tmp_path / "m.onnx"
    path.write_bytes(fakes.model().SerializeToString().replace(name.encode(), b"\xff" + name[1:].encode()))
    with pytest.raises((ValueError, RuntimeError), match=f"model {path}: "):
        load_backend(path, backend)


def test_comments_may_be_in_any_encoding(tmp_path: Path) -> None:
    model, path = fakes.model(), tmp_path / "m.onnx"
    model.graph.doc_string = "a comment"
    path.write_bytes(model.SerializeToString().replace(b"a comment", b"\xff comment"))
    assert len(load_onnx(path).graph.node) == len(model.graph.node)


def test_metadata_that_is_none_is_refused_by_name() -> None:
    model = fakes.model()
    onnx.helper.set_model_props(model, {"maskrcnn": "[" * 100_000})
    with pytest.raises(
        ValueError, match=r"model m.onnx: model metadata under 'maskrcnn': expected JSON, found"
    ):
        metadata_of(model, "m.onnx")


def _large(value: float) -> onnx.ModelProto:
    """A model whose name says which weights are its own."""
    weight = numpy_helper.from_array(np.full(1000, value, np.float32), "w")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1000]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], str(value), [x], [y], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_at_no_moment_is_a_model_beside_weights_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor beside half of its own; looked at before each change of the folder, where a process may be killed."""
    monkeypatch.setattr(load, "LARGE_BYTES", 1000)
    path, seen = tmp_path / "m.onnx", []

    def look() -> None:
        if path.exists():
            graph = onnx.load(path).graph
            assert set(numpy_helper.to_array(graph.initializer[0])) == {float(graph.name)}
        seen.append(path.exists())

    for name in ("replace", "unlink", "mkdir", "rmdir"):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, _original=original, **o: (look(), _original(*a, **o))[1])
    for value in (1.0, 2.0):
        save_model(_large(value), path)
        look()
    assert onnx.load(path).graph.name == "2.0"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    assert seen.count(True) > 3
    assert seen.count(False) > 3
