"""``SAConv2d`` (switchable atrous convolution): its deformable convolutions as our operator."""

from typing import Any

import mmcv.ops.saconv
from torch import Tensor

from patches.operators import deform_conv2d
from patches.patch import Patch


def saconv__deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    deform_groups: int,
) -> Tensor:
    """Return (B, C', h, w) from (B, C, H, W); see ``patches.operators.deform_conv2d``."""
    return deform_conv2d(
        input,
        offset,
        weight,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        deform_groups=deform_groups,
    )


def uses_deform_conv(module: Any) -> bool:
    """Return whether a module is a SAConv2d with deformable convolutions."""
    return isinstance(module, mmcv.ops.saconv.SAConv2d) and module.use_deform


PATCHES = (
    Patch(
        mmcv.ops.saconv,
        "deform_conv2d",
        saconv__deform_conv2d,
        "it becomes a node without a definition",
    ),
)
