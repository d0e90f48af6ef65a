"""Source files are listed by hand, in CMakeLists.txt and setup.py: none is forgotten, none is listed that is gone."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CMAKE = (ROOT / "CMakeLists.txt").read_text()
# What an operator's folder may have that CMake compiles or installs.
KINDS = (
    "*_bindings.cpp",
    "*_c_api.cpp",
    "*_kernel.cu",
    "*_op.cpp",
    "*_math.h",
    "*_reference.h",
    "*_arrays.h",
)


def files_in_cmake() -> set[str]:
    """Return the files of every ``add_op``, by their paths in ``plugins/``."""
    calls = re.findall(r"^add_op\((\w+)\s([^)]*)\)", CMAKE, re.MULTILINE)
    return {f"{op}/{word}" for op, words in calls for word in words.split() if "." in word}


@pytest.mark.parametrize("kind", KINDS)
def test_cmake_lists_the_operators_files(kind: str) -> None:
    plugins = ROOT / "plugins"
    there = {str(path.relative_to(plugins)) for path in plugins.glob(f"*/{kind}")}
    own = {path for path in there if not path.startswith("common/")}
    listed = {path for path in files_in_cmake() if Path(path).match(kind)}
    assert listed == own


def test_setup_lists_the_bindings_that_cmake_lists() -> None:
    tree = ast.parse((ROOT / "setup.py").read_text())
    values = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "OPERATORS_WITH_BINDINGS"
    ]
    bindings = {f"{name}/{name}_bindings.cpp" for name in values[0]}
    assert bindings == {path for path in files_in_cmake() if path.endswith("_bindings.cpp")}
