"""Ids of the user's own data set: plain pycocotools finds in ``results.json`` what ``runtime.evaluate`` measures."""

import contextlib
import io
import json
import os
import shutil
from pathlib import Path

import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from runtime import evaluate, infer
from runtime.evaluate import main as evaluate_main
from tests.runtime import fakes
from tests.runtime.processes import lines_of
from tests.runtime.test_evaluate import CATEGORY_IDS, dataset  # noqa: F401  (a fixture)

# Not 1 to 3, nor in the order of the files.
IMAGE_IDS = {"1.png": 700, "2.png": 5, "3.png": 41}


@pytest.fixture
def own(dataset: Path) -> Path:  # noqa: F811
    """The data set with ids of its own, and objects that the fake finds in part."""
    path = dataset / "annotations.json"
    truth = json.loads(path.read_text())
    for image in truth["images"]:
        image["id"] = IMAGE_IDS[image["file_name"]]
    for number, annotation in enumerate(truth["annotations"]):
        annotation["id"] = number + 1  # COCOeval takes 0 for none
        annotation["image_id"] = IMAGE_IDS[f"{annotation['image_id']}.png"]
        if number % 4 == 0:
            annotation["bbox"][0] += annotation["bbox"][2] * 0.15
        if number % 4 == 1:
            annotation["segmentation"] = truth["annotations"][number - number % 3]["segmentation"]
    del truth["annotations"][5]
    path.write_text(json.dumps(truth))
    return dataset


def _infer(*arguments: object) -> int:
    return infer.main([str(a) for a in arguments])


