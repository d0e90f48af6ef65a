from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from runtime.detections import Detections
from runtime.host.postprocess import CroppedMasks
from tests.runtime import fakes

SIZE = (40, 50)
BOXES = np.array([[1, 2, 20, 30], [5, 5, 45, 35], [0, 0, 50, 40]], np.float32)


def _detections(*, masks: bool = True) -> Detections:
    source = CroppedMasks(np.stack([fakes.disc()] * 3), BOXES, SIZE, 0.5) if masks else None
    return Detections(
        boxes=BOXES,
        scores=np.array([0.9, 0.5, 0.2], np.float32),
        labels=np.array([1, 0, 2], np.int32),
        image_size=SIZE,
        classes=fakes.CLASSES,
        mask_source=source,
    )


def test_masks_and_rle_are_the_same_masks() -> None:
    detections = _detections()
    assert detections.masks.shape == (3, *SIZE)
    assert detections.masks.dtype == bool
    assert detections.masks.any(axis=(1, 2)).all()
    for rle, mask in zip(detections.rle(), detections.masks):
        assert isinstance(rle["counts"], str)
        np.testing.assert_array_equal(coco_mask.decode(rle), mask)


def test_masks_are_pasted_once() -> None:
    detections = _detections()
    assert detections.masks is detections.masks


@pytest.mark.parametrize(("score", "num_kept"), [(0.0, 3), (0.5, 2), (0.51, 1), (1.0, 0)])
def test_filter_keeps_scores_from_the_threshold_up(score: float, num_kept: int) -> None:
    everything = _detections()
    kept = everything.filter(score)
    assert len(kept) == num_kept
    assert (kept.scores >= np.float32(score)).all()
    assert kept.names == ["square", "circle", "triangle"][:num_kept]
    np.testing.assert_array_equal(kept.masks, everything.masks[:num_kept])
    assert len(everything) == 3


def test_without_a_mask_head_masks_are_refused() -> None:
    detections = _detections(masks=False)
    assert not detections.has_masks
    for use in (lambda: detections.masks, detections.rle, detections.mask_crops):
        with pytest.raises(ValueError, match="expected a model with masks, found one without a mask head"):
            use()
    assert len(detections.filter(0.3)) == 2


def test_detections_are_frozen_and_their_shapes_checked() -> None:
    detections = _detections()
    with pytest.raises(FrozenInstanceError):
        detections.boxes = BOXES
    with pytest.raises(ValueError, match=r"scores: expected shape \(3,\) for 3 boxes, found \(2,\)"):
        Detections(BOXES, np.ones(2, np.float32), np.zeros(3, np.int32), SIZE, fakes.CLASSES)
    with pytest.raises(ValueError, match=r"boxes: expected shape \(3, 4\) for 3 boxes, found \(3, 5\)"):
        Detections(np.ones((3, 5), np.float32), np.ones(3), np.zeros(3, np.int32), SIZE, fakes.CLASSES)


def test_repr_is_short() -> None:
    assert repr(_detections()) == "Detections(3 in an image of 40x50 px)"


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (1, [1]),
        (-1, [2]),
        (np.int64(0), [0]),
        (slice(1, None), [1, 2]),
        (slice(None, None, -1), [2, 1, 0]),
        ([2, 0], [2, 0]),
        (np.array([True, False, True]), [0, 2]),
        ([], []),
        (np.zeros(3, bool), []),
    ],
)
def test_an_index_is_a_number_a_slice_a_mask_or_several(key: object, expected: list[int]) -> None:
    everything = _detections()
    some = everything[key]
    np.testing.assert_array_equal(some.boxes, BOXES[expected])
    assert some.names == [everything.names[i] for i in expected]
    assert some.masks.shape == (len(expected), *SIZE)
    np.testing.assert_array_equal(some.masks, everything.masks[expected])


@pytest.mark.parametrize("key", [3, -4, [0, 3], np.ones(2, bool), np.ones((3, 1), bool)])
def test_an_index_beyond_the_end_is_an_index_error(key: object) -> None:
    with pytest.raises(IndexError, match="expected"):
        _detections()[key]


@pytest.mark.parametrize("key", ["circle", None, 1.5, (0, 1)])
def test_another_key_is_a_type_error(key: object) -> None:
    with pytest.raises(TypeError, match="expected a number, a slice, a mask or indices"):
        _detections()[key]


def test_iterating_yields_detections_of_one() -> None:
    everything = _detections()
    ones = list(everything)
    assert [one.names for one in ones] == [["square"], ["circle"], ["triangle"]]
    np.testing.assert_array_equal(np.concatenate([one.masks for one in ones]), everything.masks)
    assert list(everything.filter(1.0)) == []


def test_track_ids_are_selected_and_checked() -> None:
    from dataclasses import replace

    tracked = replace(_detections(), track_ids=np.array([7, -1, 5]))
    assert tracked[[2, 0]].track_ids.tolist() == [5, 7]
    with pytest.raises(ValueError, match=r"track_ids: expected shape \(3,\) for 3 boxes, found \(2,\)"):
        replace(_detections(), track_ids=np.zeros(2, int))
