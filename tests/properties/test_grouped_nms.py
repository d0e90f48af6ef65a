"""GroupedNMS: the function body in onnxruntime, the CPU reference and plain greedy NMS in NumPy, index for index."""

from functools import lru_cache

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from plugins import _reference
from tests.export.test_functions import greedy, nms_session
from tests.properties.strategies import boxes

# Few values, so that there are ties, scores of just the threshold, and NaN.
SCORES = st.sampled_from([np.nan, -1.0, 0.0, 0.05, 0.25, 0.5, 0.75, 1.0])
IOU_THRESHOLDS, SCORE_THRESHOLDS, MAX_OUTPUTS = (0.3, 0.5, 0.7), (-1.0, 0.0, 0.05), (1, 4, 30)

session = lru_cache(None)(nms_session)


@st.composite
def candidates(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return boxes (B, M, 4), scores (B, M) and groups (B or 1, M)."""
    batch, num = draw(st.integers(1, 3)), draw(st.integers(1, 20))
    group_rows = draw(st.sampled_from([1, batch]))
    return (
        draw(boxes((batch, num))),
        draw(arrays(np.float32, (batch, num), elements=SCORES)),
        draw(arrays(np.int32, (group_rows, num), elements=st.integers(0, 90))),
    )


@given(
    candidates(),
    st.sampled_from(IOU_THRESHOLDS),
    st.sampled_from(SCORE_THRESHOLDS),
    st.sampled_from(MAX_OUTPUTS),
)
def test_all_keep_the_same(case, iou_threshold, score_threshold, max_output):
    coordinates, scores, groups = case
    every_group = np.ascontiguousarray(np.broadcast_to(groups, scores.shape))
    settings = (iou_threshold, score_threshold, max_output)
    found = session(*settings).run(None, {"boxes": coordinates, "scores": scores, "groups": groups})
    reference = _reference.grouped_nms(coordinates, scores, every_group, *settings)
    for b, own_groups in enumerate(every_group):
        kept = greedy(coordinates[b], scores[b], own_groups, *settings)
        expected = kept + [-1] * (max_output - len(kept))
        for indices, counts in (found, reference):
            assert indices[b].tolist() == expected
            assert counts[b] == len(kept)


@given(candidates(), st.data())
def test_an_image_does_not_depend_on_its_neighbours(case, data):
    """Each image of a batch alone gives what it gave in the batch: the shift of the groups is the image's own."""
    coordinates, scores, groups = case
    every_group = np.ascontiguousarray(np.broadcast_to(groups, scores.shape))
    run = session(0.5, 0.0, 4)
    indices, counts = run.run(None, {"boxes": coordinates, "scores": scores, "groups": every_group})
    one = data.draw(st.integers(0, len(scores) - 1))
    part = slice(one, one + 1)
    feeds = {"boxes": coordinates[part], "scores": scores[part], "groups": every_group[part]}
    alone, count = run.run(None, feeds)
    np.testing.assert_array_equal(alone, indices[part])
    np.testing.assert_array_equal(count, counts[part])
