"""Every config of mmdet's ``configs/mask_rcnn`` but C4, with random weights at a small size."""

import pytest

from benchmarks.configs import check_config, config_names

NAMES = config_names("mask_rcnn")


def test_the_folder_is_there():
    assert len(NAMES) > 25


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_config(tmp_path, name):
    result = check_config(name, tmp_path / "m.onnx")
    assert result["result"] == "exact", result
    assert min(result["matched"]) > 0
