"""``RPNHead``: proposals of the whole batch, NMS per level before the cut, fixed size."""

from typing import Any, Optional

import torch
import torch.nn.functional as F
from mmdet.models.dense_heads import RPNHead
from mmdet.models.task_modules.prior_generators import AnchorGenerator
from torch import Tensor

from patches.decoding import MAX_LEVELS, can_decode, decode_proposals
from patches.operators import MAX_TOP, NO_CANDIDATE, grouped_nms, select_top
from patches.padded import Proposals, take_rows
from patches.patch import Patch
from patches.tracing import constant, is_dynamic_size, spatial_size

# Every probability is above it, ``NO_CANDIDATE`` is not: mmdet's RPN has no score threshold.
ANY_SCORE = -0.5


def _scores(self: RPNHead, cls_score: Tensor) -> Tensor:
    """Return (B, H * W * A) objectness from (B, A * classes, H, W) logits, anchors fastest."""
    logits = cls_score.permute(0, 2, 3, 1)
    if self.use_sigmoid_cls:
        return logits.flatten(1).sigmoid()
    logits = logits.reshape(logits.shape[0], -1, self.cls_out_channels)
    return logits.softmax(-1)[..., 0]


def _top(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k best scores of each row and their int64 indices."""
    if k > MAX_TOP:
        # Beyond the plugin, which a SelectTop node would oblige TensorRT to take.
        return scores.topk(k, dim=1)
    values, index = select_top(scores, k)
    return values, index.long()


def _select_top(
    scores: Tensor, deltas: Tensor, priors: Tensor, nms_pre: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Keep the ``nms_pre`` best of a level per image.

    With a dynamic size nobody knows whether the level has so many: padding makes the result's size constant,
    and neither ``SelectTop`` nor TensorRT's TopK takes a k computed in the graph. Without ``nms_pre`` (0 or less) all
    go on, and their number is the graph's.
    """
    num_priors = scores.shape[1]
    if nms_pre > 0 and is_dynamic_size():
        padded = F.pad(scores, (0, nms_pre), value=NO_CANDIDATE)
        scores, index = _top(padded, nms_pre)
        index = torch.minimum(index, torch.as_tensor(num_priors - 1, device=index.device))
    elif 0 < nms_pre < constant(num_priors):
        scores, index = _top(scores, nms_pre)
    else:
        return scores, deltas, priors.expand(deltas.shape[0], -1, 4)
    return scores, take_rows(deltas, index), priors[index]


def rpn_head__predict_by_feat(
    self: RPNHead,
    cls_scores: list[Tensor],
    bbox_preds: list[Tensor],
    score_factors: Optional[list[Tensor]] = None,
    batch_img_metas: Optional[Tensor] = None,
    cfg: Any = None,
    rescale: bool = False,
    with_nms: bool = True,
) -> Proposals:
    """Turn RPN's outputs into proposals.

    Args:
        cls_scores: L logits (B, A, H_l, W_l) float32.
        bbox_preds: L deltas (B, A * 4, H_l, W_l) float32.
        score_factors: not used, as in mmdet.
        batch_img_metas: ``image_sizes`` (B, 2) float32, (height, width) in input px.
        cfg: test settings, the head's own by default.
        rescale, with_nms: as mmdet calls it for a two-stage detector: False, True.

    Returns:
        Proposals, P = ``max_per_img`` (fewer where the image has fewer anchors).
    """
    cfg = cfg or self.test_cfg
    priors = self.prior_generator.grid_priors(
        [spatial_size(s) for s in cls_scores], dtype=cls_scores[0].dtype, device=cls_scores[0].device
    )
    min_size, nms_pre = cfg.get("min_bbox_size", -1), cfg.get("nms_pre", -1)
    if nms_pre <= 0 and is_dynamic_size():
        boxes, scores = _decoded(self, cls_scores, bbox_preds, priors, batch_img_metas, nms_pre, min_size)
        return _nms(cfg, boxes, scores, _groups_of(priors))
    boxes, scores = _decoded(self, cls_scores, bbox_preds, priors, batch_img_metas, nms_pre, min_size)
    top = _top_of_levels(self, cls_scores, nms_pre)
    if _is_plain(self, top):
        moved = is_dynamic_size() and _moves_base_anchors(self.prior_generator)
        boxes, scores = decode_proposals(
            cls_scores,
            bbox_preds,
            _base_anchors(self, cls_scores[0]) if moved else priors,
            batch_img_metas,
            computed=(boxes, scores),
            top=top,
            coder=self.bbox_coder,
            min_size=min_size,
            strides=self.prior_generator.strides if moved else (),
        )
    groups = torch.arange(len(top), dtype=torch.int32).repeat_interleave(torch.tensor(top))
    return _nms(cfg, boxes, scores, groups[None].to(boxes.device))


def _groups_of(priors: list[Tensor]) -> Tensor:
    """Return (1, M) int32, the level of each prior, where the number of priors is a tensor."""
    levels = [torch.zeros_like(prior[:, 0], dtype=torch.int32) + level for level, prior in enumerate(priors)]
    return torch.cat(levels)[None]


def _top_of_levels(self: RPNHead, cls_scores: list[Tensor], nms_pre: int) -> list[int]:
    """Return how many anchors of each level go on to NMS."""
    if is_dynamic_size():
        return [nms_pre] * len(cls_scores)
    anchors = [constant(scores[0].numel()) // self.cls_out_channels for scores in cls_scores]
    return [min(nms_pre, num) if nms_pre > 0 else num for num in anchors]


def _is_plain(self: RPNHead, top: list[int]) -> bool:
    """Return whether ``DecodeProposals`` has this head's arithmetic, and its plugin these sizes."""
    fits = len(top) <= MAX_LEVELS and all(1 <= k <= MAX_TOP for k in top)
    return self.use_sigmoid_cls and self.cls_out_channels == 1 and can_decode(self.bbox_coder) and fits


def _moves_base_anchors(generator: object) -> bool:
    """Return whether a place's anchors are those of the first, moved: a subclass may say otherwise."""
    own = getattr(type(generator), "single_level_grid_priors", None)
    return own is AnchorGenerator.single_level_grid_priors


def _base_anchors(self: RPNHead, like: Tensor) -> list[Tensor]:
    """Return L times (A, 4), the anchors of each level's first place."""
    return [base.to(device=like.device, dtype=like.dtype) for base in self.prior_generator.base_anchors]


def _decoded(
    self: RPNHead,
    cls_scores: list[Tensor],
    bbox_preds: list[Tensor],
    priors: list[Tensor],
    image_sizes: Tensor,
    nms_pre: int,
    min_size: float,
) -> tuple[Tensor, Tensor]:
    """Return the boxes (B, M, 4) and scores (B, M) of the best anchors, level after level."""
    levels = []
    for cls_score, bbox_pred, prior in zip(cls_scores, bbox_preds, priors):
        deltas = bbox_pred.permute(0, 2, 3, 1).reshape(bbox_pred.shape[0], -1, 4)
        levels.append(_select_top(_scores(self, cls_score), deltas, prior, nms_pre))
    scores, deltas, priors = (torch.cat(parts, dim=1) for parts in zip(*levels))
    boxes = self.bbox_coder.decode(priors, deltas, max_shape=image_sizes[:, None, :])
    if min_size >= 0:
        width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
        large_enough = (width > min_size) & (height > min_size)
        scores = torch.where(large_enough, scores, scores.new_tensor(NO_CANDIDATE))
    return boxes, scores


def _nms(cfg: Any, boxes: Tensor, scores: Tensor, groups: Tensor) -> Proposals:
    max_output = cfg.max_per_img
    if not is_dynamic_size():
        max_output = min(max_output, constant(scores.shape[1]))
    indices, count = grouped_nms(
        boxes,
        scores,
        torch.zeros_like(groups) if cfg.nms.get("class_agnostic", False) else groups,
        iou_threshold=cfg.nms.iou_threshold,
        score_threshold=ANY_SCORE,
        max_output=max_output,
    )
    return Proposals(take_rows(boxes, indices), count)


PATCHES = (
    Patch(
        RPNHead,
        "predict_by_feat",
        rpn_head__predict_by_feat,
        "it loops over the images in Python and returns as many proposals as each happens to have",
    ),
)
