"""The last layers of two-stage detectors with random weights, scaled so that scores, deltas and masks vary."""

from typing import Optional

import torch
from mmdet.models.roi_heads import CascadeRoIHead
from torch import Tensor, nn

from patches.cascade_roi_head import stages

OBJECTNESS_BIAS = -4.0
MASK_BIAS = -1.0


def scale_rpn(head: nn.Module, features: tuple[Tensor, ...]) -> None:
    """Scale an RPN's last layers."""
    scores, deltas = head(features)
    _rescale(head, "rpn_cls", scores, 2.0)
    # Rounding errors of a delta grow with its anchor, half a thousand px: proposals stay close to the anchors.
    _rescale(head, "rpn_reg", deltas, 0.02)
    if isinstance(getattr(head, "rpn_cls", None), nn.Conv2d):
        # Objects are rare. And float32 tells probabilities near 0 apart, but has few of them near 1: scores would tie,
        # and which of two tied proposals mmdet keeps depends on the CPU, since it sorts without `stable`.
        head.rpn_cls.bias[:: head.cls_out_channels] = OBJECTNESS_BIAS


def scale_roi_head(head: nn.Module, features: tuple[Tensor, ...]) -> None:
    """Scale the last layers of a RoI head's box and mask branches."""
    extent = (
        torch.tensor([features[0].shape[3], features[0].shape[2]])
        * stages(head.bbox_roi_extractor)[0].featmap_strides[0]
    )
    centers, sizes = torch.rand(200, 2) * extent, torch.rand(200, 2) * 90 + 6
    rois = torch.cat([torch.zeros(200, 1), centers - sizes / 2, centers + sizes / 2], dim=1).to(features[0])
    # A cascade's masks are means. Of a stage that is sure and one that is as sure of the opposite it is the threshold.
    mask_spread = 4.0 if isinstance(head, CascadeRoIHead) else 16.0
    for stage, (bbox_head, mask_head) in enumerate(_branches(head)):
        arguments = (stage, features, rois) if isinstance(head, CascadeRoIHead) else (features, rois)
        outputs = head._bbox_forward(*arguments)
        _rescale(bbox_head, "fc_cls", [outputs["cls_score"]], 2.0)
        _rescale(bbox_head, "fc_reg", [outputs["bbox_pred"]], 0.4)
        if mask_head is not None:
            # A quarter of the RoIs: mask heads take longest, and every mask has hundreds of values.
            masks = head._mask_forward(*arguments[:-1], rois[::4])["mask_preds"]
            _rescale(mask_head, "conv_logits", [masks], mask_spread)
            if isinstance(getattr(mask_head, "conv_logits", None), nn.Conv2d):
                # Where no feature is active a probability would be the threshold itself.
                mask_head.conv_logits.bias.fill_(MASK_BIAS)


def _branches(head: nn.Module) -> list[tuple[nn.Module, Optional[nn.Module]]]:
    """Return each stage's box head and mask head."""
    bbox_heads = stages(head.bbox_head)
    return list(zip(bbox_heads, stages(head.mask_head) if head.with_mask else [None] * len(bbox_heads)))


def _rescale(head: nn.Module, name: str, outputs: list[Tensor], spread: float) -> None:
    """Scale a linear layer so that its outputs have the standard deviation ``spread``."""
    layer = getattr(head, name, None)
    if layer is None or not isinstance(getattr(layer, "weight", None), Tensor):
        return
    values = torch.cat([o.flatten() for o in outputs])
    layer.weight.mul_(spread / values.std().clamp(min=1e-6))
    if layer.bias is not None:
        layer.bias.mul_(0)
