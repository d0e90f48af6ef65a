"""The command line over a dataset: the figures, several artifacts side by side, what it refuses."""

import gc
import json
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Callable

import cv2
import numpy as np
import pytest

from runtime import Detector, record
from runtime.comparison.average_precision import CocoDataset, read_dataset
from runtime.comparison.detections import Progress
from runtime.comparison.evaluation import Evaluation, evaluate_artifact
from runtime.comparison.sources import Artifact, ImageResult, MadeBy
from runtime.evaluate import main as evaluate_main
from runtime.images import read_image
from tests.runtime import fakes
from tests.runtime.comparison.test_sources import changed_model

# Not in the order of the labels, and not 1 to 3.
CATEGORY_IDS = {"triangle": 4, "circle": 9, "square": 2}
SIZES = ((64, 96), (96, 64), (200, 333))


@pytest.fixture
def dataset(tmp_path: Path, fake_model: Path) -> Path:
    """Three images of which the fake finds all three objects each: annotations are what it says of them."""
    folder = tmp_path / "data"
    folder.mkdir()
    truth = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i, "name": n} for n, i in CATEGORY_IDS.items()],
    }
    with Detector(fake_model) as detector:
        for number, (height, width) in enumerate(SIZES, 1):
            name = f"{number}.png"
            image = fakes.random_image(height, width, number)
            (folder / name).write_bytes(cv2.imencode(".png", image)[1].tobytes())
            truth["images"].append({"id": number, "file_name": name, "height": height, "width": width})
            (found,) = detector([read_image(folder / name)])
            for box, label, lengths in zip(fakes.UNIT_BOXES, fakes.LABELS, found.rle()):
                x1, y1, x2, y2 = np.array(box) * (width, height, width, height)
                truth["annotations"].append(
                    {
                        "id": len(truth["annotations"]),
                        "image_id": number,
                        "category_id": CATEGORY_IDS[fakes.CLASSES[label]],
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": (x2 - x1) * (y2 - y1),
                        "iscrowd": 0,
                        "segmentation": lengths,
                    }
                )
    (folder / "annotations.json").write_text(json.dumps(truth))
    return folder


@pytest.fixture
def worse(tmp_path: Path) -> Path:
    """The fake, whose first box (a square) lies elsewhere."""
    return changed_model(tmp_path / "worse.onnx", "unit_boxes", (0, 0), 0.0)


def _run(*arguments: object) -> int:
    return evaluate_main([str(a) for a in arguments])


