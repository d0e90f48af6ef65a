"""The kernel of ``plugins/paste_masks`` on torch tensors."""

from ctypes import Structure, c_float, c_int, c_int64, c_void_p

import torch
from torch import Tensor

from tests.gpu.kernel_library import ELEMENT_TYPES, check, launch


class PasteMasksArguments(Structure):
    _fields_ = [
        ("masks", c_void_p),
        ("mask_type", c_int),
        ("boxes", c_void_p),
        ("num_masks", c_int64),
        ("mask_height", c_int),
        ("mask_width", c_int),
        ("height", c_int),
        ("width", c_int),
        ("threshold", c_float),
        ("output", c_void_p),
        ("output_type", c_int),
    ]


def paste_masks(
    masks: Tensor,
    boxes: Tensor,
    size: tuple[int, int],
    *,
    threshold: float = 0.5,
    dtype: torch.dtype = torch.uint8,
) -> Tensor:
    """Paste masks into their boxes; see ``paste_masks_kernel.h``.

    masks: (B, K, h, w) float32 or float16. boxes: (B, K, 4) float32. Returns (B, K, *size) of 0 and 1.
    """
    check("masks", masks, [torch.float32, torch.float16])
    check("boxes", boxes, [torch.float32])
    output = torch.empty((*masks.shape[:2], *size), dtype=dtype, device=masks.device)
    arguments = PasteMasksArguments(
        masks.data_ptr(),
        ELEMENT_TYPES[masks.dtype],
        boxes.data_ptr(),
        masks.shape[0] * masks.shape[1],
        *masks.shape[2:],
        *size,
        threshold,
        output.data_ptr(),
        ELEMENT_TYPES[dtype],
    )
    launch("paste_masks", arguments)
    return output
