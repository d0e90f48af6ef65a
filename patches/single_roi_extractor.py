"""``SingleRoIExtractor``: one operator instead of a loop over levels with data-dependent sizes."""

from collections.abc import Sequence
from typing import Optional

from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from torch import Tensor

from patches.operators import multi_level_roi_align
from patches.patch import Patch


def single_roi_extractor__forward(
    self: SingleRoIExtractor, feats: Sequence[Tensor], rois: Tensor, roi_scale_factor: Optional[float] = None
) -> Tensor:
    """Return (R, C, h, w) RoI features.

    Args:
        feats: L feature maps (B, C, H_l, W_l), finest first.
        rois: (R, 5) float32, [batch_index, x1, y1, x2, y2] in input px.
        roi_scale_factor: enlarges the RoIs that are sampled, not those that choose the level (Double-Head R-CNN).
    """
    finest_scale = self.finest_scale
    if roi_scale_factor is not None and len(feats) > 1:
        # The operator chooses levels from the RoIs it samples: the boundaries grow with them.
        rois, finest_scale = self.roi_rescale(rois, roi_scale_factor), finest_scale * roi_scale_factor
    layer = self.roi_layers[0]
    return multi_level_roi_align(
        feats,
        rois,
        output_size=tuple(layer.output_size),
        spatial_scales=[each.spatial_scale for each in self.roi_layers],
        finest_scale=finest_scale,
        sampling_ratio=layer.sampling_ratio,
        mode=layer.pool_mode,
        aligned=layer.aligned,
    )


PATCHES = (
    Patch(
        SingleRoIExtractor,
        "forward",
        single_roi_extractor__forward,
        "it gathers each level's RoIs with nonzero and assigns into a slice",
    ),
)