@pytest.mark.parametrize("batch", [1, 2])
def test_models_side_by_side(
    batch: int, dataset: Path, fake_model: Path, worse: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    report = tmp_path / "deep" / "report.json"
    assert (
        _run(fake_model, worse, "--dataset", dataset, "--batch", batch, "--threads", 1, "--json", report) == 0
    )
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "1.000" in printed.out
    assert "-0.3333" in printed.out
    content = json.loads(report.read_text())
    assert content["num_images"] == 3
    first, second = content["artifacts"]
    assert (first["name"], first["num_detections"], first["problems"]) == (str(fake_model), 9, [])
    assert first["average_precision"]["box"]["AP"] == pytest.approx(1)
    assert first["average_precision"]["mask"]["AP"] == pytest.approx(1)
    assert 0 < first["model_seconds"] < first["seconds"]
    assert second["average_precision"]["box"]["AP"] == pytest.approx(2 / 3)
    assert second["difference_to_first"]["mask"]["AP50"] == pytest.approx(-1 / 3)


def test_a_recording_has_its_models_figures(
    dataset: Path, fake_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    recorded = tmp_path / "r.npz"
    arguments = [fake_model, "--images", f"{dataset}/*.png", "-o", recorded, "--batch", 2]
    assert record.main([str(a) for a in arguments]) == 0
    assert f"{recorded}: 9 detections in 3 images of {fake_model}" in capsys.readouterr().out
    report = tmp_path / "report.json"
    assert _run(recorded, fake_model, "--dataset", dataset, "--json", report) == 0
    first, second = json.loads(report.read_text())["artifacts"]
    assert first["model_seconds"] is None
    assert set(second["difference_to_first"]["box"].values()) <= {0.0, None}
    assert first["num_detections"] == 9


def test_the_first_images_only_and_annotations_elsewhere(
    dataset: Path, fake_model: Path, tmp_path: Path
) -> None:
    elsewhere = (dataset / "annotations.json").rename(tmp_path / "truth.json")
    report = tmp_path / "report.json"
    options = ("--images", dataset, "--annotations", elsewhere, "--limit", 2, "--json", report)
    assert _run(fake_model, *options) == 0
    content = json.loads(report.read_text())
    assert content["num_images"] == 2
    # The third image's objects are not missed.
    assert content["artifacts"][0]["average_precision"]["box"]["AP"] == pytest.approx(1)


def test_a_model_without_masks_has_boxes_only(dataset: Path, tmp_path: Path) -> None:
    model = fakes.save(tmp_path / "m.onnx", fakes.metadata(masks="none"))
    report = tmp_path / "report.json"
    assert _run(model, "--dataset", dataset, "--json", report) == 0
    assert list(json.loads(report.read_text())["artifacts"][0]["average_precision"]) == ["box"]


def test_nan_counts_as_nothing_found_and_is_said(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model = changed_model(tmp_path / "nan.onnx", "unit_boxes", (0, 1, 2), np.nan)
    assert _run(model, "--dataset", dataset, "--batch", 2) == 1
    printed = capsys.readouterr()
    assert (
        "nan.onnx: counted as without detections: 1.png: model output dets[0, 1]: expected finite"
        in printed.err
    )
    assert "0.000" in printed.out


REFUSALS = {
    "no dataset": (
        [],
        "expected --dataset DIR (images beside annotations.json) or --images DIR --annotations JSON",
    ),
    "no annotations": (["--images", "{data}"], "found neither"),
    "a missing folder": (["--dataset", "gone"], "expected a file in COCO's format, found nothing"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_is_refused(name: str, dataset: Path, fake_model: Path, capsys: pytest.CaptureFixture) -> None:
    options, message = REFUSALS[name]
    assert _run(fake_model, *(o.format(data=dataset) for o in options)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_other_classes_are_refused_before_anything_runs(
    dataset: Path, fake_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    other = fakes.save(tmp_path / "other.onnx", fakes.metadata(classes=("Circle", "square", "triangle")))
    assert _run(fake_model, other, "--dataset", dataset) == 2
    printed = capsys.readouterr()
    assert f"error: {other}: classes: expected the model's names in" in printed.err
    assert "found 'circle' for 'Circle'" in printed.err
    assert printed.out == ""


def test_the_categories_that_both_have_count(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The square, label 1 of the fake, is called a star here: nobody has annotated stars."""
    other = fakes.save(tmp_path / "other.onnx", fakes.metadata(classes=("circle", "star", "triangle")))
    report = tmp_path / "report.json"
    assert _run(other, "--dataset", dataset, "--json", report) == 0
    printed = capsys.readouterr().err.splitlines()
    assert printed == [
        f"{other}: note: AP over 2 of 3 classes: no category of the annotations is named star",
        f"{other}: note: categories that the model has not are left out: square",
    ]
    (artifact,) = json.loads(report.read_text())["artifacts"]
    assert artifact["average_precision"]["mask"]["AP"] == pytest.approx(1)
    assert artifact["num_detections"] == 6
    assert [f"{other}: note: {note}" for note in artifact["notes"]] == printed


def _rewrite(dataset: Path, change: Callable[[dict], None]) -> None:
    truth = json.loads((dataset / "annotations.json").read_text())
    change(truth)
    (dataset / "annotations.json").write_text(json.dumps(truth))


def test_an_object_without_a_mask_leaves_the_boxes(
    dataset: Path, fake_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    _rewrite(dataset, lambda truth: truth["annotations"][4].update(segmentation=[]))
    report = tmp_path / "report.json"
    assert _run(fake_model, "--dataset", dataset, "--json", report) == 0
    assert "note: no AP of masks: 1 of 9 objects are annotated without one" in capsys.readouterr().err
    (artifact,) = json.loads(report.read_text())["artifacts"]
    assert list(artifact["average_precision"]) == ["box"]
    assert artifact["average_precision"]["box"]["AP"] == pytest.approx(1)


def test_a_damaged_annotation_is_refused_before_a_model_is_opened(
    dataset: Path, capsys: pytest.CaptureFixture
) -> None:
    def damage(truth: dict) -> None:
        truth["annotations"][4]["segmentation"]["counts"] += "1"

    _rewrite(dataset, damage)
    assert _run("no-such-model.onnx", "--dataset", dataset) == 2
    error = capsys.readouterr().err
    assert (
        f"annotations {dataset / 'annotations.json'}: annotations[4].segmentation.counts (id 4): expected"
        in error
    )


def test_a_damaged_recording_is_refused_before_a_model_is_opened(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "r.npz").write_bytes(b"damaged")
    assert _run("no-such-model.onnx", tmp_path / "r.npz", "--dataset", dataset) == 2
    assert "recording" in capsys.readouterr().err


def test_a_recording_that_lacks_an_image_is_refused_before_a_model_runs(
    dataset: Path, fake_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = tmp_path / "r.npz"
    assert record.main([str(fake_model), "--images", str(dataset / "1.png"), "-o", str(recorded)]) == 0
    evaluated = []

    def watched(
        artifact: Artifact, data: CocoDataset, progress: Progress, classes: Sequence[str]
    ) -> Evaluation:
        evaluated.append(artifact.name)
        return evaluate_artifact(artifact, data, progress, classes)

    monkeypatch.setattr("runtime.comparison.evaluation.evaluate_artifact", watched)
    assert _run(fake_model, recorded, "--dataset", dataset) == 2
    assert evaluated == [str(recorded)]


@pytest.mark.parametrize("target", ["annotations.json", "link", "."])
def test_the_report_is_written_over_nothing_that_is_read(
    target: str, dataset: Path, fake_model: Path, capsys: pytest.CaptureFixture
) -> None:
    (dataset / "link").symlink_to(dataset / "annotations.json")
    before = (dataset / "annotations.json").read_bytes()
    assert _run(fake_model, "--dataset", dataset, "--json", dataset / target) == 2
    assert "error: output" in capsys.readouterr().err
    assert (dataset / "annotations.json").read_bytes() == before


def test_images_of_another_size_are_said(
    dataset: Path, fake_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The annotated size is the file's own; the image is turned when it is read."""
    image = cv2.imencode(".jpg", np.full((64, 96, 3), 200, np.uint8))[1].tobytes()
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    (dataset / "1.png").write_bytes(
        image[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + image[2:]
    )
    assert _run(fake_model, "--dataset", dataset) == 0
    assert "note: 1 images have another size than the annotations say" in capsys.readouterr().err


def test_masks_of_few_images_are_in_memory_at_once(dataset: Path, fake_model: Path) -> None:
    """An artifact that looks, whenever it is asked for the next image, what is left of those before."""
    alive = []

    class Watching:
        name = "watching"
        classes = fakes.CLASSES
        metadata = fakes.metadata()
        model_seconds = None
        made_by = MadeBy("host")

        def __call__(self, images: Sequence[Path]) -> Iterator[ImageResult]:
            sources = []
            with Detector(fake_model) as detector:
                for path in images:
                    gc.collect()
                    alive.append(sum(source() is not None for source in sources))
                    (found,) = detector([read_image(path)])
                    sources.append(weakref.ref(found.mask_source))
                    yield ImageResult(path, found)
                    del found

    def repeat_the_first(truth: dict) -> None:
        truth["images"] = [{**truth["images"][0], "id": i} for i in range(1, 7)]
        truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] == 1]

    _rewrite(dataset, repeat_the_first)
    evaluate_artifact(Watching(), read_dataset(dataset / "annotations.json", dataset))
    assert len(alive) == 6
    assert max(alive) <= 1
