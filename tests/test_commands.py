"""What holds of every command: how it is wrapped, when its libraries are loaded, `python -OO`, odd values."""

import argparse
import ast
import importlib
import inspect
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.cli import CommandParser
from tests.runtime import fakes
from tests.runtime.processes import ROOT, SECONDS, ended, start

# Module -> a line that ends with 2 whatever else is given: nothing there is by these names.
LINES = {
    "runtime.infer": [["gone.jpg", "--model", "gone.onnx"]],
    "runtime.record": [["gone.onnx", "--images", "gone.jpg"]],
    "runtime.evaluate": [["gone.npz"]],
    "runtime.compare": [["gone.npz", "gone.onnx", "--images", "gone.jpg"]],
    "runtime.build": [["gone.onnx"]],
    "runtime.run": [["gone.onnx"]],
    "runtime.serve": [["gone.onnx"]],
    "runtime.batch": [["gone.jpg", "--model", "gone.onnx", "--output", "out"]],
    "runtime.precision.__main__": [["plan", "gone.onnx"], ["convert", "gone.onnx"], ["search", "gone.onnx"]],
    "export.maskrcnn": [["gone.py", "gone.pth"]],
    "export.quantize": [["gone.onnx", "--images", "gone.jpg"]],
    "export.graft.__main__": [["gone.onnx"]],
    "export.convert.__main__": [["gone.onnx", "--for", "onnx", "-o", "out"]],
    "export.reference": [["gone.py", "gone.pth"]],
    "export.zoo.__main__": [[]],
}
OTHERS = ("benchmarks.readme", "examples.shapes", "tests.fuzz.kills")
VALUES = (
    *("--", "", " ", "-", "=", "==", "\t", "--x", "-x", "\\", "%s", "%", "{}", "'", '"', "~", "*", "[", "("),
    *(
        "\udcff",
        "\u00e9",
        "\U0001f600",
        "\u202e",
        "\x1b[31m",
        "\n",
        "a" * 5000,
        "9" * 5000,
        "a/" * 3000,
        "nan",
    ),
    *("0", "-1", "1e999", "0x0", "=1x1", "a=", "none", "None", "[]"),
)


def parser_of(module: str) -> argparse.ArgumentParser:
    return importlib.import_module(module)._parser()


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield it, and those of its commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from (inner for choice in action.choices.values() for inner in parsers(choice))


def options(module: str, line: list[str]) -> list[str]:
    """Return every name of every option with a value that fits to the line."""
    found = [p for p in parsers(parser_of(module)) if p.prog.endswith(f" {line[0]}")] if line else []
    parser = found[0] if found else parser_of(module)
    actions = [a for a in parser._actions if a.option_strings and a.nargs != 0]
    return [name for action in actions for name in action.option_strings]


def status_of(main: Any, line: list[str]) -> Any:
    try:
        return main(line)
    except SystemExit as error:
        return error.code


def test_every_installed_command_is_looked_at() -> None:
    (assigned,) = (
        node.value
        for node in ast.parse((ROOT / "setup.py").read_text()).body
        if isinstance(node, ast.Assign) and node.targets[0].id == "COMMANDS"
    )
    modules = set(ast.literal_eval(assigned).values())
    assert len(modules) > 5
    assert modules <= set(LINES)


@pytest.mark.parametrize("module", LINES)
def test_a_command_is_wrapped(module: str) -> None:
    """Signals, exit codes and standard output are ``command``'s; the exporter has a wrapping of its own."""
    main = importlib.import_module(module).main
    source = inspect.getsource(main)
    assert hasattr(main, "__wrapped__") or "safe_streams()" in source
    assert all(type(parser) is CommandParser for parser in parsers(parser_of(module)))


