"""Where the embedded model and its images are.

In the repository that is ``examples/``. An installed package has a copy of the data inside itself, and no top-level
package ``examples``, a name that other distributions and users' own folders have.
"""

from pathlib import Path

_INSTALLED = Path(__file__).resolve().parent / "_embedded"
ROOT = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).resolve().parents[1] / "examples"

CONFIG_PATH = ROOT / "tiny-mask-rcnn_r18_fpn_shapes.py"
CHECKPOINT_PATH = ROOT / "tiny-mask-rcnn_r18_fpn_shapes.pth"
IMAGES_DIR = ROOT / "images"
# What an export is verified with: landscape, portrait, turned by its EXIF orientation, grey.
VERIFICATION_IMAGES = (
    IMAGES_DIR / "landscape.jpg",
    IMAGES_DIR / "portrait.jpg",
    ROOT / "verification" / "turned.jpg",
    ROOT / "verification" / "grey.jpg",
)
