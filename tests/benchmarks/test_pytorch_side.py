"""PyTorch's side on the CPU, with a tiny model."""

import numpy as np
import pytest
import torch

import patches  # noqa: F401  (first: without mmcv's compiled operators mmdet is importable only after it)
from benchmarks.inference import data_samples
from benchmarks.latency import pytorch_side
from benchmarks.latency.pytorch_side import without_pasting
from runtime.host.postprocess import paste_mask
from runtime.host.preprocess import Batch
from tests.models import structured_images, tiny_model


def _batch(images: torch.Tensor, sizes: tuple[tuple[int, int], ...]) -> Batch:
    return Batch(
        images=images.numpy(),
        image_sizes=np.array(sizes, np.float32),
        scale_factors=np.ones((len(sizes), 2)),
        original_sizes=sizes,
    )


def test_without_pasting_masks_end_as_probabilities() -> None:
    """Pasted by the runtime they are mmdet's own."""
    model = tiny_model()
    images = structured_images(2, (128, 192), seed=0)
    sizes = ((128, 192), (100, 150))
    batch = _batch(images, sizes)
    with torch.no_grad():
        expected = model.predict(
            torch.as_tensor(images), data_samples(batch, batch.images.shape[2:]), rescale=False
        )
        with without_pasting():
            found = model.predict(
                torch.as_tensor(images), data_samples(batch, batch.images.shape[2:]), rescale=False
            )
    assert sum(len(sample.pred_instances) for sample in expected) > 0
    for left, right, size in zip(expected, found, sizes):
        boxes, masks = right.pred_instances.bboxes.numpy(), right.pred_instances.masks.numpy()
        np.testing.assert_array_equal(left.pred_instances.bboxes.numpy(), boxes)
        assert masks.shape == (len(boxes), 28, 28)
        for mask, box, whole in zip(masks, boxes, left.pred_instances.masks.numpy()):
            crop = paste_mask(mask, box, size, 0.5)
            pasted = np.zeros(size, bool)
            pasted[crop.window] = crop.pixels
            np.testing.assert_array_equal(pasted, whole)


def test_compiled_parts_are_used_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """``torch.compile`` by a stand-in that counts calls: compiling takes minutes."""
    calls = []

    def stand_in(function: object, dynamic: object) -> object:
        return lambda *args, **kwargs: calls.append(function.__qualname__) or function(*args, **kwargs)

    monkeypatch.setattr(torch, "compile", stand_in)
    model = tiny_model()
    compiled = pytorch_side._Compiled(model)
    images = structured_images(1, (128, 192), seed=0)
    batch = _batch(images, ((128, 192),))

    def predict() -> None:
        with torch.no_grad():
            compiled.predict(
                torch.as_tensor(images), data_samples(batch, batch.images.shape[2:]), rescale=False
            )

    with compiled.active("dense"):
        predict()
    assert set(calls) == {
        "ResNet.forward",
        "FPN.forward",
        "AnchorHead.forward",  # the RPN's
        "ConvFCBBoxHead.forward",
        "FCNMaskHead.forward",
    }
    calls.clear()
    with compiled.active("whole"):
        predict()
    assert calls == ["TwoStageDetector.predict"]
    calls.clear()
    predict()
    assert calls == []
