"""Masks of ``--masks full`` on a real GPU: cast there and handed out where they arrive, against NumPy's cast.

The variables of ``harness.py`` hold here too:

    pytest -m tensorrt --confcutdir=tests/gpu tests/gpu/engines/test_full_masks.py -v

``MASKRCNN_TEST_FULL_MODEL`` names an ONNX of ``export.maskrcnn --masks full`` (default: ``out/maskrcnn_full.onnx``); or
``MASKRCNN_TEST_FULL_ENGINE`` an engine of one that is there already. The small network's tests need neither.
"""

import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from runtime.backends.tensorrt import TensorRTBackend
from runtime.device.kernels import MaskCast
from runtime.engine.files import Machine
from runtime.engine.session import EngineSession
from runtime.host.preprocess import Batch, prepare
from runtime.image_files import find_images
from runtime.images import read_image
from tests.gpu.engines import harness

pytestmark = [pytest.mark.gpu, pytest.mark.tensorrt]

MODEL_VARIABLE, ENGINE_VARIABLE = "MASKRCNN_TEST_FULL_MODEL", "MASKRCNN_TEST_FULL_ENGINE"


@pytest.fixture(scope="module")
def cast(machine: Machine) -> MaskCast:
    return MaskCast(machine.plugins.handle)


def session_of(engine: Path, machine: Machine, **options: object) -> EngineSession:
    return EngineSession(engine.read_bytes(), library=machine.library, cuda=machine.cuda, **options)


def feeds_of(seed: int, batch: int) -> dict:
    return {"data": 40 * np.random.default_rng(seed).standard_normal((batch, 3, 16, 16)).astype(np.float32)}


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_an_output_of_floats_becomes_bytes(
    cuda_graphs: bool, small: Path, machine: Machine, cast: MaskCast
) -> None:
    """Convolutions of 0 to several hundred; all results are kept until the end, and the session closed before."""
    feeds = [feeds_of(seed, 1 + seed // 4 % 2) for seed in range(24)]
    with session_of(small / "small.engine", machine) as session:
        floats = [session.run(feed)["out"] for feed in feeds]
    with session_of(small / "small.engine", machine, casts={"out": cast}, cuda_graphs=cuda_graphs) as session:
        found = [session.run(feed)["out"] for feed in feeds]
        assert session.cuda_graph_failure == ""
    assert max(values.max() for values in floats) > 256
    for values, own in zip(floats, found):
        expected = np.clip(values, 0, 255).astype(np.uint8)
        assert own.dtype == np.uint8
        # Another launch may sum in another order: a value next to an integer may be on its other side.
        near = np.abs(values - np.rint(values)) < harness.CLOSE
        np.testing.assert_array_equal(own[~near], expected[~near])


@pytest.fixture(scope="module")
def engine(folder: Path, machine: Machine, timing_cache: Path) -> Path:
    named = os.environ.get(ENGINE_VARIABLE)
    if named:
        return Path(named).resolve()
    source = Path(os.environ.get(MODEL_VARIABLE, harness.ROOT / "out" / "maskrcnn_full.onnx"))
    if not source.is_file():
        pytest.skip(f"no model {source}: run `python -m export.maskrcnn --masks full -o {source}`")
    model = Path(shutil.copy(source, folder / "full.onnx"))
    return harness.built(model, model.with_suffix(".engine"), timing_cache)


@pytest.fixture(scope="module")
def backend(engine: Path) -> Iterator[TensorRTBackend]:
    opened = TensorRTBackend(engine)
    if opened._session.outputs["masks"].dtype != "float32":
        pytest.skip("this TensorRT puts out bytes: nothing is cast")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def batches(backend: TensorRTBackend) -> list:
    """Batches of 1, 2 and 3 different images, several times over: from the third on a CUDA graph is launched."""
    paths = find_images([str(harness.EXAMPLES)])
    images = [read_image(path) for path in paths]
    starts = [(0, 1), (1, 2), (2, 3), (3, 4), (0, 2), (2, 4), (4, 6), (1, 3), (0, 3), (3, 6), (1, 4), (2, 5)]
    return [prepare(images[start:stop], backend.metadata) for start, stop in starts]


def run(backend: TensorRTBackend, batch: Batch) -> dict:
    return backend.run(batch.images, batch.image_sizes)


def test_masks_equal_those_that_numpy_casts(
    engine: Path, backend: TensorRTBackend, batches: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit, of the same engine through the host's cast; all results are kept until the end."""
    found = [run(backend, batch) for batch in batches]
    assert backend.cuda_graph_failure == ""
    monkeypatch.setattr(TensorRTBackend, "_casts", lambda self: {})
    on_the_host = TensorRTBackend(engine)
    try:
        for batch, ours in zip(batches, found):
            expected = run(on_the_host, batch)
            assert ours["masks"].dtype == expected["masks"].dtype == np.uint8
            for name, array in expected.items():
                np.testing.assert_array_equal(ours[name], array, err_msg=name)
            assert set(np.unique(ours["masks"])) <= {0, 1}
    finally:
        on_the_host.close()
    assert any(ours["masks"].any() for ours in found)


def test_closing_gives_the_memory_back(engine: Path, backend: TensorRTBackend, batches: list) -> None:
    free = []
    for _ in range(4):
        opened = TensorRTBackend(engine)
        kept = run(opened, batches[0])
        opened.close()
        del opened, kept
        gc.collect()
        free.append(harness.free_device_bytes())
    assert min(free[1:]) >= free[0] - harness.MEMORY_SLACK_BYTES, [f"{b >> 20} MiB free" for b in free]
