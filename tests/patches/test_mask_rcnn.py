"""Each patched method, and the whole patched model, computes eagerly what mmdet's original computes."""

import copy

import pytest
import torch
from mmdet.structures import DetDataSample
from torch import Tensor

from export.model import model_from_config
from patches import applied, patches_for
from patches.families import UnsupportedModelError, check_supported
from patches.operators import select_top
from patches.padded import Instances, Proposals, rois_from_boxes, take_rows
from tests.models import NUM_CLASSES, structured_images, tiny_config, tiny_model

SIZE = (128, 192)
IMAGE_SIZES = ((128, 192), (100, 150), (128, 96))

# px. Batching changes the order of sums inside convolutions, nothing else.
BATCH_ATOL = 1e-3
# torch's vectorised sigmoid and its remainder loop differ in the last bit.
SIGMOID_ATOL = 1e-6


def metas(sizes: tuple) -> list[dict]:
    """Return mmdet's metadata for images of these sizes, unscaled."""
    return [
        {
            "img_shape": s,
            "ori_shape": s,
            "scale_factor": (1.0, 1.0),
            "batch_input_shape": SIZE,
            "pad_shape": SIZE,
        }
        for s in sizes
    ]


def samples(sizes: tuple) -> list[DetDataSample]:
    """Return the data samples mmdet's predict takes."""
    return [DetDataSample(metainfo=meta) for meta in metas(sizes)]


def run_patched(model: torch.nn.Module, function, *args, **kwargs):
    """Call a function, which runs a part of the model, while the whole model's patches are applied."""
    with applied(patches_for(model)) as calls, torch.no_grad():
        result = function(*args, **kwargs)
        assert any(calls.values())
        # Those of the other parts have nothing to do here.
        calls.update({patch: max(count, 1) for patch, count in calls.items()})
    return result


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return tiny_model()


@pytest.fixture(scope="module")
def images() -> Tensor:
    batch = structured_images(3, SIZE, seed=1)
    for image, (height, width) in zip(batch, IMAGE_SIZES):
        image[:, height:] = 0
        image[:, :, width:] = 0
    return batch


@pytest.fixture(scope="module")
def features(model, images) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return model.extract_feat(images)


@pytest.fixture(scope="module")
def proposals(model, features) -> list:
    with torch.no_grad():
        return model.rpn_head.predict_by_feat(*model.rpn_head(features), batch_img_metas=metas(IMAGE_SIZES))


@pytest.fixture(scope="module")
def padded_proposals(proposals) -> Proposals:
    """Return mmdet's own proposals, padded by this test."""
    boxes = torch.zeros(3, 100, 4)
    for i, found in enumerate(proposals):
        boxes[i, : len(found)] = found.bboxes
    return Proposals(boxes, torch.tensor([len(found) for found in proposals], dtype=torch.int32))


def assert_same_instances(found: Instances, expected: list) -> None:
    for i, each in enumerate(expected):
        count = int(found.num_dets[i])
        assert count == len(each)
        torch.testing.assert_close(found.boxes[i, :count], each.bboxes, rtol=0, atol=0)
        torch.testing.assert_close(found.scores[i, :count], each.scores, rtol=0, atol=0)
        assert torch.equal(found.labels[i, :count].long(), each.labels)
        assert not found.boxes[i, count:].any()
        assert not found.scores[i, count:].any()
        assert (found.labels[i, count:] == -1).all()


