from pathlib import Path

import pytest

from runtime.backends import backend_name, load_backend


@pytest.mark.parametrize(
    ("model", "backend", "expected"),
    [
        ("m.onnx", "auto", "onnxruntime"),
        ("m.ONNX", "auto", "onnxruntime"),
        ("m.engine", "auto", "tensorrt"),
        ("m.plan", "auto", "tensorrt"),
        ("m.bin", "onnxruntime", "onnxruntime"),
    ],
)
def test_auto_goes_by_the_suffix(model: str, backend: str, expected: str) -> None:
    assert backend_name(model, backend) == expected


@pytest.mark.parametrize(
    ("model", "backend", "message"),
    [
        ("m.onnx", "openvino", "backend: expected one of auto, onnxruntime, tensorrt, found 'openvino'"),
        ("m.pth", "auto", r"model m.pth: expected a name ending in .onnx, found '.pth'"),
        ("m", "auto", "found 'no suffix'"),
    ],
)
def test_an_unknown_backend_or_suffix_is_refused(model: str, backend: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        backend_name(model, backend)


def test_tensorrt_is_refused_for_now(fake_model: Path) -> None:
    with pytest.raises(
        RuntimeError, match="TensorRT backend is not part of this version; run the .onnx with"
    ):
        load_backend(fake_model, "tensorrt")