@pytest.mark.parametrize("module", LINES)
def test_arguments_are_read_before_libraries_are_loaded(module: str) -> None:
    """So that a mistake costs no time, and a signal while they are loaded makes no traceback."""
    program = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=SECONDS,
    )
    loaded = set(done.stdout.split()) & {
        "numpy",
        "cv2",
        "onnx",
        "onnxruntime",
        "torch",
        "mmengine",
        "pycocotools",
    }
    assert not loaded
    # Every other command prints its table when it has one.
    assert module == "export.maskrcnn" or "rich" not in done.stdout.split()


def test_help_needs_no_docstrings() -> None:
    """``python -OO`` strips them."""
    modules = [*LINES, *OTHERS]
    names = [module.removesuffix(".__main__") for module in modules]
    for at in range(0, len(names), 4):
        chunk = names[at : at + 4]
        processes = [start(name, "--help", env={"PYTHONOPTIMIZE": "2"}) for name in chunk]
        for name, process in zip(chunk, processes):
            code, printed, said = ended(process)
            assert (code, said) == (0, ""), name
            assert printed.startswith("usage: "), name


def test_a_command_works_without_docstrings_and_asserts(tmp_path: Path) -> None:
    model = fakes.save(tmp_path / "m.onnx", fakes.metadata())
    image = "examples/images/single.jpg"
    optimized = {"env": {"PYTHONOPTIMIZE": "2"}}
    out = tmp_path / "out"
    infer = start("runtime.infer", image, "--model", model, "--out", out, **optimized)
    plan = start("runtime.precision", "plan", model, **optimized)
    for process in (infer, plan):
        code, _, said = ended(process)
        assert code == 0, said
    assert (out / "results.json").is_file()


def test_help_says_what_the_command_does(capsys: pytest.CaptureFixture) -> None:
    for module in LINES:
        assert status_of(parser_of(module).parse_args, ["--help"]) == 0
        printed = capsys.readouterr().out
        description = printed.split("\n\n")[1]
        assert len(description) > 20, module
        assert not description.startswith("positional"), module


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines_with(module: str, line: list[str]) -> Iterator[list[str]]:
    """Yield the line with each odd value in each place: with every option, behind it, and of what has none."""
    for name, value in itertools.product(options(module, line), VALUES):
        yield [*line, f"{name}={value}" if name.startswith("--") else f"{name}{value}"]
    for name, value in itertools.product(options(module, line), ("", " ", "=", "-", "%")):
        yield [*line, name, value]
    first = 1 if "precision" in module else 0  # behind the command
    places = range(first, min(first + 2, len(line)))
    for at, value in itertools.product(places, VALUES):
        if not line[at].startswith("-"):
            yield [*line[:at], value, *line[at + 1 :]]


@pytest.mark.parametrize("module", LINES)
def test_a_value_that_is_odd_is_refused(
    module: str, nowhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Status 2, a line that says why, no traceback, nothing that no terminal should get, and nothing is written."""
    main = importlib.import_module(module).main
    if "zoo" in module:
        monkeypatch.setattr("export.zoo.run.zoo_configs", list)
    for line in (words for good in LINES[module] for words in lines_with(module, good)):
        status = status_of(main, line)
        said = "".join(capsys.readouterr())
        given = [word[:80] for word in line]
        assert status == 2, (given, said[-2000:])
        assert "Traceback" not in said, (given, said[-2000:])
        assert "error" in said, (given, said)
        assert "\x1b" not in said, given
        assert not os.listdir(nowhere), given


@pytest.mark.parametrize("name", ["--out=--", "--threads=--", "--device=--"])
def test_dashes_are_no_value(name: str, capsys: pytest.CaptureFixture) -> None:
    from runtime.infer import main

    assert status_of(main, ["gone.jpg", name]) == 2
    said = capsys.readouterr().err
    assert f"error: argument {name[:-3]}: expected a value, found '--'; a file's name is './--'" in said


def test_dashes_still_end_the_options() -> None:
    parsed = parser_of("runtime.infer").parse_args(["--out", "o", "--", "--model=--"])
    assert (parsed.sources, str(parsed.out)) == (["--model=--"], "o")
