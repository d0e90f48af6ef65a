"""``DeformConv2dPack`` and ``ModulatedDeformConv2dPack`` (DCN, DCNv2): one operator each."""

import torch
from mmcv.ops import DeformConv2dPack, ModulatedDeformConv2dPack
from torch import Tensor

from patches.operators import deform_conv2d
from patches.patch import Patch


def deform_conv2d_pack__forward(self: DeformConv2dPack, x: Tensor) -> Tensor:
    """Return (B, C', h, w) from (B, C, H, W)."""
    return deform_conv2d(
        x,
        self.conv_offset(x),
        self.weight,
        stride=self.stride,
        padding=self.padding,
        dilation=self.dilation,
        groups=self.groups,
        deform_groups=self.deform_groups,
    )


def modulated_deform_conv2d_pack__forward(self: ModulatedDeformConv2dPack, x: Tensor) -> Tensor:
    """Return (B, C', h, w) from (B, C, H, W)."""
    offset_y, offset_x, mask = self.conv_offset(x).chunk(3, dim=1)
    out = deform_conv2d(
        x,
        torch.cat([offset_y, offset_x], dim=1),
        self.weight,
        mask.sigmoid(),
        stride=self.stride,
        padding=self.padding,
        dilation=self.dilation,
        groups=self.groups,
        deform_groups=self.deform_groups,
    )
    return out if self.bias is None else out + self.bias[:, None, None]


VERSION_1 = (
    Patch(DeformConv2dPack, "forward", deform_conv2d_pack__forward, "it becomes a node without a definition"),
)
VERSION_2 = (
    Patch(
        ModulatedDeformConv2dPack,
        "forward",
        modulated_deform_conv2d_pack__forward,
        "it becomes a node without a definition",
    ),
)
