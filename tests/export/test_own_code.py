"""Models with code of one's own: what mmdet's ``test_step`` runs is what is compared; what changes it is refused."""

from functools import reduce
from operator import getitem
from pathlib import Path

import cv2
import pytest
import torch
from mmdet.models import MaskRCNN, ResNet
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from torch import Tensor

from export.api import VerificationError, export_model
from export.model import ModelBuildError, load_model
from patches.families import UnsupportedModelError
from tests.models import structured_photos, tiny_config, tiny_model, write_config


@MODELS.register_module()
class OwnTestStep(MaskRCNN):
    def test_step(self, data: dict) -> list[DetDataSample]:
        return super().test_step(data)


@MODELS.register_module()
class OwnForward(MaskRCNN):
    def forward(self, inputs: Tensor, data_samples: object = None, mode: str = "tensor") -> object:
        return super().forward(inputs * 0.8, data_samples, mode)


@MODELS.register_module()
class OwnPredict(MaskRCNN):
    def predict(self, inputs: Tensor, samples: list, rescale: bool = True) -> list:
        return super().predict(inputs * 0.8, samples, rescale)


@MODELS.register_module()
class OwnCall(MaskRCNN):
    def __call__(self, *args: object, **kwargs: object) -> object:
        return super().__call__(*args, **kwargs)


@MODELS.register_module()
class OwnLabels(MaskRCNN):
    def add_pred_to_datasample(self, samples: list, results: list) -> list:
        for result in results:
            result.labels = (result.labels + 1) % 5
        return super().add_pred_to_datasample(samples, results)


@MODELS.register_module()
class NothingOfItsOwn(MaskRCNN):
    """A stock detector by another name."""


@MODELS.register_module()
class TrainedForever(ResNet):
    def train(self, mode: bool = True) -> None:
        super().train(mode)
        self.bn1.train()


@MODELS.register_module()
class BrighterInFrench(ResNet):
    """Decides by the values of a tensor, in Python."""

    def forward(self, x: Tensor) -> tuple:
        if x.mean() > 1e6:
            x = x * 0.5
        return super().forward(x)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("roi_head.bbox_head", "config: roi_head: expected a bbox_head, found none; give a config with one."),
        ("rpn_head", "config: MaskRCNN: expected an RPN and a RoI head, found a model without an RPN"),
    ],
)
def test_a_refusal_says_that_the_config_is_meant(part: str, message: str, tmp_path: Path) -> None:
    config = tiny_config()
    *path, last = part.split(".")
    reduce(getitem, path, config.model)[last] = None
    with pytest.raises(UnsupportedModelError) as refused:
        load_model(str(write_config(config, tmp_path / "m.py")), None)
    assert str(refused.value).startswith(message)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> "list[Path]":
    folder = tmp_path_factory.mktemp("images")
    for name, photo in zip("ab", structured_photos((128, 192), (150, 100))):
        cv2.imwrite(str(folder / f"{name}.png"), photo)
    return sorted(folder.iterdir())


def exported(folder: Path, images: "list[Path]", **model: object) -> object:
    config = tiny_config()
    config.model.update(model)
    torch.save({"state_dict": tiny_model().state_dict()}, folder / "m.pth")
    return export_model(
        write_config(config, folder / "m.py"), folder / "m.pth", folder / "m.onnx", images=images
    )


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("OwnTestStep", "test_step"),
        ("OwnForward", "forward"),
        ("OwnPredict", "predict"),
        ("OwnCall", "__call__"),
        ("OwnLabels", "add_pred_to_datasample"),
    ],
)
def test_a_detector_with_its_own_inference_is_refused(images, tmp_path, kind, method):
    with pytest.raises(UnsupportedModelError, match=rf"keeps its {method}\), found {kind}"):
        exported(tmp_path, images, type=kind)
    assert not (tmp_path / "m.onnx").exists()


def test_a_detector_that_adds_nothing_is_taken(images, tmp_path):
    assert exported(tmp_path, images, type="NothingOfItsOwn").path.is_file()


def test_what_mmdet_runs_is_what_is_compared(images, tmp_path, monkeypatch):
    """Changed in mmdet itself, where no class shows it."""
    original = MaskRCNN.test_step

    def halved(self: MaskRCNN, data: dict) -> list:
        results = original(self, data)
        for result in results:
            result.pred_instances = result.pred_instances[::2]
        return results

    monkeypatch.setattr("mmengine.model.base_model.base_model.BaseModel.test_step", halved)
    with pytest.raises(VerificationError, match="differs from mmdet"):
        exported(tmp_path, images)
    assert not (tmp_path / "m.onnx").exists()


def test_batch_statistics_at_inference_are_refused(images, tmp_path):
    config = tiny_config()
    backbone = {**config.model.backbone, "type": "TrainedForever"}
    with pytest.raises(ModelBuildError, match="found backbone.bn1 in training mode"):
        exported(tmp_path, images, backbone=backbone)


def test_a_decision_in_python_is_noted_with_its_place(images, tmp_path):
    backbone = {**tiny_config().model.backbone, "type": "BrighterInFrench"}
    (note,) = exported(tmp_path, images, backbone=backbone).notes
    assert "test_own_code.py:" in note
    assert "decides in Python by a tensor's value" in note
