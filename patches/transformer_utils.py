"""Patch embedding and merging of mmdet's transformers: padding from shapes, merging without ``Unfold``."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmdet.models.layers.transformer.utils import AdaptivePadding, PatchMerging
from torch import Tensor

from patches.patch import Patch
from patches.tracing import Size, constant, is_dynamic_size, spatial_size


def _missing(size: Size, kernel: int, stride: int, dilation: int) -> Size:
    """Return by how much an axis must grow so that the filter covers all of it."""
    missing = ((size + stride - 1) // stride - 1) * stride + (kernel - 1) * dilation + 1 - size
    return missing.clamp(min=0) if isinstance(missing, Tensor) else max(missing, 0)


def adaptive_padding__forward(self: AdaptivePadding, x: Tensor) -> Tensor:
    """Return (B, C, H, W) padded with zeros, at the bottom and right or, for ``same``, all around."""
    bottom, right = (
        _missing(size, *each)
        for size, *each in zip(spatial_size(x), self.kernel_size, self.stride, self.dilation)
    )
    if not is_dynamic_size() and bottom == 0 and right == 0:
        return x
    if self.padding == "corner":
        return F.pad(x, (0, right, 0, bottom))
    return F.pad(x, (right // 2, right - right // 2, bottom // 2, bottom - bottom // 2))


def patch_merging__forward(
    self: PatchMerging, x: Tensor, input_size: Sequence[Size]
) -> tuple[Tensor, tuple[Size, Size]]:
    """Join neighbouring patches.

    Args:
        x: (B, H * W, C) float32.
        input_size: H, W.

    Returns:
        (B, h * w, C') and h, w.
    """
    height, width = input_size if is_dynamic_size() else (constant(n) for n in input_size)
    channels = constant(x.shape[-1])
    x = x.reshape(-1, height, width, channels).permute(0, 3, 1, 2)
    if self.adap_padding:
        x = self.adap_padding(x)
    height, width = spatial_size(x)
    rows, columns = self.sampler.kernel_size
    size = (height // rows, width // columns)
    # Unfold with a stride of the kernel's size only moves values; its channels are ordered C, row, column.
    x = x.reshape(-1, channels, size[0], rows, size[1], columns).permute(0, 2, 4, 1, 3, 5)
    x = x.reshape(-1, size[0] * size[1], channels * rows * columns)
    return self.reduction(self.norm(x) if self.norm else x), size


def merges_whole_patches(module: torch.nn.Module) -> bool:
    """Return whether ``patch_merging__forward`` covers a PatchMerging's sampler: no overlap, gap or padding."""
    sampler = module.sampler
    return sampler.kernel_size == sampler.stride and sampler.padding == (0, 0) and sampler.dilation == (1, 1)


ADAPTIVE_PADDING = (
    Patch(
        AdaptivePadding,
        "forward",
        adaptive_padding__forward,
        "it rounds sizes with math.ceil, which fixes them",
    ),
)
PATCH_MERGING = (
    Patch(
        PatchMerging,
        "forward",
        patch_merging__forward,
        "Unfold becomes gathers with indices computed from shapes",
    ),
)
