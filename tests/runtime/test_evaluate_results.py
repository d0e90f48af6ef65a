"""Files of results in COCO's format, figures of each class, and subsets of classes."""

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from runtime import evaluate
from runtime.evaluate import main as evaluate_main
from tests.runtime.test_evaluate import CATEGORY_IDS, dataset  # noqa: F401  (a fixture)


def _rows(folder: Path) -> list[dict]:
    """Return perfect results: the annotations themselves."""
    truth = json.loads((folder / "annotations.json").read_text())
    keys = ("image_id", "category_id", "bbox", "segmentation")
    return [{**{k: a[k] for k in keys}, "score": 0.5} for a in truth["annotations"]]


def _write(path: Path, rows: object) -> Path:
    path.write_text(json.dumps(rows))
    return path


def _main(*arguments: object) -> int:
    return evaluate_main([str(a) for a in arguments])


def test_results_need_no_images_and_stand_beside_models(
    dataset: Path,  # noqa: F811
    fake_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    perfect = _write(tmp_path / "perfect.json", _rows(dataset))
    annotations = dataset / "annotations.json"
    assert _main(perfect, "--annotations", annotations) == 0
    assert " 1.000 " in capsys.readouterr().out
    half = _write(tmp_path / "half.json", _rows(dataset)[:5])
    report = tmp_path / "report.json"
    options = ("--dataset", dataset, "--per-class", "--json", report, "--backend", "onnxruntime")
    assert _main(half, fake_model, perfect, *options) == 0
    printed = capsys.readouterr().out
    assert "AP (AP50) of each class" in printed
    artifacts = json.loads(report.read_text())["artifacts"]
    assert [a["name"] for a in artifacts] == [str(half), str(fake_model), str(perfect)]
    assert artifacts[2]["average_precision"]["mask"]["AP"] == pytest.approx(1)
    assert artifacts[2]["difference_to_first"]["box"]["AP"] > 0.3
    for name in CATEGORY_IDS:
        assert artifacts[2]["by_class"]["box"][name] == pytest.approx({"AP": 1, "AP50": 1})
        assert name in printed


def test_figures_of_a_class_are_its_own(dataset: Path, tmp_path: Path) -> None:  # noqa: F811
    """Without one class's results its figure alone falls, and the mean with it."""
    rows = [row for row in _rows(dataset) if row["category_id"] != CATEGORY_IDS["circle"]]
    found = evaluate(_write(tmp_path / "r.json", rows), dataset / "annotations.json", None)
    assert {name: v["AP"] for name, v in found.by_class["mask"].items()} == pytest.approx(
        {"circle": 0, "square": 1, "triangle": 1}
    )
    assert found.average_precision["mask"]["AP"] == pytest.approx(2 / 3)


def test_only_chosen_classes_count(dataset: Path, fake_model: Path, tmp_path: Path) -> None:  # noqa: F811
    rows = [row for row in _rows(dataset) if row["category_id"] != CATEGORY_IDS["circle"]]
    results = _write(tmp_path / "r.json", rows)
    for model, options in ((results, {}), (fake_model, {"backend": "onnxruntime"})):
        found = evaluate(
            model, dataset / "annotations.json", dataset, classes=["square", "triangle"], **options
        )
        assert found.average_precision["box"]["AP"] == pytest.approx(1)
        assert list(found.by_class["box"]) != []
        assert set(found.by_class["box"]) == {"square", "triangle"}
        assert "AP over the 2 classes that were chosen" in found.notes


@pytest.mark.parametrize("artifact", ["results", "model"])
def test_a_class_that_there_is_not_is_refused(
    artifact: str,
    dataset: Path,  # noqa: F811
    fake_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    path = _write(tmp_path / "r.json", _rows(dataset)) if artifact == "results" else fake_model
    assert _main(path, "--dataset", dataset, "--classes", "circle", "dog") == 2
    assert "--classes: expected names that are classes and categories of" in capsys.readouterr().err


def test_categories_that_the_model_has_not_are_listed(
    dataset: Path,  # noqa: F811
    fake_model: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    path = dataset / "annotations.json"
    truth = json.loads(path.read_text())
    truth["categories"] += [{"id": 50, "name": "hexagon"}, {"id": 51, "name": "star"}]
    path.write_text(json.dumps(truth))
    assert _main(fake_model, "--dataset", dataset, "--per-class") == 0
    printed = capsys.readouterr()
    assert "categories that the model has not are left out: hexagon, star" in printed.err
    assert "hexagon" not in printed.out


def test_polygons_and_uncompressed_lengths_are_read(dataset: Path, tmp_path: Path) -> None:  # noqa: F811
    rows = _rows(dataset)
    for row in rows:
        mask = coco_mask.decode(row["segmentation"])
        flat = mask.ravel(order="F")
        changes = np.flatnonzero(np.diff(flat)) + 1
        bounds = [0, *changes.tolist(), flat.size]
        counts = np.diff(bounds).tolist()
        row["segmentation"]["counts"] = counts if not flat[0] else [0, *counts]
    found = evaluate(_write(tmp_path / "r.json", rows), dataset / "annotations.json", None)
    assert found.average_precision["mask"]["AP"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 99}, r"results\[0\].image_id: expected an id of the annotations' images, found 99"),
        ({"category_id": "x"}, r"results\[0\].category_id: expected an id of the annotations' categories"),
        ({"bbox": [1, 2, 3]}, r"results\[0\].bbox: expected \[x, y, width, height\] in px"),
        ({"score": "high"}, r"results\[0\].score: expected a number"),
        ({"score": float("nan")}, r"results\[0\].score: expected a number"),
        (
            {"segmentation": {"size": [3, 4], "counts": "x"}},
            r"results\[0\].segmentation.size: expected the image's",
        ),
    ],
)
def test_a_damaged_row_is_refused_with_its_place(
    change: dict,
    message: str,
    dataset: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    import re

    rows = _rows(dataset)
    rows[0].update(change)
    path = _write(tmp_path / "r.json", rows)
    assert _main(path, "--annotations", dataset / "annotations.json") == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize("content", [{}, {"annotations": []}, 3, "text"])
def test_what_is_no_list_of_results_is_refused(
    content: object,
    dataset: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    path = _write(tmp_path / "r.json", content)
    assert _main(path, "--annotations", dataset / "annotations.json") == 2
    assert "expected COCO's results, a list of detections, found" in capsys.readouterr().err


def test_no_results_are_an_average_precision_of_zero(dataset: Path, tmp_path: Path) -> None:  # noqa: F811
    found = evaluate(_write(tmp_path / "r.json", []), dataset / "annotations.json", None)
    assert found.average_precision["box"]["AP"] == 0
