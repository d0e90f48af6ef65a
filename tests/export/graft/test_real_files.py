"""Trained files as people have them, from file to detections: what is in the photos is known, from elsewhere.

The figures are those of the files' own README, found with plain NumPy decoding. Its images were resized with Pillow,
which averages pixels where it shrinks; the detectors' own code, and so the heads, resize with OpenCV.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from export import quantize_model
from export.graft.__main__ import main as graft
from export.quantization.api import QuantizeOptions
from runtime import Detector
from runtime.comparison.detections import compare
from runtime.comparison.sources import open_artifact, record
from runtime.images import read_image
from runtime.infer import main as infer

VARIABLE = "MASKRCNN_TEST_MODELS"
FILES = {
    "scrfd": "scrfd_2.5g_kps_640.onnx",
    "retinaface": "retinaface_mnet025_dyn.onnx",
    "centerface": "centerface.onnx",
    "yolov8-seg": "yolov8n_seg_idcard.onnx",
}
# Of the README there. Corners were cut to whole px.
CORNER_PX, SCORE = 1.0, 0.002
COUNTS = {
    "scrfd": {
        "zidane.jpg": 2,
        "bus.jpg": 2,
        "solvay_conference_1927.jpg": 29,
        "astronaut.png": 1,
        "newton.png": 1,
    },
    "retinaface": {"zidane.jpg": 2, "bus.jpg": 2, "solvay_conference_1927.jpg": 25, "astronaut.png": 1},
    "centerface": {"zidane.jpg": 2, "bus.jpg": 2, "solvay_conference_1927.jpg": 29, "astronaut.png": 1},
    "yolov8-seg": {"us_card.png": 1, "two_ids.png": 2, "three_ids.png": 3},
}
ROWS = {
    ("scrfd", "zidane.jpg"): [((914, 95, 1055, 275), 0.856), ((548, 256, 664, 436), 0.740)],
    ("scrfd", "bus.jpg"): [((114, 418, 153, 469), 0.858), ((269, 421, 305, 471), 0.831)],
    ("scrfd", "astronaut.png"): [((180, 55, 270, 178), 0.822)],
    ("retinaface", "zidane.jpg"): [((912, 96, 1052, 275), 0.999), ((552, 251, 664, 423), 0.993)],
    ("retinaface", "bus.jpg"): [((115, 417, 153, 466), 0.992), ((268, 424, 306, 473), 0.980)],
    ("retinaface", "astronaut.png"): [((177, 58, 272, 178), 1.0)],
    ("centerface", "zidane.jpg"): [((916, 98, 1057, 277), 0.872), ((554, 246, 668, 432), 0.823)],
    ("centerface", "astronaut.png"): [((180, 57, 270, 175), 0.910)],
    ("yolov8-seg", "us_card.png"): [(None, 0.969)],
    ("yolov8-seg", "two_ids.png"): [(None, 0.959), (None, 0.957)],
    ("yolov8-seg", "three_ids.png"): [(None, 0.960), (None, 0.959), (None, 0.928)],
}
# Pixels on the 640 canvas: (of the mask, of the box).
MASKS = {"us_card.png": [(79339, 105105)], "two_ids.png": [(28069, 28116), (26398, 26445)]}


@pytest.fixture(scope="module")
def models() -> Path:
    """The folder with the trained files and photos/; tests that need it skip without it."""
    value = os.environ.get(VARIABLE)
    if not value:
        pytest.skip(f"{VARIABLE} is not set: it names a folder with trained detectors and photos/")
    root = Path(value)
    missing = [name for name in (*FILES.values(), "photos/zidane.jpg") if not (root / name).is_file()]
    if missing:
        pytest.skip(f"{VARIABLE}={value}: no {missing[0]} there")
    return root


@pytest.fixture(scope="module")
def grafts(models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each file by its head: verified by the command itself on its photos, resized as the README's figures were."""
    folder = tmp_path_factory.mktemp("grafts")
    made = {}
    for head, name in FILES.items():
        made[head] = folder / f"{head}.onnx"
        photos = [str(models / "photos" / photo) for photo in COUNTS[head] if "solvay" not in photo]
        extra = ["--resize-with", "pillow", "--score", "0.4", "--iou", "0.5"] if head == "yolov8-seg" else []
        extra = extra or ["--resize-with", "pillow", *(["--iou", "0.3"] if head == "centerface" else [])]
        argv = [str(models / name), "--head", head, "-o", str(made[head]), "--images", *photos, *extra]
        assert graft(argv) == 0
    return made


