"""The embedded default: a tiny trained Mask R-CNN, its config, a few images, and how they were made."""

from pathlib import Path

CONFIG_PATH = Path(__file__).parent / "tiny-mask-rcnn_r18_fpn_shapes.py"
CHECKPOINT_PATH = Path(__file__).parent / "tiny-mask-rcnn_r18_fpn_shapes.pth"
IMAGES_DIR = Path(__file__).parent / "images"
METRICS_PATH = Path(__file__).parent / "metrics.json"
