"""Bound runs against unbound ones of the same session, on the CPU."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from runtime.graphs.bound import BoundSession

SIZE = (64, 96)


@pytest.fixture
def session(fake_model: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(fake_model), providers=["CPUExecutionProvider"])


def _feeds(batch: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(batch, 3, *SIZE)).astype(np.float32)
    images[0, :, 0, 0] = -5  # an image without detections
    return {"images": images, "image_sizes": rng.uniform(20, 60, (batch, 2)).astype(np.float32)}


def _expected(session: onnxruntime.InferenceSession, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds)))


def _check_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_every_run_gives_what_an_unbound_one_does(session: onnxruntime.InferenceSession) -> None:
    bound = BoundSession(session)
    for seed, batch in enumerate((1, 2, 2, 1, 3, 2)):
        feeds = _feeds(batch, seed)
        _check_equal(bound.run(feeds), _expected(session, feeds))


def test_results_are_the_callers(session: onnxruntime.InferenceSession) -> None:
    bound = BoundSession(session)
    runs = [bound.run(_feeds(2, seed)) for seed in range(4)]
    for seed, found in enumerate(runs):
        _check_equal(found, _expected(session, _feeds(2, seed)))


def test_outputs_arrive_in_the_memory_that_is_given(session: onnxruntime.InferenceSession) -> None:
    given: list[np.ndarray] = []

    def new_array(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        given.append(np.full(shape, 77, dtype))
        return given[-1]

    bound = BoundSession(session, new_array)
    feeds = _feeds(2, 0)
    bound.run(feeds)  # shapes are known from here on
    given.clear()
    found = bound.run(feeds)
    assert [array.ctypes.data for array in found.values()] == [array.ctypes.data for array in given]
    _check_equal(found, _expected(session, feeds))


def test_arrays_that_are_not_contiguous_are_taken(session: onnxruntime.InferenceSession) -> None:
    feeds = _feeds(2, 0)
    turned = {**feeds, "images": np.asfortranarray(feeds["images"])}
    assert not turned["images"].flags.c_contiguous
    _check_equal(BoundSession(session).run(turned), _expected(session, feeds))
