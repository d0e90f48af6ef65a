"""The embedded default: a tiny trained Mask R-CNN, its config, a few images, and how they were made."""

from pathlib import Path

CONFIG_PATH = Path(__file__).parent / "tiny-mask-rcnn_r18_fpn_shapes.py"
CHECKPOINT_PATH = Path(__file__).parent / "tiny-mask-rcnn_r18_fpn_shapes.pth"
IMAGES_DIR = Path(__file__).parent / "images"
METRICS_PATH = Path(__file__).parent / "metrics.json"
# What an export is verified with: landscape, portrait, turned by its EXIF orientation, grey.
VERIFICATION_IMAGES = (
    IMAGES_DIR / "landscape.jpg",
    IMAGES_DIR / "portrait.jpg",
    Path(__file__).parent / "verification" / "turned.jpg",
    Path(__file__).parent / "verification" / "grey.jpg",
)
