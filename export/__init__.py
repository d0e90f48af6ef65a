"""Checkpoint -> ONNX. Needs PyTorch and mmdet; what comes out needs neither."""

import patches  # noqa: F401  (first: without mmcv's compiled operators mmdet is importable only after it)
