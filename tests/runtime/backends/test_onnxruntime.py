import gc
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import cv2
import numpy as np
import onnxruntime
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as errors

from runtime.backends import load_tensors
from runtime.backends import onnxruntime as backend_module
from runtime.backends.onnxruntime import OnnxRuntimeBackend
from runtime.cuda import memory
from runtime.cuda.binding import CudaPython
from runtime.detector import Detector
from runtime.graphs import session as session_module
from runtime.graphs.session import _check_active
from runtime.host.preprocess import prepare
from runtime.infer import main as infer_main
from tests.runtime.engine.fake_cuda import Cudart, Device


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_are_passed_on(threads: int, fake_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    session = onnxruntime.InferenceSession

    def recording(path: str, options: onnxruntime.SessionOptions, **kwargs: object) -> object:
        seen.append(options.intra_op_num_threads)
        return session(path, options, **kwargs)

    monkeypatch.setattr(onnxruntime, "InferenceSession", recording)
    OnnxRuntimeBackend(fake_model, threads=threads)
    assert seen == [threads]


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"device": "npu"}, ValueError, "device: expected one of cpu, cuda, found 'npu'"),
        ({"threads": 0}, ValueError, "threads: expected a whole number from 1 to 1024, found 0"),
        ({"providers": ["FooProvider"]}, RuntimeError, "providers FooProvider, found .*CPUExecutionProvider"),
        ({"providers": []}, RuntimeError, r"providers \(none named\)"),
    ],
)
def test_unusable_options_are_refused(options: dict, kind: type, message: str, fake_model: Path) -> None:
    with pytest.raises(kind, match=message):
        OnnxRuntimeBackend(fake_model, **options)


