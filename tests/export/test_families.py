"""Mask R-CNN's relatives, traced at batch 1: onnxruntime against unpatched PyTorch."""

import pytest

from export.graph import num_nodes
from export.model import LoadedModel
from runtime.difference import Tolerance
from tests.export.test_graph import PHOTOS, SIZE, assert_equal, export_loaded, scored
from tests.families import FAMILIES, family_config, family_model

# Masks of random weights are noise: contours run between all cells, and many pixels lie within rounding of them.
TOLERANCE = Tolerance(mask=1e-3)


def loaded(name: str) -> LoadedModel:
    return LoadedModel(family_model(name), family_config(name), name, None)


@pytest.mark.parametrize("name", FAMILIES)
def test_batches_of_different_images(tmp_path, name):
    model = loaded(name)
    graph = export_loaded(model, tmp_path / "m.onnx", size=SIZE)
    cases = assert_equal(tmp_path / "m.onnx", model.model, PHOTOS[:1], PHOTOS[1:], tolerance=TOLERANCE)
    assert min(case.difference.found for case in cases) > 3
    assert num_nodes(graph, "MultiLevelRoiAlign") > 0


@pytest.mark.parametrize("name", FAMILIES)
def test_dynamic_size(tmp_path, name):
    model = loaded(name)
    export_loaded(model, tmp_path / "m.onnx", dynamic_size=True)
    # Alone, the portrait is narrower and taller than what was traced.
    assert_equal(tmp_path / "m.onnx", model.model, PHOTOS[:2], PHOTOS[1:2], tolerance=TOLERANCE)


@pytest.mark.parametrize("name", FAMILIES)
def test_no_detections(tmp_path, name):
    model = loaded(name)
    scored(model.model, threshold=0.9999999)
    export_loaded(model, tmp_path / "m.onnx", size=SIZE)
    cases = assert_equal(tmp_path / "m.onnx", model.model, PHOTOS)
    assert [case.difference.found for case in cases] == [0, 0, 0]
