"""``LegacyDeltaXYWHBBoxCoder`` (mmdet 1.x): widths and limits count pixels, one more and one less than today's."""

import math
from collections.abc import Sequence
from typing import Optional, Union

import torch
from mmdet.models.task_modules.coders import LegacyDeltaXYWHBBoxCoder
from torch import Tensor

from patches.patch import Patch


def legacy_delta_xywh_bbox_coder__decode(
    self: LegacyDeltaXYWHBBoxCoder,
    bboxes: Tensor,
    pred_bboxes: Tensor,
    max_shape: Optional[Union[Tensor, Sequence[int]]] = None,
    wh_ratio_clip: float = 16 / 1000,
) -> Tensor:
    """Apply deltas to boxes (mmdet's ``legacy_delta2bbox``, operation for operation).

    Arguments and result as in ``DeltaXYWHBBoxCoder``'s, but boxes are clipped to the centre of the last pixel.
    """
    deltas = pred_bboxes * pred_bboxes.new_tensor(self.stds) + pred_bboxes.new_tensor(self.means)
    max_ratio = abs(math.log(wh_ratio_clip))
    center = (bboxes[..., :2] + bboxes[..., 2:]) * 0.5
    size = bboxes[..., 2:] - bboxes[..., :2] + 1.0
    half = size * deltas[..., 2:].clamp(min=-max_ratio, max=max_ratio).exp() * 0.5
    center = center + size * deltas[..., :2]
    boxes = torch.cat([center - half, center + half], dim=-1)
    if max_shape is None:
        return boxes
    if not isinstance(max_shape, Tensor):
        max_shape = boxes.new_tensor(max_shape[:2])
    limit = max_shape.flip(-1).to(boxes.dtype) - 1
    return torch.minimum(boxes.clamp(min=0), torch.cat([limit, limit], dim=-1))


PATCHES = (
    Patch(
        LegacyDeltaXYWHBBoxCoder,
        "decode",
        legacy_delta_xywh_bbox_coder__decode,
        "it repeats means and stds by the number of deltas and clips to one Python size",
    ),
)