@pytest.mark.parametrize("feature_size", [(1, 1), (3, 5), (8, 2)])
def test_anchor_generator(model, feature_size):
    generator = model.rpn_head.prior_generator
    expected = generator.single_level_grid_priors(feature_size, level_idx=2, device="cpu")
    found = run_patched(
        model, lambda: generator.single_level_grid_priors(feature_size, level_idx=2, device="cpu")
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("part", ["rpn_head", "roi_head.bbox_head"])
def test_delta_xywh_bbox_coder(model, part):
    coder = model.get_submodule(part).bbox_coder
    torch.manual_seed(0)
    boxes = torch.rand(2, 50, 4) * 100
    boxes[..., 2:] += boxes[..., :2]
    deltas = torch.randn(2, 50, 4) * 3
    shapes = [(120, 180), (77, 90)]
    expected = [coder.decode(b, d, max_shape=s) for b, d, s in zip(boxes, deltas, shapes)]
    found = run_patched(
        model, lambda: coder.decode(boxes, deltas, max_shape=torch.tensor(shapes).float()[:, None])
    )
    assert torch.equal(found, torch.stack(expected))
    single = run_patched(model, lambda: coder.decode(boxes[0], deltas[0], max_shape=shapes[0]))
    assert torch.equal(single, expected[0])


def test_rpn_head(model, features, proposals):
    outputs = model.rpn_head(features)
    found = run_patched(
        model,
        lambda: model.rpn_head.predict_by_feat(*outputs, batch_img_metas=torch.tensor(IMAGE_SIZES).float()),
    )
    for i, expected in enumerate(proposals):
        assert int(found.count[i]) == len(expected)
        assert torch.equal(found.boxes[i, : len(expected)], expected.bboxes)
        assert not found.boxes[i, len(expected) :].any()
    assert len({len(p) for p in proposals}) > 1 or len(proposals[0]) == 100


def test_single_roi_extractor(model, features, proposals):
    rois = rois_from_boxes(torch.stack([p.bboxes[:20] for p in proposals]))
    for extractor in (model.roi_head.bbox_roi_extractor, model.roi_head.mask_roi_extractor):
        expected = extractor(features[:4], rois)
        found = run_patched(model, lambda e=extractor: e(features[:4], rois))
        assert torch.equal(found, expected)
        empty = run_patched(model, lambda e=extractor: e(features[:4], rois[:0]))
        assert empty.shape == (0, *expected.shape[1:])


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_bbox_head(class_agnostic, padded_proposals):
    model = tiny_model(class_agnostic=class_agnostic)
    head, cfg = model.roi_head.bbox_head, model.roi_head.test_cfg
    torch.manual_seed(0)
    scores = torch.randn(3, 100, NUM_CLASSES + 1) * 2
    deltas = torch.randn(3, 100, 4 if class_agnostic else 4 * NUM_CLASSES)
    counts = padded_proposals.count.tolist()
    rois = rois_from_boxes(padded_proposals.boxes).view(3, 100, 5)
    expected = head.predict_by_feat(
        rois=[r[:n] for r, n in zip(rois, counts)],
        cls_scores=[s[:n] for s, n in zip(scores, counts)],
        bbox_preds=[d[:n] for d, n in zip(deltas, counts)],
        batch_img_metas=metas(IMAGE_SIZES),
        rcnn_test_cfg=cfg,
    )
    found = run_patched(
        model,
        lambda: head.predict_by_feat(
            rois=padded_proposals,
            cls_scores=scores,
            bbox_preds=deltas,
            batch_img_metas=torch.tensor(IMAGE_SIZES).float(),
            rcnn_test_cfg=cfg,
        ),
    )
    assert_same_instances(found, expected)
    assert all(len(e) > 1 for e in expected)


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_fcn_mask_head(class_agnostic):
    model = tiny_model(class_agnostic=class_agnostic)
    torch.manual_seed(0)
    logits = torch.randn(2 * 4, 1 if class_agnostic else NUM_CLASSES, 28, 28)
    labels = torch.tensor([[0, 4, 2, -1], [3, -1, -1, -1]], dtype=torch.int32)
    boxes = torch.tensor([10.0, 20.0, 60.0, 70.0]).expand(2, 4, 4)
    instances = Instances(torch.tensor([3, 1]), boxes, torch.ones(2, 4), labels)
    head = model.roi_head.mask_head
    found = run_patched(model, lambda: head.predict_by_feat(logits, instances, None, None)).masks
    for image, count in enumerate((3, 1)):
        for row in range(4):
            channel = 0 if class_agnostic else int(labels[image, row])
            expected = logits[image * 4 + row, channel].sigmoid() if row < count else torch.zeros(28, 28)
            torch.testing.assert_close(found[image, row], expected, rtol=0, atol=SIGMOID_ATOL)


@pytest.mark.parametrize("options", [{}, {"masks": False}, {"class_agnostic": True}, {"sigmoid_rpn": False}])
@pytest.mark.parametrize("batch", [[0], [0, 1], [2, 1, 0]])
def test_whole_model(options, batch, images):
    model = tiny_model(**options)
    sizes = tuple(IMAGE_SIZES[i] for i in batch)
    with torch.no_grad():
        expected = [s.pred_instances for s in model.predict(images[batch], samples(sizes), rescale=False)]
    with applied(patches_for(model)), torch.no_grad():
        found = model.predict(images[batch], torch.tensor(sizes).float())
    assert_same_instances(found, expected)
    assert sum(len(e) for e in expected) > 3 * len(batch)
    assert (found.masks is None) == (not options.get("masks", True))


def test_a_batch_equals_its_images(model, images):
    sizes = torch.tensor(IMAGE_SIZES).float()
    with applied(patches_for(model)), torch.no_grad():
        together = model.predict(images, sizes)
        alone = [model.predict(images[i : i + 1], sizes[i : i + 1]) for i in range(3)]
    for i, single in enumerate(alone):
        count = int(single.num_dets[0])
        assert int(together.num_dets[i]) == count
        torch.testing.assert_close(
            together.boxes[i, :count], single.boxes[0, :count], rtol=0, atol=BATCH_ATOL
        )


@pytest.mark.parametrize("threshold", [2.0, 0.999999])
def test_no_detections(images, threshold):
    model = tiny_model()
    for cfg in (model.test_cfg.rcnn, model.roi_head.test_cfg):
        cfg.score_thr = threshold
    with applied(patches_for(model)), torch.no_grad():
        found = model.predict(images, torch.tensor(IMAGE_SIZES).float())
    assert found.num_dets.tolist() == [0, 0, 0]
    assert not found.masks.any()


def test_every_owner_is_restored(model, images):
    patches = patches_for(model)
    before = {p: vars(p.owner).get(p.name) for p in patches}
    with applied(patches), torch.no_grad():
        model.predict(images[:1], torch.tensor(IMAGE_SIZES[:1]).float())
    assert {p: vars(p.owner).get(p.name) for p in patches} == before
    with pytest.raises(ZeroDivisionError), applied(patches):
        raise ZeroDivisionError
    assert {p: vars(p.owner).get(p.name) for p in patches} == before


def test_select_top_is_topk():
    scores = torch.tensor([[0.25, -1.0, 0.5, 0.75], [4.0, 3.0, float("-inf"), float("inf")]])
    values, indices = select_top(scores, 3)
    assert torch.equal(values, torch.tensor([[0.75, 0.5, 0.25], [float("inf"), 4.0, 3.0]]))
    assert torch.equal(indices, torch.tensor([[3, 2, 0], [3, 0, 1]], dtype=torch.int32))
    values, indices = select_top(torch.zeros(2, 4), 4)
    assert indices.sort().values.tolist() == [[0, 1, 2, 3]] * 2


def test_take_rows_pads_with_zeros():
    values = torch.arange(24.0).view(2, 3, 4)
    indices = torch.tensor([[2, -1], [0, 1]], dtype=torch.int32)
    expected = torch.stack([torch.stack([values[0, 2], torch.zeros(4)]), values[1, :2]])
    assert torch.equal(take_rows(values, indices), expected)
    assert torch.equal(take_rows(values[..., 0], indices), expected[..., 0])


REFUSALS = [
    (
        {"test_cfg.rcnn.nms": {"type": "soft_nms", "iou_threshold": 0.5}},
        r"test_cfg.rcnn.nms: .*found .*soft_nms",
    ),
    (
        {"test_cfg.rpn.nms": {"type": "nms", "iou_threshold": 0.7, "max_num": 5}},
        r"test_cfg.rpn.nms: .*max_num",
    ),
    ({"test_cfg.rcnn.max_per_img": -1}, r"max_per_img: expected at least 1, found -1"),
    ({"test_cfg.rcnn.mask_thr_binary": -1}, r"mask_thr_binary: expected a threshold of 0 to 1"),
    (
        {"roi_head.bbox_roi_extractor.roi_layer": {"type": "RoIPool", "output_size": 7}},
        r"bbox_roi_extractor.roi_layer: expected RoIAlign, found RoIPool",
    ),
    ({"roi_head.bbox_roi_extractor.roi_layer.pool_mode": "max"}, r"pool_mode: expected avg, found max"),
    ({"test_cfg.rpn.max_per_img": 1_000_000}, r"NMS: expected at most 3,000,000 candidates .*found 1000000 "),
    (
        {"neck": {"type": "FPN_CARAFE", "in_channels": [8, 16, 32, 64], "out_channels": 16, "num_outs": 5}},
        r"neck\..*: expected none of mmcv's compiled operators but .*, found CARAFE",
    ),
    ({"roi_head.bbox_head.bbox_coder.type": "TBLRBBoxCoder"}, r"bbox_coder: expected DeltaXYWHBBoxCoder"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSALS)
def test_refusals_name_the_part(changes, message):
    config = tiny_config()
    model_cfg = copy.deepcopy(config.model)
    for dotted, value in changes.items():
        *path, last = dotted.split(".")
        node = model_cfg
        for key in path:
            node = node[key]
        node[last] = value
        if value == "TBLRBBoxCoder":
            node.pop("target_means"), node.pop("target_stds")
    config.model = model_cfg
    with pytest.raises(UnsupportedModelError, match=message):
        check_supported(model_from_config(config))
