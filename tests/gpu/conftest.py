"""Where TensorRT is there may be no PyTorch: the kernels' tests, which need it, are then left out."""

import importlib.util

if importlib.util.find_spec("torch") is None:
    collect_ignore_glob = ["*/test_kernel.py", "test_garbage.py", "test_mmcv_ops.py"]
