"""``python -m runtime.run``."""

import json
import os
import re
import signal
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

from runtime.compare import main as compare
from runtime.run import main

MODEL = """<ir_version: 8, opset_import: ["": 17]>
net (float[B, 3] x, float[1, 3] y) => (float[B, 3] "a/sum", float[B, 3] a_sum, int64[2] size) {
    "a/sum" = Add(x, y)
    a_sum = Mul(x, y)
    size = Shape(x)
}"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    parsed = parser.parse_model(MODEL.replace('"a/sum"', "total"))
    for node in parsed.graph.node:
        for i, name in enumerate(node.output):
            node.output[i] = "a/sum" if name == "total" else name
    parsed.graph.output[0].name = "a/sum"
    path = tmp_path / "m.onnx"
    onnx.save(parsed, path)
    return path


def _run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def _saved(folder: Path, name: str, array: np.ndarray) -> Path:
    np.save(folder / f"{name}.npy", array)
    return folder / f"{name}.npy"


X, Y = np.array([[1, 2, 3], [4, 5, np.nan]], np.float32), np.array([[10, 20, 30]], np.float32)


def test_outputs_are_written_by_name(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    x, y, out = _saved(tmp_path, "x", X), _saved(tmp_path, "y", Y), tmp_path / "out"
    assert _run(model, "--input", f"x={x}", "--input", f"y={y}", "--output-dir", out, "--repeat", 3) == 0
    assert sorted(path.name for path in out.iterdir()) == ["a_sum.npy", "a_sum_2.npy", "size.npy"]
    np.testing.assert_array_equal(np.load(out / "a_sum.npy"), X + Y)
    np.testing.assert_array_equal(np.load(out / "a_sum_2.npy"), X * Y)
    assert np.load(out / "size.npy").tolist() == [2, 3]
    printed = capsys.readouterr().out
    assert re.search(r"output +│ a/sum +│ float32 +│ 2x3 +│ +11 +│ +21 +│ +33 +│ +1", printed)
    assert re.search(r"output +│ size +│ int64 +│ 2 +│ +2 +│ +2.5 +│ +3 +│ +0", printed)
    assert re.search(r"3 runs: [\d.]+ ms \(median\)", printed)


def test_inputs_come_from_one_file_or_are_made_up(model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "both.npz", x=X, y=Y)
    first, second = tmp_path / "first", tmp_path / "second"
    assert _run(model, "--input", tmp_path / "both.npz", "--output-dir", first) == 0
    np.testing.assert_array_equal(np.load(first / "a_sum.npy"), X + Y)
    for seed in (1, 1):
        assert _run(model, "--random", seed, "--shape", "x=4x3", "--output-dir", second) == 0
        assert np.load(second / "size.npy").tolist() == [4, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"expected every input, found none for x: float32 \(\?, 3\), y: float32 \(1, 3\); give --input"),
        (["--input", "x=none.npy"], r"--input none.npy: expected an .npy or .npz file, found no file"),
        (["--input", "x={x}", "--input", "x={x}"], "--input: expected each input once, found x again"),
        (["--input", "{x}"], "expected NAME=FILE.npy or FILE.npz, found a file of one array"),
        (["--input", "x={text}"], r"--input .*text\.npy: expected an .npy or .npz file, found none \("),
        (
            ["--input", "x={objects}"],
            r"--input .*objects\.npy: expected numbers or strings, found Python objects; save plain arrays",
        ),
        (
            ["--input", "z={x}", "--random", "1"],
            r"--input: expected names of the model's inputs \(x, y\), found z",
        ),
        (
            ["--input", "x={x}", "--input", "z={x}"],
            r"--input: expected names of the model's .*\(x, y\), found z",
        ),
        (["--random", "1", "--shape", "x=2x4"], r"--shape x: expected one like float32 \(\?, 3\), found 2x4"),
        (["--random", "1", "--shape", "z=2x4"], r"--shape: expected names of inputs \(x, y\), found z"),
        (["--random", "1", "--shape", "x"], "--shape: expected NAME=1x3x640x640, found 'x'"),
        (["--random", "1", "--shape", "x=99999999999x3"], "--shape x: expected at most 8 GiB"),
    ],
)
def test_what_cannot_be_run_is_refused(
    arguments: list, message: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "text.npy").write_text("no array")
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    names = {
        "x": _saved(tmp_path, "x", X),
        "text": tmp_path / "text.npy",
        "objects": tmp_path / "objects.npy",
    }
    assert _run(model, *(argument.format(**names) for argument in arguments)) == 2
    assert re.search(message, capsys.readouterr().err)


def test_an_output_never_replaces_an_input(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    x = _saved(tmp_path, "a_sum", X)
    assert _run(model, "--input", f"x={x}", "--random", 1, "--output-dir", tmp_path) == 2
    assert "a_sum.npy" in capsys.readouterr().err
    np.testing.assert_array_equal(np.load(x), X)


def test_inputs_have_a_limit_together(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Decompressed; each file alone is below it."""
    np.savez_compressed(tmp_path / "x.npz", x=np.zeros((50_000, 3), np.float32))
    np.savez_compressed(tmp_path / "y.npz", y=np.zeros((50_000, 3), np.float32))
    monkeypatch.setenv("MASKRCNN_MAX_INPUT_BYTES", "1000000")
    assert _run(model, "--input", tmp_path / "x.npz", "--input", tmp_path / "y.npz") == 2
    assert "expected arrays of up to 400000 bytes, found 600" in capsys.readouterr().err
    monkeypatch.setenv("MASKRCNN_MAX_INPUT_BYTES", "much")
    assert _run(model, "--input", tmp_path / "x.npz") == 2
    assert "MASKRCNN_MAX_INPUT_BYTES: expected a whole number, found 'much'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["pipe", "/dev/zero", "."])
