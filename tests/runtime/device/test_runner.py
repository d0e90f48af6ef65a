"""Detection on the fake device equals detection with onnxruntime on the host, whatever runs when on its streams."""

import random
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import cv2
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from runtime import Detections, Detector
from runtime.backends.tensorrt import TensorRTBackend
from runtime.comparison.sources import open_artifact
from runtime.device import slot as device_slot
from runtime.engine.config import EngineConfig
from runtime.metadata import ModelMetadata
from runtime.transforms import CenterPad, Resize
from tests.runtime import fakes
from tests.runtime.comparison.test_sources import changed_model
from tests.runtime.engine import fake_cuda
from tests.runtime.engine import fakes as engine_fakes
from tests.runtime.engine.fake_cuda import CudaError, Device, PyCudaDriver, Status
from tests.runtime.engine.fake_kernels import FakeLibrary
from tests.runtime.processes import SECONDS

# Of different sizes, larger and smaller than the network's 64x96, the third without detections.
IMAGES = [fakes.random_image(40 + 31 * i % 90, 50 + 47 * i % 110, i) for i in range(7)]
IMAGES[2][:] = 0
STAGES = ["copy_in", "prepare", "engine", "encode", "copy_out"]


def save(path: Path, facts: Optional[ModelMetadata] = None) -> Path:
    """Write the fake whose masks are the top left 28x28 px of its image, so that a mixed-up image is noticed."""
    facts = facts or fakes.metadata()
    model = fakes.model(facts)
    if facts.masks == "crop":
        (expand,) = (node for node in model.graph.node if node.input and node.input[0] == "discs")
        expand.input[0] = "pixel_masks"
        position = list(model.graph.node).index(expand)
        bounds = {"mask_starts": [0, 0, 0], "mask_ends": [1, 28, 28], "mask_axes": [1, 2, 3]}
        for name, values in bounds.items():
            model.graph.initializer.append(numpy_helper.from_array(np.array(values), name))
        model.graph.node.insert(position, helper.make_node("Slice", ["images", *bounds], ["top_left"]))
        model.graph.node.insert(position + 1, helper.make_node("Sigmoid", ["top_left"], ["pixel_masks"]))
    onnx.save(model, str(path))
    return path


def assert_same(found: Sequence[Detections], expected: Sequence[Detections]) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected):
        assert ours.image_size == theirs.image_size
        for name in ("boxes", "scores", "labels"):
            assert getattr(ours, name).dtype == getattr(theirs, name).dtype
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)
        assert ours.has_masks == theirs.has_masks
        if theirs.has_masks:
            assert ours.rle() == theirs.rle()


def config(*batch: int, **options: Any) -> EngineConfig:
    return EngineConfig(batch=batch, precision="fp32", **options)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    """The GPU of a box with TensorRT 8.5."""
    gpu = Device()
    engine_fakes.install(monkeypatch, engine_fakes.V8_5, gpu)
    return gpu


