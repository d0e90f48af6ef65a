"""Mask R-CNN's training losses for a batch of images of one size, computed for all images at once.

The same assignment, sampling and losses as `TwoStageDetector.loss` of mmdet, which works image by image and
keeps a fast GPU waiting for small kernels: 70 images a second on an H200 that way, 360 this way. Networks,
anchors, box coders and settings (`train_cfg`) are the model's own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from mmcv.ops import roi_align
from torch import Tensor, nn
from torch.nn import functional

_IGNORED, _NEGATIVE = -2, -1


@dataclass(frozen=True)
class Targets:
    """The objects of B images of one size, padded to G an image.

    boxes: (B, G, 4) float32 xyxy px. labels: (B, G) int64. valid: (B, G) bool.
    index: (B, H, W) uint8, 0 or 1 + the object's position in its image.
    """

    boxes: Tensor
    labels: Tensor
    valid: Tensor
    index: Tensor


@dataclass(frozen=True)
class Sample:
    """Candidates drawn for training. positives, negatives: (P, 2), (M, 2) int64 rows [image, candidate]."""

    positives: Tensor
    negatives: Tensor

    def __len__(self) -> int:
        return max(len(self.positives) + len(self.negatives), 1)


def losses(model: nn.Module, images: Tensor, targets: Targets) -> dict[str, Tensor]:
    """Compute the five losses of `model` (mmdet's MaskRCNN) on normalised `images` (B, 3, H, W).

    H and W are multiples of 32. Returns scalars under mmdet's names.
    """
    features = model.extract_feat(images)
    scores, deltas, anchors = _rpn_outputs(model.rpn_head, features)
    rpn = _rpn_losses(model, scores, deltas, anchors, targets)
    proposals, valid = _proposals(model, scores, deltas, anchors, images.shape[-2:])
    boxes = torch.cat((targets.boxes, proposals), 1)
    assigned = assign(boxes, targets, model.train_cfg.rcnn.assigner)
    assigned[~torch.cat((targets.valid, valid), 1)] = _IGNORED
    drawn = draw(assigned, model.train_cfg.rcnn.sampler)
    return rpn | _roi_losses(model.roi_head, features, boxes, assigned, drawn, targets)


def _rpn_outputs(
    head: nn.Module, features: tuple[Tensor, ...]
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Per level: logits (B, A), deltas (B, A, 4), anchors (A, 4)."""
    maps, deltas = head(features)
    sizes = [m.shape[-2:] for m in maps]
    anchors = head.prior_generator.grid_priors(sizes, device=features[0].device)
    scores = [m.permute(0, 2, 3, 1).flatten(1) for m in maps]
    return scores, [d.permute(0, 2, 3, 1).reshape(len(d), -1, 4) for d in deltas], anchors


def _rpn_losses(
    model: nn.Module, scores: list[Tensor], deltas: list[Tensor], anchors: list[Tensor], targets: Targets
) -> dict[str, Tensor]:
    logits, flat_deltas, flat_anchors = torch.cat(scores, 1), torch.cat(deltas, 1), torch.cat(anchors)
    with torch.no_grad():
        assigned = assign(flat_anchors[None], targets, model.train_cfg.rpn.assigner)
        drawn = draw(assigned, model.train_cfg.rpn.sampler)
        image, anchor = drawn.positives.T
        wanted = model.rpn_head.bbox_coder.encode(
            flat_anchors[anchor], targets.boxes[image, assigned[image, anchor]]
        )
    positive, negative = logits[image, anchor], logits[drawn.negatives[:, 0], drawn.negatives[:, 1]]
    loss_cls = (functional.softplus(-positive).sum() + functional.softplus(negative).sum()) / len(drawn)
    loss_bbox = (flat_deltas[image, anchor] - wanted).abs().sum() / len(drawn)
    return {"loss_rpn_cls": loss_cls, "loss_rpn_bbox": loss_bbox}


@torch.no_grad()
def _proposals(
    model: nn.Module, scores: list[Tensor], deltas: list[Tensor], anchors: list[Tensor], size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Proposals (B, P, 4) after per-level NMS, and which of them are real, (B, P) bool."""
    settings = model.train_cfg.rpn_proposal
    all_boxes, all_scores = [], []
    for score, delta, anchor in zip(scores, deltas, anchors):
        score, index = score.topk(min(settings.nms_pre, score.shape[1]))
        delta = delta.gather(1, index[..., None].expand(-1, -1, 4))
        decoded = model.rpn_head.bbox_coder.decode(
            anchor[index].flatten(0, 1), delta.flatten(0, 1), max_shape=size
        )
        boxes, padding = decoded.reshape(*index.shape, 4), settings.nms_pre - score.shape[1]
        real = (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])
        all_boxes.append(functional.pad(boxes, (0, 0, 0, padding)))
        all_scores.append(functional.pad(score.sigmoid().masked_fill(~real, -1), (0, padding), value=-1))
    boxes, score = torch.stack(all_boxes, 1).flatten(0, 1), torch.stack(all_scores, 1)
    score = score.masked_fill(
        ~greedy_nms(boxes, settings.nms.iou_threshold).unflatten(0, score.shape[:2]), -1
    )
    score, index = score.flatten(1).topk(settings.max_per_img)
    boxes = boxes.reshape(len(index), -1, 4).gather(1, index[..., None].expand(-1, -1, 4))
    return boxes, score >= 0


def greedy_nms(boxes: Tensor, iou_threshold: float) -> Tensor:
    """Greedy NMS of N sets of K boxes at once: which to keep, (N, K) bool, of `boxes` (N, K, 4), best first.

    A box is kept when no kept box before it overlaps it. Repeating that rule from "all kept" settles on the
    greedy answer: after n rounds the first n boxes are right, and in practice a few rounds suffice.
    """
    overlaps = (pairwise_iou(boxes, boxes) > iou_threshold).triu(1).to(boxes.dtype)
    keep = torch.ones_like(overlaps[:, :1])
    for _ in range(boxes.shape[1]):
        settled, keep = keep, (torch.bmm(keep, overlaps) == 0).to(boxes.dtype)
        if torch.equal(settled, keep):
            break
    return keep[:, 0] > 0


@torch.no_grad()
def assign(boxes: Tensor, targets: Targets, settings: dict) -> Tensor:
    """mmdet's MaxIoUAssigner: the object of every box, -1 for background, -2 for neither.

    boxes: (B, A, 4) or (1, A, 4), xyxy px. Returns (B, A) int64.
    """
    overlaps = pairwise_iou(targets.boxes, boxes).masked_fill(~targets.valid[..., None], -1)  # (B, G, A)
    best, assigned = overlaps.max(1)
    result = torch.full_like(assigned, _IGNORED)
    result[best < settings.neg_iou_thr] = _NEGATIVE
    positive = best >= settings.pos_iou_thr
    result[positive] = assigned[positive]
    if settings.match_low_quality:
        most = overlaps.amax(2, keepdim=True)
        chosen = (overlaps == most) & (most >= settings.min_pos_iou)
        number = torch.arange(overlaps.shape[1], device=boxes.device)[None, :, None]
        last = torch.where(chosen, number, _NEGATIVE).amax(
            1
        )  # mmdet: a later object overwrites an earlier one
        result = torch.where(last >= 0, last, result)
    return result


def pairwise_iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU (B, G, A) of boxes (B, G, 4) and (B or 1, A, 4), xyxy; 0 for empty boxes."""
    a, b = first[:, :, None], second[:, None]
    width = (torch.minimum(a[..., 2], b[..., 2]) - torch.maximum(a[..., 0], b[..., 0])).clamp_(min=0)
    height = (torch.minimum(a[..., 3], b[..., 3]) - torch.maximum(a[..., 1], b[..., 1])).clamp_(min=0)
    inter = width.mul_(height)
    area_a = (a[..., 2] - a[..., 0]) * (a[..., 3] - a[..., 1])
    area_b = (b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1])
    return inter / (area_a + area_b - inter).clamp_(min=1e-6)


@torch.no_grad()
def draw(assigned: Tensor, settings: dict) -> Sample:
    """mmdet's RandomSampler, for all images of `assigned` (B, A) at once."""
    most_positive = min(int(settings.num * settings.pos_fraction), assigned.shape[1])
    keys = torch.rand(assigned.shape, device=assigned.device) + 1
    positive = (keys * (assigned >= 0)).topk(most_positive)
    negative = (keys * (assigned == _NEGATIVE)).topk(min(settings.num, assigned.shape[1]))
    num_positive = (positive.values > 0).sum(1, keepdim=True)
    places = torch.arange(negative.values.shape[1], device=assigned.device)
    chosen = (negative.values > 0) & (places < settings.num - num_positive)
    return Sample(_rows(positive.indices, positive.values > 0), _rows(negative.indices, chosen))


def _rows(candidates: Tensor, chosen: Tensor) -> Tensor:
    image, place = chosen.nonzero(as_tuple=True)
    return torch.stack((image, candidates[image, place]), 1)


def _roi_losses(
    head: nn.Module,
    features: tuple[Tensor, ...],
    boxes: Tensor,
    assigned: Tensor,
    drawn: Sample,
    targets: Targets,
) -> dict[str, Tensor]:
    rows = torch.cat((drawn.positives, drawn.negatives))
    rois = torch.cat((rows[:, :1].to(boxes.dtype), boxes[rows[:, 0], rows[:, 1]]), 1)
    image, candidate = drawn.positives.T
    num, objects = len(image), assigned[image, candidate]
    labels = rois.new_full((len(rows),), head.bbox_head.num_classes, dtype=torch.long)
    labels[:num] = targets.labels[image, objects]
    out = head._bbox_forward(features, rois)
    wanted = head.bbox_head.bbox_coder.encode(rois[:num, 1:], targets.boxes[image, objects])
    predicted = out["bbox_pred"][:num].unflatten(1, (-1, 4))[
        torch.arange(num, device=rois.device), labels[:num]
    ]
    return {
        "loss_cls": functional.cross_entropy(out["cls_score"], labels),
        "loss_bbox": (predicted - wanted).abs().sum() / len(drawn),
        "loss_mask": _mask_loss(head, features, rois[:num], labels[:num], (image, objects), targets),
        "recall": (out["cls_score"][:num].argmax(1) == labels[:num]).float().mean(),
    }


def _mask_loss(
    head: nn.Module,
    features: tuple[Tensor, ...],
    rois: Tensor,
    labels: Tensor,
    owners: tuple[Tensor, Tensor],
    targets: Targets,
) -> Tensor:
    logits = head._mask_forward(features, rois)["mask_preds"]
    own = logits[torch.arange(len(rois), device=rois.device), labels]
    wanted = mask_targets(rois[:, 1:], owners, targets, own.shape[-1])
    return functional.binary_cross_entropy_with_logits(own, wanted)


@torch.no_grad()
def mask_targets(boxes: Tensor, owners: tuple[Tensor, Tensor], targets: Targets, size: int) -> Tensor:
    """Masks (P, size, size) float32 {0, 1} of the objects `owners` (image (P,), object (P,)) inside `boxes` (P, 4)."""
    image, number = targets.valid.nonzero(as_tuple=True)
    bitmaps = (targets.index[image] == (number + 1)[:, None, None]).to(boxes.dtype)[:, None]
    position = torch.zeros(targets.valid.shape, dtype=boxes.dtype, device=boxes.device)
    position[image, number] = torch.arange(len(image), device=boxes.device, dtype=boxes.dtype)
    rois = torch.cat((position[owners][:, None], boxes), 1)
    return (roi_align(bitmaps, rois, (size, size), 1.0, 0, "avg", True)[:, 0] >= 0.5).to(boxes.dtype)
