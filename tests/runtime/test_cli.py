"""What the command lines share."""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from runtime.cli import EXIT_FAILED, add_run_options, backend_options, command, not_negative, positive, score
from runtime.console import status, tracked, write_json
from runtime.files import whole_file
from runtime.interrupts import Interrupted, handled


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
    assert backend_options("m.engine", "auto", args) == {"streams": 2}  # an engine has its own precision


def test_a_report_is_json_whatever_the_figures(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "r.json"
    write_json(path, {"a": [float("nan"), 1.5], "b": (float("inf"), None), "c": {"d": -float("inf")}})
    assert json.loads(path.read_text()) == {"a": [None, 1.5], "b": [None, None], "c": {"d": None}}
    with pytest.raises(TypeError):
        write_json(path, object())
    assert json.loads(path.read_text())["a"] == [None, 1.5]
    assert list(tracked(iter("abc"), 3, "letters")) == list("abc")


@pytest.mark.parametrize(
    ("error", "exit_status", "words"),
    [
        (ValueError("a\x1b[2Jb \udcff"), 2, "error: a\\x1b[2Jb \\udcff\n"),
        (OSError(28, "No space left on device", "f"), 2, "error: [Errno 28] No space left on device: 'f'\n"),
        (RuntimeError("no GPU"), 2, "error: no GPU\n"),
        (MemoryError(), 2, "error: memory ran out; use a smaller batch or fewer images\n"),
        (Interrupted(signal.SIGTERM), 143, "interrupted by SIGTERM; what was not finished is not written\n"),
        (KeyboardInterrupt(), 130, "interrupted by SIGINT; what was not finished is not written\n"),
    ],
)
def test_a_command_ends_in_one_line(
    error: BaseException, exit_status: int, words: str, capsys: pytest.CaptureFixture
) -> None:
    @command
    def main(argv: object) -> int:
        raise error

    assert main(["x"]) == exit_status
    assert capsys.readouterr() == ("", words)


@pytest.mark.parametrize(
    "error", [ImportError("half loaded"), RuntimeError("native code was cut"), KeyError()]
)
def test_what_an_interrupted_library_says_is_no_error(
    error: Exception, capsys: pytest.CaptureFixture
) -> None:
    @command
    def main(argv: object) -> int:
        with suppress(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
        raise error

    assert main() == 143
    assert capsys.readouterr().err == "interrupted by SIGTERM; what was not finished is not written\n"


def test_a_defect_of_ours_says_how_to_report_it(capsys: pytest.CaptureFixture) -> None:
    @command
    def main(argv: object) -> int:
        return {}["key"]

    assert main() == EXIT_FAILED
    said = capsys.readouterr().err
    assert "KeyError: 'key'\nerror: the command itself failed; please report the lines above" in said


def test_a_file_that_was_begun_goes_with_a_signal(tmp_path: Path) -> None:
    """Also where nothing unwinds the block that writes it."""
    kept = []

    @command
    def main(argv: object) -> int:
        kept.append(whole_file(tmp_path / "file"))
        kept[0].__enter__().write(b"half")
        raise Interrupted(signal.SIGINT)

    assert main() == 130
    assert list(tmp_path.iterdir()) == []


def _shown(show: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> tuple[str, str]:
    monkeypatch.setattr("runtime.console.PROGRESS_SECONDS", 0.02)
    show()
    return capsys.readouterr()


def test_progress_is_a_line_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Never on standard output, also while one item takes long."""

    def items() -> Iterator[int]:
        yield 1
        time.sleep(0.2)
        yield 2

    out, err = _shown(lambda: list(tracked(items(), 5, "counting")), monkeypatch, capsys)
    assert out == ""
    lines = err.splitlines()
    assert len(lines) >= 3
    assert set(lines) == {"counting: 1 of 5, 0 s"}

    def wait() -> None:
        with status("waiting") as show:
            time.sleep(0.1)
            show("still waiting")
            time.sleep(0.1)

    out, err = _shown(wait, monkeypatch, capsys)
    assert out == ""
    assert err.splitlines()[0] == "waiting, 0 s"
    assert err.splitlines()[-1] == "still waiting, 0 s"


def test_progress_is_a_bar_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    out, err = _shown(lambda: list(tracked(iter("abc"), 3, "[/bold]letters")), monkeypatch, capsys)
    assert out == ""
    assert "\x1b[" in err


def test_without_standard_error_there_is_no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert list(tracked(iter("abc"), 3, "letters")) == list("abc")
    with status("waiting") as show:
        show("still")


def test_an_interrupt_that_was_lost_ends_the_loop() -> None:
    seen = []
    with pytest.raises(Interrupted), handled():
        for item in tracked(range(5), 5, "counting"):
            seen.append(item)
            with suppress(Interrupted):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)
    assert seen == [0]
