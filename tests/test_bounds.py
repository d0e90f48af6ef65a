"""No test waits without a bound: one that hangs fails, with a name, and the rest of the suite runs."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "tests").rglob("*.py"))
STARTING = ("run", "call", "check_call", "check_output")
# Of a process, a thread, a barrier or an event; of a string and a path, `join` has arguments.
WAITING = ("communicate", "wait", "join")
# Where bounds are: it kills the process, and is itself waited for.
BOUNDED = {"first_line"}


def unbounded(source: str) -> Iterator[str]:
    """Yield the line and the call of whatever waits for as long as it takes."""
    tree = ast.parse(source)
    inside = {
        id(call)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef) and function.name in BOUNDED
        for call in ast.walk(function)
    }
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and id(call) not in inside and _waits(call):
            yield f"{call.lineno}: {ast.unparse(call)[:80]}"


def _waits(call: ast.Call) -> bool:
    function, names = call.func, {keyword.arg for keyword in call.keywords}
    if not isinstance(function, ast.Attribute) or "timeout" in names:
        return False
    if function.attr in STARTING:
        return isinstance(function.value, ast.Name) and function.value.id == "subprocess"
    if function.attr == "readline":
        return ast.unparse(function.value).endswith("stdout")
    return function.attr in WAITING and not call.args


def test_nothing_waits_without_a_bound() -> None:
    assert len(FILES) > 150
    found = [
        f"{path.relative_to(ROOT)}:{words}" for path in FILES for words in unbounded(path.read_text("utf-8"))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "subprocess.run(['a'])",
        "subprocess.check_output(['a'], text=True)",
        "process.communicate()",
        "process.wait()",
        "threading.Thread().join()",
        "barrier.wait()",
        "process.stdout.readline()",
    ],
)
def test_it_is_seen(source: str) -> None:
    assert len(list(unbounded(source))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "subprocess.run(['a'], timeout=3)",
        "process.communicate(timeout=3)",
        "process.wait(3)",
        "''.join(x)",
        "os.path.join(a, b)",
        "run(['a'])",
        "file.readline()",
        "def first_line(process): return process.stdout.readline()",
    ],
)
def test_a_bound_is_enough(source: str) -> None:
    assert list(unbounded(source)) == []
