"""Key points on their way: Detections, results, overlays, recordings, comparisons, average precision."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Optional

import cv2
import numpy as np
import pytest

from runtime.coco_writer import ResultsWriter, coco_results
from runtime.comparison.annotations import read_annotations
from runtime.comparison.average_precision import average_precision, result_rows
from runtime.comparison.detections import arrays_from_detections
from runtime.comparison.difference import Tolerance, compare_image
from runtime.comparison.evaluation import evaluate
from runtime.comparison.recording import RecordingWriter, read_recording
from runtime.contract import contract_outputs
from runtime.detections import Detections
from runtime.draw import draw_detections
from runtime.host.postprocess import detections_from_outputs
from runtime.host.preprocess import prepare
from runtime.metadata import ModelMetadata
from runtime.transforms import CenterPad, Fit

NAMES = ("left", "right", "nose")
LINES = ((0, 1), (1, 2))


def metadata(**changes: object) -> ModelMetadata:
    values = {
        "classes": ("face",),
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
        "color_order": "bgr",
        "steps": (Fit((64, 64)), CenterPad((64, 64), 114)),
        "size": (64, 64),
        "size_divisor": 32,
        "masks": "none",
        "mask_threshold": 0.5,
        "score_threshold": 0.1,
        "max_per_img": 3,
        "keypoints": NAMES,
        "skeleton": LINES,
        "clip": True,
    }
    return ModelMetadata(**{**values, **changes})


def detections(count: int = 2, *, move: float = 0.0) -> Detections:
    boxes = np.array([[10, 20, 40, 60], [50, 10, 90, 50]], np.float32)[:count]
    points = np.array(
        [[[15, 30, 0.9], [35, 30, 0.8], [25, 40, 0.7]], [[60, 20, 0.9], [80, 20, 0.1], [70, 30, 0.5]]]
    )
    points[..., 0] += move
    return Detections(
        boxes,
        np.array([0.9, 0.8], np.float32)[:count],
        np.zeros(count, np.int32),
        (80, 120),
        ("face",),
        None,
        points[:count].astype(np.float32),
        NAMES,
        LINES,
    )


def test_the_metadata_goes_through_json_and_older_files_have_none() -> None:
    whole = metadata()
    assert ModelMetadata.from_json(whole.to_json()) == whole
    older = {
        k: v for k, v in json.loads(whole.to_json()).items() if k not in ("keypoints", "skeleton", "clip")
    }
    read = ModelMetadata.from_json(json.dumps(older))
    assert (read.keypoints, read.skeleton, read.clip) == ((), (), False)


@pytest.mark.parametrize("skeleton", [[[0, 3]], [[0]], [[-1, 0]], [0, 1], [[True, 0]]])
def test_a_skeleton_of_other_points_is_refused(skeleton: list) -> None:
    with pytest.raises(ValueError, match="skeleton"):
        metadata(skeleton=skeleton)


def test_the_contract_has_them() -> None:
    assert contract_outputs(metadata())["keypoints"].shape == (None, 3, 3, 3)
    assert "keypoints" not in contract_outputs(metadata(keypoints=(), skeleton=()))


def test_boxes_and_key_points_get_back_from_a_letterbox() -> None:
    """An image of 40x80 px lies at a scale of 0.8, from row 16 on."""
    facts = metadata()
    batch = prepare([np.zeros((40, 80, 3), np.uint8)], facts)
    assert (batch.images[0, 0, 15] == 114).all()
    assert not batch.images[0, 0, 16:48].any()
    dets = np.zeros((1, 3, 5), np.float32)
    dets[0, 0] = (8, 20, 80, 60, 0.9)  # beyond the right edge and into the padding
    points = np.zeros((1, 3, 3, 3), np.float32)
    points[0, 0] = [[8, 24, 0.5], [16, 32, 0.6], [-4, 8, 0.7]]
    outputs = {
        "num_dets": np.array([1], np.int32),
        "dets": dets,
        "labels": np.zeros((1, 3), np.int32),
        "keypoints": points,
    }
    (found,) = detections_from_outputs(outputs, batch, facts)
    np.testing.assert_allclose(found.boxes, [[10, 5, 80, 40]], rtol=1e-6)
    np.testing.assert_allclose(found.keypoints[0], [[10, 10, 0.5], [20, 20, 0.6], [-5, -10, 0.7]], rtol=1e-6)
    points[0, 0, 1, 0] = np.nan
    problems: dict[int, str] = {}
    (none,) = detections_from_outputs(outputs, batch, facts, problems=problems)
    assert "expected finite key points" in problems[0]
    assert none.keypoints.shape == (0, 3, 3)


def test_selecting_keeps_each_ones_points() -> None:
    one = detections().filter(0.85)
    assert one.keypoints.shape == (1, 3, 3)
    assert one.keypoint_names == NAMES
    with pytest.raises(ValueError, match="keypoints: expected shape"):
        replace(detections(), keypoints=np.zeros((2, 2, 3), np.float32))


def test_results_have_them_in_cocos_form(tmp_path: Path) -> None:
    first = coco_results(detections(), 1, "a.jpg")[0]
    assert first["keypoints"] == [15.0, 30.0, 0.9, 35.0, 30.0, 0.8, 25.0, 40.0, 0.7]
    with ResultsWriter(tmp_path, ("face",)) as writer:
        writer.add(detections(), 1, "a.jpg")
    (category,) = json.loads((tmp_path / "images.json").read_text())["categories"]
    assert category["keypoints"] == list(NAMES)
    assert category["skeleton"] == [[1, 2], [2, 3]]


def test_they_are_drawn_and_doubtful_ones_are_not() -> None:
    blank = np.full((500, 500, 3), 128, np.uint8)
    points = np.array([[[100, 100, 0.9], [300, 300, 0.9], [400, 100, 0.1]]], np.float32)
    seen = Detections(
        np.array([[50, 50, 450, 450]], np.float32),
        np.ones(1, np.float32),
        np.zeros(1, np.int32),
        (500, 500),
        ("face",),
        None,
        points,
        NAMES,
        LINES,
    )
    drawn = draw_detections(blank, seen)
    assert (drawn[100, 100] == 255).all()
    assert (drawn[300, 300] == 255).all()
    assert (drawn[200, 200] != 128).any()  # the line between them
    assert (drawn[100, 400] == 128).all()
    assert (drawn[200, 350] == 128).all()
    far = replace(seen, keypoints=points * np.float32(1e9))
    draw_detections(blank, far)  # does not overflow


def test_a_recording_has_them(tmp_path: Path) -> None:
    image = tmp_path / "a.jpg"
    image.write_bytes(b"an image")
    path = tmp_path / "found.npz"
    facts = metadata()
    with RecordingWriter(path, facts, source="test", made_with={}) as writer:
        writer.add(image, detections())
        writer.add(image, detections(0))
    recording = read_recording(path)
    np.testing.assert_array_equal(recording.detections[0].keypoints, detections().keypoints)
    assert recording.detections[1].keypoints.shape == (0, 3, 3)
    assert recording.detections[0].skeleton == LINES
    arrays = dict(np.load(path))
    for bad, message in (
        (arrays["keypoints"][:1], "have other lengths"),
        (np.full_like(arrays["keypoints"], np.nan), "keypoints"),
        (arrays["keypoints"][:, :2], "keypoints: expected float32"),
    ):
        np.savez(path, **{**arrays, "keypoints": bad})
        with pytest.raises(ValueError, match=message):
            read_recording(path)
    np.savez(path, **{k: v for k, v in arrays.items() if k != "keypoints"})
    with pytest.raises(ValueError, match="keypoints"):
        read_recording(path)


def test_a_comparison_measures_them() -> None:
    one, other = (arrays_from_detections(detections(move=move)) for move in (0.0, 0.5))
    difference = compare_image(one, other)
    assert difference.keypoint_px == pytest.approx(0.5)
    assert difference.box_px == 0
    (words,) = difference.violations(Tolerance())
    assert words.startswith("key point 0.5 px")
    assert not difference.violations(Tolerance(box_px=1.0))
    assert compare_image(one, replace(other, keypoints=None)).keypoint_px is None
    moved = replace(other, keypoints=np.full_like(other.keypoints, np.nan))
    assert compare_image(one, moved).violations(Tolerance(box_px=1.0))


@pytest.mark.parametrize(("expected", "found"), [(0, 0), (0, 2), (2, 0)])
def test_a_comparison_without_a_matched_pair(expected: int, found: int) -> None:
    difference = compare_image(*(arrays_from_detections(detections(n)) for n in (expected, found)))
    assert (difference.matched, difference.keypoint_px, difference.worst_keypoint) == (0, 0.0, "")
    assert len(difference.missing) + len(difference.extra) == expected + found


def truth(num_keypoints: int = 3) -> dict:
    points = detections().keypoints[0].astype(float)
    points[:, 2] = 2
    annotated = np.tile(points, (-(-num_keypoints // 3), 1))[:num_keypoints].ravel().tolist()
    annotation = {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "bbox": [10, 20, 30, 40],
        "area": 1200,
        "iscrowd": 0,
    }
    return {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 80, "width": 120}],
        "categories": [{"id": 1, "name": "face"}],
        "annotations": [{**annotation, "keypoints": annotated}],
    }


def read_truth(tmp_path: Path, content: dict) -> dict:
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content))
    return read_annotations(path)


@pytest.mark.parametrize(("move", "expected"), [(0.0, 1.0), (30.0, 0.0)])
def test_the_average_precision_of_key_points(move: float, expected: float, tmp_path: Path) -> None:
    rows = result_rows(detections(1, move=move), 1, [1])
    values = average_precision(read_truth(tmp_path, truth()), rows, masks=False, num_keypoints=3)
    assert values["box"]["AP"] == pytest.approx(1.0)
    assert values["keypoints"]["AP"] == pytest.approx(expected)
    assert values["keypoints"]["AP_small"] is None


def test_the_similarity_is_cocos_own_formula(tmp_path: Path) -> None:
    """By hand: exp(-d² / (2 s² k²)) with k twice the tolerance; the precision falls to 0 above it."""
    move = 3.0
    similarity = np.exp(-(move**2) / (2 * 1200 * 0.1**2))
    rows = result_rows(detections(1, move=move), 1, [1])
    values = average_precision(read_truth(tmp_path, truth()), rows, masks=False, num_keypoints=3)
    thresholds = np.linspace(0.5, 0.95, 10)
    assert values["keypoints"]["AP"] == pytest.approx((thresholds <= similarity).mean())
    assert 0 < values["keypoints"]["AP"] < 1


def test_annotated_key_points_are_checked(tmp_path: Path) -> None:
    (read,) = read_truth(tmp_path, truth())["annotations"]
    assert read["num_keypoints"] == 3
    for bad in ([1, 2], "abc", [1, 2, None], [1, 2, float("nan")]):
        content = truth()
        content["annotations"][0]["keypoints"] = bad
        with pytest.raises(ValueError, match=r"annotations\[0\].keypoints"):
            read_truth(tmp_path, content)


@pytest.mark.parametrize(
    ("annotated", "noted"),
    [(3, "AP of key points with a tolerance of 0.05"), (2, "no AP of key points: 1 of 1")],
)
def test_evaluate_measures_a_recording(annotated: int, noted: str, tmp_path: Path) -> None:
    image = tmp_path / "a.jpg"
    cv2.imwrite(str(image), np.zeros((80, 120, 3), np.uint8))
    (tmp_path / "annotations.json").write_text(json.dumps(truth(annotated)))
    path = tmp_path / "found.npz"
    with RecordingWriter(path, metadata(), source="test", made_with={}) as writer:
        writer.add(image, detections(1))
    found = evaluate(path, tmp_path / "annotations.json", tmp_path)
    assert found.average_precision["box"]["AP"] == pytest.approx(1.0)
    assert ("keypoints" in found.average_precision) == (annotated == 3)
    assert any(note.startswith(noted) for note in found.notes), found.notes


@pytest.mark.parametrize(
    ("annotated", "found", "noted"),
    [
        (20, 20, None),
        (21, 20, "1 of the images have more annotated objects of a class, 0 more detections"),
        (20, 21, "0 of the images have more annotated objects of a class, 1 more detections"),
    ],
)
def test_crowds_of_more_than_cocos_twenty_are_noted(
    annotated: int, found: int, noted: Optional[str], tmp_path: Path
) -> None:
    """Every object is found where it is; AP of 21 with 20 counted is what recalls up to 20/21 give."""
    content = truth()
    first = content["annotations"][0]
    content["images"][0].update(height=800, width=9000)

    def moved(by: float) -> dict:
        (x, y, width, height) = first["bbox"]
        placed = np.array(first["keypoints"], float)
        placed[0::3] += by
        return {"bbox": [x + by, y, width, height], "keypoints": placed.tolist()}

    content["annotations"] = [{**first, **moved(200.0 * n), "id": n + 1} for n in range(annotated)]
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    rows = [{**moved(200.0 * n), "image_id": 1, "category_id": 1, "score": 1 - n / 100} for n in range(found)]
    (tmp_path / "results.json").write_text(json.dumps(rows))
    measured = evaluate(tmp_path / "results.json", tmp_path / "annotations.json", None)
    notes = [note for note in measured.notes if "the best 20 detections" in note]
    assert [note.split(": ")[1] for note in notes] == ([noted] if noted else [])
    # Of 101 recalls, those that 20 of the annotated reach.
    reached = (np.linspace(0, 1, 101) <= min(20, found) / annotated).mean()
    assert measured.average_precision["keypoints"]["AP"] == pytest.approx(reached)
    assert measured.average_precision["box"]["AP"] == pytest.approx(
        (np.linspace(0, 1, 101) <= min(found, annotated) / annotated).mean()
    )