@contextmanager
def opened(path: Path, batch: int, backend: str = "onnxruntime") -> Iterator[Detector]:
    with Detector(path, backend, batch_size=batch) as detector:
        yield detector


@pytest.fixture(params=["onnxruntime", "openvino"])
def backend(request: pytest.FixtureRequest) -> str:
    """Those of a CPU."""
    pytest.importorskip(request.param, reason=f"{request.param} is not installed")
    return request.param


@pytest.mark.parametrize("head", FILES)
def test_the_figures_of_the_readme(head: str, models: Path, grafts: dict[str, Path], backend: str) -> None:
    with opened(grafts[head], 1, backend) as detector:
        for photo, count in COUNTS[head].items():
            (found,) = detector([read_image(models / "photos" / photo)])
            assert len(found) == count, photo
            for index, (corners, score) in enumerate(ROWS.get((head, photo), ())):
                assert found.scores[index] == pytest.approx(score, abs=SCORE), photo
                if corners is not None:
                    # What was cut off, and the tolerance.
                    apart = found.boxes[index] - np.array(corners)
                    assert (apart > -CORNER_PX).all(), (photo, found.boxes[index])
                    assert (apart < 1 + CORNER_PX).all(), (photo, found.boxes[index])


@pytest.mark.parametrize("head", FILES)
def test_batches_of_different_images_find_what_each_finds_alone(
    head: str, models: Path, grafts: dict[str, Path], backend: str
) -> None:
    images = [read_image(models / "photos" / photo) for photo in COUNTS[head]][:3]
    with opened(grafts[head], 1, backend) as detector:
        alone = detector(images)
    for batch in (2, 3):
        with opened(grafts[head], batch, backend) as detector:
            for one, other in zip(alone, detector(images)):
                assert len(one) == len(other)
                np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-3)
                np.testing.assert_allclose(one.scores, other.scores, atol=1e-6)
                if one.keypoints is not None:
                    np.testing.assert_allclose(one.keypoints, other.keypoints, atol=1e-3)
                if one.has_masks:
                    assert (one.masks != other.masks).sum() <= 4 * len(one)


def test_mask_pixels_on_the_networks_canvas(models: Path, grafts: dict[str, Path]) -> None:
    """The canvas given as an image: the letterbox then does nothing."""
    with opened(grafts["yolov8-seg"], 1) as detector:
        steps = detector.metadata.steps
        for photo, expected in MASKS.items():
            image = read_image(models / "photos" / photo)
            for step in steps:
                image = step.apply(image)
            assert image.shape == (640, 640, 3)
            (found,) = detector([np.ascontiguousarray(image)])
            for mask, box, (pixels, area) in zip(found.masks, found.boxes, expected):
                assert mask.sum() == pytest.approx(pixels, rel=0.005)
                whole = np.ceil(box[2:]) - np.ceil(box[:2])
                assert whole.prod() == pytest.approx(area, rel=0.01)


def test_the_commands_work_unchanged(models: Path, grafts: dict[str, Path], tmp_path: Path) -> None:
    photos = [models / "photos" / name for name in ("zidane.jpg", "bus.jpg")]
    model = str(grafts["scrfd"])
    assert infer(["--model", model, "--out", str(tmp_path), "--batch", "2", *map(str, photos)]) == 0
    rows = json.loads((tmp_path / "results.json").read_text())
    assert len(rows) == 4
    assert all(len(row["keypoints"]) == 15 for row in rows)
    (category,) = json.loads((tmp_path / "images.json").read_text())["categories"]
    assert category["name"] == "face"
    assert len(category["keypoints"]) == 5
    recorded = tmp_path / "found.npz"
    with open_artifact(model) as artifact:
        assert sum(len(r.detections) for r in record(artifact, photos, recorded)) == 4
    comparison = compare(recorded, model, photos, batch=2)
    assert comparison.agrees
    assert all(image.difference.keypoint_px is not None for image in comparison.images)


