"""The measurement of equality and accuracy: what it committed, and that it sees a model that is wrong."""

import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from benchmarks import accuracy
from benchmarks.handover import ExposedModel, infer_from, own_outputs
from benchmarks.inference import infer, record_inference
from export.model import LoadedModel
from runtime.comparison.recording import read_recording
from runtime.comparison.sources import load_batch, open_artifact, record
from runtime.metadata import ModelMetadata
from tests.export.test_graph import export_loaded
from tests.models import structured_photos, tiny_config, tiny_model

SUBJECTS = ("embedded", "r50")
TINY = accuracy.Tolerance(box_px=0.02, score=1e-4, mask=1e-3)


def committed(name: str, subject: str) -> dict:
    return json.loads((accuracy.RESULTS / name).read_text())[subject]


def rows(subject: str) -> Iterator[dict]:
    for batch in committed("exactness.json", subject)["batches"].values():
        yield from batch


@pytest.mark.parametrize("subject", SUBJECTS)
def test_every_image_is_equal_or_differs_by_rounding_alone(subject):
    limits = accuracy.TOLERANCE
    for row in rows(subject):
        figures = row if row["agrees"] else row["handed_over"]
        assert figures["matched"] == figures["expected"] == figures["found"], row["image"]
        assert figures["box_px"] <= limits.box_px, row["image"]
        assert figures["score"] <= limits.score, row["image"]
        assert figures["mask"] <= limits.mask, row["image"]


@pytest.mark.parametrize("subject", SUBJECTS)
def test_every_image_was_measured_in_both_batches(subject):
    content = committed("exactness.json", subject)
    names = [{row["image"] for row in batch} for batch in content["batches"].values()]
    assert [len(each) for each in names] == [content["images"]] * 2
    assert content["images"] == {"embedded": 200, "r50": 60}[subject]
    assert names[0] == names[1]
    in_pairs = {row["image"]: row for row in content["batches"]["2"]}
    tall_beside_wide = [
        row
        for row in in_pairs.values()
        for other in row["with"]
        if row["height"] > row["width"] and in_pairs[other]["height"] < in_pairs[other]["width"]
    ]
    assert len(tall_beside_wide) >= 12


@pytest.mark.parametrize("subject", SUBJECTS)
def test_average_precision_is_mmdets(subject):
    values = committed("accuracy.json", subject)["average_precision"]
    for kind in ("box", "mask"):
        assert abs(values["crop"][kind]["AP"] - values["mmdet"][kind]["AP"]) <= 0.001


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / f"{index}.png" for index in range(3)]
    for path, photo in zip(paths, structured_photos((128, 192), (150, 100), (64, 200))):
        cv2.imwrite(str(path), photo)
    return paths


def tiny(seed: int) -> LoadedModel:
    config, model = tiny_config(), tiny_model(seed)
    model.cfg = config
    return LoadedModel(model, config, "tiny", None)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny(0)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, loaded: LoadedModel) -> Path:
    path = tmp_path_factory.mktemp("model") / "m.onnx"
    export_loaded(loaded, path, dynamic_size=True)
    return path


def test_pairs_are_of_unlike_shape(images):
    landscape, portrait, strip = images
    assert accuracy.unlike_pairs(images) == [[portrait, strip], [landscape]]
    assert accuracy.unlike_pairs(images[:1]) == [[landscape]]


def _recordings(loaded: LoadedModel, exported: Path, images: list[Path], folder: Path) -> tuple[Path, Path]:
    record_inference(loaded, [[image] for image in images], folder / "mmdet.npz")
    with open_artifact(exported, "onnxruntime", threads=1) as artifact:
        assert len(list(record(artifact, images, folder / "ort.npz"))) == len(images)
    return folder / "mmdet.npz", folder / "ort.npz"


def test_equal_results_agree(tmp_path, loaded, exported, images, monkeypatch):
    monkeypatch.setattr(accuracy, "TOLERANCE", TINY)
    sides = _recordings(loaded, exported, images, tmp_path)
    found = accuracy.compared(*sides, [[image] for image in images], loaded, exported)
    assert [(row["image"], row["agrees"]) for row in found] == [(path.name, True) for path in images]


def test_another_models_results_are_no_rounding(tmp_path, loaded, exported, images):
    other = tiny(1)
    sides = _recordings(other, exported, images[:1], tmp_path)
    (row,) = accuracy.compared(*sides, [images[:1]], other, exported)
    assert not row["agrees"]
    assert not row["equal_scores"]
    # The other model's heads differ as well, whatever feature maps they are handed.
    assert not row["rounding"]


def test_handed_its_own_outputs_mmdet_finds_the_same(loaded, exported, images):
    batch = load_batch(images, read_metadata(exported))
    own = own_outputs(loaded.model, batch)
    samples = infer_from(loaded.model, images, own)
    for sample, expected in zip(samples, infer(loaded.model, images)):
        torch.testing.assert_close(sample.pred_instances.bboxes, expected.pred_instances.bboxes)
        torch.testing.assert_close(sample.pred_instances.scores, expected.pred_instances.scores)


def test_exposing_tensors_changes_no_result(exported, images):
    with open_artifact(exported, "onnxruntime", len(images), threads=1) as artifact:
        results = list(artifact(images))
        batch = load_batch(images, artifact.metadata)
    outputs, network = ExposedModel(exported)(batch)
    for index, result in enumerate(results):
        assert outputs["num_dets"][index] == len(result.detections)
        np.testing.assert_array_equal(
            outputs["dets"][index, : len(result.detections), 4], result.detections.scores
        )
    assert [tuple(scores.shape[2:]) for scores in network.scores[:4]] == [
        tuple(feature.shape[2:]) for feature in network.features
    ]


def read_metadata(exported: Path) -> ModelMetadata:
    with open_artifact(exported, "onnxruntime") as artifact:
        return artifact.metadata


def test_a_recording_is_used_again_for_the_same_images_only(tmp_path, loaded, images):
    record_inference(loaded, [images[:1]], tmp_path / "r.npz")
    assert read_recording(tmp_path / "r.npz").images[0].name == images[0].name
    checked = LoadedModel(loaded.model, loaded.config, "tiny", _Checkpoint())
    assert accuracy._is_current(tmp_path / "r.npz", checked, [images[:1]])
    assert not accuracy._is_current(tmp_path / "r.npz", checked, [images[1:2]])
    assert not accuracy._is_current(tmp_path / "r.npz", checked, [images[:2]])
    assert not accuracy._is_current(tmp_path / "gone.npz", checked, [images[:1]])


class _Checkpoint:
    """Random weights have no checkpoint, and so no sum."""

    sha256 = None
    classes = None


@pytest.mark.slow
def test_stock_r50_on_its_images(test_data, tmp_path):
    """All of what is committed for it, measured anew: 15 minutes on two quiet cores."""
    arguments = [test_data, "--only", "r50", "--work", tmp_path, "--output", tmp_path]
    assert accuracy.main([str(a) for a in arguments]) == 0
    content = json.loads((tmp_path / "exactness.json").read_text())["r50"]
    for batch in content["batches"].values():
        assert len(batch) == 60
        assert sum(row["agrees"] for row in batch) >= 50
