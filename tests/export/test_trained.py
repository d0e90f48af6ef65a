"""Trained models on real images: the embedded one, and the stock R50-FPN where its checkpoint is."""

import importlib.util
from pathlib import Path
from typing import Optional

import pytest

from examples import CHECKPOINT_PATH, CONFIG_PATH, IMAGES_DIR
from export.metadata import metadata_from_model
from export.model import LoadedModel, load_model
from export.verify import Case, MmdetInference, verify
from runtime.comparison.difference import Tolerance
from tests.export.test_graph import export_loaded

# The contract: same detections and labels, boxes within 0.01 px, scores within 1e-4, masks within 1e-4 of their pixels.
TOLERANCE = Tolerance(box_px=0.01, score=1e-4, mask=1e-4, mask_px=0)

BACKENDS = ("onnxruntime", "openvino")
VARIANTS = pytest.mark.parametrize(
    ("masks", "dynamic"), [("crop", False), ("full", False), ("crop", True), ("full", True)]
)


def assert_exact(
    path: Path, loaded: LoadedModel, size: Optional[tuple[int, int]], masks: str, *batches: list[Path]
) -> None:
    """By every backend that runs on a CPU and is here."""
    mmdet = MmdetInference(loaded, metadata_from_model(loaded, size=size, masks=masks))
    for backend in (name for name in BACKENDS if importlib.util.find_spec(name)):
        _assert_exact(verify(path, mmdet, batches, backend=backend), *batches)


def _assert_exact(cases: list[Case], *batches: list[Path]) -> None:
    assert len(cases) == sum(map(len, batches))
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
    size = None if dynamic else (448, 640)
    export_loaded(loaded, tmp_path / "m.onnx", masks=masks, size=size)
    assert_exact(tmp_path / "m.onnx", loaded, size, masks, images[:1], images[1:3], images[3:6])


@pytest.fixture(scope="session")
def stock(test_data) -> LoadedModel:
    checkpoint = test_data / "checkpoints" / "mask-rcnn_r50_fpn_shapes.pth"
    return load_model("mask-rcnn_r50_fpn_2x_coco", checkpoint)


@VARIANTS
def test_stock_r50_fpn(tmp_path, test_data, stock, masks, dynamic):
    """A landscape alone; a landscape and a portrait together."""
    folder = test_data / "datasets" / "shapes_val"
    images = [folder / f"{i:06d}.jpg" for i in (6, 1, 4)]
    size = None if dynamic else (800, 1216)
    export_loaded(stock, tmp_path / "m.onnx", masks=masks, size=size)
    assert_exact(tmp_path / "m.onnx", stock, size, masks, images[:1], images[1:])
