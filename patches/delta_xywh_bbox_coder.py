"""``DeltaXYWHBBoxCoder``: decode a batch at once and clip every box to its own image."""

import math
from collections.abc import Sequence
from typing import Optional, Union

import torch
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from torch import Tensor

from patches.patch import Patch


def _denormalize(deltas: Tensor, means: Sequence[float], stds: Sequence[float]) -> Tensor:
    if any(s != 1.0 for s in stds):
        deltas = deltas * deltas.new_tensor(stds)
    if any(m != 0.0 for m in means):
        deltas = deltas + deltas.new_tensor(means)
    return deltas


def _clip(boxes: Tensor, image_sizes: Tensor) -> Tensor:
    """Clip (..., 4) boxes to sizes (..., 2) = (height, width) that broadcast against them."""
    limit = image_sizes.flip(-1).to(boxes.dtype)
    return torch.minimum(boxes.clamp(min=0), torch.cat([limit, limit], dim=-1))


def delta_xywh_bbox_coder__decode(
    self: DeltaXYWHBBoxCoder,
    bboxes: Tensor,
    pred_bboxes: Tensor,
    max_shape: Optional[Union[Tensor, Sequence[int]]] = None,
    wh_ratio_clip: float = 16 / 1000,
) -> Tensor:
    """Apply deltas to boxes (R-CNN's box regression; mmdet's ``delta2bbox``, operation for operation).

    Args:
        bboxes: (..., 4) float32, [x1, y1, x2, y2] in input px.
        pred_bboxes: (..., 4) float32, [dx, dy, dw, dh]; broadcasts against ``bboxes``.
        max_shape: (height, width) of the image, or a tensor (..., 2) of each box's image.
        wh_ratio_clip: the largest change of width and height.

    Returns:
        Boxes, shaped as the two broadcast, clipped where the coder clips.
    """
    deltas = _denormalize(pred_bboxes, self.means, self.stds)
    center = (bboxes[..., :2] + bboxes[..., 2:]) * 0.5
    size = bboxes[..., 2:] - bboxes[..., :2]
    shift, scale = size * deltas[..., :2], deltas[..., 2:]
    max_ratio = abs(math.log(wh_ratio_clip))
    if self.add_ctr_clamp:
        shift = shift.clamp(min=-self.ctr_clamp, max=self.ctr_clamp)
        scale = scale.clamp(max=max_ratio)
    else:
        scale = scale.clamp(min=-max_ratio, max=max_ratio)
    center, half = center + shift, size * scale.exp() * 0.5
    boxes = torch.cat([center - half, center + half], dim=-1)
    if not self.clip_border or max_shape is None:
        return boxes
    if not isinstance(max_shape, Tensor):
        max_shape = boxes.new_tensor(max_shape[:2])
    return _clip(boxes, max_shape)


PATCHES = (
    Patch(
        DeltaXYWHBBoxCoder,
        "decode",
        delta_xywh_bbox_coder__decode,
        "it clips in place to one Python size, and its ONNX branch imports a module mmdet no longer has",
    ),
)
