"""From what a user types to a config, and what the config says about the model."""

import pytest

from export.config import config_path, load_config, shipped_configs


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
