"""Verification: what counts as a difference."""

import pytest
import torch
from torch import nn

from export.verify import ordered_ties, verify
from runtime.comparison.difference import Tolerance
from tests.export.test_graph import PHOTOS, export, mmdet_inference, saved
from tests.models import tiny_model


@pytest.fixture(scope="module")
def tied() -> nn.Module:
    """Return a model whose RPN gives every anchor of a level the same score."""
    model = tiny_model()
    nn.init.zeros_(model.rpn_head.rpn_cls.weight)
    return model


def test_equal_scores_may_come_in_any_order(tied, tmp_path):
    export(tied, tmp_path / "m.onnx")
    files = saved(tmp_path, PHOTOS)
    cases = verify(tmp_path / "m.onnx", mmdet_inference(tied, tmp_path / "m.onnx"), [files[:1], files[1:]])
    assert all(case.difference.within(Tolerance()) for case in cases)
    assert any(case.ordered_ties for case in cases)
    assert min(case.difference.found for case in cases) > 3


def test_what_disagrees_with_ordered_ties_too_is_a_difference(tied, tmp_path):
    export(tied, tmp_path / "m.onnx")
    other = tiny_model()
    nn.init.zeros_(other.rpn_head.rpn_cls.weight)
    other.roi_head.bbox_head.fc_cls.bias.data[0] += 0.1
    mmdet = mmdet_inference(other, tmp_path / "m.onnx")
    (case,) = verify(tmp_path / "m.onnx", mmdet, [saved(tmp_path, PHOTOS[:1])])
    assert not case.within(Tolerance())
    assert not case.ordered_ties


def test_ordered_ties():
    values = torch.tensor([0.5, 1.0, 0.5] * 100)
    sort = torch.Tensor.sort
    with ordered_ties():
        for _, index in (values.sort(descending=True), values.sort(0, True), values.sort(0, descending=True)):
            assert index[:100].tolist() == list(range(1, 300, 3))
            assert index[100:].tolist() == [i for i in range(300) if i % 3 != 1]
        assert values.sort().indices[:200].tolist() == [i for i in range(300) if i % 3 != 1]
    assert torch.Tensor.sort is sort
