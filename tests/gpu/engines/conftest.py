"""Engines, detectors and images that the tests in this folder share."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from runtime.cuda.binding import open_cuda
from runtime.detector import Detector
from runtime.engine.files import Machine, ensure_engine
from runtime.engine.library import open_library
from runtime.engine.plugins import VARIABLE, find_plugins, load_plugins
from runtime.image_files import find_images
from runtime.images import read_image

try:
    import onnx

    from tests.gpu.engines import harness, legacy_onnx
except (ImportError, pytest.skip.Exception):  # the tests here are skipped then, and need no fixtures
    onnx = harness = legacy_onnx = None


@pytest.fixture(scope="session")
def machine() -> Machine:
    try:
        cuda = open_cuda()
        path = find_plugins()
    except (RuntimeError, FileNotFoundError) as error:
        pytest.skip(str(error))
    if path is None:
        pytest.skip(f"no plugin library: run `make plugins`, or name it in {VARIABLE}")
    library = open_library()
    plugins = load_plugins(path, library.tensorrt)
    if not plugins.ops:
        pytest.skip("the plugin library was loaded by other tests of this process; run this file by itself")
    return Machine(library, cuda, plugins)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="session")
def timing_cache(folder: Path) -> Path:
    named = os.environ.get(harness.TIMING_CACHE_VARIABLE)
    return Path(named).resolve() if named else folder / "timing.cache"


@pytest.fixture(scope="session")
def model(folder: Path, machine: Machine) -> Path:
    """The model in a folder of its own, where engines and their sidecars go."""
    source = Path(os.environ.get(harness.MODEL_VARIABLE, harness.ROOT / "out" / "maskrcnn.onnx"))
    if not source.is_file():
        pytest.skip(
            f"no model {source}: run `python -m export.maskrcnn`, or name one in {harness.MODEL_VARIABLE}"
        )
    return Path(shutil.copy(source, folder / "maskrcnn.onnx"))


@pytest.fixture(scope="session")
def fp32(model: Path, timing_cache: Path) -> Path:
    return harness.built(model, model.with_name("fp32.engine"), timing_cache, "--precision", "fp32")


@pytest.fixture(scope="session")
def fp16(model: Path, timing_cache: Path) -> Path:
    """With the default plan, where ``Detector(model)`` looks for it."""
    return harness.built(model, model.with_suffix(".engine"), timing_cache)


@pytest.fixture(scope="session")
def detector(fp32: Path) -> Iterator[Detector]:
    with Detector(fp32) as opened:
        yield opened


@pytest.fixture(scope="session")
def half_detector(fp16: Path) -> Iterator[Detector]:
    with Detector(fp16) as opened:
        yield opened


@pytest.fixture(scope="session")
def oracle(model: Path) -> Iterator[Detector]:
    with Detector(model, "onnxruntime") as opened:
        yield opened


@pytest.fixture(scope="session")
def images() -> list:
    """Twelve different images of different sizes: the examples, and the same mirrored."""
    examples = [read_image(path) for path in find_images([str(harness.EXAMPLES)])]
    return examples + [np.ascontiguousarray(image[:, ::-1]) for image in examples]


@pytest.fixture(scope="session")
def small(folder: Path, machine: Machine, timing_cache: Path) -> Path:
    """A folder with the engine of a network of one layer, which takes a moment to build."""
    place = folder / "small"
    place.mkdir()
    onnx.save(harness.small_model(), place / "small.onnx")
    ensure_engine(harness.small_request(place, timing_cache), machine)
    return place


@pytest.fixture(scope="session")
def legacy(folder: Path, machine: Machine) -> Path:
    path = folder / "legacy.onnx"
    onnx.save(legacy_onnx.legacy_model(), path)
    return path
