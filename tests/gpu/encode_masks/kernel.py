"""The kernel of ``plugins/encode_masks`` on torch tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor

from runtime.device.kernels import (
    EncodeMasksArguments,
    TargetImage,
)
from tests.gpu.kernel_library import (
    check,
    launch,
)


def encode_masks(
    masks: Tensor,
    dets: Tensor,
    num_dets: Tensor,
    *,
    sizes: "Sequence[tuple[int, int]]",
    scales: "Sequence[tuple[float, float]]",
    capacity: int,
    threshold: float = 0.5,
    min_score: float = float("-inf"),
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Paste masks and encode them as COCO's compressed counts; see ``encode_masks_kernel.h``.

    masks: (B, K, h, w) float32. dets: (B, K, 5) float32. num_dets: (B,) int32. sizes: each target image's (height,
    width). scales: each one's network px per px, (x, y). Returns strings (capacity,) uint8, offsets (B, K) int64 into
    them, lengths (B, K) int32 and used (1,) int64.
    """
    check("masks", masks, [torch.float32])
    check("dets", dets, [torch.float32])
    check("num_dets", num_dets, [torch.int32])
    images = (TargetImage * len(sizes))(*(TargetImage(*size, *scale) for size, scale in zip(sizes, scales)))
    strings = masks.new_empty((capacity,), dtype=torch.uint8)
    offsets = masks.new_empty(dets.shape[:2], dtype=torch.int64)
    lengths = masks.new_empty(dets.shape[:2], dtype=torch.int32)
    used = masks.new_empty((1,), dtype=torch.int64)
    arguments = EncodeMasksArguments(
        images,
        *dets.shape[:2],
        masks.data_ptr(),
        dets.data_ptr(),
        num_dets.data_ptr(),
        *masks.shape[2:],
        threshold,
        min_score,
        strings.data_ptr(),
        capacity,
        offsets.data_ptr(),
        lengths.data_ptr(),
        used.data_ptr(),
    )
    launch("encode_masks", arguments)
    return strings, offsets, lengths, used
