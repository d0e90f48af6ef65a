"""Global average pooling by short sums; see ``patches.group_norm``."""

from typing import Optional, Union

import torch
import torch.nn.functional as F
from torch import Tensor

from patches.group_norm import short_mean
from patches.patch import Patch

_adaptive_avg_pool2d = F.adaptive_avg_pool2d


def functional__adaptive_avg_pool2d(
    input: Tensor, output_size: Union[int, None, tuple[Optional[int], Optional[int]]]
) -> Tensor:
    """Pool ``input``, (B, C, H, W) float32, to ``output_size``; traced to one value, by rows first and then columns."""
    if torch.jit.is_tracing() and output_size in (1, (1, 1), [1, 1]):
        return short_mean(input)
    return _adaptive_avg_pool2d(input, output_size)


PATCHES = (
    Patch(
        F,
        "adaptive_avg_pool2d",
        functional__adaptive_avg_pool2d,
        "GlobalAveragePool sums a whole map in float32, which is inexact where images are padded",
    ),
)
