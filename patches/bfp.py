"""``BFP`` (Libra R-CNN): adaptive pooling between levels whose sizes need not divide each other."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmdet.models.necks import BFP
from torch import Tensor

from patches.patch import Patch
from patches.tracing import Size, is_dynamic_size, spatial_size


def _pooled_axis(x: Tensor, dim: int, length: Size, size: Size, factor: int) -> Tensor:
    """Max-pool one axis of ``length`` to ``size`` windows, which overlap where it does not divide: window i begins at
    ``floor(i * length / size)`` and ends before ``ceil((i + 1) * length / size)``.

    factor: no window is longer than this plus one.
    """
    i = torch.arange(size, device=x.device)
    start, end = i * length // size, ((i + 1) * length + size - 1) // size
    # Past its end a window repeats its last value.
    index = torch.minimum(start[:, None] + torch.arange(factor + 1, device=x.device), end[:, None] - 1)
    return x.index_select(dim, index.flatten()).unflatten(dim, (-1, factor + 1)).amax(dim + 1)


def adaptive_max_pool(x: Tensor, size: tuple[Size, Size], factor: int) -> Tensor:
    """Return (B, C, h, w) maxima of (B, C, H, W), PyTorch's ``adaptive_max_pool2d``.

    factor: H / h and W / w are at most this, as between levels that convolutions of stride 2 made.
    """
    height, width = spatial_size(x)
    if not is_dynamic_size() and height % size[0] == 0 and width % size[1] == 0:
        return F.max_pool2d(x, (height // size[0], width // size[1]))
    # The width is asked for before the rows are pooled: after that, the exporter takes the traced one for a constant.
    return _pooled_axis(_pooled_axis(x, 2, height, size[0], factor), 3, width, size[1], factor)


def bfp__forward(self: BFP, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return L maps (B, C, H_l, W_l): each plus the refined mean of all, resized to it."""
    sizes = [spatial_size(each) for each in inputs]
    middle = self.refine_level
    gathered = [
        adaptive_max_pool(each, sizes[middle], 2 ** (middle - level))
        if level < middle
        else F.interpolate(each, size=sizes[middle], mode="nearest")
        for level, each in enumerate(inputs)
    ]
    mean = sum(gathered) / len(gathered)
    if self.refine_type is not None:
        mean = self.refine(mean)
    scattered = (
        F.interpolate(mean, size=size, mode="nearest")
        if level < middle
        else adaptive_max_pool(mean, size, 2 ** (level - middle))
        for level, size in enumerate(sizes)
    )
    return tuple(each + original for each, original in zip(scattered, inputs))


PATCHES = (Patch(BFP, "forward", bfp__forward, "ONNX has no adaptive pooling to a size taken from a tensor"),)
