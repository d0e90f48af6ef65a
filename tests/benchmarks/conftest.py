"""A dataset of which the fake model finds every object."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks.latency.cases import Options
from tests.runtime import fakes

SIZES = ((64, 96), (96, 64))


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Two images with the fake's three boxes each."""
    folder = tmp_path / "data"
    folder.mkdir()
    categories = [{"id": i, "name": name} for i, name in enumerate(fakes.CLASSES)]
    truth = {"images": [], "annotations": [], "categories": categories}
    for number, (height, width) in enumerate(SIZES):
        name = f"{number}.png"
        cv2.imwrite(str(folder / name), fakes.random_image(height, width, number))
        truth["images"].append({"id": number, "file_name": name, "height": height, "width": width})
        for box, label in zip(fakes.UNIT_BOXES, fakes.LABELS):
            x1, y1, x2, y2 = (float(v) for v in np.array(box) * (width, height, width, height))
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": number,
                    "category_id": label,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                    "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]],
                }
            )
    (folder / "annotations.json").write_text(json.dumps(truth))
    return folder


@pytest.fixture
def options(tmp_path: Path, dataset: Path) -> Options:
    """The fake with cropped masks, at batch 1 and 2."""
    return Options(
        model=fakes.save(tmp_path / "m.onnx"),
        full=None,
        config="m",
        checkpoint=tmp_path / "m.pth",
        size=(64, 96),
        dataset=dataset,
        images=None,
        folder=tmp_path / "out",
        batches=(1, 2),
        profile=(1, 2, 8),
        repeat=3,
        seconds=0.0,
        device="cpu",
        threads=1,
        timing_cache=None,
    )
