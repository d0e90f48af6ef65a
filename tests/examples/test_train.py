"""Training: its arithmetic, and two iterations of the real thing."""

import patches  # isort: skip  # noqa: F401  makes mmdet importable without mmcv's compiled operators

import numpy as np
import pytest
import torch

from examples import train
from examples.shapes import CLASSES, boxes_from_masks


def _batch(num=2, size=(64, 96)):
    scenes = [train.training_scene(np.random.default_rng((1, i)), *size) for i in range(num)]
    return train._batch_from_scenes(scenes)


@pytest.mark.parametrize("symmetry", range(8))
def test_turned_boxes_stay_tight(symmetry):
    images, targets = train.to_device(_batch(), "cpu")
    images, targets = train.turned(images, targets, symmetry)
    assert images.shape[-2:] == targets.index.shape[-2:] == ((96, 64) if symmetry & 4 else (64, 96))
    for boxes, valid, index in zip(targets.boxes, targets.valid, targets.index.numpy()):
        masks = np.stack([index == i + 1 for i in range(int(valid.sum()))])
        assert np.array_equal(boxes[valid].numpy(), boxes_from_masks(masks))


def test_training_scene_has_the_size_asked_for():
    for seed in range(6):
        scene = train.training_scene(np.random.default_rng(seed), 96, 128)
        assert scene.image.shape == (96, 128, 3)
        assert scene.masks.shape[1:] == (96, 128)


@pytest.mark.parametrize(
    ("iteration", "share", "factor"),
    [(0, 0.0, 0.01), (49, 0.0, 0.5), (99, 0.0, 1.0), (500, 0.5, 0.5), (900, 1.0, 0.0), (900, 1.5, 0.0)],
)
def test_learning_rate(iteration, share, factor):
    config = train.TrainConfig(learning_rate=2.0, warmup_iterations=100)
    assert train.learning_rate_at(config, iteration, share) == pytest.approx(2.0 * factor)


def test_diverged_weights_are_not_written(tmp_path):
    model = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(model.weight, 1e6)  # beyond FP16
    with pytest.raises(RuntimeError, match="weight"):
        train.save_checkpoint(model, tmp_path / "a.pth", {})
    assert not (tmp_path / "a.pth").exists()


@pytest.mark.slow
def test_two_iterations_on_the_cpu(tmp_path, capsys):
    out = tmp_path / "tiny.pth"
    args = ["--max-iterations", "2", "--batch", "2", "--workers", "0", "--device", "cpu", "--minutes", "30"]
    train.main([*args, "--out", str(out)])
    assert "loss_mask" in capsys.readouterr().out
    checkpoint = torch.load(out, weights_only=True)
    assert checkpoint["meta"]["dataset_meta"]["classes"] == list(CLASSES)
    assert checkpoint["meta"]["training"]["iterations"] == 2
