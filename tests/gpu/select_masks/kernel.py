"""The kernel of ``plugins/select_masks`` on torch tensors."""

from ctypes import Structure, c_int, c_int64, c_void_p

import torch
from torch import Tensor

from tests.gpu.kernel_library import ELEMENT_TYPES, NCHW, check, launch


class SelectMasksArguments(Structure):
    _fields_ = [
        ("logits", c_void_p),
        ("logits_type", c_int),
        ("logits_layout", c_int),
        ("labels", c_void_p),
        ("num_masks", c_int64),
        ("channels", c_int64),
        ("num_pixels", c_int64),
        ("masks", c_void_p),
    ]


def select_masks(logits: Tensor, labels: Tensor, *, channels: int, layout: int = NCHW) -> Tensor:
    """Return the probabilities of each detection's own mask; see ``select_masks_kernel.h``.

    logits: (B * K, channels, h, w) in ``layout`` (see ``to_layout``), float32 or float16. labels: (B, K) int32.
    Returns (B, K, h, w) float32.
    """
    check("logits", logits, [torch.float32, torch.float16])
    check("labels", labels, [torch.int32])
    size = logits.shape[2:] if layout == NCHW else logits.shape[1:3]
    masks = torch.empty((*labels.shape, *size), dtype=torch.float32, device=labels.device)
    arguments = SelectMasksArguments(
        logits.data_ptr(),
        ELEMENT_TYPES[logits.dtype],
        layout,
        labels.data_ptr(),
        labels.numel(),
        channels,
        size.numel(),
        masks.data_ptr(),
    )
    launch("select_masks", arguments)
    return masks
