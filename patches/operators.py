"""The portable operators as PyTorch functions.

Called eagerly they compute what mmdet computes, with mmcv's own ops. Traced, each becomes one node of the ONNX
domain ``maskrcnn``, whose function body ``export.functions`` adds to the file.
"""

from collections.abc import Sequence
from typing import Any, Optional

import torch
from mmcv.ops import batched_nms, roi_align
from mmcv.ops.deform_conv import deform_conv2d as mmcv_deform_conv2d
from mmcv.ops.modulated_deform_conv import modulated_deform_conv2d as mmcv_modulated_deform_conv2d
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
from torch import Tensor

from patches.tracing import constant, is_dynamic_size, spatial_size
from runtime.graphs.operators import DOMAIN

# The largest k of ``SelectTop``: what the CUDA kernel sorts in shared memory.
MAX_TOP = 4096

# Scores of candidates that do not exist (padding, boxes dropped before NMS). Below every probability.
NO_CANDIDATE = -1.0


def roi_levels(rois: Tensor, *, num_levels: int, finest_scale: float) -> Tensor:
    """Return the FPN level of each RoI: ``floor(log2(sqrt(w h) / finest_scale))``, clamped (FPN, equation 1).

    Written with comparisons instead of a logarithm, so that every backend agrees at the boundaries.

    Args:
        rois: (R, 5) float32, [batch_index, x1, y1, x2, y2] in input px.
        num_levels: number of feature maps, at least 1.
        finest_scale: RoIs up to twice this size in px are on level 0.

    Returns:
        (R,) int64 in 0 ... num_levels - 1.
    """
    scale = torch.sqrt((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])) / finest_scale + 1e-6
    boundaries = [2.0**k for k in range(1, num_levels)]
    return sum(((scale >= b).long() for b in boundaries), torch.zeros_like(scale, dtype=torch.long))


class _MultiLevelRoiAlign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, settings: dict, rois: Tensor, *features: Tensor) -> Tensor:
        height, width = settings["output_size"]
        out = features[0].new_zeros(rois.shape[0], features[0].shape[1], height, width)
        levels = roi_levels(rois, num_levels=len(features), finest_scale=settings["finest_scale"])
        for level, (feature, scale) in enumerate(zip(features, settings["spatial_scales"])):
            index = (levels == level).nonzero().squeeze(1)
            if index.numel():
                out[index] = roi_align(
                    feature,
                    rois[index],
                    (height, width),
                    scale,
                    settings["sampling_ratio"],
                    settings["mode"],
                    settings["aligned"],
                )
        return out

    @staticmethod
    def symbolic(g: Any, settings: dict, rois: Any, *features: Any) -> Any:
        height, width = settings["output_size"]
        out = g.op(
            f"{DOMAIN}::MultiLevelRoiAlign",
            rois,
            *features,
            output_height_i=height,
            output_width_i=width,
            spatial_scales_f=list(settings["spatial_scales"]),
            finest_scale_f=float(settings["finest_scale"]),
            sampling_ratio_i=settings["sampling_ratio"],
            coordinate_transformation_mode_s="half_pixel" if settings["aligned"] else "output_half_pixel",
            mode_s=settings["mode"],
        )
        out.setType(rois.type().with_sizes([None, settings["channels"], height, width]))
        return out


def multi_level_roi_align(
    features: Sequence[Tensor],
    rois: Tensor,
    *,
    output_size: tuple[int, int],
    spatial_scales: Sequence[float],
    finest_scale: float,
    sampling_ratio: int = 0,
    mode: str = "avg",
    aligned: bool = True,
) -> Tensor:
    """RoIAlign each RoI from the one feature map that fits its size (``MultiLevelRoiAlign``).

    Args:
        features: L maps, (B, C, H_l, W_l) float32, finest first.
        rois: (R, 5) float32, [batch_index, x1, y1, x2, y2] in input px. R = 0 gives an empty result.
        output_size: bins (height, width).
        spatial_scales: L factors from input px to px of each map.
        finest_scale: see ``roi_levels``.
        sampling_ratio: samples per bin and axis; 0 means ``ceil(roi size / bins)``.
        mode: ``avg`` or ``max`` over the samples of a bin.
        aligned: shift by half a pixel (mmcv's ``aligned``, ONNX's ``half_pixel``).

    Returns:
        (R, C, height, width) float32.
    """
    settings = {
        "channels": constant(features[0].shape[1]),
        "output_size": output_size,
        "spatial_scales": spatial_scales,
        "finest_scale": finest_scale,
        "sampling_ratio": sampling_ratio,
        "mode": mode,
        "aligned": aligned,
    }
    return _MultiLevelRoiAlign.apply(settings, rois, *features)


