"""ONNX Runtime in the C++ library finds what Python's ``Detector(..., backend="onnxruntime")`` finds.

Its headers are in no package: ``MASKRCNN_TEST_ONNXRUNTIME`` names a folder with ``include/`` and ``lib/``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples import CHECKPOINT_PATH, CONFIG_PATH, IMAGES_DIR
from export.model import load_model
from runtime import Detector as PythonDetector
from runtime.images import read_image
from tests.cpp import library as cpp
from tests.cpp.agreement import assert_same
from tests.cpp.conftest import ONNXRUNTIME_VARIABLE
from tests.cpp.library import Library
from tests.export.test_graph import export_loaded
from tests.runtime import fakes


@pytest.fixture(scope="module")
def both(library: Library) -> Library:
    """The library with OpenVINO and ONNX Runtime."""
    if b"onnxruntime" not in library.backends().split():
        pytest.skip(f"no ONNX Runtime for C++: set {ONNXRUNTIME_VARIABLE} to a folder with include/ and lib/")
    return library


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    """The embedded images: landscape, portrait and square."""
    return [read_image(path) for path in sorted(IMAGES_DIR.iterdir())]


def opened(library: Library, model: Path, **options: Any) -> cpp.Detector:
    return cpp.Detector(library, model, backend=b"onnxruntime", **options)


def compare(library: Library, model: Path, batches: Sequence[Sequence[np.ndarray]], **options: Any) -> int:
    """Run batches in both; return the number of detections."""
    with (
        opened(library, model, threads=2, **options) as ours,
        PythonDetector(model, backend="onnxruntime", threads=2, **options) as theirs,
    ):
        assert ours.backend.startswith("onnxruntime 1.")
        return sum(assert_same(ours(batch), theirs(batch)) for batch in batches)


def test_a_file_as_it_is_exported(both: Library, embedded_path: Path, photos: list[np.ndarray]) -> None:
    """With its local functions, which OpenVINO does not survive."""
    assert compare(both, embedded_path, [photos[:1], photos[1:4], photos]) > 100
    assert compare(both, embedded_path, [photos], batch_size=2) > 50


@pytest.mark.parametrize("masks", ["crop", "full"])
def test_any_size(both: Library, photos: list[np.ndarray], masks: str, tmp_path: Path) -> None:
    loaded = load_model(str(CONFIG_PATH), CHECKPOINT_PATH)
    model = tmp_path / "m.onnx"
    export_loaded(loaded, model, masks=masks, dynamic_size=True)
    assert compare(both, model, [photos[:1], photos[1:4]]) > 50


def test_a_detector_in_two_threads_beside_openvino(both: Library, tmp_path: Path) -> None:
    model = fakes.save(tmp_path / "m.onnx")
    images = [fakes.random_image(50, 70), fakes.random_image(40, 60, seed=1)]
    with opened(both, model, threads=1) as first, cpp.Detector(both, model, threads=1) as second:
        assert second.backend.startswith("OpenVINO")
        expected = [second([image])[0] for image in images]

        def worker(index: int) -> list[cpp.Found]:
            return [first([images[index]])[0] for _ in range(20)]

        for index, found in enumerate(cpp.in_threads([lambda: worker(0), lambda: worker(1)])):
            for one in found:
                np.testing.assert_allclose(one.boxes, expected[index].boxes, atol=1e-4)
                assert len(one.boxes) == 3


def test_batches_under_way_and_one_that_nobody_waits_for(both: Library, tmp_path: Path) -> None:
    model = fakes.save(tmp_path / "m.onnx")
    images = [fakes.random_image(50, 70), fakes.random_image(40, 60, seed=1)]
    with opened(both, model, threads=1) as detector:
        expected = [detector([image])[0] for image in images]
        pending = [detector.submit([image]) for image in images]
        dropped = detector.submit(images)
        for index in (1, 0):
            np.testing.assert_array_equal(pending[index].results()[0].boxes, expected[index].boxes)
    for batch in (*pending, dropped):
        batch.free()


def num_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def test_of_a_call_with_many_batches_few_run_at_once(
    both: Library, embedded_path: Path, photos: list[np.ndarray]
) -> None:
    """Each has the memory of a run, and a thread."""
    images = photos[:2] * 3
    with opened(both, embedded_path, threads=1, batch_size=1) as detector:
        expected = detector(images)
        before = num_threads()
        pending = detector.submit(images)
        assert num_threads() <= before + 2
        for found, one in zip(pending.results(), expected):
            assert len(found.boxes) > 20
            np.testing.assert_array_equal(found.boxes, one.boxes)
        pending.free()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"bf16": 1},
            r"precision: expected an option of onnxruntime, found one of another backend \('bf16'\)",
        ),
        ({"streams": 2}, r"streams: expected an option of onnxruntime, found one of another backend \(2\)"),
        (
            {"cache": b"/tmp"},
            r"cache: expected an option of onnxruntime, found one of another backend \('/tmp'\)",
        ),
        ({"threads": -1}, "threads: expected a whole number from 0 to 1024, found -1"),
    ],
)
def test_what_it_has_not_got_is_refused(both: Library, tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(cpp.LibraryError, match=message):
        opened(both, fakes.save(tmp_path / "m.onnx"), **options)


def test_what_is_no_model(both: Library, tmp_path: Path) -> None:
    bad = tmp_path / "m.onnx"
    bad.write_bytes(b"no model")
    with pytest.raises(cpp.LibraryError, match=r"m\.onnx: expected an ONNX"):
        opened(both, bad)


def test_another_name_of_a_backend(library: Library, tmp_path: Path) -> None:
    with pytest.raises(
        cpp.LibraryError, match=r"backend: expected one that reads \.onnx, or none, found 'none'"
    ):
        cpp.Detector(library, fakes.save(tmp_path / "m.onnx"), backend=b"none")
