"""From what a user types to a config, and what the config says about the model."""

import pytest
from mmengine.config import Config

from export.config import config_path, load_config, shipped_configs
from export.metadata import class_names, metadata_from_model, resize_rule
from export.model import LoadedModel
from runtime.metadata import ModelMetadata
from runtime.transforms import Fit, Resize
from tests.models import tiny_config, tiny_model


def test_a_bare_name_finds_the_shipped_config():
    assert config_path("mask-rcnn_r50_fpn_2x_coco").name == "mask-rcnn_r50_fpn_2x_coco.py"
    assert len(shipped_configs()) > 500


def test_a_path_wins(tmp_path):
    path = tmp_path / "mask-rcnn_r50_fpn_2x_coco.py"
    path.write_text("model = dict(type='MaskRCNN')")
    assert config_path(str(path)) == path


@pytest.mark.parametrize("name", ["mask-rcnn_r50_fpn_2x_cco", "gone/mask-rcnn_r50_fpn_2x_coco.py"])
def test_a_wrong_name_is_refused_with_similar_ones(name):
    with pytest.raises(
        FileNotFoundError, match=f"found '{name}', which is neither.*mask-rcnn_r50_fpn_2x_coco"
    ):
        config_path(name)


def test_not_a_config(tmp_path):
    path = tmp_path / "c.py"
    path.write_text("model = (")
    with pytest.raises(ValueError, match="expected an mmdet 3 config, found a file that cannot be read"):
        load_config(str(path))
    path.write_text("learning_rate = 1")
    with pytest.raises(ValueError, match="expected a `model`, found learning_rate"):
        load_config(str(path))


def test_a_loaded_config_asks_for_no_download():
    config = load_config("mask-rcnn_r50_fpn_2x_coco")
    assert config.model.backbone.init_cfg is None
    old_style = load_config("cascade-rcnn_r50-rfp_1x_coco")
    assert old_style.model.neck.rfp_backbone.pretrained is None
    assert load_config("mask-rcnn_r50_fpn_8xb8-amp-lsj-200e_coco").model.backbone.norm_cfg.type == "BN"


RESIZES = {
    "stock": (
        {"type": "Resize", "scale": (1333, 800), "keep_ratio": True},
        Resize(scale=(800, 1333), keep_ratio=True),
    ),
    "stretch": ({"type": "Resize", "scale": (640, 480)}, Resize(scale=(640, 480))),
    "nested": (
        {"type": "TestTimeAug", "transforms": [[{"type": "Resize", "scale": (9, 8), "keep_ratio": True}]]},
        Resize(scale=(8, 9), keep_ratio=True),
    ),
}


@pytest.mark.parametrize("name", RESIZES)
def test_resize_rule(name):
    step, expected = RESIZES[name]
    config = Config({"test_dataloader": {"dataset": {"pipeline": [{"type": "LoadImageFromFile"}, step]}}})
    assert resize_rule(config) == expected


def test_a_pipeline_without_a_resize():
    with pytest.raises(ValueError, match="expected a Resize with a scale in the test pipeline, found none"):
        resize_rule(Config({"test_pipeline": [{"type": "LoadImageFromFile"}]}))


def loaded() -> LoadedModel:
    return LoadedModel(tiny_model(), tiny_config(), "tiny", None)


SIZES = {
    "the config's own": ((None, False), (128, 192), Fit((128, 192))),
    "given": (((160, 96), False), (160, 96), Fit((160, 96))),
    "dynamic": ((None, True), None, Resize(scale=(128, 192), keep_ratio=True)),
    "dynamic, given": (((160, 96), True), None, Resize(scale=(160, 96), keep_ratio=True)),
}


@pytest.mark.parametrize("name", SIZES)
def test_size_and_resize(name):
    (size, dynamic), expected_size, expected_rule = SIZES[name]
    metadata = metadata_from_model(loaded(), size=size, dynamic_size=dynamic, masks="crop")
    assert (metadata.size, metadata.resize) == (expected_size, expected_rule)


def test_a_size_that_is_not_padded_to_is_refused():
    with pytest.raises(
        ValueError, match="expected multiples of 32, .*found 800 1210; the next larger is 800 1216"
    ):
        metadata_from_model(loaded(), size=(800, 1210), dynamic_size=False, masks="crop")


def test_metadata_of_a_model():
    metadata = metadata_from_model(loaded(), size=None, dynamic_size=False, masks="crop")
    assert metadata.classes == ("a", "b", "c", "d", "e")
    assert metadata.mean == pytest.approx((123.675, 116.28, 103.53))
    assert (metadata.color_order, metadata.size_divisor) == ("rgb", 32)
    assert (metadata.score_threshold, metadata.mask_threshold, metadata.max_per_img) == (0.05, 0.5, 100)
    assert ModelMetadata.from_json(metadata.to_json()) == metadata


def test_names_that_do_not_fit_the_model_are_not_used():
    config = tiny_config()
    config.test_dataloader.dataset.metainfo.classes = ("one", "two")
    names = class_names(LoadedModel(tiny_model(), config, "tiny", None))
    assert names == tuple(f"class_{i}" for i in range(5))
