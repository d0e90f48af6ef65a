"""onnxruntime's CUDA provider: how its libraries are found, its options, and what is said where it does not start."""

import contextlib
import ctypes
import functools
import importlib.metadata
import importlib.util
import io
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, Optional

CUDA = "CUDAExecutionProvider"
# TensorRT's provider loads the same libraries.
_WITH_CUDA_LIBRARIES = (CUDA, "TensorrtExecutionProvider")
# What float32 convolutions and matrix products round their inputs to: TF32's 10 bits, or nothing.
PRECISIONS = ("tf32", "fp32")
_CUDA_LIBRARIES = ("libcudart", "libcublas", "libcurand", "libcufft", "libnvrtc")
_CUDNN_LIBRARIES = ("libcudnn",)
# What onnxruntime asks for, of the releases of cuDNN that there may be.
_CUDNN_NAMES = ("libcudnn.so.9", "libcudnn.so.10", "libcudnn.so")
# What a failure comes down to, behind paths and signatures of C++.
_REASON = re.compile(
    r"(?:CUDA|CUDNN|CUBLAS|CURAND|CUFFT)\w* failure [^;]*[^; ]|cuDNN is unavailable.*"
    r"|Failed to allocate memory for requested buffer of size \d+"
)
_PACKAGES = ("onnxruntime", "onnxruntime-gpu")
_INSTALL = "`pip install 'onnxruntime-gpu[cuda,cudnn]'` brings them for the CUDA that it is built for"


def uses_cuda(providers: Sequence[str]) -> bool:
    """Return whether a session with these providers needs the libraries of CUDA."""
    return any(name in _WITH_CUDA_LIBRARIES for name in providers)


def with_options(providers: Sequence[str], precision: Optional[str]) -> list[Any]:
    """Return the providers as a session takes them, CUDA with its options.

    Args:
        providers: names.
        precision: one of ``PRECISIONS``; None is ``tf32``, onnxruntime's default.
    """
    options = {
        "use_tf32": "0" if precision == "fp32" else "1",
        # Fused, cuDNN refuses the transposed convolution of the mask head.
        "fuse_conv_bias": "0",
    }
    return [(name, options) if name == CUDA else name for name in providers]


@functools.cache
def preload(onnxruntime: Any) -> tuple[str, ...]:
    """Load the libraries of CUDA and cuDNN, from NVIDIA's wheels where there are any; once in a process.

    The wheels may lie beside onnxruntime or in any other folder of ``sys.path``. PyTorch is not imported; where it is
    there, its libraries are these.

    Returns:
        What onnxruntime says of each that is not there, but for cuDNN.

    Raises:
        RuntimeError: onnxruntime is older than 1.21.
    """
    load = getattr(onnxruntime, "preload_dlls", None)
    if load is None:
        raise RuntimeError(
            f"onnxruntime {onnxruntime.__version__}: expected 1.21 or later, which finds the libraries of CUDA, for a "
            "GPU; `pip install --upgrade onnxruntime-gpu`, or use --device cpu"
        )
    beside = Path(onnxruntime.__file__).resolve().parents[1] / "nvidia"
    if beside.is_dir():
        _said(load)
    # Before it looks where the system has them, which it does in any case.
    for folder in _wheel_folders(beside):
        has_cuda, has_cudnn = _has(folder, _CUDA_LIBRARIES), _has(folder, _CUDNN_LIBRARIES)
        if has_cuda or has_cudnn:
            _said(functools.partial(load, cuda=has_cuda, cudnn=has_cudnn, directory=str(folder)))
    return _said(load)


def check_cudnn(onnxruntime: Any) -> None:
    """Refuse to begin without cuDNN: onnxruntime 1.31 opens a session, and fails at the first convolution.

    Raises:
        RuntimeError: there is none; Linux only.
    """
    if sys.platform != "linux":
        return
    failures = []
    for name in _CUDNN_NAMES:
        try:
            ctypes.CDLL(name)
            return
        except OSError as error:
            failures.append(str(error))
    raise RuntimeError(
        f"onnxruntime {onnxruntime.__version__}: expected cuDNN, which its CUDA provider runs convolutions with, found "
        f"none ({failures[0]}); {_INSTALL}, or use --device cpu"
    )


