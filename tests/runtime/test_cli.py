"""What the command lines share."""

import argparse
import json
from pathlib import Path

import pytest

from runtime.cli import add_run_options, backend_options, not_negative, positive, score
from runtime.console import tracked, write_json


@pytest.mark.parametrize(
    ("parse", "good", "bad"),
    [
        (positive, {"1": 1, "8": 8}, ("0", "-1")),
        (score, {"0": 0, "0.25": 0.25, "1": 1}, ("-0.1", "1.1", "nan")),
        (not_negative, {"0": 0, "1e-3": 1e-3, "inf": float("inf")}, ("-1", "nan")),
    ],
)
def test_numbers(parse: object, good: dict, bad: tuple) -> None:
    assert {text: parse(text) for text in good} == good
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match="expected .* found"):
            parse(text)


@pytest.mark.parametrize(
    ("model", "backend", "options"),
    [
        ("m.onnx", "onnxruntime", {"device": "cpu", "threads": 3}),
        ("m.onnx", "openvino", {"threads": 3}),
        ("m.onnx@bf16", "openvino", {"threads": 3, "precision": "bf16"}),
        ("m.onnx@fp32", "openvino", {"threads": 3, "precision": "fp32"}),
        ("m.onnx", "tensorrt", {}),
        ("m.engine", "auto", {}),
        ("r.npz", "auto", {}),
        ("r.npz", "tensorrt", {}),
    ],
)
def test_each_backend_gets_what_it_takes(model: str, backend: str, options: dict) -> None:
    parser = argparse.ArgumentParser()
    add_run_options(parser)
    args = parser.parse_args(["--batch", "2", "--threads", "3"])
    assert backend_options(model, backend, args) == options


def test_a_precision_that_a_backend_lacks_reaches_it_to_be_refused() -> None:
    parser = argparse.ArgumentParser()
    add_run_options(parser)
    args = parser.parse_args(["--precision", "bf16", "--streams", "2"])
    assert backend_options("m.onnx", "onnxruntime", args) == {"device": "cpu", "precision": "bf16"}
    assert backend_options("m.onnx", "openvino", args) == {"precision": "bf16", "streams": 2}
    assert backend_options("m.onnx@fp32", "openvino", args) == {"precision": "fp32", "streams": 2}
    assert backend_options("m.engine", "auto", args) == {}  # an engine has its own


def test_a_report_is_json_whatever_the_figures(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "r.json"
    write_json(path, {"a": [float("nan"), 1.5], "b": (float("inf"), None), "c": {"d": -float("inf")}})
    assert json.loads(path.read_text()) == {"a": [None, 1.5], "b": [None, None], "c": {"d": None}}
    with pytest.raises(TypeError):
        write_json(path, object())
    assert json.loads(path.read_text())["a"] == [None, 1.5]
    assert list(tracked(iter("abc"), 3, "letters")) == list("abc")
