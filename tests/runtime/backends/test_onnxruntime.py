from pathlib import Path

import onnxruntime
import pytest

from runtime.backends.onnxruntime import OnnxRuntimeBackend
from runtime.graphs.session import _check_active


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
