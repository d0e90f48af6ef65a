"""The batched losses against mmdet's own, image by image."""

import patches  # isort: skip  # noqa: F401  makes mmdet importable without mmcv's compiled operators

import numpy as np
import pytest
import torch
from mmdet.models.task_modules.assigners import MaxIoUAssigner
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData

from examples.losses import Targets, assign, draw, greedy_nms, losses, pairwise_iou
from examples.shapes import index_from_masks, render
from examples.train import RenderedBatch, model_from_config, to_device

RTOL = 1e-4  # FP32 sums in another order
EVERYTHING = 10**6  # a sample of so many candidates holds them all: nothing is left to chance


def _scenes(num, side=160):
    return [render(np.random.default_rng((5, i)), side, side, size_range=(0.2, 0.5)) for i in range(num)]


def _batch(scenes):
    return RenderedBatch(
        images=torch.from_numpy(np.stack([scene.image for scene in scenes])),
        index=torch.from_numpy(np.stack([index_from_masks(scene.masks) for scene in scenes])),
        boxes=[torch.from_numpy(scene.boxes) for scene in scenes],
        labels=[torch.from_numpy(scene.labels) for scene in scenes],
    )


def _samples(scenes):
    samples = []
    for scene in scenes:
        size = scene.image.shape[:2]
        truth = InstanceData(bboxes=torch.from_numpy(scene.boxes), labels=torch.from_numpy(scene.labels))
        truth.masks = BitmapMasks(scene.masks, *size)
        meta = {"img_shape": size, "ori_shape": size, "batch_input_shape": size, "pad_shape": size}
        samples.append(DetDataSample(gt_instances=truth, metainfo=meta))
    return samples


def test_losses_equal_mmdets():
    scenes = _scenes(2)
    model = model_from_config()
    model.train_cfg.rpn.sampler.update(num=EVERYTHING)
    model.train_cfg.rcnn.sampler.update(num=EVERYTHING)
    for head in (model.rpn_head, model.roi_head.bbox_head):
        torch.nn.init.normal_(next(iter(head.parameters())), std=0.05)
    model.rpn_head.sampler.num = model.roi_head.bbox_sampler.num = EVERYTHING
    images, targets = to_device(_batch(scenes), "cpu")
    inputs = model.data_preprocessor({"inputs": images, "data_samples": None}, training=True)["inputs"]
    with torch.no_grad():
        expected = model.loss(inputs, _samples(scenes))
        found = losses(model, inputs, targets)
    for name in ("loss_cls", "loss_bbox", "loss_mask"):
        assert float(found[name]) == pytest.approx(float(expected[name]), rel=RTOL), name
    for name in ("loss_rpn_cls", "loss_rpn_bbox"):
        assert float(found[name]) == pytest.approx(float(sum(expected[name])), rel=RTOL), name


@pytest.mark.parametrize("low_quality", [False, True])
def test_assignment_equals_mmdets(low_quality):
    generator = torch.Generator().manual_seed(1)
    corner, size = (torch.rand(500, 2, generator=generator) * 60 for _ in range(2))
    boxes = torch.cat((corner, corner + size + 1), 1)
    settings = {"pos_iou_thr": 0.6, "neg_iou_thr": 0.3, "min_pos_iou": 0.3, "match_low_quality": low_quality}
    truth = boxes[:4] + 2
    labels = torch.zeros(4, dtype=torch.long)
    expected = MaxIoUAssigner(**settings).assign(
        InstanceData(priors=boxes), InstanceData(bboxes=truth, labels=labels)
    )
    padded = torch.cat((truth, boxes[:3]))[None]
    valid = torch.tensor([[True] * 4 + [False] * 3])
    targets = Targets(
        padded, padded.new_zeros((1, 7)).long(), valid, torch.zeros((1, 8, 8), dtype=torch.uint8)
    )
    found = assign(boxes[None], targets, _Settings(settings))
    # mmdet: -1 neither, 0 background, 1 + object; here: -2, -1, object
    assert torch.equal(found[0] + 1, expected.gt_inds)


class _Settings(dict):
    __getattr__ = dict.__getitem__


@pytest.mark.parametrize(
    ("assigned", "num", "positives", "negatives"),
    [
        ([[0, 1, -1, -1, -2, -1]], 4, 2, 2),
        ([[0, 0, 0, 0, 0, -1]], 4, 2, 1),
        ([[-1, -1, -2, -2, -2, -2]], 4, 0, 2),
        ([[-2] * 6], 4, 0, 0),
        ([[0, -1, -1, -1, -1, -1], [-1] * 6], 4, 1, 7),
    ],
)
def test_sample_sizes(assigned, num, positives, negatives):
    table = torch.tensor(assigned)
    drawn = draw(table, _Settings(num=num, pos_fraction=0.5))
    assert (len(drawn.positives), len(drawn.negatives)) == (positives, negatives)
    assert all(table[image, place] >= 0 for image, place in drawn.positives.tolist())
    assert all(table[image, place] == -1 for image, place in drawn.negatives.tolist())


def _greedy(boxes, threshold):
    kept = []
    for i in range(len(boxes)):
        overlaps = pairwise_iou(boxes[None, i : i + 1], boxes[None, kept])[0, 0]
        if not (overlaps > threshold).any():
            kept.append(i)
    return kept


@pytest.mark.parametrize(("count", "spread"), [(1, 50), (200, 20), (200, 100)])
def test_greedy_nms(count, spread):
    generator = torch.Generator().manual_seed(count + spread)
    corner, size = (
        torch.rand(2, count, 2, generator=generator) * spread,
        torch.rand(2, count, 2, generator=generator),
    )
    boxes = torch.cat((corner, corner + size * 20 + 10), 2)
    found = greedy_nms(boxes, 0.5)
    for i in range(2):
        assert found[i].nonzero()[:, 0].tolist() == _greedy(boxes[i], 0.5)