@pytest.mark.parametrize("head", ["scrfd", "retinaface", "centerface"])
def test_the_documentations_first_commands(
    head: str, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --images: those that come with the tool have no faces."""
    assert graft([str(models / FILES[head]), "--head", head, "-o", str(tmp_path / "model.onnx")]) == 0
    assert "Name images with such objects: --images" in capsys.readouterr().err


@pytest.mark.parametrize("head", ["scrfd", "retinaface", "centerface"])
@pytest.mark.parametrize("options", [["--size", "480", "800"], ["--dynamic-size"]])
def test_another_size(head: str, options: list[str], models: Path, tmp_path: Path) -> None:
    """SCRFD's Resize holds its sizes as constants, CenterFace declares 32x32."""
    photo = str(models / "photos" / "zidane.jpg")
    argv = [str(models / FILES[head]), "--head", head, "-o", str(tmp_path / "x.onnx"), "--images", photo]
    assert graft([*argv, *options]) == 0
    with opened(tmp_path / "x.onnx", 1) as detector:
        (found,) = detector([read_image(models / "photos" / "zidane.jpg")])
    assert len(found) == 2


def test_a_size_that_constants_hold_is_refused_with_the_node(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """YOLOv8 has the places of its cells as constants."""
    argv = [str(models / FILES["yolov8-seg"]), "--head", "yolov8-seg", "-o", str(tmp_path / "x.onnx")]
    assert graft([*argv, "--size", "480", "480", "--no-verify"]) == 2
    said = capsys.readouterr().err
    assert "expected a graph that onnxruntime loads with its batch free at an input of ?x3x480x480" in said
    assert "/model.22/" in said
    assert not (tmp_path / "x.onnx").exists()


def test_cells_that_are_constants_are_refused_with_a_dynamic_size(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [str(models / FILES["yolov8-seg"]), "--head", "yolov8-seg", "-o", str(tmp_path / "x.onnx")]
    assert graft([*argv, "--dynamic-size"]) == 2
    said = capsys.readouterr().err
    assert "--dynamic-size: expected a network that runs at any multiple of 32 px" in said
    assert "at 672x704 px" in said
    assert "/model.22/" in said
    assert (
        "cells are constants of the size that it was exported with, 640x640: leave out --dynamic-size" in said
    )
    assert not (tmp_path / "x.onnx").exists()


def test_a_wrong_head_is_refused_and_the_right_one_proposed(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for right, name in FILES.items():
        for wrong in set(FILES) - {right}:
            argv = [str(models / name), "--head", wrong, "-o", str(tmp_path / "x.onnx"), "--no-verify"]
            assert graft(argv) == 2
            said = capsys.readouterr().err
            assert f"head {wrong}: expected the outputs" in said, said
            assert f"--head {right}" in said, said
        assert graft([str(models / name), "-o", str(tmp_path / "x.onnx")]) == 2
        assert f"--head {right}" in capsys.readouterr().err


@pytest.mark.parametrize("head", ["scrfd", "yolov8-seg"])
def test_activations_in_uint8(
    head: str, models: Path, grafts: dict[str, Path], backend: str, tmp_path: Path
) -> None:
    """Scores are not cut off at a logit's range, and OpenVINO finds with the file what onnxruntime finds.

    Fused with its quantization, the first convolution is off in OpenVINO 2026.4 on a processor with AMX: YOLOv8's score
    of ``us_card.png`` by 0.12, SCRFD's by up to 0.04.
    """
    names = [name for name in COUNTS[head] if "solvay" not in name]
    photos = [models / "photos" / name for name in names]
    quantized = tmp_path / "uint8.onnx"
    quantize_model(grafts[head], quantized, photos, options=QuantizeOptions(activations="uint8"))
    images = [read_image(photo) for photo in photos]
    with opened(grafts[head], 1) as detector:
        floats = detector(images)
    with opened(quantized, 1, backend) as detector:
        found = detector(images)
    assert sum(map(len, floats)) >= 6
    for expected, detections in zip(floats, found):
        assert len(detections) == len(expected)
        np.testing.assert_allclose(detections.scores, expected.scores, atol=0.03)
