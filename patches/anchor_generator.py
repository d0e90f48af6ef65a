"""``AnchorGenerator``: anchors of a feature map whose size may be a traced tensor."""

import torch
from mmdet.models.task_modules.prior_generators import AnchorGenerator
from torch import Tensor

from patches.patch import Patch
from patches.tracing import Size


def anchor_generator__single_level_grid_priors(
    self: AnchorGenerator,
    featmap_size: tuple[Size, Size],
    level_idx: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device = "cuda",
) -> Tensor:
    """Return (H * W * A, 4) anchors of one level, [x1, y1, x2, y2] in input px, in mmdet's order."""
    height, width = featmap_size
    stride_x, stride_y = self.strides[level_idx]
    base = self.base_anchors[level_idx].to(device=device, dtype=dtype)
    x = torch.arange(width, device=device).to(dtype) * stride_x
    y = torch.arange(height, device=device).to(dtype) * stride_y
    # Broadcast instead of repeat and view: no shape computation in the graph.
    zero_x, zero_y = torch.zeros_like(x), torch.zeros_like(y)
    shift_x = x[None, :] + zero_y[:, None]
    shift_y = y[:, None] + zero_x[None, :]
    shifts = torch.stack([shift_x, shift_y, shift_x, shift_y], dim=-1)
    return (shifts[:, :, None, :] + base).reshape(-1, 4)


PATCHES = (
    Patch(
        AnchorGenerator,
        "single_level_grid_priors",
        anchor_generator__single_level_grid_priors,
        "its repeats bake the feature map's size in, and box types hide the tensor",
    ),
)
