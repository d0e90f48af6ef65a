"""What docs/cpp.md prints is compiled as it is printed, and does what it says."""

import re
from pathlib import Path

import numpy as np
import pytest

from tests.cpp.conftest import ROOT, Installed, built, run
from tests.runtime import fakes

PAGE = ROOT / "docs" / "cpp.md"
PROJECT = """
cmake_minimum_required(VERSION 3.22)
project(snippets LANGUAGES C CXX)
add_compile_options(-Wall -Wextra -Wpedantic -Werror)
add_executable(app app.cpp)
{cmake}
add_executable(from_c from_c.c)
set_target_properties(from_c PROPERTIES C_STANDARD 99 C_EXTENSIONS OFF)
target_link_libraries(from_c PRIVATE maskrcnn::runtime)
"""
# What stands around the lines for C: pixels, as the program of the reader has them.
IN_C = """
#include <maskrcnn/c_api.h>
#include <stdio.h>
#include <string.h>

int main(void) {{
  static uint8_t pixels[480 * 640 * 3];
  memset(pixels, 128, sizeof pixels);
{c}
  return 0;
}}
"""


def snippet(language: str) -> str:
    """Return the only one of a language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return str(found)


@pytest.fixture(scope="module")
def programs(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the programs, beside the model that they open."""
    folder = tmp_path_factory.mktemp("snippets")
    (folder / "CMakeLists.txt").write_text(PROJECT.format(cmake=snippet("cmake")))
    (folder / "app.cpp").write_text(snippet("cpp"))
    (folder / "from_c.c").write_text(IN_C.format(c=snippet("c")))
    built(folder, folder, f"-DCMAKE_PREFIX_PATH={installed.prefix}")
    fakes.save(folder / "model.onnx")
    return folder


def boxes() -> np.ndarray:
    """Return what the fake finds in 480x640 px, x1, y1, x2, y2."""
    return np.array(fakes.UNIT_BOXES[: fakes.NUM_DETS]) * (640, 480, 640, 480)


def test_the_twenty_lines(programs: Path) -> None:
    lines = run("env", "-C", programs, programs / "app").splitlines()
    found = [line.split() for line in lines if not line.startswith(" ")]
    assert [(one[0], float(one[1])) for one in found] == [
        (fakes.CLASSES[label], score) for label, score in zip(fakes.LABELS, fakes.SCORES)
    ]
    np.testing.assert_allclose(np.array([one[2:] for one in found], float), boxes(), atol=1)
    assert len([line for line in lines if line.startswith("  ") and line.strip()]) == len(found)


def test_the_lines_for_c(programs: Path) -> None:
    found = [line.split() for line in run("env", "-C", programs, programs / "from_c").splitlines()]
    # Of a score of 0.3 or more.
    assert [one[0] for one in found] == [fakes.CLASSES[label] for label in fakes.LABELS[:2]]
    np.testing.assert_allclose(np.array([one[1:] for one in found], float), boxes()[:2, :2], atol=1)
