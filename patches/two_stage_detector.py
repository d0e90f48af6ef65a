"""``TwoStageDetector``: from images and their sizes to instances."""

from mmdet.models.detectors import TwoStageDetector
from torch import Tensor

from patches.padded import Instances
from patches.patch import Patch


def two_stage_detector__predict(
    self: TwoStageDetector, batch_inputs: Tensor, batch_data_samples: Tensor, rescale: bool = False
) -> Instances:
    """Detect in a batch.

    Args:
        batch_inputs: (B, 3, H, W) float32, normalised and padded bottom and right.
        batch_data_samples: ``image_sizes`` (B, 2) float32, each image's (height, width) inside its padding in px.
        rescale: False: results stay in input px.

    Returns:
        Instances.
    """
    image_sizes = batch_data_samples
    x = self.extract_feat(batch_inputs)
    proposals = self.rpn_head.predict_by_feat(*self.rpn_head(x), batch_img_metas=image_sizes)
    return self.roi_head.predict(x, proposals, image_sizes, rescale=rescale)


PATCHES = (
    Patch(
        TwoStageDetector,
        "predict",
        two_stage_detector__predict,
        "it takes image sizes from data samples and writes results back into them",
    ),
)
