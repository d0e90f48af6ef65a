"""mmcv's deformable convolution, in PyTorch: what the stand-in for mmcv's compiled operators runs.

Source: mmcv's ``deform_conv_cuda_kernel.cuh`` and ``modulated_deform_conv_cuda_kernel.cuh``.
"""

from typing import Optional

import torch
from torch import Tensor


def deform_conv2d(
    features: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Optional[Tensor] = None,
    *,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    deform_groups: int,
) -> Tensor:
    """Convolve samples taken beside the kernel's grid.

    Args:
        features: (B, C, H, W) float32.
        offset: (B, G * N * 2, h, w) float32, (y, x) in px of the features for each of the kernel's N taps; G groups of
            channels have their own.
        weight: (C', C / groups, kernel height, kernel width) float32.
        mask: (B, G * N, h, w) float32 factors of the samples, or None (version 1).
        stride, padding, dilation: (vertical, horizontal).
        groups: of the convolution.
        deform_groups: G.

    Returns:
        (B, C', h, w) float32. Outside the features a sample is zero, and bilinear next to the border.
    """
    num_images, channels, height, width = features.shape
    taps = weight.shape[2] * weight.shape[3]
    offset = offset.reshape(num_images * deform_groups, taps, 2, *offset.shape[2:])
    rows, columns = _grid(weight.shape[2:], offset.shape[3:], stride, padding, dilation, offset)
    samples = _bilinear(
        features.reshape(num_images * deform_groups, -1, height, width),
        offset[:, :, 0] + rows,
        offset[:, :, 1] + columns,
    )
    if mask is not None:
        samples = samples * mask.reshape(num_images * deform_groups, 1, taps, *offset.shape[3:])
    samples = samples.reshape(num_images, channels * taps, *offset.shape[3:])
    return torch.nn.functional.conv2d(samples, weight.reshape(len(weight), -1, 1, 1), groups=groups)


def _grid(
    kernel: tuple, size: tuple, stride: tuple, padding: tuple, dilation: tuple, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Return where the kernel's taps are without offsets: rows (N, h, 1) and columns (N, 1, w) in px."""
    axes = []
    for axis in (0, 1):
        tap = torch.arange(kernel[axis], device=like.device) * dilation[axis]
        start = torch.arange(size[axis], device=like.device) * stride[axis] - padding[axis]
        axes.append((tap[:, None] + start).to(like.dtype))
    rows = axes[0][:, None, :, None].expand(-1, kernel[1], -1, -1).flatten(0, 1)
    columns = axes[1][None, :, None, :].expand(kernel[0], -1, -1, -1).flatten(0, 1)
    return rows, columns


def _bilinear(features: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Return (B, C, N, h, w) samples of (B, C, H, W) at (B, N, h, w) positions; a pixel outside counts as zero."""
    height, width = features.shape[2:]
    flat = features.flatten(2)
    top, left = y.floor(), x.floor()
    total = 0.0
    for row, weight_y in ((top, 1 - (y - top)), (top + 1, y - top)):
        for column, weight_x in ((left, 1 - (x - left)), (left + 1, x - left)):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            index = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
            index = torch.where(inside, index, torch.zeros_like(index)).long().flatten(1)
            values = flat.gather(2, index[:, None].expand(-1, flat.shape[1], -1)).unflatten(2, y.shape[1:])
            total = total + values * (weight_y * weight_x * inside)[:, None]
    return total


def deform_conv_forward(
    input: Tensor,  # mmcv's names
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    *,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Write version 1 into ``output``; see ``deform_conv2d``. columns, ones, kW, kH and im2col_step are not read."""
    output.copy_(
        deform_conv2d(
            input,
            offset,
            weight,
            stride=(dH, dW),
            padding=(padH, padW),
            dilation=(dilationH, dilationW),
            groups=group,
            deform_groups=deformable_group,
        )
    )


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    *,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Write version 2 into ``output``; see ``deform_conv2d``. ones, columns, kernel_h and kernel_w are not read."""
    result = deform_conv2d(
        input,
        offset,
        weight,
        mask,
        stride=(stride_h, stride_w),
        padding=(pad_h, pad_w),
        dilation=(dilation_h, dilation_w),
        groups=group,
        deform_groups=deformable_group,
    )
    output.copy_(result + bias[:, None, None] if with_bias else result)
