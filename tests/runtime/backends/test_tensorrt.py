"""The TensorRT backend on the fake TensorRT and GPU, whose engines onnxruntime computes: results have to be equal."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from runtime import Detector
from runtime.backends.onnxruntime import OnnxRuntimeBackend
from runtime.backends.tensorrt import TensorRTBackend
from runtime.contract import contract_outputs
from runtime.engine.config import EngineConfig
from runtime.engine.files import engine_path
from runtime.engine.session import EngineSession
from runtime.host.preprocess import Batch, prepare
from runtime.metadata import ModelMetadata
from runtime.transforms import Resize
from tests.runtime import fakes
from tests.runtime.engine import fakes as engine_fakes
from tests.runtime.engine.fake_cuda import Device
from tests.runtime.engine.fake_kernels import FakeLibrary
from tests.runtime.processes import SECONDS

IMAGES = [fakes.random_image(64 - 3 * i, 96 - 7 * i, i) for i in range(6)]
IMAGES[2][:] = 0  # without detections


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    """The GPU of a box with TensorRT 8.5."""
    gpu = Device()
    engine_fakes.install(monkeypatch, engine_fakes.V8_5, gpu)
    return gpu


def _save(path: Path, facts: ModelMetadata, **options: Any) -> Path:
    """Write a model whose full masks end in a Cast, as PasteMasks' body does."""
    model = fakes.model(facts, **options)
    if facts.masks == "full":
        node = model.graph.node[-1]
        (cast,) = (n for n in model.graph.node if n.output[0] == "bytes")
        cast.attribute[0].i = onnx.TensorProto.FLOAT
        node.output[0] = "pasted"
        model.graph.node.append(helper.make_node("Cast", ["pasted"], ["masks"], to=onnx.TensorProto.UINT8))
    onnx.save(model, str(path))
    return path


def _batch(facts: ModelMetadata, num: int = 2) -> Batch:
    return prepare(IMAGES[:num], facts)


def _assert_equal(found: dict, expected: dict) -> None:
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array, err_msg=name)


FP32 = EngineConfig(batch=(1, 2, 4), precision="fp32")


