from pathlib import Path

import numpy as np
import pytest

from runtime.backends import load_backend
from runtime.comparison.difference import DetectionArrays
from runtime.plan_search.agreement import Agreement, AgreementTolerance, Judge, agreement_of_image, summed
from tests.runtime import fakes

TOLERANCE = AgreementTolerance(box_px=0.5, score=0.01, mask=0.02, min_score=0.3, share=0.97)


def found(*rows: tuple, masks: bool = True) -> DetectionArrays:
    """Rows of (x, score, label, width of the mask): boxes of 20 px at (x, 0)."""
    boxes = np.array([(x, 0, x + 20, 20) for x, *_ in rows], np.float32).reshape(-1, 4)
    grids = np.zeros((len(rows), 100, 100), bool)
    for grid, (*_, width) in zip(grids, rows):
        grid[:, :width] = True
    return DetectionArrays(
        boxes,
        np.array([row[1] for row in rows], np.float32),
        np.array([row[2] for row in rows], np.int32),
        grids if masks else None,
    )


ONE = (10.0, 0.9, 1, 50)


@pytest.mark.parametrize(
    ("expected", "other", "total", "agreeing", "missing", "extra"),
    [
        ([], [], 0, 0, 0, 0),
        ([ONE], [ONE], 1, 1, 0, 0),
        ([ONE], [], 1, 0, 1, 0),
        ([], [ONE], 1, 0, 0, 1),
        ([ONE], [(10.4, 0.9, 1, 50)], 1, 1, 0, 0),
        ([ONE], [(10.6, 0.9, 1, 50)], 1, 0, 0, 0),
        ([ONE], [(10.0, 0.895, 1, 50)], 1, 1, 0, 0),
        ([ONE], [(10.0, 0.88, 1, 50)], 1, 0, 0, 0),
        ([ONE], [(10.0, 0.9, 1, 51)], 1, 1, 0, 0),
        ([ONE], [(10.0, 0.9, 1, 52)], 1, 0, 0, 0),
        ([ONE], [(10.0, 0.9, 2, 50)], 2, 0, 1, 1),
        ([ONE], [(50.0, 0.9, 1, 50)], 2, 0, 1, 1),
        # Below the least score on both sides: not counted. On one side: counted once.
        ([(10.0, 0.2, 1, 50)], [(10.0, 0.1, 1, 50)], 0, 0, 0, 0),
        ([(10.0, 0.2, 1, 50)], [], 0, 0, 0, 0),
        ([], [(10.0, 0.2, 1, 50)], 0, 0, 0, 0),
        ([(10.0, 0.3, 1, 50)], [(10.0, 0.296, 1, 50)], 1, 1, 0, 0),
        ([(10.0, 0.296, 1, 50)], [(10.0, 0.304, 1, 50)], 1, 1, 0, 0),
        ([(10.0, 0.25, 1, 50)], [(10.0, 0.35, 1, 50)], 1, 0, 0, 0),
        ([ONE, (80.0, 0.5, 1, 9)], [(80.0, 0.5, 1, 9), ONE], 2, 2, 0, 0),
    ],
)
@pytest.mark.parametrize("masks", [True, False])
def test_one_image(expected, other, total, agreeing, missing, extra, masks) -> None:
    agreement = agreement_of_image(found(*expected, masks=masks), found(*other, masks=masks), TOLERANCE)
    mask_only = bool(masks is False and expected and other and expected[0][3] == 50 and other[0][3] == 52)
    assert (agreement.total, agreement.missing, agreement.extra) == (total, missing, extra)
    assert agreement.agreeing == agreeing + mask_only


def test_nan_never_agrees() -> None:
    assert agreement_of_image(found(ONE), found((10.0, np.nan, 1, 50)), TOLERANCE).agreeing == 0
    assert agreement_of_image(found(ONE), found((np.nan, 0.9, 1, 50)), TOLERANCE).agreeing == 0


def test_several_images() -> None:
    parts = [
        Agreement(total=60, agreeing=59, box_px=0.2, score=0.02, missing=1),
        Agreement(total=40, agreeing=39, box_px=0.7, score=0.01, mask=0.1, extra=1),
    ]
    both = summed(parts)
    assert both == Agreement(100, 98, box_px=0.7, score=0.02, mask=0.1, missing=1, extra=1)
    assert both.share == 0.98
    assert both.within(TOLERANCE)
    assert not summed([*parts, Agreement(10, 0, problem="NaN")]).within(TOLERANCE)
    assert summed([]).share == 1.0


@pytest.fixture
def image_paths(tmp_path: Path) -> list[Path]:
    import cv2

    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for seed, (path, size) in enumerate(zip(paths, ((64, 96), (100, 80)))):
        cv2.imwrite(str(path), fakes.random_image(*size, seed))
    return paths


def test_a_model_agrees_with_itself(fake_model: Path, image_paths: list[Path]) -> None:
    judge = Judge(load_backend(fake_model), image_paths, TOLERANCE, threads=1)
    # Two of three scores are 0.3 or more.
    assert judge(fakes.model()) == Agreement(total=4, agreeing=4)
    assert [feed["images"].shape for feed in judge.feeds] == [(1, 3, 64, 96)] * 2


def test_a_model_that_makes_nan(fake_model: Path, image_paths: list[Path]) -> None:
    judge = Judge(load_backend(fake_model), image_paths, TOLERANCE)
    broken = fakes.model()
    for tensor in broken.graph.initializer:
        if tensor.name == "discs":
            tensor.raw_data = np.full(tuple(tensor.dims), np.nan, np.float32).tobytes()
    agreement = judge(broken)
    assert agreement.problem == "output masks has NaN or Inf"
    assert agreement.share == 0


def test_images_without_anything(fake_model: Path, tmp_path: Path) -> None:
    import cv2

    path = tmp_path / "dark.png"
    cv2.imwrite(str(path), np.zeros((64, 96, 3), np.uint8))
    message = (
        "expected a detection of score 0.3 or more in one of them, found 0.00 at best; give images of what"
    )
    with pytest.raises(ValueError, match=message):
        Judge(load_backend(fake_model), [path], TOLERANCE)
