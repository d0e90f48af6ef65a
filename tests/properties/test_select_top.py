"""SelectTop: the function body in onnxruntime, the CPU reference and a stable sort in NumPy, index for index."""

from functools import lru_cache

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from plugins import _reference
from tests.export.test_functions import top_session

# Ties, zeros of both signs, neighbours in float32, denormals. Where NaN goes, ONNX leaves open.
SCORES = st.sampled_from(
    [-np.inf, -1.0, -1e-45, -0.0, 0.0, 1e-45, 0.5, float(np.nextafter(np.float32(1), 0)), 1.0]
)

session = lru_cache(None)(top_session)


@given(st.integers(1, 3), st.sampled_from([1, 2, 7]), st.integers(0, 40), st.data())
def test_all_select_the_same(batch, k, more, data):
    scores = data.draw(arrays(np.float32, (batch, k + more), elements=SCORES))
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    for values, indices in (session(k).run(None, {"scores": scores}), _reference.select_top(scores, k)):
        np.testing.assert_array_equal(indices, expected)
        np.testing.assert_array_equal(values, np.take_along_axis(scores, expected, axis=1))
