"""Engines of a network that mmcv 1.x exported."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from runtime.comparison.difference import DetectionArrays, compare_image
from runtime.engine.files import Machine
from tests.gpu.engines import harness, legacy_onnx

pytestmark = [pytest.mark.gpu, pytest.mark.tensorrt]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_onnx_of_mmcv_1_builds_and_runs(
    precision: str, legacy: Path, machine: Machine, timing_cache: Path
) -> None:
    options = ("--precision", precision, "--batch", "1", "2", "4")
    engine = harness.built(legacy, legacy.with_name(f"legacy_{precision}.engine"), timing_cache, *options)
    standard = legacy_onnx.standard_form(onnx.load(legacy))
    check = check_legacy if precision == "fp32" else check_legacy_half
    with harness.open_session(engine, machine) as session:
        for start, stop in ((0, 1), (1, 4)):
            feeds = {"input": legacy_onnx.images(4)[start:stop]}
            expected = harness.run_onnx(standard, feeds)
            # With every row in use there is no order among empty ones to compare.
            assert (expected["dets"][..., 4] > 0).all()
            check(expected, session.run(feeds))


def check_legacy(expected: dict, found: dict) -> None:
    np.testing.assert_array_equal(found["labels"], expected["labels"])
    np.testing.assert_allclose(
        found["dets"][..., :4], expected["dets"][..., :4], rtol=0, atol=harness.CLOSE_PX
    )
    np.testing.assert_allclose(found["dets"][..., 4], expected["dets"][..., 4], rtol=0, atol=harness.CLOSE)
    np.testing.assert_allclose(found["masks"], expected["masks"], rtol=0, atol=harness.CLOSE)


def check_legacy_half(expected: dict, found: dict) -> None:
    """Nearly equal scores may have swapped their rows, or the last one may have been another's."""
    assert all(np.isfinite(array).all() for array in found.values())
    for index in range(len(expected["dets"])):
        sides = (
            DetectionArrays(
                side["dets"][index, :, :4],
                side["dets"][index, :, 4],
                side["labels"][index],
                side["masks"][index] > 0.5,
            )
            for side in (expected, found)
        )
        difference = compare_image(*sides)
        assert difference.matched >= legacy_onnx.NUM_ROWS - 2
        assert difference.box_px <= 0.25
        assert difference.score <= 0.01
        assert difference.mask <= harness.HALF.mask
