"""Engines in FP32 against onnxruntime and against themselves."""

import gc
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from runtime.compare import main as compare_main
from runtime.comparison.difference import Tolerance
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.engine.files import Machine
from tests.gpu.engines import harness

pytestmark = [pytest.mark.gpu, pytest.mark.tensorrt]


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_fp32_equals_onnxruntime(batch: int, detector: Detector, oracle: Detector, images: list) -> None:
    assert harness.violations(oracle(images[:batch]), detector(images[:batch]), Tolerance()) == []


def test_every_batch_equals_batch_one(detector: Detector, images: list) -> None:
    alone = [detector([image])[0] for image in images[: harness.LARGEST_BATCH]]
    for batch in range(2, harness.LARGEST_BATCH + 1):
        start = harness.LARGEST_BATCH - batch
        found = detector(images[start : harness.LARGEST_BATCH])
        assert harness.violations(alone[start:], found, harness.SAME) == [], f"batch {batch}"


def test_a_batch_beyond_the_profile_is_split(detector: Detector, images: list) -> None:
    assert len(images) > harness.LARGEST_BATCH + 2
    several = images[: harness.LARGEST_BATCH + 3]
    alone = [detector([image])[0] for image in several]
    assert harness.violations(alone, detector(several), harness.SAME) == []


def test_a_shape_outside_the_profile_is_refused_with_the_range(fp32: Path, machine: Machine) -> None:
    with harness.open_session(fp32, machine) as session:
        low, _, high = session.inputs["images"].profile
        for shape in ((low[0], low[1], low[2] + 1, low[3]), (high[0] + 1, *high[1:])):
            words = re.escape(f"input images: expected a shape from {low} to {high}, found {shape}")
            feeds = {
                "images": np.zeros(shape, np.float32),
                "image_sizes": np.zeros((shape[0], 2), np.float32),
            }
            with pytest.raises(ValueError, match=words):
                session.run(feeds)


def test_two_detectors_in_one_process(fp32: Path, detector: Detector, images: list) -> None:
    alone = [detector([image])[0] for image in images[:4]]
    second = Detector(fp32)
    with Detector(fp32) as first:
        found = [(first if index % 2 else second)([image])[0] for index, image in enumerate(images[:4])]
        assert harness.violations(alone, found, harness.SAME) == []
    # The first is closed; the second does not mind.
    assert harness.violations(alone[:2], second(images[:2]), harness.SAME) == []
    second.close()


def test_threads_share_a_detector(detector: Detector, images: list) -> None:
    several = images[:6]
    alone = [detector([image])[0] for image in several]
    with ThreadPoolExecutor(4) as pool:
        found = [detections[0] for detections in pool.map(lambda image: detector([image]), several * 2)]
    assert harness.violations(alone * 2, found, harness.SAME) == []


def test_each_thread_has_a_detector(fp32: Path, detector: Detector, images: list) -> None:
    def detect(image: np.ndarray) -> Detections:
        with Detector(fp32) as own:
            own([image])
            return own([image])[0]

    alone = [detector([image])[0] for image in images[:4]]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(detect, images[:4]))
    assert harness.violations(alone, found, harness.SAME) == []


def test_closing_gives_the_memory_back(fp32: Path, images: list) -> None:
    free = []
    for _ in range(5):
        with Detector(fp32) as opened:
            opened(images[:2])
        gc.collect()
        free.append(harness.free_device_bytes())
    # The first time CUDA and TensorRT load their kernels, and keep them.
    assert min(free[1:]) >= free[0] - harness.MEMORY_SLACK_BYTES, [f"{b >> 20} MiB free" for b in free]


def test_cuda_graphs_change_nothing(fp32: Path, detector: Detector, images: list) -> None:
    """From the third call of a batch size on; another size in between starts over."""
    alone = [detector([image])[0] for image in images[:4]]
    with Detector(fp32, cuda_graphs=True) as graphed:
        for start, stop in ((0, 2), (2, 4), (0, 2), (1, 3), (0, 1), (0, 2), (2, 4), (0, 2), (1, 3)):
            assert harness.violations(alone[start:stop], graphed(images[start:stop]), harness.SAME) == []
        assert graphed.backend.cuda_graph_failure == ""


@pytest.mark.parametrize("name", harness.STALE)
def test_a_stale_engine_does_not_open(name: str, model: Path, fp32: Path, tmp_path: Path) -> None:
    harness.copy_engine(model, fp32, tmp_path)
    spoil, words = harness.STALE[name]
    spoil(tmp_path, "maskrcnn")
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        Detector(tmp_path / "maskrcnn.engine")


def test_compare_finds_that_onnx_and_engine_agree(
    model: Path, fp32: Path, capsys: pytest.CaptureFixture
) -> None:
    status = compare_main([str(model), str(fp32), "--backend-a", "onnxruntime", "--batch", "2"])
    assert status == 0, "".join(capsys.readouterr())[-2000:]
