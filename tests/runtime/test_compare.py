"""The command line that compares two artifacts' detections."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from runtime import record
from runtime.compare import main as compare_main
from tests.runtime import fakes
from tests.runtime.comparison.test_sources import changed_model


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for index, (height, width) in enumerate([(64, 96), (96, 64)]):
        image = fakes.random_image(height, width, index)
        (folder / f"{index}.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
    (folder / "dark.png").write_bytes(cv2.imencode(".png", np.zeros((50, 60, 3), np.uint8))[1].tobytes())
    return folder


def _run(*arguments: object) -> int:
    return compare_main([str(a) for a in arguments])


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("masks", ["crop", "none"])
def test_a_model_agrees_with_itself(
    masks: str, batch: int, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model = fakes.save(tmp_path / "m.onnx", fakes.metadata(masks=masks))
    report = tmp_path / "report.json"
    assert _run(model, model, "--images", images, "--batch", batch, "--threads", 1, "--json", report) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "6 of 6" in printed.out
    assert "differs" not in printed.out
    content = json.loads(report.read_text())
    assert content["within"] is True
    assert [i["image"] for i in content["images"]] == ["0.png", "1.png", "dark.png"]
    assert content["all"]["box_px"] == {"median": 0, "p90": 0, "max": 0}
    assert content["all"]["mask"] == (0 if masks == "crop" else None)


def test_a_recording_stands_for_its_model(images: Path, fake_model: Path, tmp_path: Path) -> None:
    recorded = tmp_path / "r.npz"
    assert record.main([str(fake_model), "--images", str(images), "-o", str(recorded)]) == 0
    for a, b in ((recorded, fake_model), (fake_model, recorded), (recorded, recorded)):
        assert _run(a, b, "--images", images) == 0


# What is changed in the fake of 64x96; the rows are 1 square 0.9, 0 circle 0.5, 2 triangle 0.2.
CHANGES = {
    "a box": ("unit_boxes", (0, 1, 0), 0.05, "0.png: box 4.8 px: expected #1 label 0 score 0.500000"),
    "a score": ("scores", (0, 1, 0), 0.45, "0.png: score 0.05: expected #1 label 0"),
    "a mask": ("discs", (0, 0, slice(0, 14)), 0.0, "0.png: masks: "),
    "a label": ("class_ids", (0, 2), 0, "0.png: no counterpart of expected #2 label 2 score 0.200000"),
}
TOLERANCES = {
    "a box": ("--box-px", "5", "--mask", "0.2"),
    "a score": ("--score", "0.06"),
    "a mask": ("--mask", "0.5"),
    "a label": ("--min-score", "0.3"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_differs_is_named_and_can_be_tolerated(
    name: str, images: Path, fake_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    tensor, place, value, words = CHANGES[name]
    changed = changed_model(tmp_path / "changed.onnx", tensor, place, value)
    report = tmp_path / "report.json"
    assert _run(fake_model, changed, "--images", images, "--json", report) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert words in printed
    content = json.loads(report.read_text())
    assert content["within"] is False
    assert [i["within"] for i in content["images"]] == [False, False, True]
    assert content["images"][0]["violations"]
    assert _run(fake_model, changed, "--images", images, *TOLERANCES[name]) == 0


def test_faint_detections_are_reported(
    images: Path, fake_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    changed = changed_model(tmp_path / "changed.onnx", "class_ids", (0, 2), 0)
    report = tmp_path / "report.json"
    assert _run(fake_model, changed, "--images", images, "--min-score", 0.3, "--json", report) == 0
    assert "1 (1 below 0.3)" in capsys.readouterr().out
    assert json.loads(report.read_text())["all"]["missing"] == [pytest.approx(0.2)] * 2


@pytest.mark.parametrize(
    ("tensor", "place", "words"),
    [
        (
            "unit_boxes",
            (0, 1, 2),
            "model output dets[0, 1]: expected finite boxes and scores, found [0.0, 0.0, nan",
        ),
        ("discs", (0, 2, 3, 4), "model output masks[2]: expected finite probabilities, found nan at [3, 4]"),
    ],
)
def test_nan_is_named_and_fails(
    tensor: str, place: tuple, words: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Also where both sides have it, and however wide the tolerance is."""
    changed = changed_model(tmp_path / "nan.onnx", tensor, place, np.nan)
    loose = ("--box-px", "inf", "--score", "inf", "--mask", "1", "--min-score", "1")
    report = tmp_path / "report.json"
    assert _run(changed, changed, "--images", images, *loose, "--json", report) == 1
    printed = capsys.readouterr().out
    assert f"0.png: A is not a result: {words}" in printed
    assert f"1.png: B is not a result: {words}" in printed
    assert "dark.png: " not in printed
    assert json.loads(report.read_text())["within"] is False


REFUSALS = {
    "a missing model": (["{model}", "gone.onnx"], "model gone.onnx: expected a file, found nothing"),
    "a missing recording": (["gone.npz", "{model}"], "recording gone.npz: expected a file, found nothing"),
    "no images": (
        ["{model}", "{model}", "--images", "gone"],
        "expected an image, a folder or a glob pattern",
    ),
    "other classes": (
        ["{model}", "{other}"],
        "to have the same, found 3 and 2, label 1 is 'square' and 'star'; compare models of the same checkpoint",
    ),
    "layers of a recording": (
        ["{model}", "r.npz", "--layers"],
        "--layers: expected two models, found the recorded results r.npz",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_is_refused(
    name: str, images: Path, fake_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments, message = REFUSALS[name]
    other = fakes.save(tmp_path / "other.onnx", fakes.metadata(classes=("circle", "star")))
    arguments = [a.format(model=fake_model, other=other) for a in arguments]
    if "--images" not in arguments:
        arguments += ["--images", images]
    assert _run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_an_image_without_results_is_refused(
    images: Path, fake_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    recorded = tmp_path / "r.npz"
    assert record.main([str(fake_model), "--images", str(images / "0.png"), "-o", str(recorded)]) == 0
    assert _run(recorded, fake_model, "--images", images) == 2
    assert "expected results of 1.png, found those of 0.png" in capsys.readouterr().err


def test_the_embedded_images_are_the_default(
    images: Path, fake_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("runtime.cli.DEFAULT_IMAGES", images)
    assert _run(fake_model, fake_model) == 0
    assert "dark.png" in capsys.readouterr().out
