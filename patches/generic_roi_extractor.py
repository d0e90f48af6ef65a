"""``GenericRoIExtractor`` (GRoIE): every RoI from every level, one operator per level."""

from collections.abc import Sequence
from typing import Optional

import torch
from mmdet.models.roi_heads.roi_extractors import GenericRoIExtractor
from torch import Tensor

from patches.operators import multi_level_roi_align
from patches.patch import Patch


def generic_roi_extractor__forward(
    self: GenericRoIExtractor, feats: Sequence[Tensor], rois: Tensor, roi_scale_factor: Optional[float] = None
) -> Tensor:
    """Return (R, C, h, w) RoI features: the sum, or the concatenation, over the levels.

    Args:
        feats: L feature maps (B, C, H_l, W_l); from a single one, as in mmdet, nothing is processed.
        rois: (R, 5) float32, [batch_index, x1, y1, x2, y2] in input px.
        roi_scale_factor: enlarges the RoIs, where there are several levels.
    """
    if len(feats) > 1 and roi_scale_factor is not None:
        rois = self.roi_rescale(rois, roi_scale_factor)
    aligned = [
        multi_level_roi_align(
            [feature],
            rois,
            output_size=tuple(layer.output_size),
            spatial_scales=[layer.spatial_scale],
            finest_scale=1.0,  # of a single level: not read
            sampling_ratio=layer.sampling_ratio,
            mode=layer.pool_mode,
            aligned=layer.aligned,
        )
        for feature, layer in zip(feats, self.roi_layers)
    ]
    if len(feats) == 1:
        return aligned[0]
    if self.with_pre:
        aligned = [self.pre_module(each) for each in aligned]
    joined = sum(aligned) if self.aggregation == "sum" else torch.cat(aligned, dim=1)
    return self.post_module(joined) if self.with_post else joined


PATCHES = (
    Patch(
        GenericRoIExtractor,
        "forward",
        generic_roi_extractor__forward,
        "it adds into a tensor of zeros in place, and returns early without RoIs",
    ),
)