def test_cuda_without_its_provider_says_what_to_install(
    fake_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(
        RuntimeError, match="CUDAExecutionProvider.*found CPUExecutionProvider; .*onnxruntime-gpu"
    ):
        OnnxRuntimeBackend(fake_model, device="cuda")


def test_a_silent_fall_back_to_the_cpu_is_refused() -> None:
    with pytest.raises(
        RuntimeError, match="expected to run on CUDAExecutionProvider, found CPUExecutionProvider"
    ):
        _check_active(["CUDAExecutionProvider", "CPUExecutionProvider"], ["CPUExecutionProvider"])


# CUDA, without a GPU: sessions that say that they are on it and compute on the CPU, and a fake device's memory.

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


@dataclass
class Standin:
    """What sessions are asked for.

    Attributes:
        active: what they say that they run on.
        opened: providers and keywords of each.
        unbound, bound: runs so far.
        failure: raised by the next run.
    """

    active: tuple[str, ...] = (CUDA, CPU)
    opened: list[tuple[list, dict]] = field(default_factory=list)
    unbound: int = 0
    bound: int = 0
    failure: Optional[Exception] = None


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> Standin:
    state = Standin()

    class Session(onnxruntime.InferenceSession):
        def __init__(self, path: str, options: onnxruntime.SessionOptions, *, providers: list, **kwargs: int):
            state.opened.append((providers, kwargs))
            super().__init__(path, options, providers=[CPU])

        def get_providers(self) -> list[str]:
            return list(state.active)

        def run(self, *args: Any) -> Any:
            state.unbound += 1
            return super().run(*args)

        def run_with_iobinding(self, *args: Any) -> None:
            state.bound += 1
            if state.failure is not None:
                raise state.failure
            super().run_with_iobinding(*args)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(session_module, "check_cudnn", lambda module: None)
    return state


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    """A device with memory, in which the smallest array is page-locked."""
    device = Device()
    monkeypatch.setattr(backend_module, "open_cuda", lambda: CudaPython(Cudart(device)))
    monkeypatch.setattr(memory, "_LEAST_PINNED_BYTES", 1)
    return device


@pytest.fixture
def no_binding(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise RuntimeError("CUDA: expected cuda-python or pycuda, found neither; `pip install cuda-python`")

    monkeypatch.setattr(backend_module, "open_cuda", missing)


def _images(*sizes: tuple[int, int]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]


@pytest.mark.parametrize(("precision", "tf32"), [(None, "1"), ("tf32", "1"), ("fp32", "0")])
def test_cuda_gets_its_options_and_no_fallback(
    precision: Optional[str], tf32: str, fake_model: Path, standin: Standin, no_binding: None
) -> None:
    OnnxRuntimeBackend(fake_model, device="cuda", precision=precision)
    options = {"use_tf32": tf32, "fuse_conv_bias": "0"}
    assert standin.opened == [([(CUDA, options), CPU], {"enable_fallback": 0})]


def test_on_cuda_inputs_and_outputs_are_bound(fake_model: Path, standin: Standin, no_binding: None) -> None:
    batch = prepare(_images((40, 50), (64, 96)), OnnxRuntimeBackend(fake_model).metadata)
    expected = OnnxRuntimeBackend(fake_model).run(batch.images, batch.image_sizes)
    standin.unbound = 0
    backend = OnnxRuntimeBackend(fake_model, device="cuda")
    for _ in range(3):
        found = backend.run(batch.images, batch.image_sizes)
        assert {name: array.tolist() for name, array in found.items()} == {
            name: array.tolist() for name, array in expected.items()
        }
    assert (standin.bound, standin.unbound) == (3, 0)
    (note,) = backend.notes
    assert "not page-locked: CUDA: expected cuda-python or pycuda" in note


def test_batches_are_prepared_in_page_locked_memory(
    fake_model: Path, standin: Standin, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    run = OnnxRuntimeBackend.run

    def recording(self: OnnxRuntimeBackend, images: np.ndarray, sizes: np.ndarray) -> dict:
        outputs = run(self, images, sizes)
        seen.append((device.is_pinned(images.ctypes.data), device.is_pinned(outputs["masks"].ctypes.data)))
        return outputs

    images = _images((40, 50), (64, 96), (96, 64))
    with Detector(fake_model, "onnxruntime", device="cpu") as on_cpu:
        expected = [(d.boxes.tolist(), d.scores.tolist(), d.rle()) for d in on_cpu(images)]
    monkeypatch.setattr(OnnxRuntimeBackend, "run", recording)
    with Detector(fake_model, "onnxruntime", batch_size=1, device="cuda") as detector:
        assert detector.notes == []
        found = [(d.boxes.tolist(), d.scores.tolist(), d.rle()) for d in detector(images)]
    assert found == expected
    # The first run learns the outputs' shapes.
    assert seen == [(True, False), (True, True), (True, True)]
    gc.collect()
    assert device.is_clean


def test_the_cpu_has_one_precision(fake_model: Path) -> None:
    OnnxRuntimeBackend(fake_model, precision="fp32")
    with pytest.raises(
        ValueError, match="precision: expected fp32 of onnxruntime on this device, found 'tf32'"
    ):
        OnnxRuntimeBackend(fake_model, precision="tf32")


def test_cuda_has_no_bfloat16(fake_model: Path, standin: Standin) -> None:
    with pytest.raises(ValueError, match="precision: expected tf32 or fp32 of onnxruntime on this device"):
        OnnxRuntimeBackend(fake_model, device="cuda", precision="bf16")


@pytest.mark.parametrize("precision", [[], ["--precision", "fp32"]])
def test_commands_pass_the_precision_on(
    precision: list[str], fake_model: Path, standin: Standin, no_binding: None, tmp_path: Path
) -> None:
    image = tmp_path / "a.png"
    cv2.imwrite(str(image), _images((40, 50))[0])
    arguments = ["--model", str(fake_model), "--backend", "onnxruntime", "--device", "cuda", *precision]
    assert infer_main([*arguments, "--out", str(tmp_path / "out"), str(image)]) == 0
    ((cuda, _), _) = standin.opened[-1]
    assert cuda[1]["use_tf32"] == ("0" if precision else "1")
    assert standin.bound == 1


def test_a_session_that_fell_back_is_refused(fake_model: Path, standin: Standin) -> None:
    standin.active = (CPU,)
    with pytest.raises(
        RuntimeError, match=f"onnxruntime .*: expected to run on {CUDA}, found {CPU}; .*or use --device cpu"
    ):
        OnnxRuntimeBackend(fake_model, device="cuda")
    with pytest.raises(RuntimeError, match=f"expected to run on {CUDA}"):
        load_tensors(fake_model, "onnxruntime", device="cuda")


def test_a_provider_that_does_not_start_is_told(
    fake_model: Path, standin: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError(
            "cuda_call.cc:154 CUDA failure 35: CUDA driver version is insufficient ; GPU=-1 ; "
        )

    monkeypatch.setattr(onnxruntime, "InferenceSession", failing)
    with pytest.raises(
        RuntimeError, match=f"run on {CUDA}, found: CUDA failure 35: CUDA driver version is insufficient; see"
    ):
        OnnxRuntimeBackend(fake_model, device="cuda")


# The second is what a bound run makes of it.
@pytest.mark.parametrize("kind", [errors.EPFail, RuntimeError])
def test_a_device_that_fails_is_told_and_the_cpu_does_not_take_over(
    kind: type[Exception], fake_model: Path, standin: Standin, no_binding: None
) -> None:
    backend = OnnxRuntimeBackend(fake_model, device="cuda")
    standin.failure = kind(
        "Error in execution: cuda_call.cc:154 CUDA failure 2: out of memory ; GPU=0 ; hostname=a"
    )
    batch = prepare(_images((40, 50)), backend.metadata)
    with pytest.raises(
        RuntimeError, match="found: CUDA failure 2: out of memory; if memory ran out, use a smaller"
    ):
        backend.run(batch.images, batch.image_sizes)
    assert len(standin.opened) == 1


def test_a_closed_backend_on_cuda_is_refused(fake_model: Path, standin: Standin, device: Device) -> None:
    backend = OnnxRuntimeBackend(fake_model, device="cuda")
    batch = prepare(_images((40, 50)), backend.metadata)
    backend.close()
    backend.close()
    with pytest.raises(RuntimeError, match="expected an open one, found it closed"):
        backend.run(batch.images, batch.image_sizes)
