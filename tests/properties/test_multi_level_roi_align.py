"""MultiLevelRoiAlign: the function body in onnxruntime, the CPU reference and two matrix products in float64."""

from functools import lru_cache

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from patches.operators import multi_level_roi_align
from plugins import _reference
from tests.export.test_functions import align_session, level_oracle
from tests.plugins.roi_align_oracle import roi_align_oracle
from tests.properties.strategies import floats, quarters

ATOL = 1e-4  # float32 sums of some hundred standard normal values, in three orders
BINS = (3, 2)  # of align_session

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
    near_boundary = st.tuples(st.sampled_from([56, 112, 224, 448]), st.integers(-2, 2)).map(
        lambda pair: float(np.float32(pair[0]) + pair[1] * np.spacing(np.float32(pair[0])))
    )
    side = st.one_of(st.just(0.0), quarters(0, 30), quarters(0, 500), near_boundary)
    roi = st.tuples(st.integers(0, batch - 1), quarters(-40, 160), quarters(-40, 160), side, side)
    rows = np.array(draw(st.lists(roi, max_size=12)), np.float32).reshape(-1, 5)
    rows[:, 3:] += rows[:, 1:3]
    return rows


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
        level = level_oracle(roi, len(maps))
        features = torch.from_numpy(maps[level]).double()
        options = {"spatial_scale": scales[level], "sampling_ratio": ratio, "aligned": aligned}
        out[:] = roi_align_oracle(features, roi[None], BINS, **options)[0]
    for values in (found, reference, eager.numpy()):
        np.testing.assert_allclose(values, expected, rtol=0, atol=ATOL)
