"""When what the C++ library finds is what Python finds."""

from collections.abc import Sequence

import numpy as np

from runtime.detections import Detections
from tests.cpp.library import Found

# The same network, input and OpenVINO: what is left is the order in which a batch's threads sum.
BOX_PX = 1e-4
SCORE = 1e-6


def assert_same(found: Sequence[Found], expected: Sequence[Detections]) -> int:
    """Compare image by image; return the number of detections."""
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected):
        assert len(ours.boxes) == len(theirs)
        np.testing.assert_allclose(ours.boxes, theirs.boxes, rtol=0, atol=BOX_PX)
        np.testing.assert_allclose(ours.scores, theirs.scores, rtol=0, atol=SCORE)
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        assert ours.names == theirs.names
        if theirs.keypoints is not None:
            np.testing.assert_allclose(ours.keypoints, theirs.keypoints, rtol=0, atol=BOX_PX)
        if theirs.has_masks:
            assert ours.rle == [mask["counts"] for mask in theirs.rle()]
    return sum(len(detections) for detections in expected)