def _plain_ap(annotations: Path, results: Path, kind: str) -> list[float]:
    """Return AP, AP50, AP75 as a script of pycocotools' own demo does."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        measured = COCOeval(truth, truth.loadRes(str(results)), kind)
        measured.evaluate()
        measured.accumulate()
        measured.summarize()
    return measured.stats[:3].tolist()


def test_plain_pycocotools_measures_what_evaluate_does(own: Path, fake_model: Path, tmp_path: Path) -> None:
    out, annotations = tmp_path / "out", own / "annotations.json"
    options = ("--model", fake_model, "--out", out, "--annotations", annotations, "--batch", 2)
    assert _infer(own, *options) == 0
    measured = evaluate(fake_model, annotations, own, backend="onnxruntime")
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        found = _plain_ap(annotations, out / "results.json", kind)
        expected = [measured.average_precision[name][key] for key in ("AP", "AP50", "AP75")]
        assert found == pytest.approx(expected, abs=1e-9)
        assert 0.1 < found[0] < 0.95
    # And the file itself is evaluated.
    again = evaluate(out / "results.json", annotations, None)
    for kind in ("box", "mask"):
        assert again.average_precision[kind] == pytest.approx(measured.average_precision[kind], abs=1e-9)
        assert again.by_class[kind] == measured.by_class[kind]
    images = json.loads((out / "images.json").read_text())
    assert {i["id"] for i in images["images"]} == set(IMAGE_IDS.values())
    assert {c["name"]: c["id"] for c in images["categories"]} == CATEGORY_IDS
    names = {i: n for n, i in CATEGORY_IDS.items()}
    for line in lines_of(out):
        assert IMAGE_IDS[line["file_name"]] == line["image_id"]
        assert all(names[d["category_id"]] == d["category"] for d in line["detections"])


def test_without_annotations_the_ids_of_results_are_refused(
    own: Path, fake_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    assert _infer(own, "--model", fake_model, "--out", out) == 0
    arguments = [str(out / "results.json"), "--annotations", str(own / "annotations.json")]
    assert evaluate_main(arguments) == 2
    said = capsys.readouterr().err
    assert (
        "results[0].image_id: expected an id of the annotations' images, found 1; make the results with"
        in said
    )
    # Ids that both have, of other images.
    truth = json.loads((own / "annotations.json").read_text())
    for image, identity in zip(truth["images"], (3, 1, 2)):
        image["id"] = identity
    truth["annotations"] = []
    truth["categories"] = [{"id": n, "name": name} for n, name in enumerate(fakes.CLASSES, 1)]
    (tmp_path / "other.json").write_text(json.dumps(truth))
    assert evaluate_main([str(out / "results.json"), "--annotations", str(tmp_path / "other.json")]) == 2
    assert (
        "results[0].file_name: expected '2.png', which the annotations' image 1 is" in capsys.readouterr().err
    )


def test_images_that_are_not_listed_are_left_out_and_said(
    own: Path, fake_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copyfile(own / "1.png", own / "other.png")
    os.remove(own / "2.png")
    options = ("--annotations", own / "annotations.json", "--out", tmp_path / "out")
    assert _infer(own, "--model", fake_model, *options) == 0
    said = capsys.readouterr().err
    assert "note: left out, since" in said
    assert "does not list them: 1 image (other.png)" in said
    assert "note: 1 of 3 images of" in said
    images = json.loads((tmp_path / "out" / "images.json").read_text())["images"]
    assert [i["file_name"] for i in images] == ["1.png", "3.png"]
    assert sorted(p.name for p in (tmp_path / "out").glob("*.png")) == ["1.png", "3.png"]


def test_a_class_without_a_category_is_left_out(own: Path, fake_model: Path, tmp_path: Path) -> None:
    path = own / "annotations.json"
    truth = json.loads(path.read_text())
    truth["annotations"] = []
    truth["categories"] = [{"id": "round", "name": "circle"}, {"id": "other", "name": "hexagon"}]
    path.write_text(json.dumps(truth))
    out = tmp_path / "out"
    assert _infer(own, "--model", fake_model, "--annotations", path, "--out", out) == 0
    results = json.loads((out / "results.json").read_text())
    assert len(results) == 3
    assert {r["category_id"] for r in results} == {"round"}
    assert {d["category"] for line in lines_of(out) for d in line["detections"]} == {"circle"}
    assert json.loads((out / "images.json").read_text())["categories"] == truth["categories"]


def test_a_file_of_images_and_categories_alone_is_enough(own: Path, fake_model: Path, tmp_path: Path) -> None:
    truth = json.loads((own / "annotations.json").read_text())
    del truth["annotations"]
    path = tmp_path / "info.json"
    path.write_text(json.dumps(truth))
    assert _infer(own, "--model", fake_model, "--annotations", path, "--out", tmp_path / "out") == 0


@pytest.mark.parametrize("name", ["data/1.png", "data\\1.png", "./1.png", "elsewhere/1.png"])
def test_names_are_found_by_their_end(name: str, own: Path, fake_model: Path, tmp_path: Path) -> None:
    truth = json.loads((own / "annotations.json").read_text())
    truth["images"][0]["file_name"] = name
    (own / "annotations.json").write_text(json.dumps(truth))
    options = ("--annotations", own / "annotations.json", "--out", tmp_path / "out")
    assert _infer(own / "1.png", "--model", fake_model, *options) == 0
    assert json.loads((tmp_path / "out" / "images.json").read_text())["images"][0]["id"] == 700


def test_folders_tell_images_of_one_name_apart(own: Path, fake_model: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (own / folder).mkdir()
        shutil.copyfile(own / "1.png", own / folder / "x.png")
    truth = {
        "images": [{"id": 8, "file_name": "b/x.png"}, {"id": 9, "file_name": "a/x.png"}],
        "categories": [{"id": 1, "name": "circle"}],
    }
    path = tmp_path / "two.json"
    path.write_text(json.dumps(truth))
    options = ("--model", fake_model, "--annotations", path, "--out", tmp_path / "out")
    assert _infer(own / "a", own / "b", *options) == 0
    assert [line["image_id"] for line in lines_of(tmp_path / "out")] == [9, 8]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"images": [{"id": 1, "file_name": "x.png"}]},
            "expected its images among the sources, found none of them in",
        ),
        (
            {"images": [{"id": 1, "file_name": "a/1.png"}, {"id": 2, "file_name": "b/1.png"}]},
            "expected one image for .*1.png, found the ids 1, 2; write their folders into file_name",
        ),
        ({"categories": [{"id": 1, "name": "Circle"}]}, "letter for letter, found 'Circle' for 'circle'"),
        (
            {"categories": [{"id": 1, "name": "dog"}]},
            "expected categories of the model's names in .*; give annotations of the model's classes",
        ),
        (
            {"categories": [{"id": 1.5, "name": "circle"}]},
            r"categories\[0\].id: expected a whole number or a string",
        ),
        ({"images": None}, "expected COCO's format with the lists images, categories, found"),
    ],
)
def test_what_does_not_match_is_refused(
    changes: dict, message: str, own: Path, fake_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    import re

    truth = {
        "images": [{"id": 1, "file_name": "1.png"}],
        "categories": [{"id": 1, "name": "circle"}],
        **changes,
    }
    path = tmp_path / "own.json"
    path.write_text(json.dumps(truth))
    assert _infer(own, "--model", fake_model, "--annotations", path, "--out", tmp_path / "out") == 2
    assert re.search(message, capsys.readouterr().err)
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


def test_two_files_of_one_image_are_refused(
    own: Path, fake_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (own / "copy").mkdir()
    shutil.copyfile(own / "1.png", own / "copy" / "1.png")
    options = ("--annotations", own / "annotations.json", "--out", tmp_path / "out")
    assert _infer(own, own / "copy", "--model", fake_model, *options) == 2
    assert "expected one file for the image '1.png' (id 700), found" in capsys.readouterr().err
