"""The kernel of ``plugins/grid_sample`` on torch tensors."""

from ctypes import Structure, c_bool, c_int, c_int64, c_void_p

import torch
from torch import Tensor

from tests.gpu.kernel_library import ELEMENT_TYPES, check, launch


class GridSampleArguments(Structure):
    _fields_ = [
        ("input", c_void_p),
        ("grid", c_void_p),
        ("output", c_void_p),
        ("type", c_int),
        ("num_spatial", c_int),
        ("batch", c_int64),
        ("channels", c_int64),
        ("in_size", c_int64 * 3),
        ("out_size", c_int64 * 3),
        ("interpolation", c_int),
        ("padding", c_int),
        ("align_corners", c_bool),
    ]


INTERPOLATIONS = {"bilinear": 0, "nearest": 1, "bicubic": 2}


PADDINGS = {"zeros": 0, "border": 1, "reflection": 2}


def grid_sample(
    features: Tensor,
    grid: Tensor,
    *,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool,
) -> Tensor:
    """Do what ``torch.nn.functional.grid_sample`` does; see ``grid_sample_kernel.h``.

    features: (N, C, H, W) or (N, C, D, H, W), float32 or float16. grid: (N, ..., 2 or 3), of the same dtype.
    """
    check("features", features, [torch.float32, torch.float16])
    check("grid", grid, [features.dtype])
    spatial = grid.shape[1:-1]
    output = features.new_empty((*features.shape[:2], *spatial))
    arguments = GridSampleArguments(
        features.data_ptr(),
        grid.data_ptr(),
        output.data_ptr(),
        ELEMENT_TYPES[features.dtype],
        len(spatial),
        *features.shape[:2],
        (c_int64 * 3)(*[1] * (3 - len(spatial)), *features.shape[2:]),
        (c_int64 * 3)(*[1] * (3 - len(spatial)), *spatial),
        INTERPOLATIONS[mode],
        PADDINGS[padding_mode],
        align_corners,
    )
    launch("grid_sample", arguments)
    return output
