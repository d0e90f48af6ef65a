"""What mmdet must do differently to be traced, applied in a context manager and undone afterwards.

Importing this package makes mmdet importable without mmcv's compiled operators (``patches.mmcv_ops``).

    >>> from patches import applied, patches_for
    >>> with applied(patches_for(model)):
    ...     instances = model.predict(images, image_sizes)
"""

from patches.mmcv_ops import ensure_mmcv_ops

ensure_mmcv_ops()

from patches.families import patches_for  # noqa: E402
from patches.patch import Patch, applied  # noqa: E402

__all__ = ["Patch", "applied", "ensure_mmcv_ops", "patches_for"]
