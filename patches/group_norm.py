"""``GroupNorm`` by short sums: exported as it is, it is as exact as the backend's longest sum."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patches.patch import Patch
from patches.tracing import constant, spatial_size


def group_norm__forward(self: nn.GroupNorm, input: Tensor) -> Tensor:
    """Normalise each group of channels to mean 0 and variance 1.

    Traced, a mean is one over the rows and then one over what is left. A float32 sum over a whole group, as in
    InstanceNormalization or a single ReduceMean, loses up to 2e-5 of the result in onnxruntime where part of the map
    is padding: adding one constant very often rounds to the same side every time. Two short ones lose less than
    PyTorch's own.

    Args:
        input: (B, C, H, W) float32.

    Returns:
        Like ``input``.
    """
    if not torch.jit.is_tracing() or input.dim() != 4:
        return F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)
    height, width = spatial_size(input)
    channels = constant(input.shape[1])
    grouped = input.reshape(-1, self.num_groups, channels // self.num_groups * height, width)
    centered = grouped - short_mean(grouped)
    normal = centered / torch.sqrt(short_mean(centered * centered) + self.eps)
    normal = normal.reshape(-1, channels, height, width)
    return normal if self.weight is None else normal * self.weight[:, None, None] + self.bias[:, None, None]


def short_mean(x: Tensor) -> Tensor:
    """Return the mean of the last two axes, (..., 1, 1), the last one's first."""
    return x.mean(-1, keepdim=True).mean(-2, keepdim=True)


PATCHES = (
    Patch(
        nn.GroupNorm,
        "forward",
        group_norm__forward,
        "InstanceNormalization sums a whole group in float32, which is inexact where images are padded",
    ),
)
