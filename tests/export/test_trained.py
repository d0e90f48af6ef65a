"""Trained models on real images: the embedded one, and the stock R50-FPN where its checkpoint is."""

from pathlib import Path

import pytest

from examples import CHECKPOINT_PATH, CONFIG_PATH, IMAGES_DIR
from export.model import LoadedModel, load_model
from export.verify import verify
from runtime.difference import Tolerance
from runtime.images import read_image
from tests.export.test_graph import export_loaded

# The contract: same detections and labels, boxes within 0.01 px, scores within 1e-4, masks within 1e-4 of their pixels.
TOLERANCE = Tolerance(box_px=0.01, score=1e-4, mask=1e-4, mask_px=0)

VARIANTS = pytest.mark.parametrize(
    ("masks", "dynamic"), [("crop", False), ("full", False), ("crop", True), ("full", True)]
)


def assert_exact(path: Path, loaded: LoadedModel, *batches: list[Path]) -> None:
    cases = verify(path, loaded.model, [[read_image(p) for p in batch] for batch in batches])
    for case in cases:
        d = case.difference
        assert case.within(TOLERANCE), (
            f"{d.matched} of {d.expected}, found {d.found}: {d.worst}; masks {d.mask}"
        )
        assert d.matched > 0


@VARIANTS
def test_embedded(tmp_path, masks, dynamic):
    loaded = load_model(str(CONFIG_PATH), CHECKPOINT_PATH)
    images = sorted(IMAGES_DIR.iterdir())
    export_loaded(loaded, tmp_path / "m.onnx", masks=masks, dynamic_size=dynamic)
    assert_exact(tmp_path / "m.onnx", loaded, images[:1], images[1:3], images[3:6])


@pytest.fixture(scope="session")
def stock(test_data) -> LoadedModel:
    checkpoint = test_data / "checkpoints" / "mask-rcnn_r50_fpn_shapes.pth"
    return load_model("mask-rcnn_r50_fpn_2x_coco", checkpoint)


@VARIANTS
def test_stock_r50_fpn(tmp_path, test_data, stock, masks, dynamic):
    """A landscape alone; a landscape and a portrait together."""
    folder = test_data / "datasets" / "shapes_val"
    images = [folder / f"{i:06d}.jpg" for i in (6, 1, 4)]
    export_loaded(stock, tmp_path / "m.onnx", masks=masks, dynamic_size=dynamic, size=(800, 1216))
    assert_exact(tmp_path / "m.onnx", stock, images[:1], images[1:])
