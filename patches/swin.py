"""Swin's windows: any batch, and no arithmetic on shapes where the size is fixed."""

from typing import Optional

import torch
import torch.nn.functional as F
from mmdet.models.backbones.swin import ShiftWindowMSA, WindowMSA
from torch import Tensor

from patches.patch import Patch
from patches.tracing import Size, constant, is_dynamic_size

# What mmdet adds to the logits of two pixels that the shift brought together.
APART = -100.0


def window_msa__forward(self: WindowMSA, x: Tensor, mask: Optional[Tensor] = None) -> Tensor:
    """Attend within windows.

    Args:
        x: (B * windows, N, C) float32, N pixels per window.
        mask: (windows, N, N) float32 to add to the logits.

    Returns:
        (B * windows, N, C).
    """
    num_pixels, channels = (constant(n) for n in x.shape[1:])
    qkv = self.qkv(x).reshape(-1, num_pixels, 3, self.num_heads, channels // self.num_heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    attention = (q * self.scale) @ k.transpose(-2, -1)
    bias = self.relative_position_bias_table[self.relative_position_index.view(-1)]
    bias = bias.view(num_pixels, num_pixels, -1).permute(2, 0, 1).contiguous()
    attention = attention + bias.unsqueeze(0)
    if mask is not None:
        num_windows = mask.shape[0] if is_dynamic_size() else constant(mask.shape[0])
        attention = attention.view(-1, num_windows, self.num_heads, num_pixels, num_pixels)
        attention = (attention + mask.unsqueeze(1).unsqueeze(0)).flatten(0, 1)
    attention = self.attn_drop(self.softmax(attention))
    x = (attention @ v).transpose(1, 2).reshape(-1, num_pixels, channels)
    return self.proj_drop(self.proj(x))


def _windows(x: Tensor, size: int, height: Size, width: Size) -> Tensor:
    """Return (B * windows, size, size, C) from (B, height, width, C)."""
    x = x.reshape(-1, height // size, size, width // size, size, constant(x.shape[-1]))
    return x.permute(0, 1, 3, 2, 4, 5).flatten(0, 2)


def _joined(windows: Tensor, height: Size, width: Size) -> Tensor:
    """Undo ``_windows``."""
    size, channels = (constant(n) for n in windows.shape[2:])
    x = windows.reshape(-1, height // size, width // size, size, size, channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, height, width, channels)


def _regions(length: Size, size: int, shift: int, device: torch.device) -> Tensor:
    """Return (length,) float32: 0, 1 and 2 for what the shift leaves together along an axis."""
    position = torch.arange(length, device=device)
    return (position >= length - size).float() + (position >= length - shift).float()


def _shift_mask(self: ShiftWindowMSA, height: Size, width: Size, device: torch.device) -> Tensor:
    """Return (windows, N, N) float32: ``APART`` between pixels that are no neighbours in the image."""
    rows, columns = (_regions(n, self.window_size, self.shift_size, device) for n in (height, width))
    regions = (rows[:, None] * 3 + columns)[None, :, :, None]
    regions = _windows(regions, self.window_size, height, width).flatten(1)
    return (regions[:, None, :] != regions[:, :, None]).float() * APART


def shift_window_msa__forward(self: ShiftWindowMSA, query: Tensor, hw_shape: tuple[Size, Size]) -> Tensor:
    """Attend within windows, shifted ones in every other block.

    Args:
        query: (B, H * W, C) float32.
        hw_shape: H, W.

    Returns:
        (B, H * W, C).
    """
    size, shift = self.window_size, self.shift_size
    height, width = hw_shape if is_dynamic_size() else (constant(n) for n in hw_shape)
    right, bottom = -width % size, -height % size
    is_padded = is_dynamic_size() or right > 0 or bottom > 0
    x = query.reshape(-1, height, width, constant(query.shape[-1]))
    if is_padded:
        x = F.pad(x, (0, 0, 0, right, 0, bottom))
    padded_height, padded_width = height + bottom, width + right
    if shift > 0:
        x = torch.roll(x, shifts=(-shift, -shift), dims=(1, 2))
    mask = _shift_mask(self, padded_height, padded_width, x.device) if shift > 0 else None
    windows = _windows(x, size, padded_height, padded_width)
    attended = self.w_msa(windows.flatten(1, 2), mask=mask).unflatten(1, (size, size))
    x = _joined(attended, padded_height, padded_width)
    if shift > 0:
        x = torch.roll(x, shifts=(shift, shift), dims=(1, 2))
    if is_padded:
        x = x[:, :height, :width]
    return self.drop(x.flatten(1, 2))


PATCHES = (
    Patch(WindowMSA, "forward", window_msa__forward, "it divides the batch of windows in Python"),
    Patch(
        ShiftWindowMSA, "forward", shift_window_msa__forward, "it computes the batch size as a Python integer"
    ),
)
