"""Engines of a machine without the plugin library: standard operators alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.comparison.difference import Tolerance, compare_image
from runtime.detector import Detector
from runtime.engine.plugins import VARIABLE
from runtime.image_files import find_images
from runtime.images import read_image
from tests.gpu.engines import harness

pytestmark = [pytest.mark.gpu, pytest.mark.tensorrt]

# A command where no library lies in its usual places either.
COMMAND = """
import importlib, sys
from runtime.engine import plugins
plugins.FOLDERS = ()
sys.exit(importlib.import_module(sys.argv[1]).main(sys.argv[2:]))
"""


def run(module: str, *arguments: object) -> str:
    """Return what the command said."""
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, module, *map(str, arguments)],
        cwd=harness.ROOT,
        env={**environment, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        timeout=harness.COMMAND_SECONDS,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


def test_fp32_equals_onnxruntime(model: Path, oracle: Detector, timing_cache: Path, tmp_path: Path) -> None:
    engine = model.with_name("plain.engine")
    options = ("--precision", "fp32", "--batch", "1", "2", "2")
    said = run("runtime.build", *harness.build_arguments(model, engine, timing_cache, *options))
    assert "no plugin library" in said
    run(
        "runtime.infer",
        harness.EXAMPLES,
        "--model",
        engine,
        "--batch",
        2,
        "--by-size",
        "--out",
        tmp_path / "found",
    )
    found = harness.arrays_from_results(tmp_path / "found")
    images = [read_image(path) for path in find_images([str(harness.EXAMPLES)])]
    expected = harness.arrays_of([oracle([image])[0] for image in images])
    assert len(expected) == len(found)
    assert sum(len(arrays.scores) for arrays in expected) > len(images)
    for pair in zip(expected, found):
        assert compare_image(*pair).violations(Tolerance()) == []