class _GroupedNMS(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        boxes: Tensor,
        scores: Tensor,
        groups: Tensor,
        iou_threshold: float,
        score_threshold: float,
        max_output: int,
    ) -> tuple[Tensor, Tensor]:
        indices = torch.full((boxes.shape[0], max_output), -1, dtype=torch.int32, device=boxes.device)
        count = torch.zeros(boxes.shape[0], dtype=torch.int32, device=boxes.device)
        groups = groups.expand(scores.shape)
        for image in range(boxes.shape[0]):
            candidates = (scores[image] > score_threshold).nonzero().squeeze(1)
            if candidates.numel() == 0:
                continue
            nms_cfg = {"type": "nms", "iou_threshold": iou_threshold}
            _, keep = batched_nms(
                boxes[image][candidates], scores[image][candidates], groups[image][candidates], nms_cfg
            )
            kept = candidates[keep[:max_output]]
            indices[image, : len(kept)] = kept.int()
            count[image] = len(kept)
        return indices, count

    @staticmethod
    def symbolic(
        g: Any,
        boxes: Any,
        scores: Any,
        groups: Any,
        iou_threshold: float,
        score_threshold: float,
        max_output: int,
    ) -> Any:
        indices, count = g.op(
            f"{DOMAIN}::GroupedNMS",
            boxes,
            scores,
            groups,
            iou_threshold_f=iou_threshold,
            score_threshold_f=score_threshold,
            max_output_i=max_output,
            outputs=2,
        )
        integers = scores.type().with_dtype(torch.int32)
        indices.setType(integers.with_sizes([None, max_output]))
        count.setType(integers.with_sizes([None]))
        return indices, count


def grouped_nms(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    *,
    iou_threshold: float,
    score_threshold: float,
    max_output: int,
) -> tuple[Tensor, Tensor]:
    """Greedy NMS in which only boxes of the same group suppress each other (``GroupedNMS``).

    Args:
        boxes: (B, M, 4) float32, [x1, y1, x2, y2] in px.
        scores: (B, M) float32. A candidate's score is above ``score_threshold``; others, and NaN, are not there.
        groups: (B, M) or (1, M) int32 from 0: the FPN level, or the class.
        iou_threshold: a box is dropped where its IoU with a better one of its group is above this.
        score_threshold: see ``scores``.
        max_output: rows per image.

    Returns:
        indices: (B, max_output) int32 into M, by score downwards, ties by index; -1 past the count.
        count: (B,) int32. Without candidates it is 0.
    """
    return _GroupedNMS.apply(boxes, scores, groups, iou_threshold, score_threshold, max_output)


class _SelectTop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
        values, indices = scores.topk(k, dim=1)
        return values, indices.int()

    @staticmethod
    def symbolic(g: Any, scores: Any, k: int) -> Any:
        values, indices = g.op(f"{DOMAIN}::SelectTop", scores, k_i=k, outputs=2)
        values.setType(scores.type().with_sizes([None, k]))
        indices.setType(scores.type().with_dtype(torch.int32).with_sizes([None, k]))
        return values, indices


