"""The kernel of ``plugins/padded_space_to_depth`` on torch tensors."""

from ctypes import Structure, c_int, c_int64, c_void_p
from typing import Optional

import torch
from torch import Tensor

from tests.gpu.kernel_library import ELEMENT_TYPES, NCHW, NHWC8, check, launch


class PaddedSpaceToDepthArguments(Structure):
    _fields_ = [
        ("images", c_void_p),
        ("images_type", c_int),
        ("blocks", c_void_p),
        ("blocks_type", c_int),
        ("blocks_layout", c_int),
        ("batch", c_int64),
        ("channels", c_int64),
        ("height", c_int64),
        ("width", c_int64),
        ("top", c_int64),
        ("left", c_int64),
        ("bottom", c_int64),
        ("right", c_int64),
    ]


def padded_space_to_depth(
    images: Tensor, pads: tuple, *, dtype: torch.dtype, layout: int = NCHW, out: Optional[Tensor] = None
) -> Tensor:
    """Return blocks of 2 x 2 pixels of padded images; see ``padded_space_to_depth_kernel.h``.

    images: (B, C, H, W) float32 or float16. pads: top, left, bottom, right. dtype: of the blocks, float32 or float16.
    Returns (B, 4 * C, (top + H + bottom) / 2, (left + W + right) / 2) in ``layout`` (see ``to_layout``): the memory
    that ``blocks_shape`` is of, or ``out``, which has to be so large.
    """
    check("images", images, [torch.float32, torch.float16])
    blocks = out
    if blocks is None:
        blocks = torch.empty(blocks_shape(images.shape, pads, layout), dtype=dtype, device=images.device)
    check("blocks", blocks, [dtype])
    top, left, bottom, right = pads
    arguments = PaddedSpaceToDepthArguments(
        images.data_ptr(),
        ELEMENT_TYPES[images.dtype],
        blocks.data_ptr(),
        ELEMENT_TYPES[dtype],
        layout,
        *images.shape,
        top,
        left,
        bottom,
        right,
    )
    launch("padded_space_to_depth", arguments)
    return blocks


def blocks_shape(images: tuple, pads: tuple, layout: int) -> tuple:
    """Return the shape of the blocks' memory in a layout."""
    batch, channels, height, width = images
    top, left, bottom, right = pads
    rows, columns = (top + height + bottom) // 2, (left + width + right) // 2
    if layout == NCHW:
        return batch, 4 * channels, rows, columns
    return batch, rows, columns, (4 * channels + 7) // 8 * 8 if layout == NHWC8 else 4 * channels
