"""The table of operators, held against what else there has to be of each: what is missing is named with its place."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from export.functions import BODIES
from runtime.engine import blocks
from runtime.graphs.operators import OPERATORS, Operator

ROOT = Path(__file__).parents[1]
REGISTRY = "plugins/tensorrt/registry.cpp"
README = "plugins/README.md"
PATCHES = "patches/"
BODY = "export/functions.py"
CMAKE = "CMakeLists.txt"
# Plugins of nodes that no file has: lowering writes them into the engine's copy of the graph.
OF_LOWERING = {blocks.OPERATOR}


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def traced() -> set[str]:
    """Return the operators that the PyTorch side writes into a graph."""
    source = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "patches").glob("*.py")))
    return {*re.findall(r"\{DOMAIN\}::(\w+)", source), *re.findall(r'_Decode\.apply\("(\w+)"', source)}


def names_of_types() -> dict[str, tuple[str, str]]:
    """Return C++ function that describes an operator -> (the operator's name, the file)."""
    found = {}
    for path in sorted((ROOT / "plugins").glob("*/*_op.cpp")):
        source = path.read_text(encoding="utf-8")
        constant = re.search(r'kName = "(\w+)"', source)
        pattern = r'^OpType (\w+_type)\([^)]*\) \{.*?return \{(?:(kName)|"(\w+)")'
        for function, is_constant, text in re.findall(pattern, source, re.MULTILINE | re.DOTALL):
            name = constant[1] if is_constant and constant else text
            found[function] = (name, f"{path.parent.name}/{path.name}")
    return found


def registered() -> set[str]:
    listed = re.search(r"new std::vector<OpType>\{(.*?)\};", read(REGISTRY), re.DOTALL)
    types = names_of_types()
    return {types[function][0] for function in re.findall(r"(\w+_type)\(", listed[1])}


def compiled() -> set[str]:
    sources = {
        f"{folder}/{file}"
        for folder, arguments in re.findall(r"^add_op\((\w+)(.*?)\)", read(CMAKE), re.MULTILINE | re.DOTALL)
        for file in re.findall(r"(\w+_op\.cpp)", arguments)
    }
    return {name for name, source in names_of_types().values() if source in sources}


def documented() -> set[str]:
    """Return the operators in the table of what each plugin takes."""
    table = read(README).split("| op | inputs | outputs |")[1].split("\n\n")[0]
    return set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE))


def missing(found: Mapping[str, set[str]], operators: Sequence[Operator]) -> list[str]:
    """Return what is not where it has to be, and what is there without a row of the table."""
    ours = {op.name for op in operators if op.is_ours}
    plugins = {op.name for op in operators if op.has_plugin} | OF_LOWERING
    expected = {BODY: ours, PATCHES: ours, REGISTRY: plugins, CMAKE: plugins, README: plugins}
    lacks = [
        f"{place}: no {name}" for place, names in expected.items() for name in sorted(names - found[place])
    ]
    extra = [
        f"runtime/graphs/operators.py: no {name}, which is in {place}"
        for place, names in expected.items()
        for name in sorted(found[place] - names)
    ]
    return lacks + extra


@pytest.fixture
def places() -> dict[str, set[str]]:
    return {
        BODY: set(BODIES),
        PATCHES: traced(),
        REGISTRY: registered(),
        CMAKE: compiled(),
        README: documented(),
    }


def test_every_operator_is_everywhere(places: dict[str, set[str]]) -> None:
    assert missing(places, OPERATORS) == []


@pytest.mark.parametrize("place", [BODY, PATCHES, REGISTRY, CMAKE, README])
def test_what_is_missing_is_named(place: str, places: dict[str, set[str]]) -> None:
    without = {**places, place: places[place] - {"SelectMasks"}}
    assert missing(without, OPERATORS) == [f"{place}: no SelectMasks"]
    added = {**places, place: places[place] | {"Sample"}}
    assert missing(added, OPERATORS) == [f"runtime/graphs/operators.py: no Sample, which is in {place}"]


def test_rows_make_sense() -> None:
    names = [op.name for op in OPERATORS]
    assert not OF_LOWERING & set(names)
    assert len(names) == len(set(names))
    for op in OPERATORS:
        assert set(op.fp32_inputs) <= set(op.coordinates), op.name
        assert op.is_fp32 or not op.reads_fp16, op.name
        assert op.orders_rows or not op.decodes_boxes, op.name
        assert op.outputs or not op.selected_shapes, op.name
