"""PasteMasks: the function body in onnxruntime, the CPU reference, the runtime's paste and torch's grid_sample."""

from functools import lru_cache

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from plugins import _reference
from runtime.host.postprocess import paste_mask
from tests.export.test_functions import NEAR_THRESHOLD, paste_oracle, paste_session
from tests.properties.strategies import boxes

session = lru_cache(None)(paste_session)
SIDES = st.one_of(st.sampled_from([1, 2]), st.integers(3, 70))


@st.composite
def pasted(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Return masks (B, K, m, m), boxes (B, K, 4) and the canvas's height and width in px."""
    batch, num = draw(st.integers(1, 2)), draw(st.integers(1, 4))
    cells = draw(st.sampled_from([(28, 28), (14, 14), (1, 1), (5, 9)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    masks = rng.random((batch, num, *cells)).astype(np.float32)
    # mmdet clips boxes to the image before it pastes; a box of another image size may still reach beyond the canvas.
    coordinates = draw(boxes((batch, num), low_px=-20, side_px=90))
    # Off the grid of pixel centres, and on it.
    shift = draw(st.sampled_from([0.0, 0.0625, 0.3]))
    return masks, coordinates + np.float32(shift), draw(SIDES), draw(SIDES)


@given(pasted())
def test_all_paste_the_same(case):
    masks, coordinates, height, width = case
    canvas = np.zeros((len(masks), 3, height, width), np.float32)
    (found,) = session().run(None, {"masks": masks, "boxes": coordinates, "canvas": canvas})
    for b, k in np.ndindex(*masks.shape[:2]):
        probability = paste_oracle(masks[b, k], coordinates[b, k], height, width)
        decided = ~(np.abs(probability - 0.5) < NEAR_THRESHOLD)
        reference = _reference.paste_masks(masks[b, k][None], coordinates[b, k][None], height, width, 0.5)[0]
        crop = paste_mask(masks[b, k], coordinates[b, k], (height, width), 0.5)
        whole = np.zeros((height, width), bool)
        whole[crop.window] = crop.pixels
        for mask in (found[b, k], reference, whole):
            np.testing.assert_array_equal(mask[decided].astype(bool), (probability >= 0.5)[decided])
