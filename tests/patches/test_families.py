"""Mask R-CNN's relatives: the patched model computes eagerly what mmdet's original computes."""

import pytest
import torch
from torch import Tensor

from patches import applied, patches_for
from patches.bfp import adaptive_max_pool
from patches.padded import Instances
from tests.families import FAMILIES, family_model
from tests.models import structured_images
from tests.patches.test_mask_rcnn import IMAGE_SIZES, SIZE, assert_same_instances, samples


@pytest.fixture(scope="module", params=FAMILIES)
def model(request) -> torch.nn.Module:
    return family_model(request.param)


@pytest.fixture(scope="module")
def images() -> Tensor:
    batch = structured_images(3, SIZE, seed=1)
    for image, (height, width) in zip(batch, IMAGE_SIZES):
        image[:, height:] = 0
        image[:, :, width:] = 0
    return batch


def assert_same_masks(found: Instances, expected: list) -> None:
    """mmdet has pasted its masks: each is compared where the probability is clear, at the centre of its box."""
    for image, each in enumerate(expected):
        for row, (box, mask) in enumerate(zip(each.bboxes, each.masks)):
            y, x = (int(v) for v in ((box[1] + box[3]) / 2, (box[0] + box[2]) / 2))
            center = found.masks.shape[-1] // 2
            middle = found.masks[image, row, center - 1 : center + 1, center - 1 : center + 1]
            inside = 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1]
            if inside and (box[2:] - box[:2]).min() > 28 and ((middle > 0.7).all() or (middle < 0.3).all()):
                assert bool(mask[y, x]) == bool((middle > 0.5).all())


@pytest.mark.parametrize("batch", [[0], [0, 1], [2, 1, 0]])
def test_whole_model(model, batch, images):
    sizes = tuple(IMAGE_SIZES[i] for i in batch)
    with torch.no_grad():
        expected = [s.pred_instances for s in model.predict(images[batch], samples(sizes), rescale=False)]
    with applied(patches_for(model)), torch.no_grad():
        found = model.predict(images[batch], torch.tensor(sizes).float())
    assert_same_instances(found, expected)
    assert_same_masks(found, expected)
    assert sum(len(e) for e in expected) > 3 * len(batch)


def test_no_detections(model, images):
    cfg = model.roi_head.test_cfg
    threshold, cfg.score_thr = cfg.score_thr, 2.0
    try:
        with applied(patches_for(model)), torch.no_grad():
            found = model.predict(images, torch.tensor(IMAGE_SIZES).float())
    finally:
        cfg.score_thr = threshold
    assert found.num_dets.tolist() == [0, 0, 0]
    for values in (found.boxes, found.scores, found.masks):
        assert not values.any()


def test_every_owner_is_restored(model, images):
    patches = patches_for(model)
    before = {p: vars(p.owner).get(p.name) for p in patches}
    with applied(patches), torch.no_grad():
        model.predict(images[:1], torch.tensor(IMAGE_SIZES[:1]).float())
    assert {p: vars(p.owner).get(p.name) for p in patches} == before
    with pytest.raises(ZeroDivisionError), applied(patches):
        raise ZeroDivisionError
    assert {p: vars(p.owner).get(p.name) for p in patches} == before


@pytest.mark.parametrize(
    ("size", "pooled"), [((8, 12), (4, 6)), ((4, 6), (4, 6)), ((6, 10), (2, 3)), ((3, 7), (2, 4))]
)
def test_adaptive_max_pool(size, pooled):
    x = structured_images(2, size, seed=0)
    expected = torch.nn.functional.adaptive_max_pool2d(x, pooled)
    factor = max(-(-n // m) for n, m in zip(size, pooled))
    assert torch.equal(adaptive_max_pool(x, pooled, factor), expected)
