"""Mistakes in arguments: one line with option and range, exit status 2, at once and before any library."""

import importlib
import os
from pathlib import Path

import pytest

from tests.runtime.processes import run

COUNTS = [
    "0",
    "-1",
    "1e6",
    "1000000000000",
    "9" * 5000,
    "1.5",
    "nan",
    "inf",
    "",
    "eight",
    "0x10",
    "1 2",
    "\udcff",
]
SHARES = ["-0.1", "1.1", "nan", "inf", "-inf", "1e309", "", "much", "9" * 5000]
NOT_NEGATIVE = ["-1", "nan", "-inf", "", "much"]
MODELS = {"compare": ["a.onnx", "b.onnx"], "evaluate": ["a.onnx"], "record": ["a.onnx"], "build": ["a.onnx"]}
# option -> what it refuses; every option with a number, of every command.
OPTIONS = {
    "infer": {"--batch": COUNTS, "--threads": COUNTS, "--score": SHARES, "--json-score": SHARES},
    "record": {"--batch": COUNTS, "--threads": COUNTS},
    "evaluate": {"--batch": COUNTS, "--threads": COUNTS, "--limit": COUNTS},
    "compare": {
        "--batch": COUNTS,
        "--threads": COUNTS,
        "--min-score": SHARES,
        "--box-px": NOT_NEGATIVE,
        "--score": NOT_NEGATIVE,
        "--mask": NOT_NEGATIVE,
        "--layer-tolerance": NOT_NEGATIVE,
        "--layer-chunk": COUNTS,
    },
    "build": {"--workspace": COUNTS, "--device-index": [c for c in COUNTS if c != "0"]},
}
CASES = [
    (command, option, value)
    for command, options in OPTIONS.items()
    for option, values in options.items()
    for value in values
]


def _refused(command: str, *arguments: str) -> None:
    main = importlib.import_module(f"runtime.{command}").main
    with pytest.raises(SystemExit) as error:
        main([*MODELS.get(command, []), *arguments])
    assert error.value.code == 2


@pytest.mark.parametrize(("command", "option", "value"), CASES, ids=lambda value: ascii(value)[:20])
def test_a_number_outside_its_range_is_refused_with_the_range(
    command: str, option: str, value: str, capsys: pytest.CaptureFixture
) -> None:
    _refused(command, f"{option}={value}")
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"error: argument {option}: expected " in said
    assert " to " in said or " or more" in said
    assert ", found " in said
    assert len(said) < 250


def test_every_number_of_a_batch_is_checked(capsys: pytest.CaptureFixture) -> None:
    for value in COUNTS:
        _refused("build", "--batch", "1", "2", value)
        assert "argument --batch: expected a whole number from 1 to 1024, found" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "99999x800"], "height: expected numbers from 1 to 65536, found 99999"),
        (["--size", "0x0"], "height: expected three numbers of at least 1"),
        (["--shape", "a=1,2,99999999999"], "--shape a: expected numbers from 0 to 2147483647, found"),
        (["--shape", "a=1,2," + "9" * 5000], "--shape a: expected numbers joined by x"),
        (["--batch", "8", "2", "1"], "batch: expected three numbers of at least 1, MIN <= OPT <= MAX"),
        (["-o", "m.onnx"], "output m.onnx: expected a file that is not read, found the input m.onnx"),
        (["--timing-cache", "m.onnx"], "output m.onnx: expected a file that is not read, found the input"),
    ],
)
def test_sizes_and_outputs_of_a_build(arguments: list, message: str, capsys: pytest.CaptureFixture) -> None:
    from runtime import build

    assert build.main(["m.onnx", *arguments]) == 2
    assert f"error: {message}" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["infer", "record", "evaluate", "compare"])
def test_another_device_is_refused_with_those_there_are(command: str, capsys: pytest.CaptureFixture) -> None:
    _refused(command, "--device", "foo")
    assert "argument --device: invalid choice: 'foo' (choose from" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["record", "compare"])
@pytest.mark.parametrize("target", ["model", "image", "link"])
def test_no_output_is_an_input(
    command: str, target: str, fake_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    main = importlib.import_module(f"runtime.{command}").main
    files = {"model": tmp_path / "m.onnx", "image": tmp_path / "a.npz", "link": tmp_path / "link.npz"}
    files["model"].write_bytes(fake_model.read_bytes())
    files["image"].write_bytes(b"image")
    files["link"].symlink_to(files["image"])
    models = [str(files["model"])] * (2 if command == "compare" else 1)
    option = "--json" if command == "compare" else "-o"
    before = files["image"].read_bytes(), files["model"].read_bytes()
    assert main([*models, "--images", str(files["image"]), option, str(files[target])]) == 2
    assert "expected a file that is not read, found the input" in capsys.readouterr().err
    assert (files["image"].read_bytes(), files["model"].read_bytes()) == before


PATHS = {
    "infer": ("infer", b"{}.jpg"),
    "infer --model": ("infer", b"--model", b"{}.onnx", b"examples/images"),
    "infer --out": ("infer", b"--model", b"gone.onnx", b"--out", b"{}"),
    "record": ("record", b"{}.onnx"),
    "compare": ("compare", b"{}.npz", b"{}.onnx"),
    "evaluate": ("evaluate", b"{}.onnx", b"--dataset", b"{}"),
    "build": ("build", b"{}.onnx"),
}


@pytest.mark.parametrize("name", PATHS)
def test_paths_that_are_not_utf_8_are_an_error_in_words(name: str) -> None:
    command, *arguments = PATHS[name]
    filled = [argument.replace(b"{}", b"/nowhere/\xff\xfe") for argument in arguments]
    code, printed, said = run(f"runtime.{command}", *filled)
    assert (code, printed) == (2, "")
    assert any(line.startswith("error: ") for line in said.splitlines())
    assert "Traceback" not in said


def test_a_model_whose_path_is_not_utf_8_says_so(fake_model: Path, tmp_path: Path) -> None:
    """onnxruntime takes text alone."""
    model = tmp_path / os.fsdecode(b"\xff.onnx")
    model.write_bytes(fake_model.read_bytes())
    code, _, said = run(
        "runtime.infer", "--backend", "onnxruntime", "--model", bytes(model), "--out", tmp_path / "out"
    )
    assert code == 2
    assert "expected a path in UTF-8, which onnxruntime takes, found other bytes; rename it" in said


def test_outputs_may_have_any_name(fake_model: Path, tmp_path: Path) -> None:
    out = bytes(tmp_path) + b"/\xff"
    arguments = ("--images", "examples/images/single.jpg")
    assert run("runtime.infer", "--model", fake_model, "--out", out)[0] == 0
    assert run("runtime.record", fake_model, *arguments, "-o", out + b".npz")[0] == 0
    assert run("runtime.compare", fake_model, out + b".npz", *arguments, "--json", out + b".json")[0] == 0
    assert sorted(os.listdir(bytes(tmp_path))) == [b"\xff", b"\xff.json", b"\xff.npz"]