def test_an_input_that_is_no_file_is_not_waited_for(
    name: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert _run(model, "--input", f"x={tmp_path / name}", "--random", 1) == 2
    assert "expected a regular file, found a" in capsys.readouterr().err


def test_strings_go_through(tmp_path: Path) -> None:
    parsed = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> net (string[N] x) => (string[N] y) { y = Identity(x) }"""
    )
    onnx.save(parsed, tmp_path / "m.onnx")
    x = _saved(tmp_path, "x", np.array(["a", "bcd"]))
    out = tmp_path / "out"
    assert (
        _run(tmp_path / "m.onnx", "--backend", "onnxruntime", "--input", f"x={x}", "--output-dir", out) == 0
    )
    assert np.load(out / "y.npy").tolist() == ["a", "bcd"]


def test_no_outputs_of_two_runs_are_beside_each_other(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked at before each change of the folder: there the process may be killed."""
    out, seen = tmp_path / "out", []

    def look() -> None:
        shapes = [np.load(path).shape[0] for path in out.glob("a_sum*.npy")]
        shapes += [int(np.load(path)[0]) for path in out.glob("size.npy")]
        assert len(set(shapes)) <= 1
        seen.append(len(shapes))

    for name in ("replace", "unlink"):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, _original=original, **o: (look(), _original(*a, **o))[1])
    for batch in (2, 3):
        assert _run(model, "--random", 1, "--shape", f"x={batch}x3", "--output-dir", out) == 0
        look()
        assert seen[-1] == 3
    assert min(seen) == 0


def test_a_disk_that_is_full_leaves_the_outputs_before(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    assert _run(model, "--random", 1, "--output-dir", out) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def save(file: object, array: np.ndarray, allow_pickle: bool) -> None:
        if array.dtype == np.int64:  # the last output
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", save)
    assert _run(model, "--random", 2, "--output-dir", out) == 2
    assert "No space left" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_signal_while_outputs_take_their_names_waits(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else there were neither the outputs before nor these."""
    out, replace = tmp_path / "out", os.replace
    assert _run(model, "--random", 1, "--shape", "x=2x3", "--output-dir", out) == 0

    def interrupted(*paths: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        replace(*paths)

    monkeypatch.setattr(os, "replace", interrupted)
    assert _run(model, "--random", 1, "--shape", "x=3x3", "--output-dir", out) in (0, 143)
    assert sorted(path.name for path in out.iterdir()) == ["a_sum.npy", "a_sum_2.npy", "size.npy"]
    assert np.load(out / "size.npy").tolist() == [3, 3]


def test_two_models_are_compared_by_name(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Whatever order their outputs have; a difference is named."""
    x, y, out = _saved(tmp_path, "x", X), _saved(tmp_path, "y", Y), tmp_path / "c.json"
    other, wrong = tmp_path / "other.onnx", tmp_path / "wrong.onnx"
    proto = onnx.load(model)
    proto.graph.output.reverse()
    onnx.save(proto, other)
    for node in proto.graph.node:
        node.op_type = {"Mul": "Div"}.get(node.op_type, node.op_type)
    onnx.save(proto, wrong)
    inputs = ("--input", f"x={x}", "--input", f"y={y}")
    assert _compare(model, other, *inputs, "--json", out) == 0
    rows = json.loads(out.read_text())["outputs"]
    assert [(row["name"], row["difference"], row["num_beyond"]) for row in rows] == [
        ("a/sum", 0, 0),
        ("a_sum", 0, 0),
        ("size", 0, 0),
    ]
    assert _compare(model, other, "--random", 0, "--shape", "x=4x3", "--backend-b", "openvino") == 0
    capsys.readouterr()
    assert _compare(model, wrong, *inputs) == 1
    assert re.search(r"a_sum +│ float32 +│ 2x3 +│ +100 .*│ +5 ", capsys.readouterr().out)


def test_what_cannot_be_compared_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    x = _saved(tmp_path, "x", X)
    assert _compare(model, model, "--input", f"x={x}") == 2
    assert "expected every input, found none for y" in capsys.readouterr().err
    assert _compare(model, model, "--random", 0, "--layers") == 2
    assert "--layers: expected images, found --input or --random" in capsys.readouterr().err
    proto = onnx.load(model)
    proto.graph.output.pop()
    onnx.save(proto, tmp_path / "less.onnx")
    assert _compare(model, tmp_path / "less.onnx", "--random", 0) == 2
    assert "expected the same names in A and B, found size in A alone" in capsys.readouterr().err


def _compare(*arguments: object) -> int:
    return compare([str(argument) for argument in arguments])
