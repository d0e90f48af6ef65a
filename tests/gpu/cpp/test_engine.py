"""The C++ library's programs with an engine: what they find is what Python finds, again and again, and side by side.

    pytest -m tensorrt --confcutdir=tests/gpu tests/gpu/cpp -v

| variable | |
| --- | --- |
| ``MASKRCNN_TEST_ENGINE`` | an engine with its sidecar, of a fixed size that holds the example images |
| ``MASKRCNN_TEST_CPP`` | folder of ``examples/cpp``, built against a library with TensorRT |
| ``MASKRCNN_PLUGINS`` | the plugin library that the engine was built with |

TensorRT's libraries lie in ``LD_LIBRARY_PATH``. Ten thousand calls are run by ``python -m benchmarks.cpp_engine``.
"""

import os
from pathlib import Path

import cv2
import pytest

from benchmarks.cpp_engine import Subject, agreement, company, endurance
from runtime.image_files import find_images
from runtime.images import read_image

pytestmark = [pytest.mark.gpu, pytest.mark.tensorrt]

ENGINE_VARIABLE, PROGRAMS_VARIABLE = "MASKRCNN_TEST_ENGINE", "MASKRCNN_TEST_CPP"
EXAMPLES = Path(__file__).parents[3] / "examples" / "images"
BATCH, CALLS, SECONDS = 8, 500, 300.0
# What the C library's memory may still grow by after the first tenth; a batch of these images takes as much each.
SLACK_BYTES = 2 << 20


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    named = {name: os.environ.get(name) for name in (ENGINE_VARIABLE, PROGRAMS_VARIABLE)}
    if missing := [name for name, value in named.items() if not value]:
        pytest.skip(f"not named: {', '.join(missing)}")
    folder = tmp_path_factory.mktemp("ppm")
    images = [read_image(path) for path in find_images([str(EXAMPLES)])]
    files = [folder / f"{i}.ppm" for i in range(len(images))]
    for file, image in zip(files, images):
        assert cv2.imwrite(str(file), image)
    engine, programs = Path(named[ENGINE_VARIABLE]), Path(named[PROGRAMS_VARIABLE])
    return Subject(engine.resolve(), programs.resolve(), images, files, BATCH, None, SECONDS)


def test_finds_what_python_finds(subject: Subject) -> None:
    for size, difference in agreement(subject).items():
        assert difference["is_none"], (size, difference)


def test_calls_leave_nothing_behind(subject: Subject) -> None:
    found = endurance(subject, calls=CALLS)
    assert found["calls"] == CALLS
    assert found["unlike"] == 0
    assert found["grown"]["resident_bytes"] < SLACK_BYTES
    assert {name: found["grown"][name] for name in ("threads", "file_descriptors", "device_bytes")} == {
        "threads": 0,
        "file_descriptors": 0,
        "device_bytes": 0,
    }


def test_detectors_side_by_side_find_what_one_finds(subject: Subject) -> None:
    found = company(subject, detectors=2)
    assert found["results"] > 2 * BATCH
    assert found["unlike"] == 0