def select_top(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k best scores of each row (``SelectTop``).

    TensorRT's own TopK is slow on rows as long as RPN's finest level; README has the times.

    Args:
        scores: (B, N) float32, N at least k.
        k: 1 to ``MAX_TOP``.

    Returns:
        values: (B, k) float32, best first.
        indices: (B, k) int32 into N. Exported, ties go by index; ``torch.topk``, which is called eagerly, has no order
            of them. Nor do backends agree on NaN: the highest in PyTorch, the lowest in the plugin.
    """
    return _SelectTop.apply(scores, k)


class _SelectMasks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, shape: list) -> Tensor:
        num_classes, *size = logits.shape[1:]
        rows = torch.arange(logits.shape[0], device=logits.device)
        masks = logits[rows, labels.flatten().long().clamp(0, num_classes - 1)].sigmoid()
        masks = masks.reshape(*labels.shape, *size)
        return torch.where((labels >= 0)[:, :, None, None], masks, masks.new_tensor(0))

    @staticmethod
    def symbolic(g: Any, logits: Any, labels: Any, shape: list) -> Any:
        masks = g.op(f"{DOMAIN}::SelectMasks", logits, labels)
        masks.setType(logits.type().with_sizes([None, *shape]))
        return masks


def select_masks(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mask of each detection's own class as probabilities (``SelectMasks``).

    Args:
        logits: (B * K, classes, h, w) float32; the masks of all classes may be one.
        labels: (B, K) int32 from 0; -1 where there is no detection. Beyond the last class counts as the last.

    Returns:
        (B, K, h, w) float32, zeros where the label is -1.
    """
    return _SelectMasks.apply(logits, labels, [constant(n) for n in (labels.shape[1], *logits.shape[2:])])


class _PasteMasks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, masks: Tensor, boxes: Tensor, canvas: Tensor, threshold: float, size: list
    ) -> Tensor:
        height, width = canvas.shape[-2:]
        out = torch.zeros(*masks.shape[:2], height, width, dtype=torch.uint8, device=masks.device)
        for image in range(masks.shape[0]):
            for row in range(masks.shape[1]):
                mask, box = masks[image, row][None, None], boxes[image, row][None]
                pasted, (ys, xs) = _do_paste_mask(mask, box, height, width, skip_empty=True)
                out[image, row, ys, xs] = (pasted[0] >= threshold).to(torch.uint8)
        return out

    @staticmethod
    def symbolic(g: Any, masks: Any, boxes: Any, canvas: Any, threshold: float, size: list) -> Any:
        out = g.op(f"{DOMAIN}::PasteMasks", masks, boxes, canvas, threshold_f=threshold)
        out.setType(masks.type().with_dtype(torch.uint8).with_sizes([None, *size]))
        return out


def paste_masks(masks: Tensor, boxes: Tensor, canvas: Tensor, *, threshold: float) -> Tensor:
    """Paste each mask into its box on an empty canvas and threshold it (``PasteMasks``).

    Args:
        masks: (B, K, h, w) float32 probabilities.
        boxes: (B, K, 4) float32, [x1, y1, x2, y2] in px of the canvas.
        canvas: (B, C, H, W); only its height and width are read.
        threshold: a pixel is 1 where the bilinear sample of the mask is at or above this.

    Returns:
        (B, K, H, W) uint8 of 0 and 1. Source: mmdet's ``_do_paste_mask`` with ``skip_empty=True``.
    """
    canvas_size = [None, None] if is_dynamic_size() else spatial_size(canvas)
    return _PasteMasks.apply(masks, boxes, canvas, threshold, [constant(masks.shape[1]), *canvas_size])


class _DeformConv2d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, settings: dict, features: Tensor, offset: Tensor, weight: Tensor, *mask: Tensor
    ) -> Tensor:
        if torch.jit.is_tracing():
            # Only the shape matters, and the exporter fails on a function that consists of traced operations.
            return features.new_zeros(features.shape[0], weight.shape[0], *offset.shape[2:])
        arguments = [settings[key] for key in ("stride", "padding", "dilation", "groups", "deform_groups")]
        if mask:
            return mmcv_modulated_deform_conv2d(features, offset, *mask, weight, None, *arguments)
        return mmcv_deform_conv2d(features, offset, weight, *arguments)

    @staticmethod
    def symbolic(g: Any, settings: dict, features: Any, offset: Any, weight: Any, *mask: Any) -> Any:
        out = g.op(
            f"{DOMAIN}::DeformConv2d",
            features,
            offset,
            weight,
            *mask,
            stride_i=list(settings["stride"]),
            padding_i=list(settings["padding"]),
            dilation_i=list(settings["dilation"]),
            groups_i=settings["groups"],
            deform_groups_i=settings["deform_groups"],
        )
        out.setType(features.type().with_sizes([None, settings["channels"], *settings["size"]]))
        return out


def deform_conv2d(
    features: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Optional[Tensor] = None,
    *,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    deform_groups: int,
) -> Tensor:
    """Convolve samples taken beside the kernel's grid (``DeformConv2d``).

    Args:
        features: (B, C, H, W) float32.
        offset: (B, G * N * 2, h, w) float32, (y, x) in px of the features for each of the kernel's N taps; G groups of
            channels have their own.
        weight: (C', C / groups, kernel height, kernel width) float32.
        mask: (B, G * N, h, w) float32 factors of the samples (version 2), or None.
        stride, padding, dilation: (vertical, horizontal).
        groups: of the convolution.
        deform_groups: G.

    Returns:
        (B, C', h, w) float32.
    """
    settings = {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "deform_groups": deform_groups,
        "channels": constant(weight.shape[0]),
        "size": [None, None] if is_dynamic_size() else list(spatial_size(offset)),
    }
    return _DeformConv2d.apply(settings, features, offset, weight, *(() if mask is None else (mask,)))
