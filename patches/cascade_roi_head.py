"""``CascadeRoIHead``: boxes refined stage by stage, scores and masks averaged, for a batch of padded boxes."""

from collections.abc import Sequence
from typing import Any, Optional

import torch
from mmdet.models.roi_heads import CascadeRoIHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from torch import Tensor, nn

from patches.fcn_mask_head import own_class_logits, with_masks
from patches.padded import Instances, Proposals, rois_from_boxes, split_batch
from patches.patch import Patch


def stages(part: nn.Module) -> list[nn.Module]:
    """Return the heads, or extractors, of a RoI head: one per stage of a cascade, and one of any other."""
    return list(part) if isinstance(part, nn.ModuleList) else [part]


def _refined(
    head: BBoxHead, proposals: Proposals, cls_score: Tensor, bbox_pred: Optional[Tensor], image_sizes: Tensor
) -> Proposals:
    """Return the proposals moved by a stage's deltas: those of the best class, or the only ones.

    Args:
        head: the stage's.
        proposals: P per image.
        cls_score: (B, P, channels) float32 logits.
        bbox_pred: (B, P, classes * 4) or (B, P, 4) float32.
        image_sizes: (B, 2) float32, (height, width) in input px.
    """
    if not head.reg_class_agnostic:
        if head.custom_activation:
            cls_score = head.loss_cls.get_activation(cls_score)
        best = cls_score[..., :-1].argmax(-1)[..., None, None].expand(-1, -1, 1, 4)
        bbox_pred = bbox_pred.unflatten(-1, (head.num_classes, 4)).gather(2, best).squeeze(2)
    boxes = head.bbox_coder.decode(proposals.boxes, bbox_pred, max_shape=image_sizes[:, None, :])
    return proposals._replace(boxes=boxes)


def cascade_roi_head__predict_bbox(
    self: CascadeRoIHead,
    x: Sequence[Tensor],
    batch_img_metas: Tensor,
    rpn_results_list: Proposals,
    rcnn_test_cfg: Any,
    rescale: bool = False,
) -> Instances:
    """Refine the proposals and detect in them; arguments and result as in ``StandardRoIHead``'s."""
    proposals = rpn_results_list
    num_rows = proposals.boxes.shape[1]
    scores = []
    for stage, head in enumerate(self.bbox_head):
        outputs = self._bbox_forward(stage, x, rois_from_boxes(proposals.boxes))
        bbox_pred = split_batch(outputs["bbox_pred"], num_rows)
        scores.append(split_batch(outputs["cls_score"], num_rows))
        if stage < self.num_stages - 1:
            proposals = _refined(head, proposals, scores[-1], bbox_pred, batch_img_metas)
    return self.bbox_head[-1].predict_by_feat(
        rois=proposals,
        cls_scores=sum(scores) / float(self.num_stages),
        bbox_preds=bbox_pred,
        batch_img_metas=batch_img_metas,
        rcnn_test_cfg=rcnn_test_cfg,
        rescale=rescale,
    )


def cascade_roi_head__predict_mask(
    self: CascadeRoIHead,
    x: Sequence[Tensor],
    batch_img_metas: Tensor,
    results_list: Instances,
    rescale: bool = False,
) -> Instances:
    """Add masks (B, K, h, w), the mean of the stages' probabilities; arguments as in ``predict_bbox``.

    Each stage's own class is chosen before the mean, not after it: the same numbers, a class's part of the work.
    """
    rois = rois_from_boxes(results_list.boxes)
    masks = []
    for stage, head in enumerate(self.mask_head):
        logits = self._mask_forward(stage, x, rois)["mask_preds"]
        masks.append(own_class_logits(head, logits, results_list.labels).sigmoid())
    return with_masks(results_list, torch.stack(masks).mean(dim=0))


PATCHES = (
    Patch(
        CascadeRoIHead,
        "predict_bbox",
        cascade_roi_head__predict_bbox,
        "between stages it splits the RoIs by each image's number of proposals",
    ),
)
MASK_PATCHES = (
    Patch(
        CascadeRoIHead,
        "predict_mask",
        cascade_roi_head__predict_mask,
        "it splits the masks by each image's number of detections and returns early without any",
    ),
)
