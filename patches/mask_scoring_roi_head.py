"""``MaskScoringRoIHead``: each score times the predicted IoU of its mask."""

from collections.abc import Sequence

import torch
from mmdet.models.roi_heads import MaskScoringRoIHead
from torch import Tensor

from patches.fcn_mask_head import own_class_logits, with_masks
from patches.padded import Instances, rois_from_boxes
from patches.patch import Patch


def mask_scoring_roi_head__predict_mask(
    self: MaskScoringRoIHead,
    x: Sequence[Tensor],
    batch_img_metas: Tensor,
    results_list: Instances,
    rescale: bool = False,
) -> Instances:
    """Add masks (B, K, h, w), and multiply the scores by their predicted IoU; arguments as in ``predict_bbox``.

    As in mmdet the rows stay in the order of the class scores.
    """
    labels = results_list.labels
    outputs = self._mask_forward(x, rois_from_boxes(results_list.boxes))
    logits = own_class_logits(self.mask_head, outputs["mask_preds"], labels)
    iou = self.mask_iou_head(outputs["mask_feats"], logits)
    iou = iou.gather(1, labels.long().clamp(min=0).reshape(-1, 1)).reshape(labels.shape)
    scores = torch.where(labels >= 0, results_list.scores * iou, iou.new_tensor(0))
    return with_masks(results_list._replace(scores=scores), logits.sigmoid())


MASK_PATCHES = (
    Patch(
        MaskScoringRoIHead,
        "predict_mask",
        mask_scoring_roi_head__predict_mask,
        "it picks each detection's channel with Python's range, and splits by each image's number of detections",
    ),
)
