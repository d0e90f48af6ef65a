"""MultiLevelRoiAlign: the function body in onnxruntime, the CPU reference and two matrix products in float64."""

from functools import lru_cache

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from patches.operators import multi_level_roi_align
from plugins import _reference
from tests.export.test_functions import align_session
from tests.plugins.roi_align_oracle import roi_align_oracle
from tests.properties.strategies import floats, quarters

ATOL = 1e-4  # float32 sums of some hundred standard normal values, in three orders
BINS = (3, 2)  # of align_session
BOUNDARIES_PX = (112, 224, 448)  # sides at which the level changes, but for mmdet's 1e-6

session = lru_cache(None)(align_session)


@st.composite
def pyramids(draw: st.DrawFn) -> list[np.ndarray]:
    """Return 1 to 4 maps (B, C, H_l, W_l), the coarsest down to a single pixel."""
    num_levels, batch, channels = (
        draw(st.sampled_from([1, 4])),
        draw(st.integers(1, 2)),
        draw(st.integers(1, 3)),
    )
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    seed = draw(st.integers(0, 2**16))
    sizes = [(max(1, height >> level), max(1, width >> level)) for level in range(num_levels)]
    return [floats(seed + level, batch, channels, *size) for level, size in enumerate(sizes)]


@st.composite
def regions(draw: st.DrawFn, batch: int) -> np.ndarray:
    """Return (R, 5) float32 RoIs: inside and outside, empty, and of sides around those at which the level changes."""
    side = st.one_of(st.just(0.0), quarters(0, 30), quarters(0, 500))
    any_roi = st.tuples(*[st.integers(0, batch - 1), quarters(-40, 160), quarters(-40, 160), side, side])
    square = st.tuples(st.sampled_from(BOUNDARIES_PX), st.integers(-10, 10)).map(_neighbour)
    boundary = square.map(lambda side: (0, 0.0, 0.0, side, side))
    roi = st.one_of(any_roi, boundary)
    rows = np.array(draw(st.lists(roi, max_size=12)), np.float32).reshape(-1, 5)
    rows[:, 3:] += rows[:, 1:3]
    return rows


def _neighbour(value_and_steps: tuple[float, int]) -> float:
    """Return the float32 so many steps from a value."""
    value, steps = np.float32(value_and_steps[0]), value_and_steps[1]
    return float(value + steps * np.spacing(value))


def level_of(roi: np.ndarray, num_levels: int) -> int:
    """Return ``floor(log2(...))`` of FPN's equation 1, the logarithm in float64.

    mmdet's is in float32, which takes it to 3 for one number below 8.
    """
    side = np.sqrt((roi[3] - roi[1]) * (roi[4] - roi[2])) / np.float32(56) + np.float32(1e-6)
    return int(np.clip(np.floor(np.log2(np.float64(side))), 0, num_levels - 1))


@given(pyramids(), st.data(), st.booleans(), st.sampled_from([0, 2]))
def test_all_read_the_same(maps, data, aligned, ratio):
    rois = data.draw(regions(len(maps[0])))
    scales = [1 / 4 / 2**level for level in range(len(maps))]
    feeds = {f"feature_{level}": feature for level, feature in enumerate(maps)}
    run = session(len(maps), aligned=aligned, ratio=ratio)
    (found,) = run.run(None, {"rois": rois, **feeds})
    reference = _reference.multi_level_roi_align(
        maps, rois, *BINS, scales, sampling_ratio=ratio, aligned=aligned
    )
    eager = multi_level_roi_align(
        [torch.from_numpy(feature) for feature in maps],
        torch.from_numpy(rois),
        output_size=BINS,
        spatial_scales=scales,
        finest_scale=56,
        sampling_ratio=ratio,
        aligned=aligned,
    )
    expected = np.zeros((len(rois), maps[0].shape[1], *BINS))
    for out, roi in zip(expected, rois):
        level = level_of(roi, len(maps))
        features = torch.from_numpy(maps[level]).double()
        options = {"spatial_scale": scales[level], "sampling_ratio": ratio, "aligned": aligned}
        out[:] = roi_align_oracle(features, roi[None], BINS, **options)[0]
    for values in (found, reference, eager.numpy()):
        np.testing.assert_allclose(values, expected, rtol=0, atol=ATOL)


def test_the_level_of_every_side_around_a_boundary():
    """Ten floats to either side: among them are those that mmdet's 1e-6 takes to just the boundary."""
    sides = [_neighbour((side, steps)) for side in BOUNDARIES_PX for steps in range(-10, 11)]
    rois = np.array([(0, 0, 0, side, side) for side in sides], np.float32)
    # Maps that hold nothing but their level's number, and are large enough for every RoI.
    numbered = [np.full((1, 1, 120, 120), level, np.float32) for level in range(4)]
    feeds = {f"feature_{level}": feature for level, feature in enumerate(numbered)}
    (found,) = session(4, ratio=2).run(None, {"rois": rois, **feeds})
    scales = [1 / 4 / 2**level for level in range(4)]
    reference = _reference.multi_level_roi_align(numbered, rois, *BINS, scales, sampling_ratio=2)
    expected = [level_of(roi, 4) for roi in rois]
    assert set(expected) == {0, 1, 2, 3}
    for values in (found, reference):
        np.testing.assert_allclose(values.mean(axis=(1, 2, 3)), expected, rtol=0, atol=ATOL)
