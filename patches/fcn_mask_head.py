"""``FCNMaskHead``: the probabilities of each detection's own class; pasting is left to whoever knows the canvas."""

from typing import Any

import torch
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from torch import Tensor

from patches.operators import select_masks
from patches.padded import Instances
from patches.patch import Patch
from patches.tracing import constant


def own_class_logits(self: FCNMaskHead, mask_preds: Tensor, labels: Tensor) -> Tensor:
    """Return (B * K, h, w) logits of each detection's own class from (B * K, classes or 1, h, w).

    labels: (B, K) int32; a row of label -1 gets class 0's.
    """
    num_rows, num_classes = mask_preds.shape[:2]
    if self.class_agnostic:
        return mask_preds[:, 0]
    row = torch.arange(num_rows, device=mask_preds.device) * num_classes
    index = row + labels.flatten().long().clamp(min=0)
    return mask_preds.flatten(0, 1).index_select(0, index)


def with_masks(instances: Instances, masks: Tensor) -> Instances:
    """Return the instances with (B * K, h, w) probabilities, zeros past ``num_dets``."""
    labels = instances.labels
    height, width = masks.shape[-2:]
    masks = masks.reshape(-1, constant(labels.shape[1]), constant(height), constant(width))
    masks = torch.where((labels >= 0)[:, :, None, None], masks, masks.new_tensor(0))
    return instances._replace(masks=masks)


def fcn_mask_head__predict_by_feat(
    self: FCNMaskHead,
    mask_preds: Tensor,
    results_list: Instances,
    batch_img_metas: Tensor,
    rcnn_test_cfg: Any,
    rescale: bool = False,
    activate_map: bool = False,
) -> Instances:
    """Add masks to the detections.

    Args:
        mask_preds: (B * K, classes or 1, h, w) float32 logits.
        results_list: the detections, K per image.
        batch_img_metas: ``image_sizes`` (B, 2) float32; not read.
        rcnn_test_cfg, rescale, activate_map: not read.

    Returns:
        The instances with masks (B, K, h, w).
    """
    return results_list._replace(masks=select_masks(mask_preds, results_list.labels))


PATCHES = (
    Patch(
        FCNMaskHead,
        "predict_by_feat",
        fcn_mask_head__predict_by_feat,
        "it pastes masks one by one in Python onto a canvas whose size it takes from the metadata",
    ),
)
