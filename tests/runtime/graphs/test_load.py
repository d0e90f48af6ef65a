"""Errors of graphs that are none, with the file's name."""

from pathlib import Path

import onnx
import pytest

from runtime.graphs.load import graph_errors, load_onnx, metadata_of
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


def test_names_that_are_not_utf_8_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(fakes.model().SerializeToString().replace(b"whwh3", b"whw\xff3"))
    with pytest.raises(ValueError, match=f"model {path}: expected names in UTF-8, found other bytes"):
        load_onnx(path)


def test_metadata_that_is_none_is_refused_by_name() -> None:
    model = fakes.model()
    onnx.helper.set_model_props(model, {"maskrcnn": "[" * 100_000})
    with pytest.raises(
        ValueError, match=r"model m.onnx: model metadata under 'maskrcnn': expected JSON, found"
    ):
        metadata_of(model, "m.onnx")
