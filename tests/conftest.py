"""Fixtures that several packages' tests share."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

import patches  # noqa: F401  (makes mmcv.ops and mmdet importable, in whatever order a test imports them)

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores; two that use all of them each take longer than one after the other.
    torch.set_num_threads(1)

# The same examples in every run. `pytest --hypothesis-profile=thorough` looks for new ones, for minutes.
settings.register_profile("suite", max_examples=40, derandomize=True, deadline=None)
settings.register_profile("thorough", max_examples=2000, deadline=None)
settings.load_profile("suite")

DATA_VARIABLE = "MASKRCNN_TEST_DATA"


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder with the trained R50-FPN and its evaluation set; tests that need it skip without it."""
    value = os.environ.get(DATA_VARIABLE)
    if not value:
        pytest.skip(
            f"{DATA_VARIABLE} is not set: it names a folder with checkpoints/ and datasets/shapes_val/"
        )
    root = Path(value)
    for needed in ("checkpoints/mask-rcnn_r50_fpn_shapes.pth", "datasets/shapes_val/annotations.json"):
        if not (root / needed).is_file():
            pytest.skip(f"{DATA_VARIABLE}={value}: no {needed} there")
    return root
