"""``BBoxHead`` and its conv-fc variants: every class's own box, NMS per class, K rows per image."""

from typing import Any, Optional

import torch
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from torch import Tensor

from patches.decoding import can_decode, decode_detections
from patches.operators import NO_CANDIDATE, grouped_nms
from patches.padded import Instances, Proposals, split_batch, take_rows
from patches.patch import Patch
from patches.tracing import constant


def _class_scores(self: BBoxHead, cls_score: Tensor) -> Tensor:
    """Return (..., classes) probabilities without the background."""
    if self.custom_cls_channels:  # Seesaw loss and its kind
        return split_batch(self.loss_cls.get_activation(cls_score.flatten(0, 1)), cls_score.shape[1])[
            ..., :-1
        ]
    return cls_score.softmax(-1)[..., :-1]


def _class_boxes(
    self: BBoxHead, proposals: Tensor, bbox_pred: Optional[Tensor], image_sizes: Tensor
) -> Tensor:
    """Return (B, P, classes, 4) boxes, clipped to each image; classes is 1 for class-agnostic regression."""
    sizes = image_sizes[:, None, None, :]
    boxes = proposals[:, :, None, :]
    if bbox_pred is None:
        limit = torch.cat([sizes.flip(-1), sizes.flip(-1)], dim=-1)
        return torch.minimum(boxes.clamp(min=0), limit)
    num_boxes = 1 if self.reg_class_agnostic else self.num_classes
    deltas = bbox_pred.unflatten(-1, (num_boxes, 4))
    return self.bbox_coder.decode(boxes, deltas, max_shape=sizes)


def _is_plain(self: BBoxHead, bbox_preds: Optional[Tensor]) -> bool:
    """Return whether ``DecodeDetections`` has this head's arithmetic."""
    return bbox_preds is not None and not self.custom_cls_channels and can_decode(self.bbox_coder)


def _decoded(
    self: BBoxHead, rois: Proposals, cls_scores: Tensor, bbox_preds: Optional[Tensor], image_sizes: Tensor
) -> tuple[Tensor, Tensor]:
    """Return boxes (B, P * classes, 4) and scores (B, P * classes) of every class of every proposal."""
    scores = _class_scores(self, cls_scores)
    boxes = _class_boxes(self, rois.boxes, bbox_preds, image_sizes)
    scores = torch.where(rois.valid[:, :, None], scores, scores.new_tensor(NO_CANDIDATE))
    return boxes.expand(-1, -1, constant(scores.shape[2]), -1).flatten(1, 2), scores.flatten(1)


def bbox_head__predict_by_feat(
    self: BBoxHead,
    rois: Proposals,
    cls_scores: Tensor,
    bbox_preds: Optional[Tensor],
    batch_img_metas: Tensor,
    rcnn_test_cfg: Any = None,
    rescale: bool = False,
) -> Instances:
    """Turn the box head's outputs into detections (mmdet's ``multiclass_nms`` for a batch).

    Args:
        rois: the proposals, P per image.
        cls_scores: (B, P, classes + 1) float32 logits.
        bbox_preds: (B, P, classes * 4) or (B, P, 4) float32 deltas, or None.
        batch_img_metas: ``image_sizes`` (B, 2) float32, (height, width) in input px.
        rcnn_test_cfg: test settings of the RoI head.
        rescale: False, as for every model with a mask head.

    Returns:
        Instances without masks, K = ``max_per_img``.
    """
    num_rows, num_classes = constant(cls_scores.shape[1]), self.num_classes
    boxes, scores = _decoded(self, rois, cls_scores, bbox_preds, batch_img_metas)
    if _is_plain(self, bbox_preds):
        boxes, scores = decode_detections(
            cls_scores,
            bbox_preds,
            rois.boxes,
            rois.count,
            batch_img_metas,
            computed=(boxes, scores),
            coder=self.bbox_coder,
        )
    labels = torch.arange(num_classes, dtype=torch.int32, device=scores.device).repeat(1, num_rows)
    nms = rcnn_test_cfg.nms
    indices, num_dets = grouped_nms(
        boxes,
        scores,
        torch.zeros_like(labels) if nms.get("class_agnostic", False) else labels,
        iou_threshold=nms.iou_threshold,
        score_threshold=rcnn_test_cfg.score_thr,
        max_output=rcnn_test_cfg.max_per_img,
    )
    # Candidates are ordered by RoI, then by class.
    kept = indices.remainder(num_classes)
    return Instances(
        num_dets=num_dets,
        boxes=take_rows(boxes, indices),
        scores=take_rows(scores, indices),
        labels=torch.where(indices >= 0, kept, kept.new_tensor(-1)),
    )


PATCHES = (
    Patch(
        BBoxHead,
        "predict_by_feat",
        bbox_head__predict_by_feat,
        "it loops over the images in Python, and its ONNX branch drops the score threshold",
    ),
)
