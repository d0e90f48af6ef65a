"""The CUDA kernels on torch tensors, without TensorRT: what the operators' modules ``<op>/kernel.py`` share.

``libmaskrcnn_kernels.so`` is looked for in ``plugins/``, or where ``MASKRCNN_KERNELS`` says. To build it by hand::

    nvcc -std=c++17 -O3 -arch=native -shared -Xcompiler -fPIC -I. plugins/*/*c_api.cpp plugins/*/*_kernel.cu \
        -o plugins/libmaskrcnn_kernels.so

All tensors are contiguous CUDA tensors on one device. Everything runs on torch's current stream; nothing waits for it.
"""

import ctypes
import functools
import os
from collections.abc import Sequence
from ctypes import POINTER, Structure, byref, c_bool, c_float, c_int, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runtime.device.kernels import ImageKernels, MaskCast, check_sizes

ROOT = Path(__file__).resolve().parents[2]
VARIABLE = "MASKRCNN_KERNELS"
MAX_LEVELS = 8
NCHW, NHWC, NHWC8, NCHW32 = 0, 1, 2, 3
ELEMENT_TYPES = {torch.float32: 0, torch.float16: 1, torch.int8: 2, torch.uint8: 3, torch.bool: 4}


class BoxDecoding(Structure):
    """``plugins/common/box_decoding.h``."""

    _fields_ = [("means", c_float * 4), ("stds", c_float * 4), ("max_ratio", c_float), ("clip", c_bool)]


def library_path() -> Path:
    """Return where the library is expected."""
    return Path(os.environ.get(VARIABLE, ROOT / "plugins" / "libmaskrcnn_kernels.so"))


@functools.cache
def load_library() -> ctypes.CDLL:
    """Load the kernels.

    Raises:
        RuntimeError: the library is missing, or was built from other sources.
    """
    path = library_path()
    if not path.exists():
        raise RuntimeError(
            f"kernels: expected {path}, which does not exist; build it with `make plugins`, or as "
            "tests/gpu/kernel_library.py says"
        )
    library = ctypes.CDLL(str(path))
    # These declare their functions, and check their structures.
    ImageKernels(library)
    MaskCast(library)
    return library


def workspace_of(name: str, device: torch.device, *arguments: object) -> tuple[Tensor, int]:
    """Return the memory that a kernel asks for when it gets these arguments, and how many bytes it asked for."""
    size_of = getattr(load_library(), f"maskrcnn_{name}_workspace_size")
    size_of.restype = c_size_t
    size = size_of(*arguments)
    return torch.empty((max(size, 1),), dtype=torch.uint8, device=device), size


def launch(name: str, arguments: Structure, *workspace: object) -> None:
    """Put a kernel on the current stream. workspace: nothing, or an address and a number of bytes.

    Raises:
        RuntimeError: the arguments or the device are refused, or the library has another structure for them.
    """
    stream = torch.cuda.current_stream().cuda_stream
    error = _function(name, type(arguments), bool(workspace))(byref(arguments), *workspace, stream)
    if error:
        raise RuntimeError(f"{name}: {load_library().maskrcnn_error_string(error).decode()}")


@functools.cache
def _function(name: str, structure: type[Structure], has_workspace: bool) -> Any:
    library = load_library()
    check_sizes(library, [structure])
    function = getattr(library, f"maskrcnn_{name}")
    function.restype = c_int
    function.argtypes = [POINTER(structure), *([c_void_p, c_size_t] if has_workspace else []), c_void_p]
    return function


def check(name: str, tensor: Tensor, dtypes: Sequence[torch.dtype]) -> None:
    """Refuse a tensor that the kernels cannot take.

    Raises:
        ValueError: it is on the CPU, strided or of another dtype.
    """
    if not tensor.is_cuda or not tensor.is_contiguous() or tensor.dtype not in dtypes:
        found = f"{'contiguous' if tensor.is_contiguous() else 'strided'} {tensor.dtype} on {tensor.device}"
        raise ValueError(f"{name}: expected a contiguous CUDA tensor of {list(dtypes)}, found {found}")


def to_layout(tensor: Tensor, layout: int) -> Tensor:
    """Return a contiguous tensor whose memory holds an NCHW tensor in a layout.

    (N, H, W, C or C padded to 8), or for NCHW32 (N, blocks, H, W, 32).
    """
    if layout == NCHW:
        return tensor.contiguous()
    batch, channels, height, width = tensor.shape
    if layout == NCHW32:
        tensor = torch.nn.functional.pad(tensor, (0, 0, 0, 0, 0, -channels % 32), value=99)  # anything
        return tensor.reshape(batch, -1, 32, height, width).permute(0, 1, 3, 4, 2).contiguous()
    if layout == NHWC8:
        # The padding may hold anything: NaN shows where it is read as data.
        tensor = torch.nn.functional.pad(tensor, (0, 0, 0, 0, 0, -channels % 8), value=float("nan"))
    return tensor.permute(0, 2, 3, 1).contiguous()
