"""What ships: config, checkpoint, images and metrics fit together."""

from tests.runtime.processes import SECONDS

import patches  # isort: skip  # noqa: F401  makes mmdet importable without mmcv's compiled operators

import hashlib
import json
import subprocess
import sys

import cv2
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config

from examples import CHECKPOINT_PATH, CONFIG_PATH, IMAGES_DIR, METRICS_PATH
from examples.evaluate import average_precision, detect, folder_set, load_detector
from examples.shapes import CLASSES

MAX_CHECKPOINT_BYTES = 8_000_000
MAX_IMAGES_BYTES = 1_000_000


@pytest.fixture(scope="module")
def checkpoint():
    return torch.load(CHECKPOINT_PATH, weights_only=True)


@pytest.fixture(scope="module")
def detector():
    return load_detector(CONFIG_PATH, CHECKPOINT_PATH, "cpu")


def test_checkpoint_loads_strictly(checkpoint):
    register_all_modules(init_default_scope=True)
    model = MODELS.build(Config.fromfile(CONFIG_PATH).model)
    model.load_state_dict(checkpoint["state_dict"], strict=True)


def test_checkpoint_is_small_and_fp16(checkpoint):
    assert CHECKPOINT_PATH.stat().st_size <= MAX_CHECKPOINT_BYTES
    floats = [t for t in checkpoint["state_dict"].values() if t.is_floating_point()]
    assert {t.dtype for t in floats} == {torch.float16}
    assert all(torch.isfinite(t).all() for t in floats)


def test_classes_agree(checkpoint):
    assert tuple(checkpoint["meta"]["dataset_meta"]["classes"]) == CLASSES
    assert tuple(Config.fromfile(CONFIG_PATH).metainfo.classes) == CLASSES


def test_metrics_belong_to_the_checkpoint():
    metrics = json.loads(METRICS_PATH.read_text())
    assert metrics["checkpoint_sha256"] == hashlib.sha256(CHECKPOINT_PATH.read_bytes()).hexdigest()
    assert metrics["box_AP50"] >= 0.8


def test_images_are_small_and_of_several_shapes():
    paths = sorted(IMAGES_DIR.glob("*.jpg"))
    assert len(paths) == 6
    assert sum(path.stat().st_size for path in paths) < MAX_IMAGES_BYTES
    assert len({cv2.imread(str(path)).shape for path in paths}) == 6


def test_detector_finds_the_single_object(detector):
    rows = detect(detector, [(1, cv2.imread(str(IMAGES_DIR / "single.jpg")))])
    assert sum(row["score"] > 0.5 for row in rows) == 1


def test_average_precision_of_nothing_and_of_the_truth():
    box, rle = [1.0, 1.0, 4.0, 4.0], {"size": [8, 8], "counts": "94<"}
    annotation = {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "iscrowd": 0,
        "area": 16,
        "bbox": box,
        "segmentation": rle,
    }
    truth = {
        "info": {},
        "images": [{"id": 1, "height": 8, "width": 8}],
        "categories": [{"id": 1, "name": "red_circle"}],
        "annotations": [annotation],
    }
    assert average_precision(truth, [])["box_AP"] == 0
    found = {key: annotation[key] for key in ("image_id", "category_id", "bbox", "segmentation")}
    assert average_precision(truth, [{**found, "score": 0.9}])["box_AP"] == 1


def test_unreadable_image_is_named(tmp_path):
    (tmp_path / "annotations.json").write_text('{"images": [{"id": 1, "file_name": "gone.jpg"}]}')
    _, images = folder_set(tmp_path)
    with pytest.raises(RuntimeError, match=r"gone\.jpg"):
        next(images)


@pytest.mark.parametrize("module", ["examples.shapes", "examples.train", "examples.evaluate"])
def test_commands_start_on_their_own(module):
    """In a fresh process: nothing else has made mmdet importable there."""
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=False, timeout=SECONDS
    )
    assert done.returncode == 0, done.stderr
    assert "--seed" in done.stdout
