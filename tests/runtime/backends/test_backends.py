import dataclasses
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from runtime.backends import NAMES, backend_module, backend_name, load_backend
from runtime.backends import tensorrt as tensorrt_backend
from runtime.backends.onnxruntime import OnnxRuntimeBackend
from runtime.backends.tensorrt import TensorRTBackend
from runtime.engine import library as engine_library
from tests.runtime.engine import fakes as engine_fakes
from tests.runtime.engine.fake_cuda import Cudart


@pytest.fixture(autouse=True)
def without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)


@pytest.fixture
def with_openvino(without_openvino: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as ``auto`` looks."""
    module = ModuleType("openvino")
    module.__spec__ = ModuleSpec("openvino", None)
    monkeypatch.setitem(sys.modules, "openvino", module)


@pytest.fixture
def without_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    engine_fakes.remove(monkeypatch)


@pytest.fixture
def with_tensorrt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    engine_fakes.install(monkeypatch)
    engine_fakes.put_plugins(monkeypatch, tmp_path)


CASES = [
    ("m.onnx", "auto", "onnxruntime"),
    ("m.ONNX", "auto", "onnxruntime"),
    ("m.engine", "auto", "tensorrt"),
    ("m.plan", "auto", "tensorrt"),
    ("m.TRT", "auto", "tensorrt"),
    ("m.bin", "onnxruntime", "onnxruntime"),
    ("m.bin", "tensorrt", "tensorrt"),
]


@pytest.mark.parametrize(("model", "backend", "expected"), CASES)
def test_auto_goes_by_the_suffix(model: str, backend: str, expected: str, without_tensorrt: None) -> None:
    assert backend_name(model, backend) == expected


@pytest.mark.parametrize(("model", "backend", "expected"), CASES)
def test_with_tensorrt_and_a_gpu_auto_builds_the_onnx(
    model: str, backend: str, expected: str, with_tensorrt: None
) -> None:
    is_onnx = model.lower().endswith(".onnx")
    assert backend_name(model, backend) == ("tensorrt" if is_onnx else expected)


@pytest.mark.parametrize(("model", "backend", "expected"), CASES)
def test_with_openvino_auto_runs_the_onnx_by_it(
    model: str, backend: str, expected: str, without_tensorrt: None, with_openvino: None
) -> None:
    is_onnx = model.lower().endswith(".onnx")
    for device in (None, "cpu"):
        assert backend_name(model, backend, device) == ("openvino" if is_onnx else expected)
    assert backend_name(model, backend, "cuda") == expected


def test_a_gpu_comes_before_openvino(with_tensorrt: None, with_openvino: None) -> None:
    assert backend_name("m.onnx", "auto") == "tensorrt"
    assert backend_name("m.onnx", "auto", "cpu") == "openvino"
    assert backend_name("m.onnx", "auto", "cuda") == "onnxruntime"


def test_openvino_needs_onnx_to_inline(
    without_tensorrt: None, with_openvino: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert backend_name("m.onnx", "auto") == "onnxruntime"


def test_providers_mean_onnxruntime(fake_model: Path, without_tensorrt: None, with_openvino: None) -> None:
    backend = load_backend(fake_model, providers=["CPUExecutionProvider"])
    assert isinstance(backend, OnnxRuntimeBackend)


def test_without_openvino_its_backend_says_what_to_install(fake_model: Path) -> None:
    message = "openvino: expected the Python package, found none .*; `pip install openvino`, or use --backend"
    with pytest.raises(RuntimeError, match=message):
        load_backend(fake_model, "openvino")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_device_means_onnxruntime_for_an_onnx(device: str, with_tensorrt: None) -> None:
    assert backend_name("m.onnx", "auto", device) == "onnxruntime"
    assert backend_name("m.onnx", "tensorrt", device) == "tensorrt"
    assert backend_name("m.engine", "auto", device) == "tensorrt"


@pytest.mark.parametrize("missing", ["tensorrt", "onnx", "cuda.cudart"])
def test_all_that_a_build_takes_has_to_be_there(
    missing: str, with_tensorrt: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tensorrt_backend.is_usable(None)
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr(engine_library, "_libraries", {})
    assert not tensorrt_backend.is_usable(None)


def test_without_plugins_auto_stays_with_onnxruntime(
    with_tensorrt: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MASKRCNN_PLUGINS", str(tmp_path / "gone.so"))
    assert not tensorrt_backend.is_usable(None)
    monkeypatch.delenv("MASKRCNN_PLUGINS")
    assert not tensorrt_backend.is_usable(None)
    assert backend_name("m.onnx", "tensorrt") == "tensorrt"


def test_without_a_gpu_tensorrt_is_of_no_use(monkeypatch: pytest.MonkeyPatch) -> None:
    engine_fakes.install(monkeypatch)
    monkeypatch.setitem(sys.modules, "cuda.cudart", Cudart())
    assert not tensorrt_backend.is_usable(None)
    assert backend_name("m.onnx", "auto") == "onnxruntime"


def test_a_tensorrt_that_is_too_old_is_not_used_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    engine_fakes.install(monkeypatch, "8.2.5.1")
    assert backend_name("m.onnx", "auto") == "onnxruntime"


@pytest.mark.parametrize(
    ("model", "backend", "message"),
    [
        (
            "m.onnx",
            "ncnn",
            "backend: expected one of auto, onnxruntime, openvino, tensorrt, found 'ncnn'",
        ),
        ("m.pth", "auto", r"model m.pth: expected a name ending in .onnx, .xml or .engine, found '.pth'"),
        ("m", "auto", "found 'no suffix'"),
    ],
)
def test_an_unknown_backend_or_suffix_is_refused(model: str, backend: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        backend_name(model, backend)


def test_auto_opens_what_it_means(fake_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(fake_model.read_bytes())
    engine_fakes.remove(monkeypatch)
    assert isinstance(load_backend(model), OnnxRuntimeBackend)
    engine_fakes.install(monkeypatch)
    engine_fakes.put_plugins(monkeypatch, tmp_path)
    assert isinstance(load_backend(model), TensorRTBackend)
    assert isinstance(load_backend(model.with_suffix(".engine")), TensorRTBackend)
    assert isinstance(load_backend(model, device="cpu"), OnnxRuntimeBackend)


@pytest.mark.parametrize(
    ("backend", "options", "named"),
    [
        (
            "tensorrt",
            {"device": "cpu"},
            "device: expected an option of tensorrt, found one of another backend",
        ),
        ("tensorrt", {"providers": ["CPUExecutionProvider"]}, "providers: expected an option of tensorrt"),
        ("tensorrt", {"threads": 4}, r"threads: .* \(4\); leave it out, or name the backend"),
        ("onnxruntime", {"plugins": "p.so"}, "plugins: expected an option of onnxruntime"),
        ("onnxruntime", {"rebuild": "never"}, "rebuild: expected an option of onnxruntime"),
        ("onnxruntime", {"device_index": 1}, "device_index: expected an option of onnxruntime"),
        ("onnxruntime", {"config": object()}, "config: expected an option of onnxruntime"),
        (
            "onnxruntime",
            {"precision": "bf16"},
            "precision: expected fp32 of onnxruntime on this device, found 'bf16'",
        ),
        ("onnxruntime", {"streams": 2}, "streams: expected an option of onnxruntime"),
        ("openvino", {"device": "cuda"}, "device: expected an option of openvino"),
        ("openvino", {"plugins": "p.so"}, "plugins: expected an option of openvino"),
        ("tensorrt", {"precision": "fp32"}, "precision: expected an option of tensorrt"),
    ],
)
def test_options_of_the_other_backend_are_refused(
    backend: str, options: dict[str, Any], named: str, fake_model: Path, with_tensorrt: None
) -> None:
    with pytest.raises(ValueError, match=named):
        load_backend(fake_model, backend, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"batch": 4},  # no demand on onnxruntime
        {"plugins": None, "rebuild": None, "threads": None, "device": "cpu"},
        {"precision": "fp32", "streams": 1},  # what it does anyway
    ],
)
def test_options_of_the_other_backend_that_say_nothing_are_left_out(
    options: dict[str, Any], fake_model: Path
) -> None:
    assert isinstance(load_backend(fake_model, "onnxruntime", **options), OnnxRuntimeBackend)


def test_tensorrt_is_on_the_gpu_anyway(fake_model: Path, tmp_path: Path, with_tensorrt: None) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(fake_model.read_bytes())
    backend = load_backend(model, "tensorrt", device="cuda", threads=None, providers=None)
    assert isinstance(backend, TensorRTBackend)


def test_without_tensorrt_its_backend_says_what_to_install(fake_model: Path, without_tensorrt: None) -> None:
    message = (
        "TensorRT: expected the Python package tensorrt, found none that loads .*; `pip install tensorrt`"
    )
    with pytest.raises(RuntimeError, match=message):
        load_backend(fake_model, "tensorrt")


@pytest.mark.parametrize(
    ("backend", "option", "message"),
    [
        ("onnxruntime", "thread", "thread: expected an option of onnxruntime .*; did you mean 'threads'"),
        (
            "onnxruntime",
            "nonsense",
            r"nonsense: expected an option of onnxruntime \(device, providers, threads, precision\)",
        ),
        ("tensorrt", "plugin", "plugin: expected an option of tensorrt .*; did you mean 'plugins'"),
    ],
)
def test_a_misspelt_option_is_refused_by_name(
    backend: str, option: str, message: str, fake_model: Path, with_tensorrt: None
) -> None:
    with pytest.raises(ValueError, match=message):
        load_backend(fake_model, backend, **{option: 1})


@pytest.mark.parametrize("name", NAMES)
def test_a_backend_declares_all_of_its_row(name: str) -> None:
    module = backend_module(name)
    assert (module.NAME, module.open_model.name) == (name, name)
    assert dataclasses.is_dataclass(module.Options)
    assert module.Options.__dataclass_params__.frozen
    assert all(suffix.startswith(".") for suffix in module.SUFFIXES)
    for function in ("is_usable", "ignores", "layers"):
        assert callable(getattr(module, function))


def test_a_backend_is_a_module_and_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that has to be edited for one more."""
    module: Any = ModuleType("runtime.backends.sample")
    module.NAME, module.SUFFIXES, module.Options = "sample", (".sample",), SampleOptions
    module.open_model = lambda model, **options: (model, options)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("runtime.backends.NAMES", (*NAMES, "sample"))
    assert load_backend("m.sample", speed=3) == ("m.sample", {"speed": 3})
    with pytest.raises(ValueError, match="sped: expected an option of sample .*; did you mean 'speed'"):
        load_backend("m.sample", sped=3)


@dataclasses.dataclass(frozen=True)
class SampleOptions:
    speed: int = 1
