"""Image files into ``mmdet.apis.inference_detector`` and into a file of dynamic size, at mmdet's own resize rule."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.accuracy import TOLERANCE, unlike_pairs
from benchmarks.inference import detections_from_sample, infer, load_detector
from examples import CHECKPOINT_PATH, CONFIG_PATH, IMAGES_DIR
from export.model import LoadedModel, load_model
from runtime.comparison.detections import arrays_from_detections
from runtime.comparison.difference import compare_image
from runtime.comparison.sources import open_artifact
from runtime.images import read_image
from tests.export.test_graph import export_loaded

IMAGES = sorted(IMAGES_DIR.iterdir())


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_detector(str(CONFIG_PATH), CHECKPOINT_PATH)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("embedded") / "m.onnx"
    export_loaded(load_model(str(CONFIG_PATH), CHECKPOINT_PATH), path, dynamic_size=True)
    return path


def assert_equal(loaded: LoadedModel, model: Path, batch: Sequence[Path]) -> None:
    samples = infer(loaded.model, batch)
    with open_artifact(model, "onnxruntime", len(batch)) as artifact:
        for result, sample in zip(artifact(batch), samples):
            expected = detections_from_sample(sample, artifact.classes)
            sides = [arrays_from_detections(side) for side in (expected, result.detections)]
            difference = compare_image(*sides)
            assert not difference.violations(TOLERANCE), result.path
            assert difference.matched > 0
            # Of the whole image: a mask of the network's size would have no counterpart.
            assert sides[0].masks[0].shape == sides[1].masks[0].shape == read_image(result.path).shape[:2]


@pytest.mark.parametrize("image", IMAGES, ids=lambda path: path.stem)
def test_one_image(loaded, model, image):
    assert_equal(loaded, model, [image])


@pytest.mark.parametrize("batch", unlike_pairs(IMAGES), ids=lambda paths: "-".join(p.stem for p in paths))
def test_two_images_of_unlike_shape(loaded, model, batch):
    shapes = [read_image(path).shape[:2] for path in batch]
    assert shapes[0] != shapes[1]
    assert_equal(loaded, model, batch)
