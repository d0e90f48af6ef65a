"""The stand-in for mmcv's operators on CUDA tensors (torchvision) against the CPU reference."""

import patches  # noqa: F401  # isort: skip  (first: makes mmcv.ops importable)

import numpy as np
import pytest
import torch
from mmcv.ops import nms, roi_align
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

from tests.models import structured_images, tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

SIZE = (128, 192)
# Sums in another order, and FMA.
FORWARD_ATOL = 1e-4
# Gradients are added with atomics.
BACKWARD_ATOL = 1e-3
# TF32 is off by default for matrix products, and convolutions get it switched off here.
BOX_ATOL_PX = 0.01


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def test_nms():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 200, (500, 2))
    boxes = torch.tensor(
        np.concatenate([corners, corners + rng.uniform(5, 80, (500, 2))], 1), dtype=torch.float32
    )
    scores = torch.tensor(rng.permutation(500) / 500, dtype=torch.float32)
    for threshold in (0.3, 0.5, 0.7):
        _, expected = nms(boxes, scores, threshold)
        _, found = nms(boxes.cuda(), scores.cuda(), threshold)
        assert torch.equal(found.cpu(), expected)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
def test_roi_align_forward_and_backward(aligned, ratio):
    torch.manual_seed(0)
    features = torch.randn(2, 8, 40, 50)
    corners = torch.rand(64, 2) * 300 - 30
    rois = torch.cat([torch.randint(0, 2, (64, 1)), corners, corners + torch.rand(64, 2) * 150], 1).float()
    weights = torch.randn(64, 8, 7, 7)
    results = []
    for device in ("cpu", "cuda"):
        leaf = features.clone().to(device).requires_grad_()
        out = roi_align(leaf, rois.to(device), (7, 7), 0.25, ratio, "avg", aligned)
        (out * weights.to(device)).sum().backward()
        results.append((out.detach().cpu(), leaf.grad.cpu()))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=0, atol=FORWARD_ATOL)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=0, atol=BACKWARD_ATOL)


def test_mask_rcnn_predicts_the_same():
    images = structured_images(2, SIZE, seed=3)
    meta = {"img_shape": SIZE, "ori_shape": SIZE, "scale_factor": (1.0, 1.0), "batch_input_shape": SIZE}
    model = tiny_model()
    found = {}
    for device in ("cpu", "cuda"):
        samples = [DetDataSample(metainfo=meta) for _ in images]
        with torch.no_grad():
            predicted = model.to(device).predict(images.to(device), samples, rescale=False)
        found[device] = [sample.pred_instances.cpu() for sample in predicted]
    for cpu, cuda in zip(found["cpu"], found["cuda"]):
        assert len(cpu) == len(cuda) > 3
        torch.testing.assert_close(cuda.bboxes, cpu.bboxes, rtol=0, atol=BOX_ATOL_PX)
        assert torch.equal(cuda.labels, cpu.labels)


def test_an_operator_that_is_not_there_says_so():
    from mmcv.ops import soft_nms

    with pytest.raises(RuntimeError, match="softnms: needs mmcv's compiled operators"):
        soft_nms(torch.rand(3, 4), torch.rand(3))


def test_instance_data_stays_on_the_gpu():
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 8]], device="cuda")
    dets, keep = nms(boxes, torch.tensor([0.5, 0.9], device="cuda"), 0.5)
    assert dets.is_cuda
    assert InstanceData(bboxes=boxes)[keep].bboxes.is_cuda