def _said(load: Callable[[], None]) -> tuple[str, ...]:
    """Return the lines that it prints, which standard output has no use for."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        load()
    return tuple(line for line in output.getvalue().splitlines() if line.startswith("Failed to load"))


def _wheel_folders(beside: Path) -> list[Path]:
    """Return the folders of libraries in packages ``nvidia`` on ``sys.path``, but for the one beside onnxruntime."""
    spec = importlib.util.find_spec("nvidia")
    roots = (spec.submodule_search_locations or ()) if spec is not None else ()
    elsewhere = [Path(root) for root in roots if Path(root).resolve() != beside]
    return [folder for root in elsewhere for folder in sorted(root.glob("*/lib"))]


def _has(folder: Path, names: Sequence[str]) -> bool:
    return any(any(folder.glob(f"{name}.so*")) for name in names)


def missing_provider(onnxruntime: Any, wanted: Sequence[str], available: Sequence[str]) -> RuntimeError:
    """Return what is said where the installed package has not got a provider."""
    remedy = "for CUDA `pip uninstall onnxruntime && pip install onnxruntime-gpu`, or use --device cpu"
    installed = [name for name in _PACKAGES if _is_installed(name)]
    if CUDA in wanted and len(installed) > 1:
        # Both are the folder onnxruntime/; the one that was installed last is there.
        remedy = (
            f"{' and '.join(installed)} are installed over each other: `pip uninstall -y {' '.join(installed)} && "
            "pip install onnxruntime-gpu`, or use --device cpu"
        )
    return RuntimeError(
        f"onnxruntime {onnxruntime.__version__}: expected the execution providers "
        f"{', '.join(wanted) or '(none named)'}, found {', '.join(available)}; {remedy}"
    )


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def not_active(onnxruntime: Any, wanted: str, active: Sequence[str]) -> RuntimeError:
    """Return what is said of a session that fell back, which onnxruntime only logs."""
    if not uses_cuda([wanted]):
        remedy = "see onnxruntime's log above"
    elif preload(onnxruntime):
        missing = "; ".join(preload(onnxruntime))
        remedy = f"libraries of CUDA did not load ({missing}); {_INSTALL}"
    else:
        remedy = (
            "the libraries of CUDA are there; see onnxruntime's log above, and whether nvidia-smi finds a GPU and a "
            "driver for this CUDA"
        )
    return RuntimeError(
        f"onnxruntime {onnxruntime.__version__}: expected to run on {wanted}, found {', '.join(active)}; {remedy}, or "
        "use --device cpu"
    )


def not_started(onnxruntime: Any, error: Exception) -> RuntimeError:
    """Return what is said where the provider begins and fails, for want of a driver for example."""
    return RuntimeError(
        f"onnxruntime {onnxruntime.__version__}: expected to run on {CUDA}, found: "
        f"{reason(str(error)) or ' '.join(str(error).split())[:300]}; see whether nvidia-smi finds a free GPU and a "
        "driver for this CUDA, or use --device cpu"
    )


def reason(text: str) -> str:
    """Return what CUDA, or its memory, failed of in an error's text; empty if it says nothing of them."""
    found = _REASON.search(text)
    return " ".join(found[0].split()) if found is not None else ""


def loaded_libraries() -> list[str]:
    """Return the files of CUDA's libraries that this process has loaded; empty where /proc is not there."""
    maps = Path("/proc/self/maps")
    if sys.platform != "linux" or not maps.is_file():
        return []
    files = {line.split(maxsplit=5)[5] for line in maps.read_text().splitlines() if line.count("/") > 1}
    names = ("libcud", "libcublas", "libcufft", "libcurand", "libnvrtc")
    return sorted(file for file in files if Path(file).name.startswith(names))
