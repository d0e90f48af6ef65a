"""How CUDA's libraries are found and what is said without them, on a stand-in for the module onnxruntime."""

import importlib.metadata
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Optional

import pytest

from runtime.graphs import cuda_provider
from runtime.graphs.cuda_provider import (
    CUDA,
    check_cudnn,
    missing_provider,
    not_active,
    not_started,
    preload,
    reason,
    uses_cuda,
    with_options,
)

CPU = "CPUExecutionProvider"
MISSING = "Failed to load libcublas.so.13: libcublas.so.13: cannot open shared object file"


EVERYWHERE = (True, True, None)
# As onnxruntime 1.31 says it.
DRIVER = (
    "/onnxruntime_src/core/providers/cuda/cuda_call.cc:154 std::conditional_t<THRW, void, onnxruntime::common::Status> "
    "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version ; GPU=-1 ; hostname=vm ; "
    "expr=cudaSetDevice(info_.device_id); "
)
MEMORY = (
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Conv node. "
    "bfc_arena.cc:376 void* onnxruntime::BFCArena::AllocateRawInternal(size_t, bool) Failed to allocate memory "
    "for requested buffer of size 123456"
)


class FakeOnnxRuntime(SimpleNamespace):
    """Loads libraries from one folder alone, and prints about it as onnxruntime does."""

    def __init__(self, folder: Optional[Path]) -> None:
        super().__init__(__version__="1.31.1", __file__="/elsewhere/onnxruntime/__init__.py")
        self.folder, self.calls, self.is_loaded = folder, [], False

    __hash__ = object.__hash__
    __eq__ = object.__eq__

    def preload_dlls(self, cuda: bool = True, cudnn: bool = True, directory: Optional[str] = None) -> None:
        self.calls.append((cuda, cudnn, directory))
        self.is_loaded = self.is_loaded or (directory is not None and Path(directory) == self.folder)
        if not self.is_loaded:
            print(MISSING)
            print("Please follow https://onnxruntime.ai/docs/install/#cuda-and-cudnn to install CUDA.")


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of ``sys.path`` with the package ``nvidia``, as wheels for CUDA 13 leave it."""
    for name, library in (("cu13", "libcudart.so.13"), ("cudnn", "libcudnn.so.9"), ("nccl", "libnccl.so.2")):
        folder = tmp_path / "nvidia" / name / "lib"
        folder.mkdir(parents=True)
        (folder / library).touch()
    (tmp_path / "nvidia" / "cu13" / "include").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for name in [name for name in sys.modules if name.partition(".")[0] == "nvidia"]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path / "nvidia"


def test_libraries_of_wheels_in_another_folder_are_found(
    wheels: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = FakeOnnxRuntime(wheels / "cudnn" / "lib")
    assert preload(module) == ()
    # The wheels', of each only what it has; then, wherever it looks by itself, what is still not there.
    assert module.calls == [
        (True, False, str(wheels / "cu13" / "lib")),
        (False, True, str(wheels / "cudnn" / "lib")),
        EVERYWHERE,
    ]
    assert capsys.readouterr().out == ""


def test_libraries_beside_onnxruntime_are_left_to_it(wheels: Path, tmp_path: Path) -> None:
    module = FakeOnnxRuntime(None)
    module.__file__ = str(tmp_path / "onnxruntime" / "__init__.py")
    preload(module)
    assert module.calls == [EVERYWHERE, EVERYWHERE]


def test_libraries_are_loaded_once_in_a_process(wheels: Path) -> None:
    module = FakeOnnxRuntime(wheels / "cu13" / "lib")
    preload(module)
    calls = len(module.calls)
    assert preload(module) == ()
    assert len(module.calls) == calls


def test_what_is_missing_is_returned_and_not_printed(
    wheels: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert preload(FakeOnnxRuntime(None)) == (MISSING,)
    assert capsys.readouterr().out == ""


def test_an_onnxruntime_that_cannot_look_for_them_is_refused() -> None:
    class Old:
        __version__ = "1.20.1"

    with pytest.raises(RuntimeError, match=r"onnxruntime 1\.20\.1: expected 1\.21 or later, .*--device cpu"):
        preload(Old)


@pytest.mark.parametrize(("precision", "tf32"), [(None, "1"), ("tf32", "1"), ("fp32", "0")])
def test_cuda_alone_gets_options(precision: Optional[str], tf32: str) -> None:
    cuda, cpu = with_options([CUDA, CPU], precision)
    assert cuda == (CUDA, {"use_tf32": tf32, "fuse_conv_bias": "0"})
    assert cpu == CPU


def test_which_providers_need_the_libraries() -> None:
    assert uses_cuda([CUDA, CPU])
    assert uses_cuda(["TensorrtExecutionProvider", CPU])
    assert not uses_cuda([CPU])


def test_missing_libraries_are_named_where_a_session_fell_back(wheels: Path) -> None:
    message = str(not_active(FakeOnnxRuntime(None), CUDA, [CPU]))
    assert message.startswith(
        f"onnxruntime 1.31.1: expected to run on {CUDA}, found {CPU}; libraries of CUDA did not load ({MISSING})"
    )
    assert "onnxruntime-gpu[cuda,cudnn]" in message


def test_where_the_libraries_are_there_the_driver_is_named(wheels: Path) -> None:
    message = str(not_active(FakeOnnxRuntime(wheels / "cu13" / "lib"), CUDA, [CPU]))
    assert "nvidia-smi" in message
    assert "did not load" not in message


@pytest.mark.parametrize(
    ("installed", "remedy"),
    [
        (("onnxruntime",), "for CUDA `pip uninstall onnxruntime && pip install onnxruntime-gpu`"),
        (
            ("onnxruntime", "onnxruntime-gpu"),
            "onnxruntime and onnxruntime-gpu are installed over each other: "
            "`pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu`",
        ),
    ],
)
def test_two_packages_over_each_other_are_named(
    installed: tuple[str, ...], remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.31.1"

    monkeypatch.setattr(cuda_provider.importlib.metadata, "version", version)
    error = missing_provider(SimpleNamespace(__version__="1.31.1"), [CUDA, CPU], [CPU])
    assert f"expected the execution providers {CUDA}, {CPU}, found {CPU}; {remedy}" in str(error)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (DRIVER, "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version"),
        (
            "cc:7 CUDNN failure 8: CUDNN_STATUS_EXECUTION_FAILED ; GPU=0",
            "CUDNN failure 8: CUDNN_STATUS_EXECUTION_FAILED",
        ),
        (MEMORY, "Failed to allocate memory for requested buffer of size 123456"),
        ("[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got invalid dimensions", ""),
    ],
)
def test_what_failed_is_found_behind_paths_and_signatures(text: str, expected: str) -> None:
    assert reason(text) == expected


def test_a_provider_that_does_not_start_says_why() -> None:
    message = str(not_started(FakeOnnxRuntime(None), RuntimeError(DRIVER)))
    assert (
        "found: CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version; see" in message
    )
    assert "/onnxruntime_src" not in message
    assert "something else" in str(not_started(FakeOnnxRuntime(None), RuntimeError("something\nelse")))


@pytest.mark.parametrize("there", ["libcudnn.so.9", "libcudnn.so.10", None])
def test_cudnn_is_asked_for_before_the_first_convolution(
    there: Optional[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str) -> None:
        if name != there:
            raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(cuda_provider.ctypes, "CDLL", load)
    monkeypatch.setattr(sys, "platform", "linux")
    module = FakeOnnxRuntime(None)
    if there is not None:
        check_cudnn(module)
        return
    with pytest.raises(
        RuntimeError, match=r"expected cuDNN, .*found none \(libcudnn\.so\.9: cannot open .*pip install"
    ):
        check_cudnn(module)
