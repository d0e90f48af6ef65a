"""What is damaged: a small good file of every kind. Made once in a process, always the same."""

import hashlib
import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from tests.runtime import fakes

SIZE = (40, 60)
NAMES = ("1.png", "2.png")


@cache
def images() -> dict[str, bytes]:
    """Return two PNGs by name."""
    return {
        name: cv2.imencode(".png", fakes.random_image(*SIZE, number))[1].tobytes()
        for number, name in enumerate(NAMES)
    }


def write_images(folder: Path) -> None:
    """Write the two PNGs."""
    for name, data in images().items():
        (folder / name).write_bytes(data)


@cache
def truth() -> dict[str, Any]:
    """Return COCO annotations of the two images: objects with masks of every form, one without."""
    polygon = [5.0, 5.0, 30, 5, 30, 30, 5, 30]
    lengths = coco_mask.merge(coco_mask.frPyObjects([polygon], *SIZE))
    forms = ([polygon, [1, 1, 9, 1, 9, 9]], {"size": list(SIZE), "counts": lengths["counts"].decode()})
    runs = {"size": list(SIZE), "counts": [300, 20, SIZE[0] * SIZE[1] - 320]}
    common = {"iscrowd": 0, "area": 625.0, "bbox": [5, 5, 25, 25]}
    return {
        "images": [
            {"id": i, "file_name": name, "height": SIZE[0], "width": SIZE[1]}
            for i, name in enumerate(NAMES, 1)
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(fakes.CLASSES, 1)],
        "annotations": [
            {"id": i, "image_id": 1 + i % 2, "category_id": 1 + i % 3, "segmentation": form, **common}
            for i, form in enumerate((*forms, runs, *forms, None), 1)
        ],
    }


@cache
def header() -> dict[str, Any]:
    """Return a recording's header."""
    return {
        "format": 1,
        "model": json.loads(fakes.metadata().to_json()),
        "source": "a test",
        "made_with": {"path": "host", "path_reason": "a test"},
        "images": [
            {"name": name, "sha256": hashlib.sha256(data).hexdigest(), "height": SIZE[0], "width": SIZE[1]}
            for name, data in images().items()
        ],
    }


@cache
def arrays() -> dict[str, np.ndarray]:
    """Return a recording's arrays: three detections in either image."""
    mask = np.zeros(SIZE, np.uint8, order="F")
    mask[5:30, 5:30] = 1
    counts = coco_mask.encode(mask)["counts"]
    return {
        "header": as_bytes(json.dumps(header())),
        "num_detections": np.array([3, 3]),
        "boxes": np.tile(np.array([[5, 5, 30, 30]], np.float32), (6, 1)),
        "scores": np.linspace(0.9, 0.4, 6, dtype=np.float32),
        "labels": np.array([0, 1, 2] * 2, np.int32),
        "mask_bytes": np.full(6, len(counts)),
        "masks": np.frombuffer(counts * 6, np.uint8),
    }


def as_bytes(text: str) -> np.ndarray:
    """Return a text as an array of its bytes."""
    return np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)


@cache
def recording() -> bytes:
    """Return the ``.npz`` of ``arrays``."""
    return npz(arrays())


def npz(content: dict[str, np.ndarray], *, compress: bool = False) -> bytes:
    """Return arrays as an ``.npz``; those of objects are pickled."""
    file = io.BytesIO()
    (np.savez_compressed if compress else np.savez)(file, **content)
    return file.getvalue()


@cache
def fake_model() -> bytes:
    """Return the fake model of 64x96 px with cropped masks."""
    return fakes.model().SerializeToString()


def write_good(folder: Path) -> None:
    """Write all that the runtime's commands read: images, annotations, a recording, a model."""
    write_images(folder)
    (folder / "annotations.json").write_text(json.dumps(truth()))
    (folder / "good.npz").write_bytes(recording())
    (folder / "good.onnx").write_bytes(fake_model())
