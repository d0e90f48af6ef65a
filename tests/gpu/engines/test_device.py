"""Detection on a real GPU against the host's way through the same engine: prepared, pasted and encoded on the CPU.

The variables of ``harness.py`` hold here too:

    pytest -m tensorrt --confcutdir=tests/gpu tests/gpu/engines/test_device.py -v

``MASKRCNN_TEST_ENGINE`` names an engine that is there already, of masks ``crop``; else one is built from
``MASKRCNN_TEST_MODEL``.
"""

import gc
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest

from runtime.cuda.binding import active, open_cuda
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.device import slot as device_slot
from runtime.host.postprocess import paste_probabilities
from runtime.host.runner import HostRunner
from runtime.image_files import find_images
from runtime.images import read_image
from tests.gpu.engines import harness

pytestmark = [pytest.mark.gpu, pytest.mark.tensorrt]

ENGINE_VARIABLE = "MASKRCNN_TEST_ENGINE"
LARGEST_BATCH = 8
# Sums of four products in another order, or fused.
MASK_MARGIN = 1e-5


@pytest.fixture(scope="session")
def engine(request: pytest.FixtureRequest) -> Path:
    """FP16 with the default plan; any other would do: both ways run the same."""
    named = os.environ.get(ENGINE_VARIABLE)
    if named:
        return Path(named).resolve()
    path = request.getfixturevalue("model")
    return harness.built(path, path.with_suffix(".engine"), request.getfixturevalue("timing_cache"))


@pytest.fixture(scope="session")
def detector(engine: Path) -> Iterator[Detector]:
    with Detector(engine, batch_size=LARGEST_BATCH) as opened:
        assert opened.device_failure == ""
        yield opened


@pytest.fixture(scope="session")
def images() -> list:
    """Photographs of several sizes, full HD among them, then what is small, long, black or white."""
    photographs = [read_image(path) for path in find_images([str(harness.EXAMPLES)])]
    large = [cv2.resize(image, (1920, 1080)) for image in photographs[:3]]
    mirrored = [np.ascontiguousarray(image[:, ::-1]) for image in photographs]
    odd = [
        np.zeros((600, 800, 3), np.uint8),
        np.full((1, 1, 3), 255, np.uint8),
        photographs[0][:7, :200],
        np.ascontiguousarray(photographs[1][:, :33]),
    ]
    return [*photographs, *large, *odd, *mirrored]


@contextmanager
def on_the_host(detector: Detector) -> Iterator[Detector]:
    """Have the detector prepare and paste on the CPU inside."""
    runner, detector._runner = detector._runner, HostRunner(detector.backend, "asked for")
    try:
        yield detector
    finally:
        detector._runner.close()
        detector._runner = runner


def check(found: Sequence[Detections], expected: Sequence[Detections]) -> None:
    """Boxes, scores and labels to the last bit; masks, but for pixels whose probability is the threshold's."""
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected):
        assert ours.image_size == theirs.image_size
        for name in ("boxes", "scores", "labels"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)
        for index in range(len(theirs)):
            check_mask(ours, theirs, index)


def check_mask(found: Detections, expected: Detections, index: int) -> None:
    source = expected.mask_source
    probabilities, top, left = paste_probabilities(
        source.probabilities[index], source.boxes[index], expected.image_size
    )
    whole = np.zeros(expected.image_size, np.float32)
    whole[top : top + probabilities.shape[0], left : left + probabilities.shape[1]] = probabilities
    mask = np.zeros(expected.image_size, bool)
    crop = found.mask_source.crop(index)
    mask[crop.window] = crop.pixels
    differing = mask != (whole >= np.float32(source.threshold))
    assert (np.abs(whole[differing] - source.threshold) <= MASK_MARGIN).all(), (index, int(differing.sum()))


@pytest.mark.parametrize("batch", range(1, LARGEST_BATCH + 1))
def test_every_batch_equals_the_hosts(batch: int, detector: Detector, images: list) -> None:
    """Called often enough that each slot launches its graph, with other images each time."""
    parts = [images[start : start + batch] for start in range(0, len(images) - batch + 1, batch)][:8]
    found = [detector(part) for part in parts]
    with on_the_host(detector):
        for part, ours in zip(parts, found):
            check(ours, detector(part))
    assert any(len(d) for part in found for d in part)
    assert detector.backend.cuda_graph_failure == ""


