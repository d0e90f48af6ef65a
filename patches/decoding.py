"""``DecodeProposals`` and ``DecodeDetections``: the arithmetic before each NMS as one node of a traced graph.

Step by step it is dozens of small layers, on which TensorRT spends more time than on their arithmetic. The caller
computes the result in PyTorch; in a traced graph nothing reads its steps any more, and the exporter drops them.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from torch import Tensor

from patches.tracing import constant
from runtime.graphs.operators import DOMAIN

# Of the feature maps of DecodeProposals.
MAX_LEVELS = 8
# mmdet's default of ``decode``, which no head overrides.
_WH_RATIO_CLIP = 16 / 1000


def can_decode(coder: object) -> bool:
    """Return whether the operators have the coder's arithmetic: the plain one, whose centres may move anywhere."""
    return type(coder) is DeltaXYWHBBoxCoder and not coder.add_ctr_clamp


def _coder_attributes(coder: DeltaXYWHBBoxCoder) -> dict[str, Any]:
    return {
        "means_f": [float(mean) for mean in coder.means],
        "stds_f": [float(std) for std in coder.stds],
        "max_ratio_f": abs(math.log(_WH_RATIO_CLIP)),
        "clip_i": int(coder.clip_border),
    }


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, op: str, attributes: dict, num_rows: int, boxes: Tensor, scores: Tensor, *inputs: Tensor
    ) -> tuple[Tensor, Tensor]:
        return boxes.clone(), scores.clone()

    @staticmethod
    def symbolic(
        g: Any, op: str, attributes: dict, num_rows: int, boxes: Any, scores: Any, *inputs: Any
    ) -> tuple[Any, Any]:
        floats = inputs[-1].type()
        boxes, scores = g.op(f"{DOMAIN}::{op}", *inputs, **attributes, outputs=2)
        boxes.setType(floats.with_sizes([None, num_rows, 4]))
        scores.setType(floats.with_sizes([None, num_rows]))
        return boxes, scores


def decode_proposals(
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    priors: Sequence[Tensor],
    image_sizes: Tensor,
    *,
    computed: tuple[Tensor, Tensor],
    top: Sequence[int],
    coder: DeltaXYWHBBoxCoder,
    min_size: float,
    strides: Sequence[tuple[float, float]] = (),
) -> tuple[Tensor, Tensor]:
    """Decode the best anchors of every level (``DecodeProposals``).

    Args:
        logits: L maps (B, A, H_l, W_l) float32.
        deltas: L maps (B, A * 4, H_l, W_l) float32.
        priors: L anchors (H_l * W_l * A, 4) float32, [x1, y1, x2, y2] in input px; the A of a place are neighbours.
            With ``strides``, those of the first place alone, L times (A, 4).
        image_sizes: (B, 2) float32, (height, width) in input px.
        computed: the result, step by step in PyTorch.
        top: anchors kept of each level. A level that has fewer is padded.
        coder: see ``can_decode``.
        min_size: the score of a box whose width or height is not above it, px, is ``NO_CANDIDATE``.
        strides: (x, y) of each level, px from place to place: the operator moves the anchors itself. A graph of dynamic
            size has them computed nowhere else.

    Returns:
        boxes: (B, M, 4) float32, M the sum of ``top``: level after level, best first, ties by the anchor's index.
        scores: (B, M) float32, the sigmoid of the logits; ``NO_CANDIDATE`` in padding.
    """
    attributes = {"top_i": list(top), "min_size_f": float(min_size), **_coder_attributes(coder)}
    if strides:
        attributes["strides_f"] = [float(stride) for level in strides for stride in level]
    inputs = (*logits, *deltas, torch.cat(list(priors)), image_sizes)
    return _Decode.apply("DecodeProposals", attributes, sum(top), *computed, *inputs)


def decode_detections(
    logits: Tensor,
    deltas: Tensor,
    proposals: Tensor,
    count: Tensor,
    image_sizes: Tensor,
    *,
    computed: tuple[Tensor, Tensor],
    coder: DeltaXYWHBBoxCoder,
) -> tuple[Tensor, Tensor]:
    """Return every class's box and probability of every proposal (``DecodeDetections``).

    Args:
        logits: (B, P, classes + 1) float32, the background last.
        deltas: (B, P, classes * 4) or (B, P, 4) float32.
        proposals: (B, P, 4) float32, [x1, y1, x2, y2] in input px.
        count: (B,) int32; rows from there on are padding.
        image_sizes: (B, 2) float32, (height, width) in input px.
        computed: the result, step by step in PyTorch.
        coder: see ``can_decode``.

    Returns:
        boxes: (B, P * classes, 4) float32, by proposal, then by class.
        scores: (B, P * classes) float32, the softmax of the logits; ``NO_CANDIDATE`` in padding.
    """
    num_candidates = constant(logits.shape[1]) * (constant(logits.shape[2]) - 1)
    inputs = (logits, deltas, proposals, count, image_sizes)
    return _Decode.apply("DecodeDetections", _coder_attributes(coder), num_candidates, *computed, *inputs)
