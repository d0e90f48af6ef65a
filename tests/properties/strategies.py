"""Random boxes, scores and images, in ranges in which float32 decides nothing by its last bit unless a test wants it.

Boxes lie on a grid of quarter pixels: their areas, and the shifts between groups, are exact in float32, so that an
overlap is above the threshold for every implementation or for none.
"""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

GRID_PX = 0.25
MAX_CORNER_PX = 60


def quarters(low_px: float, high_px: float) -> st.SearchStrategy[float]:
    """Return multiples of a quarter pixel."""
    return st.integers(int(low_px / GRID_PX), int(high_px / GRID_PX)).map(lambda steps: steps * GRID_PX)


@st.composite
def boxes(draw: st.DrawFn, shape: tuple[int, ...], low_px: float = 0, side_px: float = 40) -> np.ndarray:
    """Return (*shape, 4) float32 boxes, some without width or height."""
    corner = draw(arrays(np.float32, (*shape, 2), elements=quarters(low_px, MAX_CORNER_PX)))
    side = draw(arrays(np.float32, (*shape, 2), elements=quarters(0, side_px)))
    return np.concatenate([corner, corner + side], axis=-1)


@st.composite
def images(draw: st.DrawFn, max_side_px: int = 260) -> np.ndarray:
    """Return (H, W, 3) uint8: one pixel wide, a strip, or anything up to the limit; smooth noise with edges."""
    side = st.one_of(st.sampled_from([1, 2, 3]), st.integers(4, max_side_px))
    height, width = draw(side), draw(side)
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    coarse = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3), np.uint8)
    image = coarse.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
    return np.ascontiguousarray(image ^ rng.integers(0, 32, image.shape, np.uint8))


def floats(seed: int, *shape: int) -> np.ndarray:
    """Return standard normal float32 values: of a feature map it matters that neighbours differ, not what they are."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