def test_batches_that_overlap_equal_the_hosts(detector: Detector, images: list) -> None:
    """Three batches under way, then the one that is not full."""
    many = (images * 3)[: 5 * LARGEST_BATCH + 3]
    found = [detector(many) for _ in range(3)]
    with on_the_host(detector):
        expected = detector(many)
    for ours in found:
        check(ours, expected)


def test_run_lengths_that_do_not_fit_are_encoded_again(
    engine: Path, detector: Detector, images: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_slot, "_BYTES_PER_MASK", 1)
    with Detector(engine, batch_size=4) as small:
        found = small(images)
        with on_the_host(small):
            check(found, small(images))


def test_masks_below_the_score_are_left_out(detector: Detector, images: list) -> None:
    runner = detector._runner
    several = images[:4]
    found = runner.submit([runner.stage(image) for image in several], 0.5).result()
    with on_the_host(detector):
        check(found, [detections.filter(0.5) for detections in detector(several)])


def test_files_equal_their_images(detector: Detector, images: list, tmp_path: Path) -> None:
    paths = [tmp_path / f"{index:02}.png" for index in range(2 * LARGEST_BATCH + 3)]
    for index, path in enumerate(paths):
        path.write_bytes(cv2.imencode(".png", images[index % len(images)])[1].tobytes())
    paths[5].write_bytes(b"\xff\xd8 cut")
    timings: dict = {}
    results = list(detector.detect_files(paths, timings=timings))
    assert [result.path for result in results] == paths
    assert [bool(result.error) for result in results] == [path == paths[5] for path in paths]
    good = [path for path in paths if path != paths[5]]
    with on_the_host(detector):
        expected = [d.detections for d in detector.detect_files(good)]
    check([result.detections for result in results if not result.error], expected)
    assert all(timings[stage] > 0 for stage in ("read", "copy_in", "prepare", "engine", "encode", "copy_out"))


def test_closing_early_leaves_the_detector_as_it_was(
    detector: Detector, images: list, tmp_path: Path
) -> None:
    paths = [tmp_path / f"{index:02}.jpg" for index in range(40)]
    for index, path in enumerate(paths):
        path.write_bytes(cv2.imencode(".jpg", images[index % 6])[1].tobytes())
    before = detector(images[:LARGEST_BATCH])
    results = detector.detect_files(paths)
    next(results)
    results.close()
    for ours, theirs in zip(detector(images[:LARGEST_BATCH]), before):
        np.testing.assert_array_equal(ours.boxes, theirs.boxes)
        assert ours.rle() == theirs.rle()


def test_threads_share_a_detector(detector: Detector, images: list) -> None:
    with on_the_host(detector):
        expected = [detector([image])[0] for image in images]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda image: detector([image])[0], images * 2))
    check(found, expected * 2)


def test_arrays_and_images_share_an_engine(detector: Detector, images: list) -> None:
    """Both ways at once, in threads: one context, one stream, one input."""
    with on_the_host(detector):
        expected = [detector([image])[0] for image in images[:6]]
    host = HostRunner(detector.backend, "asked for")
    device = detector._runner

    def work(turn: int) -> Detections:
        runner = host if turn % 2 else device
        return runner.submit([runner.stage(images[turn // 2 % 6])]).result()[0]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, range(24)))
    host.close()
    check(found[::2], expected * 2)
    for ours, theirs in zip(found[1::2], expected * 2):
        np.testing.assert_array_equal(ours.boxes, theirs.boxes)


def test_closing_gives_the_memory_back(engine: Path, images: list) -> None:
    cuda = open_cuda()
    free = []
    for _ in range(4):
        with Detector(engine, batch_size=4) as opened:
            opened(images[:8])
        gc.collect()
        with active(cuda):
            free.append(cuda.memory_info()[0])
    assert min(free[1:]) >= free[0] - harness.MEMORY_SLACK_BYTES, [f"{b >> 20} MiB free" for b in free]
