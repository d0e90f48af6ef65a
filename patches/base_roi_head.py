"""``BaseRoIHead``: the order of its branches, without data samples."""

from collections.abc import Sequence

from mmdet.models.roi_heads.base_roi_head import BaseRoIHead
from torch import Tensor

from patches.padded import Instances, Proposals
from patches.patch import Patch


def base_roi_head__predict(
    self: BaseRoIHead,
    x: Sequence[Tensor],
    rpn_results_list: Proposals,
    batch_data_samples: Tensor,
    rescale: bool = False,
) -> Instances:
    """Run the box branch, and the mask branch where there is one.

    Args:
        x: feature maps (B, C, H_l, W_l).
        rpn_results_list: the proposals.
        batch_data_samples: ``image_sizes`` (B, 2) float32, (height, width) in input px.
        rescale: False: results stay in input px.

    Returns:
        Instances.
    """
    image_sizes = batch_data_samples
    instances = self.predict_bbox(
        x, image_sizes, rpn_results_list, rcnn_test_cfg=self.test_cfg, rescale=rescale
    )
    if self.with_mask:
        instances = self.predict_mask(x, image_sizes, instances, rescale=rescale)
    return instances


PATCHES = (
    Patch(
        BaseRoIHead, "predict", base_roi_head__predict, "it reads each image's size from a Python dictionary"
    ),
)
