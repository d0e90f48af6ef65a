"""README and docs/ say what the code says: figures, links, commands, options, messages, and what the demo prints."""

import ast
import contextlib
import importlib
import importlib.util
import io
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from benchmarks.readme import outdated, pages

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
# A README is a door.
README_BYTES = 10_240
# Need a GPU, or what comes with one, to be imported.
NOT_HERE = ("benchmarks.kernels", "tests.gpu.")
# Commands whose options all stand in a table.
WHOLE_TABLES = (
    "export.convert",
    "export.graft",
    "export.maskrcnn",
    "export.quantize",
    "export.reference",
    "runtime.batch",
    "runtime.build",
    "runtime.compare",
    "runtime.evaluate",
    "runtime.infer",
    "runtime.precision search",
    "runtime.run",
    "runtime.serve",
)
COMMAND = re.compile(r"(?<![\w./])python -m ((?:export|runtime|benchmarks|examples|tests)[\w.]*)([^`\n]*)")
OPTION = re.compile(r"(?<![\w-])(--?[a-z][\w-]*)")

with_pages = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)


def test_tables_come_from_the_results() -> None:
    assert outdated(pages()) == [], "run `python -m benchmarks.readme`"


def test_the_readme_is_short() -> None:
    assert len(README.read_bytes()) <= README_BYTES, "move what is not for everybody into docs/"


@with_pages
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]+))?\)", page.read_text()):
        if "://" in target:
            continue
        file = page.parent / target if target else page
        assert file.exists(), target
        if anchor:
            assert anchor in _anchors(file), f"{target}#{anchor}"


@with_pages
def test_files_that_are_named_exist(page: Path) -> None:
    names = re.findall(
        r"`((?:benchmarks|docs|examples|export|patches|plugins|runtime|tests)/[\w./-]+)`", page.read_text()
    )
    for name in (n for n in names if "NAME" not in n):
        assert (ROOT / name).exists(), name


@with_pages
def test_commands_and_their_options_exist(page: Path) -> None:
    for module, rest in COMMAND.findall(page.read_text()):
        name = module.rstrip(".")
        assert importlib.util.find_spec(name) is not None, name
        if name.startswith(NOT_HERE):
            continue
        words = shlex.split(rest.replace("...", ""), comments=True)
        command = _command(name, words)
        unknown = {word for word in words if OPTION.fullmatch(word)} - _options(command)
        assert not unknown, f"{command} has no {', '.join(sorted(unknown))}"


def test_the_tables_of_options_are_whole() -> None:
    documented = _tables_of_options()
    assert set(documented) == set(WHOLE_TABLES)
    for command, options in documented.items():
        known = _options(command)
        assert options <= known, f"{command} has no {', '.join(sorted(options - known))}"
        missing = {option for option in known if option.startswith("--")} - options - {"--help", "--output"}
        assert not missing, f"{command}: {', '.join(sorted(missing))} stand in no table of docs/"


@with_pages
def test_what_python_imports_exists(page: Path) -> None:
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module}.{alias.name}"


def test_every_message_is_one_of_the_code() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text().partition("## From other programs")[0]
    messages = re.findall(r"^\| (`+) ?(.+?) ?\1 \|", text, re.MULTILINE)
    assert len(messages) > 50
    known = _texts_of_the_code()
    unknown = [message for _, message in messages if not any(_occurs(message, text) for text in known)]
    assert not unknown, "these messages are nowhere in the code: correct docs/troubleshooting.md"


def test_the_demo_prints_what_is_documented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from export.maskrcnn import main as export
    from runtime.infer import main as infer

    monkeypatch.chdir(tmp_path)
    assert export([]) == 0
    assert infer(["--batch", "2"]) == 0
    printed = {_shape(line) for line in capsys.readouterr().out.splitlines()}
    readme = re.search(r"```text\n(.*?)```", README.read_text(), re.DOTALL)[1]
    page = (ROOT / "docs" / "export.md").read_text()
    steps = re.search(r"```console.\$ python -m export.maskrcnn.(    .*?)```", page, re.DOTALL)[1]
    for line in (readme + steps).splitlines():
        assert _shape(line) in printed, line


def _shape(line: str) -> str:
    """Return a line without its figures, which depend on the machine."""
    return " ".join(re.sub(r"\b[0-9a-f]{12}\b|\d+(\.\d+)?(e[+-]\d+)?", "#", line).split())


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def _command(name: str, words: list[str]) -> str:
    """Return the module, with its subcommand where it has one."""
    has_subcommand = name == "runtime.precision" and words and not words[0].startswith("-")
    return f"{name} {words[0]}" if has_subcommand else name


@cache
def _options(command: str) -> frozenset[str]:
    """Return the options that a command's --help shows."""
    name, *subcommand = command.split()
    module = importlib.import_module(name)
    main = getattr(module, "main", None) or importlib.import_module(f"{name}.__main__").main
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as done:
        main([*subcommand, "--help"])
    assert done.value.code == 0
    lines = re.findall(r"^ +(-.*?)(?:  |$)", printed.getvalue(), re.MULTILINE)
    return frozenset(option for line in lines for option in OPTION.findall(line))


def _tables_of_options() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for page in PAGES:
        for command, rows in re.findall(
            r"^\| options? of `([\w. ]+)` \|.*\n\| --- .*\n((?:\|.*\n)+)", page.read_text(), re.MULTILINE
        ):
            cells = (row.split(" | ")[0] for row in rows.splitlines())
            found.setdefault(command, set()).update(o for cell in cells for o in OPTION.findall(cell))
    return found


def _texts_of_the_code() -> list[str]:
    """Return every text that the commands can say, with ``…`` for what is put into it."""
    texts = []
    for package in ("export", "patches", "runtime"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
                elif isinstance(node, ast.JoinedStr):
                    texts.append("".join(_piece(value) for value in node.values))
    return [re.sub(r"\[/?[a-z ]+\]", "", text) for text in texts] + _texts_of_the_library()


def _texts_of_the_library() -> list[str]:
    """Return what the C++ library says: its errors' literals, with ``…`` for what stands between them."""
    texts = []
    for path in (ROOT / "runtime" / "cpp" / "src").glob("*.cpp"):
        for call in re.findall(
            r"\b(?:invalid|failed|not_found|refuse)\((.*?)\);", path.read_text(), re.DOTALL
        ):
            literals = re.finditer(r'"((?:[^"\\]|\\.)*)"', call)
            end, text = 0, ""
            for literal in literals:
                between = call[end : literal.start()].strip()
                text += ("…" if between else "") + literal[1].replace("\\", "")
                end = literal.end()
            texts.append(text)
    return texts


def _piece(value: ast.expr) -> str:
    return value.value if isinstance(value, ast.Constant) else "…"


def _occurs(message: str, text: str) -> bool:
    """Return whether the message is in the text; each ``…`` of the message stands for anything."""
    pieces = [re.escape(piece.strip()) for piece in message.split("…")]
    return re.search(".*".join(pieces), text, re.DOTALL) is not None
