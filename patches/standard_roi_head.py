"""``StandardRoIHead``: both of its branches for a batch of padded boxes."""

from collections.abc import Sequence
from typing import Any

from mmdet.models.roi_heads import StandardRoIHead
from torch import Tensor

from patches.padded import Instances, Proposals, rois_from_boxes, split_batch
from patches.patch import Patch


def standard_roi_head__predict_bbox(
    self: StandardRoIHead,
    x: Sequence[Tensor],
    batch_img_metas: Tensor,
    rpn_results_list: Proposals,
    rcnn_test_cfg: Any,
    rescale: bool = False,
) -> Instances:
    """Detect in the proposals.

    Args:
        x: feature maps (B, C, H_l, W_l).
        batch_img_metas: ``image_sizes`` (B, 2) float32, (height, width) in input px.
        rpn_results_list: the proposals.
        rcnn_test_cfg: test settings.
        rescale: False.

    Returns:
        Instances without masks.
    """
    proposals = rpn_results_list
    outputs = self._bbox_forward(x, rois_from_boxes(proposals.boxes))
    num_rows = proposals.boxes.shape[1]
    bbox_pred = outputs["bbox_pred"]
    return self.bbox_head.predict_by_feat(
        rois=proposals,
        cls_scores=split_batch(outputs["cls_score"], num_rows),
        bbox_preds=None if bbox_pred is None else split_batch(bbox_pred, num_rows),
        batch_img_metas=batch_img_metas,
        rcnn_test_cfg=rcnn_test_cfg,
        rescale=rescale,
    )


def standard_roi_head__predict_mask(
    self: StandardRoIHead,
    x: Sequence[Tensor],
    batch_img_metas: Tensor,
    results_list: Instances,
    rescale: bool = False,
) -> Instances:
    """Add masks (B, K, h, w) to the detections; arguments as in ``predict_bbox``."""
    outputs = self._mask_forward(x, rois_from_boxes(results_list.boxes))
    return self.mask_head.predict_by_feat(
        mask_preds=outputs["mask_preds"],
        results_list=results_list,
        batch_img_metas=batch_img_metas,
        rcnn_test_cfg=self.test_cfg,
        rescale=rescale,
    )


PATCHES = (
    Patch(
        StandardRoIHead,
        "predict_bbox",
        standard_roi_head__predict_bbox,
        "it splits the RoIs by each image's number of proposals and returns early without any",
    ),
)
MASK_PATCHES = (
    Patch(
        StandardRoIHead,
        "predict_mask",
        standard_roi_head__predict_mask,
        "it splits the masks by each image's number of detections and returns early without any",
    ),
)
