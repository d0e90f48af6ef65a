"""The embedded default: a tiny trained Mask R-CNN, its config, a few images, and how they were made.

Commands take the data from ``runtime.embedded``; ``setup.py`` lists what of it is installed.
"""

from pathlib import Path

from runtime.embedded import CHECKPOINT_PATH, CONFIG_PATH, IMAGES_DIR, VERIFICATION_IMAGES

METRICS_PATH = Path(__file__).parent / "metrics.json"

__all__ = ["CHECKPOINT_PATH", "CONFIG_PATH", "IMAGES_DIR", "METRICS_PATH", "VERIFICATION_IMAGES"]
