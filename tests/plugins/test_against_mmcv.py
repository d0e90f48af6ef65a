"""The reference against mmcv's own compiled CPU operators, bit for bit; skipped where mmcv has none (mmcv-lite)."""

import numpy as np
import pytest
import torch

from patches.mmcv_ops import ensure_mmcv_ops
from plugins import _reference

pytestmark = pytest.mark.skipif(ensure_mmcv_ops() != "mmcv", reason="needs a compiled mmcv")


def test_nms_keeps_the_same_boxes() -> None:
    from mmcv.ops import nms

    rng = np.random.default_rng(0)
    for case in range(500):
        num_boxes = int(rng.integers(0, 80))
        boxes = np.round(rng.uniform(0, 60, (num_boxes, 4))).astype(np.float32)
        boxes[:, 2:] = boxes[:, :2] + np.round(boxes[:, 2:] / 2)
        # No ties: how mmcv orders them depends on the CPU (torch.sort, which it calls, is not stable by default).
        scores = rng.permutation(num_boxes).astype(np.float32)
        threshold, offset = (0.0, 0.3, 0.5, 0.7)[case % 4], case % 2
        _, kept = nms(torch.from_numpy(boxes), torch.from_numpy(scores), threshold, offset)
        assert _reference.nms(boxes, scores, threshold, offset).tolist() == kept.tolist()


@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("aligned", [True, False])
def test_roi_align_and_its_gradient_are_equal(ratio: int, mode: str, aligned: bool) -> None:
    from mmcv.ops import roi_align

    rng = np.random.default_rng(0)
    features = rng.standard_normal((2, 70, 20, 17)).astype(np.float32)
    corners = rng.uniform(-40, 100, (50, 2))
    sizes = rng.uniform(0, 120, (50, 2)) * rng.choice([0, 0.1, 1, 5], (50, 1))
    rois = np.hstack([rng.integers(0, 2, (50, 1)), corners, corners + sizes]).astype(np.float32)
    options = (0.25, ratio, mode, aligned)

    leaf = torch.from_numpy(features).requires_grad_()
    expected = roi_align(leaf, torch.from_numpy(rois), (7, 5), *options)
    grad_output = torch.randn_like(expected)
    expected.backward(grad_output)

    out, argmax_y, argmax_x = _reference.roi_align_forward(features, rois, 7, 5, *options)
    np.testing.assert_array_equal(out, expected.detach().numpy())
    grad = _reference.roi_align_backward(
        grad_output.numpy(), rois, argmax_y, argmax_x, *features.shape, *options
    )
    np.testing.assert_array_equal(grad, leaf.grad.numpy())
