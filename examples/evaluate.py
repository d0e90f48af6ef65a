"""Measures the embedded model: COCO box and mask AP on held-out renders, or on any folder in COCO's format.

python -m examples.evaluate --device cpu --num 200
python -m examples.evaluate --coco FOLDER --scale 1333 800
"""

from __future__ import annotations

import patches  # isort: skip  # noqa: F401  makes mmdet importable without mmcv's compiled operators

import argparse
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import mmdet
import numpy as np
import torch
from mmdet.apis import inference_detector, init_detector
from mmdet.structures import DetDataSample
from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config
from numpy.typing import NDArray
from pycocotools import mask as rle_tools
from torch import nn

from examples import CHECKPOINT_PATH, CONFIG_PATH
from examples.shapes import coco_from_scenes, held_out_scenes
from runtime.comparison import average_precision as coco

NamedImage = tuple[int, NDArray[np.uint8]]
"""COCO image id and (H, W, 3) uint8 BGR."""


def load_detector(
    config: Path, checkpoint: Path, device: str, *, scale: tuple[int, int] | None = None
) -> nn.Module:
    """Build the detector in evaluation mode; `scale` (longer, shorter side in px) replaces the config's Resize."""
    settings = Config.fromfile(config)
    if scale is not None:
        resize = next(step for step in get_test_pipeline_cfg(settings) if step.type == "Resize")
        resize.scale = tuple(scale)
    return init_detector(settings, str(checkpoint), device=device)


def detect(model: nn.Module, images: Iterable[NamedImage]) -> list[dict]:
    """Run the detector image by image; detections in COCO's result format, at the original images' size."""
    return [row for image_id, image in images for row in _rows(inference_detector(model, image), image_id)]


def _rows(sample: DetDataSample, image_id: int) -> list[dict]:
    found = sample.pred_instances
    masks = found.masks.cpu().numpy().astype(np.uint8)
    rows = []
    for box, score, label, mask in zip(
        found.bboxes.tolist(), found.scores.tolist(), found.labels.tolist(), masks
    ):
        rle = rle_tools.encode(np.asfortranarray(mask))
        x1, y1, x2, y2 = box
        rows.append(
            {
                "image_id": image_id,
                "category_id": label + 1,
                "score": score,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
            }
        )
    return rows


def average_precision(truth: dict, detections: list[dict]) -> dict[str, float | None]:
    """Box and mask AP, AP50, AP75 and AP by size, in [0, 1]; None without objects of that size."""
    measured = coco.average_precision(truth, detections)
    return {
        f"{kind}_{name}": None if value is None else round(value, 4)
        for kind, values in measured.items()
        for name, value in values.items()
    }


def rendered_set(num: int, seed: int) -> tuple[dict, list[NamedImage]]:
    """Held-out renders: COCO annotations and the images."""
    scenes = held_out_scenes(num, seed)
    truth = coco_from_scenes(scenes, [f"{i:06d}.png" for i in range(num)])
    return truth, [(i + 1, scene.image) for i, scene in enumerate(scenes)]


def folder_set(folder: Path) -> tuple[dict, Iterator[NamedImage]]:
    """A folder of images beside `annotations.json`, whose category ids must be label + 1."""
    truth = json.loads((folder / "annotations.json").read_text())
    return truth, ((entry["id"], _read(folder / entry["file_name"])) for entry in truth["images"])


def _read(path: Path) -> NDArray[np.uint8]:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise RuntimeError(f"could not read {path}: expected an image file that OpenCV decodes")
    return image


def report(truth: dict, detections: list[dict], checkpoint: Path) -> dict:
    """Everything that metrics.json says besides the data set."""
    training = torch.load(checkpoint, weights_only=True)["meta"].get("training", {})
    return {
        "num_images": len(truth["images"]),
        "num_objects": len(truth["annotations"]),
        "num_detections": len(detections),
        "num_detections_above_0.5": sum(row["score"] > 0.5 for row in detections),
        **average_precision(truth, detections),
        "checkpoint_sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        "checkpoint_bytes": checkpoint.stat().st_size,
        "training": training,
        "versions": {"torch": str(torch.__version__), "mmdet": mmdet.__version__, "opencv": cv2.__version__},
    }


def main(argv: list[str] | None = None) -> None:
    args = _parse(argv)
    model = load_detector(args.config, args.checkpoint, args.device, scale=args.scale)
    truth, images = folder_set(args.coco) if args.coco else rendered_set(args.num, args.seed)
    source = {"folder": args.coco.name} if args.coco else {"seed": args.seed}
    size = {"scale": args.scale} if args.scale else {}
    metrics = {
        "dataset": source | size,
        "device": args.device,
        **report(truth, detect(model, images), args.checkpoint),
    }
    text = json.dumps(metrics, indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, default=CONFIG_PATH)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT_PATH)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--num", type=int, default=200, help="held-out renders (default %(default)s)")
    parser.add_argument("--seed", type=int, default=20001, help="their seed (default %(default)s)")
    parser.add_argument(
        "--coco", type=Path, help="evaluate this folder of images and annotations.json instead"
    )
    parser.add_argument("--scale", type=int, nargs=2, metavar=("LONG", "SHORT"), help="test scale in px")
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