@pytest.fixture
def library(device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeLibrary:
    """Its plugin library, which has the functions of images."""
    handle = FakeLibrary()
    engine_fakes.put_plugins(monkeypatch, tmp_path, handle)
    return handle


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(tmp_path / "m.onnx")


@pytest.fixture
def expected(model: Path) -> list[Detections]:
    """What onnxruntime finds, image by image."""
    with Detector(model, "onnxruntime", threads=1) as host:
        return [host([image])[0] for image in IMAGES]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_batches_that_overlap_have_the_results_of_the_host(
    batch_size: int, seed: int, model: Path, expected: list, device: Device, library: FakeLibrary
) -> None:
    """More batches than slots, streams that go on by chance: what is read too early, or overwritten, is found out."""
    device.restless = random.Random(seed)
    with Detector(model, "tensorrt", batch_size=batch_size, config=config(1, 2, 3)) as detector:
        assert detector.device_failure == ""
        assert_same(detector(IMAGES), expected)
        assert_same(detector(IMAGES[::-1]), expected[::-1])
    assert len(library.num_prepared) == 2 * -(-len(IMAGES) // batch_size)
    assert device.is_clean


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("streams", [2, 3])
def test_streams_have_the_results_of_the_host(
    streams: int, seed: int, model: Path, expected: list, device: Device, library: FakeLibrary
) -> None:
    """Sessions side by side, whose streams go on by chance; each has a part of the batches."""
    device.restless = random.Random(seed)
    options = {"batch_size": 1, "config": config(1, 2, 2), "streams": streams}
    with Detector(model, "tensorrt", **options) as detector:
        one = sum(device.memory.values())
        assert detector.runner.num_slots == 3 * streams
        for images, found in ((IMAGES, expected), (IMAGES[::-1], expected[::-1])):
            assert_same(detector(images), found)
        with ThreadPoolExecutor(4) as pool:
            for found in pool.map(lambda _: detector(IMAGES), range(4)):
                assert_same(found, expected)
        assert len(library.streams) == streams
        assert sum(device.memory.values()) > one
    assert device.is_clean


@pytest.mark.parametrize("streams", [0, -1, 65, 1.5, "2", True])
def test_a_number_of_streams_that_is_none_is_refused(
    streams: Any, model: Path, device: Device, library: FakeLibrary
) -> None:
    with pytest.raises(ValueError, match="streams: expected a whole number from 1 to 64, found"):
        Detector(model, "tensorrt", streams=streams)
    assert device.is_clean


def test_a_stream_for_which_memory_is_missing_leaves_nothing(
    model: Path, device: Device, library: FakeLibrary
) -> None:
    with closing(TensorRTBackend(model, config=config(1, 1, 1))):
        device.limit = sum(device.memory.values()) * 2
    with pytest.raises(RuntimeError, match="out of memory"):
        Detector(model, "tensorrt", streams=3)
    assert device.is_clean


def test_the_host_path_has_one_stream(model: Path, device: Device, library: FakeLibrary) -> None:
    with Detector(model, "tensorrt", host=True, streams=2) as detector:
        assert any("one batch at a time" in note for note in detector.backend.notes)


@pytest.mark.parametrize("version", engine_fakes.RELEASES)
@pytest.mark.parametrize("binding", ["cuda-python", "pycuda"])
def test_every_release_and_binding_finds_the_same(
    binding: str, version: str, model: Path, expected: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = Device()
    engine_fakes.install(monkeypatch, version, gpu)
    engine_fakes.put_plugins(monkeypatch, tmp_path)
    if binding == "pycuda":
        monkeypatch.setitem(sys.modules, "cuda.cudart", None)
        monkeypatch.setitem(sys.modules, "pycuda.driver", PyCudaDriver(gpu))
    with Detector(model, "tensorrt", batch_size=2, config=config(1, 2, 2)) as detector:
        assert_same(detector(IMAGES), expected)
        for _ in range(2):
            assert_same(detector(IMAGES[:6]), expected[:6])
        assert detector.device_failure == ""
        assert ("found pycuda" in detector.backend.cuda_graph_failure) == (binding == "pycuda")
    assert (gpu.memory, gpu.pinned) == ({}, {})


@pytest.mark.parametrize(
    "facts",
    [
        fakes.metadata(masks="none"),
        fakes.metadata(color_order="bgr", mask_threshold=0.3),
        fakes.metadata(steps=(Resize(scale=(80, 48)),)),
        fakes.metadata(size=None, steps=(Resize(scale=(160, 96), keep_ratio=True),)),
    ],
    ids=["no masks", "bgr", "padded", "dynamic size"],
)
def test_every_kind_of_model_finds_the_same(
    facts: ModelMetadata, tmp_path: Path, device: Device, library: FakeLibrary
) -> None:
    path = save(tmp_path / "kind.onnx", facts)
    # In the same batches: with a dynamic size, a batch's padding is the largest image's.
    with Detector(path, "onnxruntime", threads=1, batch_size=3) as host:
        expected = host(IMAGES)
    sizes = {} if facts.size else {"height": (32, 96, 160), "width": (32, 96, 160)}
    with Detector(path, "tensorrt", batch_size=3, config=config(1, 2, 3, **sizes)) as detector:
        assert detector.device_failure == ""
        for _ in range(2):
            assert_same(detector(IMAGES), expected)
    assert bool(library.capacities) == (facts.masks == "crop")
    assert device.is_clean


def test_a_batch_is_split_and_filled_up_to_the_profile(
    model: Path, expected: list, device: Device, library: FakeLibrary
) -> None:
    """7 images in a profile of 2 to 3: 3, 3, and 1 that is prepared twice and encoded once."""
    with Detector(model, "tensorrt", config=config(2, 2, 3)) as detector:
        assert_same(detector(IMAGES), expected)
    assert library.num_prepared == [3, 3, 2]


def test_run_lengths_that_do_not_fit_are_encoded_again(
    model: Path, expected: list, device: Device, library: FakeLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_slot, "_BYTES_PER_MASK", 1)
    device.restless = random.Random(0)
    with Detector(model, "tensorrt", batch_size=2, config=config(1, 2, 2)) as detector:
        assert_same(detector(IMAGES), expected)
        grown = [capacity for capacity in library.capacities if capacity > library.capacities[0]]
        assert grown
        for _ in range(2):  # then each slot has had each batch, and grown
            assert_same(detector(IMAGES), expected)
        num_calls = len(library.capacities)
        assert_same(detector(IMAGES), expected)
        assert len(library.capacities) == num_calls + 4
    assert device.is_clean


def test_more_run_lengths_than_expected_are_fetched(
    model: Path, expected: list, device: Device, library: FakeLibrary
) -> None:
    """What is copied before its size is known follows the last batch: masks of plain images, then of noisy ones."""
    plain = np.full((300, 300, 3), 200, np.uint8)
    noisy = [fakes.random_image(300, 300, seed)[150:] for seed in range(4)]
    with Detector(model, "onnxruntime", threads=1) as host:
        wanted = [host([image])[0] for image in noisy]
    assert sum(len(r["counts"]) for r in wanted[0].rle()) > 1000
    with Detector(model, "tensorrt", batch_size=1, config=config(1, 1, 8)) as detector:
        detector([plain] * 3)
        num_copies = device.calls.count("cudaMemcpyAsync")
        detector([plain] * 3)
        assert device.calls.count("cudaMemcpyAsync") - num_copies == 3 * 4
        num_copies = device.calls.count("cudaMemcpyAsync")
        assert_same(detector(noisy[:3]), wanted[:3])
        assert device.calls.count("cudaMemcpyAsync") - num_copies == 3 * 5
    assert len(library.capacities) == 9  # none again


def test_masks_that_the_caller_will_not_want_are_not_encoded(
    model: Path, expected: list, device: Device, library: FakeLibrary
) -> None:
    with Detector(model, "tensorrt", batch_size=2, config=config(1, 2, 2)) as detector:
        runner = detector._runner
        for image, whole in zip(IMAGES, expected):
            (found,) = runner.submit([runner.stage(image)], 0.5).result()
            assert_same([found], [whole.filter(0.5)])
    assert library.min_scores == [0.5] * len(IMAGES)


def test_graphs_are_captured_for_each_slot(
    model: Path, expected: list, device: Device, library: FakeLibrary
) -> None:
    with Detector(model, "tensorrt", batch_size=2, config=config(1, 2, 2)) as detector:
        for _ in range(4):
            assert_same(detector(IMAGES[:6]), expected[:6])
        assert len(device.graphs) == 3
        # The first three batches of 2 are enqueued, one in each slot, then each slot's graph is captured.
        assert device.calls.count("cudaGraphLaunch") == 9
        # One image is another profile's; its graphs are its own.
        assert_same(detector(IMAGES[:1]), expected[:1])
        assert len(device.graphs) == 3
        for _ in range(2):
            assert_same(detector(IMAGES[:6]), expected[:6])
        assert detector.backend.cuda_graph_failure == ""
    assert device.is_clean


def test_stages_are_timed_on_the_device(model: Path, device: Device, library: FakeLibrary) -> None:
    timings: dict[str, float] = {"engine": 100.0}
    with Detector(model, "tensorrt", batch_size=2, config=config(1, 2, 2)) as detector:
        detector(IMAGES, timings)
    assert set(timings) == set(STAGES)
    assert all(value > 0 for value in timings.values())
    assert timings["engine"] > 100


def test_threads_share_a_detector(model: Path, expected: list, device: Device, library: FakeLibrary) -> None:
    barrier = threading.Barrier(6)
    with Detector(model, "tensorrt", batch_size=2, config=config(1, 2, 2)) as detector:

        def work(index: int) -> None:
            barrier.wait(SECONDS)
            for turn in range(4):
                # More batches than slots in each thread: one finishes what another has under way.
                order = [(index + turn + k) % len(IMAGES) for k in range(7)]
                assert_same(detector([IMAGES[i] for i in order]), [expected[i] for i in order])

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(work, range(6)))
    assert device.is_clean


def test_arrays_and_images_share_an_engine(
    model: Path, expected: list, device: Device, library: FakeLibrary
) -> None:
    """``backend.run`` with host arrays, between batches that are under way on the device."""
    from runtime.host.postprocess import detections_from_outputs
    from runtime.host.preprocess import prepare

    device.restless = random.Random(1)
    with Detector(model, "tensorrt", batch_size=2, config=config(1, 2, 2)) as detector:
        runner = detector._runner
        pending = [runner.submit([runner.stage(image)]) for image in IMAGES[:2]]
        batch = prepare(IMAGES[3:5], detector.metadata)
        outputs = detector.backend.run(batch.images, batch.image_sizes)
        assert_same(detections_from_outputs(outputs, batch, detector.metadata), expected[3:5])
        assert_same([p.result()[0] for p in pending], expected[:2])


def test_results_can_be_asked_for_in_any_order_and_again(
    model: Path, expected: list, device: Device, library: FakeLibrary
) -> None:
    with Detector(model, "tensorrt", config=config(1, 1, 1)) as detector:
        runner = detector._runner
        pending = [runner.submit([runner.stage(image)]) for image in IMAGES]  # twice as many as slots
        for _ in range(2):
            assert_same([p.result()[0] for p in pending[::-1]], expected[::-1])
        last = runner.submit([runner.stage(IMAGES[0])])
    assert_same(last.result(), expected[:1])  # closing waits for what is under way
    assert device.is_clean
    with pytest.raises(RuntimeError, match="expected an open session, found it closed"):
        detector([IMAGES[0]])
    assert device.is_clean


@pytest.mark.parametrize("name", ["prepare_images", "encode_masks"])
def test_kernels_that_do_not_start_are_an_error_and_the_next_call_works(
    name: str, model: Path, expected: list, device: Device, library: FakeLibrary
) -> None:
    with Detector(model, "tensorrt", batch_size=2, config=config(1, 2, 2)) as detector:
        library.failing.add(name)
        with pytest.raises(
            RuntimeError, match=f"{name}: expected the kernels to start, found invalid device"
        ):
            detector(IMAGES)
        library.failing.clear()
        assert_same(detector(IMAGES), expected)
    assert device.is_clean


def test_a_device_that_fails_later_is_an_error_of_the_batch(
    model: Path, expected: list, device: Device, library: FakeLibrary
) -> None:
    def fail() -> None:
        raise CudaError(Status.cudaErrorIllegalAddress)

    with Detector(model, "tensorrt", config=config(1, 1, 1)) as detector:
        runner = detector._runner
        before = runner.submit([runner.stage(IMAGES[0])])
        fake_cuda.put_on_stream(int(detector.backend._session._stream), fail)
        failed = runner.submit([runner.stage(IMAGES[1])])
        after = [runner.submit([runner.stage(image)]) for image in IMAGES[3:6]]
        with pytest.raises(RuntimeError, match="found an illegal memory access"):
            failed.result()
        assert_same([p.result()[0] for p in (before, *after)], [expected[0], *expected[3:6]])


def test_an_interrupted_wait_leaves_the_batch_under_way(
    model: Path, expected: list, device: Device, library: FakeLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    with Detector(model, "tensorrt", config=config(1, 1, 1)) as detector:
        runner = detector._runner
        pending = runner.submit([runner.stage(IMAGES[0])])
        with monkeypatch.context() as patched:
            patched.setattr("runtime.cuda.binding.time.sleep", interrupt)
            with pytest.raises(KeyboardInterrupt):
                pending.result()
        assert_same(pending.result(), expected[:1])


def test_too_little_memory_is_said_and_smaller_images_still_work(
    model: Path, expected: list, device: Device, library: FakeLibrary
) -> None:
    with Detector(model, "tensorrt", config=config(1, 1, 1)) as detector:
        device.limit = sum(device.memory.values()) + 500_000
        with pytest.raises(RuntimeError, match="CUDA: .* found out of memory; if memory ran out"):
            detector([np.zeros((600, 600, 3), np.uint8)])
        assert_same(detector(IMAGES[:2]), expected[:2])
    assert device.is_clean


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.999])
@pytest.mark.parametrize(("which", "kind"), [("limit", "memory"), ("pinned_limit", "pinned")])
def test_a_constructor_that_fails_leaves_nothing(
    which: str, kind: str, share: float, model: Path, device: Device, library: FakeLibrary
) -> None:
    """Memory for the engine's own arrays, and a share of what the slots want besides."""
    with closing(TensorRTBackend(model, config=config(1, 1, 1))):
        least = sum(getattr(device, kind).values())
    with Detector(model, "tensorrt") as detector:
        detector(IMAGES[:1])
        most = sum(getattr(device, kind).values())
    setattr(device, which, int(least + share * (most - least)))
    with pytest.raises(RuntimeError, match="out of memory"), Detector(model, "tensorrt") as detector:
        detector(IMAGES[:1])
    assert device.is_clean


def test_slots_are_allocated_when_batches_need_them(
    model: Path, expected: list, device: Device, library: FakeLibrary
) -> None:
    with Detector(model, "tensorrt", batch_size=1, config=config(1, 1, 1)) as detector:
        loaded = sum(device.memory.values())
        for index in range(3):  # one after the other, all in one slot
            assert_same(detector(IMAGES[index : index + 1]), expected[index : index + 1])
        one = sum(device.memory.values())
        assert_same(detector(IMAGES[:3]), expected[:3])
        three = sum(device.memory.values())
    assert loaded < one < three
    with Detector(model, "tensorrt", host=True) as detector:
        assert sum(device.memory.values()) < loaded
        assert (detector.path, detector.device_failure) == ("host", "the host path was asked for")
        assert_same(detector(IMAGES), expected)
        assert not library.num_prepared[6:]


@pytest.mark.parametrize("host", [False, True])
def test_artifacts_take_the_way_of_the_detector(
    host: bool, expected: list, model: Path, tmp_path: Path, device: Device, library: FakeLibrary
) -> None:
    paths = [tmp_path / f"{index}.png" for index in range(len(IMAGES))]
    for path, image in zip(paths, IMAGES):
        path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
    with open_artifact(model, "tensorrt", 2, host=host) as artifact:
        assert artifact.made_by.path == ("host" if host else "device")
        results = list(artifact(paths))
        assert artifact.model_seconds > 0
    assert_same([result.detections for result in results], expected)
    assert bool(library.num_prepared) != host


def test_nan_in_masks_is_found_on_the_device(tmp_path: Path, device: Device, library: FakeLibrary) -> None:
    model = changed_model(tmp_path / "m.onnx", "discs", (0, 1, 3, 4), np.nan)
    (tmp_path / "a.png").write_bytes(cv2.imencode(".png", IMAGES[0])[1].tobytes())
    with open_artifact(model, "tensorrt") as artifact:
        assert artifact.made_by.path == "device"
        (result,) = artifact([tmp_path / "a.png"])
    assert "masks[1]: expected finite probabilities, found nan at [3, 4]" in result.problem
    assert len(result.detections) == 0


def test_a_size_outside_the_profile_is_refused_before_anything_runs(
    tmp_path: Path, device: Device, library: FakeLibrary
) -> None:
    facts = fakes.metadata(size=None, steps=(Resize(scale=(160, 96), keep_ratio=True),))
    path = save(tmp_path / "dynamic.onnx", facts)
    sizes = {"height": (32, 96, 96), "width": (32, 96, 160)}
    with Detector(path, "tensorrt", config=config(1, 1, 1, **sizes)) as detector:
        message = r"input images: expected a shape from \(1, 3, 32, 32\) to \(1, 3, 96, 160\), found \(1, 3, 160, 96\)"
        with pytest.raises(ValueError, match=message):
            detector([np.zeros((160, 90, 3), np.uint8)])
        assert library.num_prepared == []
        assert len(detector([fakes.random_image(90, 160)])[0]) == 3
    assert device.is_clean


def test_page_locked_memory_is_used_again(model: Path, device: Device, library: FakeLibrary) -> None:
    with Detector(model, "tensorrt", batch_size=2, config=config(1, 2, 2)) as detector:
        for _ in range(3):  # each slot has had each batch
            detector(IMAGES)
        before = dict(device.pinned), dict(device.memory)
        for _ in range(3):
            detector(IMAGES)
        assert (dict(device.pinned), dict(device.memory)) == before


@pytest.mark.parametrize(
    ("handle", "changes", "reason"),
    [
        (FakeLibrary(abi=9), {}, "plugin library: expected the functions of images in version 3"),
        (None, {}, "plugin library: expected the functions of images, found no library"),
        (FakeLibrary(), {"masks": "full"}, "masks: expected crop or none, found full"),
        (FakeLibrary(), {"centred": True}, "the test pipeline pads around the image"),
    ],
    ids=["other library", "no library", "full masks", "padding around"],
)
def test_without_the_device_path_the_host_does_it(
    handle: Optional[FakeLibrary], changes: dict, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine_fakes.install(monkeypatch, engine_fakes.V10_13)
    if handle is not None:
        engine_fakes.put_plugins(monkeypatch, tmp_path, handle)
    facts = fakes.metadata(masks=changes.get("masks", "crop"))
    if changes.get("centred"):
        height, width = facts.size
        facts = replace(facts, steps=(*facts.steps[:1], CenterPad((height, width)), *facts.steps[1:]))
    path = save(tmp_path / "m.onnx", facts)
    with Detector(path, "onnxruntime", batch_size=2, threads=1) as host:
        expected = host(IMAGES)
        assert "onnxruntime" in host.device_failure
    with Detector(path, "tensorrt", batch_size=2, config=config(1, 2, 2)) as detector:
        assert reason in detector.device_failure
        assert_same(detector(IMAGES), expected)


def test_frames_that_outlive_python_say_nothing() -> None:
    """What a script still holds at its end goes with the process; CUDA's binding is in pieces by then."""
    script = """
import os
import numpy as np
from runtime.device.slot import Frame

class Pool:
    def take(self, num_bytes):
        return np.zeros(num_bytes, np.uint8)
    def give(self, piece, write=os.write):
        write(2, b"given\\n")

frame = Frame(np.zeros((2, 3, 3), np.uint8), (2, 3), (2, 3), Pool())
del frame
held = Frame(np.zeros((2, 3, 3), np.uint8), (2, 3), (2, 3), Pool())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=SECONDS, check=True
    )
    assert done.stderr == "given\n"