@pytest.mark.parametrize("masks", ["crop", "full", "none"])
@pytest.mark.parametrize("version", engine_fakes.RELEASES)
def test_the_outputs_are_the_contracts_and_onnxruntimes(
    version: str, masks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = Device()
    engine_fakes.install(monkeypatch, version, gpu)
    facts = fakes.metadata(masks=masks)
    model = _save(tmp_path / "m.onnx", facts)
    backend = TensorRTBackend(model, config=FP32)
    batch = _batch(facts, 3)
    found = backend.run(batch.images, batch.image_sizes)
    _assert_equal(found, OnnxRuntimeBackend(model).run(batch.images, batch.image_sizes))
    assert {name: str(array.dtype) for name, array in found.items()} == {
        name: tensor.dtype for name, tensor in contract_outputs(facts).items()
    }
    assert backend.metadata == facts
    backend.close()
    backend.close()
    assert gpu.is_clean
    with pytest.raises(RuntimeError, match="expected an open session, found it closed"):
        backend.run(batch.images, batch.image_sizes)


def _library(has_cast: bool) -> FakeLibrary:
    library = FakeLibrary()
    if not has_cast:
        del library.maskrcnn_cast_masks
    return library


@pytest.mark.parametrize("has_cast", [True, False], ids=["this library", "an older one"])
@pytest.mark.parametrize("version", engine_fakes.RELEASES)
def test_full_masks_are_cast_where_the_engine_has_no_uint8(
    version: str, has_cast: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the library's function, or by NumPy where there is none: the same masks; split, filled up, or neither."""
    gpu, library = Device(), _library(has_cast)
    engine_fakes.install(monkeypatch, version, gpu)
    engine_fakes.put_plugins(monkeypatch, tmp_path, library)
    facts = fakes.metadata(masks="full")
    model = _save(tmp_path / "m.onnx", facts)
    backend = TensorRTBackend(model, config=EngineConfig(batch=(2, 2, 3), precision="fp32"))
    for num in (1, 2, 5):
        batch = _batch(facts, num)
        found = backend.run(batch.images, batch.image_sizes)
        _assert_equal(found, OnnxRuntimeBackend(model).run(batch.images, batch.image_sizes))
        is_copied = not (has_cast and version.startswith("8.") and num < 4)
        assert gpu.is_pinned(found["masks"].ctypes.data) == (not is_copied)
    rows = 2 * facts.max_per_img * facts.size[0] * facts.size[1]
    casts_per_run = [rows, rows, rows // 2 * 3, rows]
    assert library.num_cast == (casts_per_run if has_cast and version.startswith("8.") else [])
    del found
    backend.close()
    assert gpu.is_clean


@pytest.mark.parametrize("num", [1, 2, 3, 4, 5, 6])
def test_batches_are_split_and_filled_up_to_the_profile(
    num: int, tmp_path: Path, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A profile of 2 to 3: one image is filled up to 2, four are split into 3 and 1, filled up."""
    sizes = []
    run = EngineSession.run

    def recording(self: EngineSession, feeds: dict, timings: dict) -> dict:
        sizes.append([len(array) for array in feeds.values()])
        return run(self, feeds, timings)

    monkeypatch.setattr(EngineSession, "run", recording)
    facts = fakes.metadata()
    model = _save(tmp_path / "m.onnx", facts)
    backend = TensorRTBackend(model, config=EngineConfig(batch=(2, 2, 3), precision="fp32"))
    batch = _batch(facts, num)
    timings: dict[str, float] = {}
    found = backend.run(batch.images, batch.image_sizes, timings)
    _assert_equal(found, OnnxRuntimeBackend(model).run(batch.images, batch.image_sizes))
    expected = {1: [2], 2: [2], 3: [3], 4: [3, 2], 5: [3, 2], 6: [3, 3]}[num]
    assert sizes == [[size, size] for size in expected]
    assert timings == {stage: float(len(expected)) for stage in ("copy_in", "engine", "copy_out")}


def test_the_arrays_are_the_callers(tmp_path: Path, device: Device) -> None:
    facts = fakes.metadata()
    backend = TensorRTBackend(_save(tmp_path / "m.onnx", facts), config=FP32)
    first, second = _batch(facts, 1), _batch(facts, 6)
    found = backend.run(first.images, first.image_sizes)
    kept = {name: array.copy() for name, array in found.items()}
    backend.run(second.images[1:], second.image_sizes[1:])
    _assert_equal(found, kept)


def test_a_size_outside_the_profile_is_refused_with_the_range(tmp_path: Path, device: Device) -> None:
    facts = fakes.metadata(size=None, steps=(Resize(scale=(96, 64), keep_ratio=True),))
    config = EngineConfig(batch=(1, 1, 2), height=(64, 64, 96), width=(64, 96, 96), precision="fp32")
    backend = TensorRTBackend(_save(tmp_path / "m.onnx", facts), config=config)
    message = (
        r"input images: expected a shape from \(1, 3, 64, 64\) to \(2, 3, 96, 96\), found \(1, 3, 64, 128\); build the "
        r"engine with a wider range, `python -m runtime.build --batch ... --size ...`"
    )
    with pytest.raises(ValueError, match=message):
        backend.run(np.zeros((1, 3, 64, 128), np.float32), np.full((1, 2), 64, np.float32))
    assert (
        len(backend.run(np.zeros((1, 3, 96, 64), np.float32), np.full((1, 2), 64, np.float32))["dets"]) == 1
    )


@pytest.mark.parametrize(
    ("images", "image_sizes", "message"),
    [
        (np.zeros((1, 3, 64, 96)), np.zeros((1, 2), "f4"), r"images: expected float32 .*, found float64"),
        (
            np.zeros((1, 3, 96, 64), "f4"),
            np.zeros((1, 2), "f4"),
            r"images: .* found float32 \(1, 3, 96, 64\)",
        ),
        (
            np.zeros((2, 3, 64, 96), "f4"),
            np.zeros((1, 2), "f4"),
            "as many of each and at least one, found 2 and 1",
        ),
        (np.zeros((0, 3, 64, 96), "f4"), np.zeros((0, 2), "f4"), "at least one, found 0 and 0"),
    ],
)
def test_wrong_arrays_are_refused(
    images: np.ndarray, image_sizes: np.ndarray, message: str, tmp_path: Path, device: Device
) -> None:
    backend = TensorRTBackend(_save(tmp_path / "m.onnx", fakes.metadata()), config=FP32)
    with pytest.raises(ValueError, match=message):
        backend.run(images, image_sizes)


def test_an_engine_is_built_on_first_use_and_kept(tmp_path: Path, device: Device) -> None:
    model = _save(tmp_path / "m.onnx", fakes.metadata())
    lines: list[str] = []
    steps: list[tuple] = []
    first = TensorRTBackend(model, batch=3, notify=lines.append, monitor=lambda *step: steps.append(step))
    assert lines == [f"building {tmp_path / 'm.engine'}: there is none yet"]
    assert steps
    assert (first.engine, first.sidecar.config) == (tmp_path / "m.engine", EngineConfig(batch=(1, 3, 8)))
    for other in (model, tmp_path / "m.engine", str(tmp_path / "m.engine")):
        assert TensorRTBackend(other, notify=lines.append).sidecar == first.sidecar
    assert len(lines) == 1


def test_an_engine_needs_no_onnx(tmp_path: Path, device: Device) -> None:
    facts = fakes.metadata()
    model = _save(tmp_path / "m.onnx", facts)
    batch = _batch(facts)
    expected = OnnxRuntimeBackend(model).run(batch.images, batch.image_sizes)
    TensorRTBackend(model, config=FP32).close()
    model.unlink()
    found = TensorRTBackend(tmp_path / "m.engine").run(batch.images, batch.image_sizes)
    _assert_equal(found, expected)


@pytest.mark.parametrize("given", ["m.onnx", "m.engine"])
def test_a_stale_engine_may_not_always_be_rebuilt(
    given: str, tmp_path: Path, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    TensorRTBackend(_save(tmp_path / "m.onnx", fakes.metadata()), config=FP32).close()
    engine_fakes.install(monkeypatch, engine_fakes.V8_5, Device("NVIDIA A10", (8, 6)))
    message = (
        "m.engine: GPU: expected NVIDIA A10, found Fake GPU; compute capability: expected 8.6, found 9.0; "
    )
    with pytest.raises(ValueError, match=message):
        TensorRTBackend(tmp_path / given, rebuild="never")
    if given == "m.onnx":
        assert TensorRTBackend(tmp_path / given).sidecar.provenance.gpu == "NVIDIA A10"


def test_a_missing_model_names_the_command_that_makes_it(tmp_path: Path, device: Device) -> None:
    for name in ("none.onnx", "none.engine"):
        with pytest.raises(FileNotFoundError, match=f"{name}: expected a file, found nothing; make it with"):
            TensorRTBackend(tmp_path / name)


def test_an_engine_without_its_sidecar_is_refused(tmp_path: Path, device: Device) -> None:
    TensorRTBackend(_save(tmp_path / "m.onnx", fakes.metadata()), config=FP32).close()
    (tmp_path / "m.engine.json").unlink()
    with pytest.raises(FileNotFoundError, match="expected m.engine.json beside it, found nothing"):
        TensorRTBackend(tmp_path / "m.engine")


def test_an_engine_of_an_onnx_that_is_not_ours_is_refused(tmp_path: Path, device: Device) -> None:
    model = fakes.save(tmp_path / "m.onnx", with_metadata=False)
    message = (
        "engine .*m.engine: expected one of a model of ours, found one of an ONNX without our metadata; run it with "
        "runtime.engine.session.EngineSession, or export with `python -m export.maskrcnn`"
    )
    for given in (model, engine_path(model)):
        with pytest.raises(ValueError, match=message):
            TensorRTBackend(given, config=FP32)
    assert device.is_clean


def _drop_labels(model: onnx.ModelProto) -> None:
    del model.graph.output[2]


def _other_rows(model: onnx.ModelProto) -> None:
    helper.set_model_props(model, {"maskrcnn": fakes.metadata(max_per_img=100).to_json()})


def _other_size(model: onnx.ModelProto) -> None:
    helper.set_model_props(model, {"maskrcnn": fakes.metadata(size=(96, 64)).to_json()})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            _drop_labels,
            "m.engine: expected the outputs num_dets, dets, labels, masks, found masks, dets, num_dets",
        ),
        (_other_rows, r"output dets: expected float32 \(\?, 100, 5\), found float32 \(\?, 4, 5\)"),
        (_other_size, r"input images: expected float32 \(\?, 3, 96, 64\), found float32 \(\?, 3, 64, 96\)"),
    ],
)
def test_a_model_that_breaks_the_contract_is_refused(
    change: Callable, message: str, tmp_path: Path, device: Device
) -> None:
    model = fakes.model()
    change(model)
    onnx.save(model, str(tmp_path / "m.onnx"))
    with pytest.raises(ValueError, match=message):
        TensorRTBackend(tmp_path / "m.onnx", config=FP32)
    assert device.is_clean


def test_the_device_and_plugins_are_the_ones_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Device("A"), Device("B")
    engine_fakes.install(monkeypatch, engine_fakes.V8_5, first, second)
    model = _save(tmp_path / "m.onnx", fakes.metadata())
    backend = TensorRTBackend(model, config=FP32, device_index=1)
    assert backend.sidecar.provenance.gpu == "B"
    # Two inputs and four outputs, and what the contexts of both profiles compute in.
    assert (first.memory, len(second.memory)) == ({}, 7)
    with pytest.raises(RuntimeError, match="CUDA: expected device 2, found 2 devices"):
        TensorRTBackend(model, device_index=2)
    with pytest.raises(FileNotFoundError, match="--plugins: expected the plugin library, found no file"):
        TensorRTBackend(model, plugins=tmp_path / "none.so")


@pytest.mark.parametrize("batch_size", [1, 2, 5, None])
def test_a_detector_finds_the_same_with_either_backend(
    batch_size: object, tmp_path: Path, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine_fakes.put_plugins(monkeypatch, tmp_path)
    model = _save(tmp_path / "m.onnx", fakes.metadata())
    expected = Detector(model, "onnxruntime", batch_size=batch_size)(IMAGES)
    for given, backend in ((model, "tensorrt"), (model, "auto"), (tmp_path / "m.engine", "auto")):
        with Detector(given, backend, batch_size=batch_size) as detector:
            found = detector(IMAGES)
        for ours, theirs in zip(found, expected):
            np.testing.assert_array_equal(ours.boxes, theirs.boxes)
            np.testing.assert_array_equal(ours.labels, theirs.labels)
            np.testing.assert_array_equal(ours.masks, theirs.masks)
        assert [len(d) for d in found] == [3, 3, 0, 3, 3, 3]
    assert device.is_clean


def test_threads_share_a_detector(tmp_path: Path, device: Device) -> None:
    model = _save(tmp_path / "m.onnx", fakes.metadata())
    expected = [Detector(model, "onnxruntime")([image])[0] for image in IMAGES]
    barrier = threading.Barrier(6)
    with Detector(model, "tensorrt") as detector, Detector(model, "tensorrt") as second:

        def work(index: int) -> None:
            barrier.wait(SECONDS)
            for turn in range(5):
                (found,) = (detector, second)[turn % 2]([IMAGES[index]])
                np.testing.assert_array_equal(found.boxes, expected[index].boxes)
                np.testing.assert_array_equal(found.masks, expected[index].masks)

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(work, range(6)))
    assert device.is_clean


def test_cuda_graphs_can_be_asked_for(tmp_path: Path, device: Device) -> None:
    facts = fakes.metadata()
    model = _save(tmp_path / "m.onnx", facts)
    batch = _batch(facts)
    expected = OnnxRuntimeBackend(model).run(batch.images, batch.image_sizes)
    backend = TensorRTBackend(model, config=FP32, cuda_graphs=True)
    for _ in range(4):
        _assert_equal(backend.run(batch.images, batch.image_sizes), expected)
    assert "cudaGraphLaunch" in device.calls
    backend.close()
    assert device.is_clean
