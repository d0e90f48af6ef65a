import sys

import pytest

from runtime.engine import library as engine_library
from runtime.engine.compat import TensorRT
from runtime.engine.library import Library, last, open_library
from tests.runtime.engine import fakes


def test_listeners_hear_what_is_logged_while_they_listen(library: Library) -> None:
    heard = []
    library.logger.log(2, "before")
    with library.listening(lambda severity, message: heard.append((severity, message))):
        for severity in range(5):
            library.logger.log(severity, f"message {severity}")
    library.logger.log(1, "after")
    assert heard == [
        ("internal_error", "message 0"),
        ("error", "message 1"),
        ("warning", "message 2"),
        ("info", "message 3"),
        ("verbose", "message 4"),
    ]


def test_errors_are_collected_and_nothing_else(library: Library) -> None:
    with library.errors() as outer:
        library.logger.log(1, " one\n")
        with library.errors() as inner:
            library.logger.log(0, "two")
            library.logger.log(2, "warning")
    assert (outer, inner) == (["one", "two"], ["two"])


def test_a_listener_goes_with_an_exception(library: Library) -> None:
    heard = []
    with pytest.raises(KeyError), library.listening(lambda *line: heard.append(line)):
        raise KeyError
    library.logger.log(1, "after")
    assert heard == []


@pytest.mark.parametrize(
    ("messages", "line"),
    [
        ([], "no message"),
        (["one"], "one"),
        (["1: [a.cpp]\n  two  spaces"], "1: [a.cpp] two spaces"),
        (["one", "two", "three", "four"], "two | three | four"),
    ],
)
def test_the_last_messages_are_one_line(messages: list, line: str) -> None:
    assert last(messages) == line


def test_a_process_has_one_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT's registry keeps the first logger that it sees."""
    monkeypatch.setattr(engine_library, "_libraries", {})
    monkeypatch.setitem(sys.modules, "tensorrt", fakes.tensorrt())
    assert open_library() is open_library()
    assert open_library().logger.is_made  # ILogger wants its constructor called


def test_the_runtime_is_made_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Building needs no GPU, a runtime does."""
    module = fakes.tensorrt()
    runtime = module.Runtime
    made = []
    monkeypatch.setattr(module, "Runtime", lambda logger: made.append(logger) or runtime(logger))
    library = Library(TensorRT(module))
    assert made == []
    assert library.runtime is library.runtime
    assert made == [library.logger]
