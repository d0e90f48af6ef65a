"""Any images, any batch, through a whole model of dynamic size: image files into mmdet, and into the exported file."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.inference import detections_from_sample, infer
from export.model import LoadedModel
from runtime.artifacts import DetectorArtifact
from runtime.compare import arrays_from_detections
from runtime.difference import Tolerance, compare_image
from tests.export.test_graph import export_loaded
from tests.models import tiny_config, tiny_model
from tests.properties.strategies import images

# The masks of random weights are noise, with contours everywhere.
TOLERANCE = Tolerance(box_px=0.02, score=1e-4, mask=1e-3)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    config, model = tiny_config(), tiny_model()
    model.cfg = config  # where mmdet.apis looks for the test pipeline
    return LoadedModel(model, config, "tiny", None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole")


@pytest.fixture(scope="module")
def artifact(loaded: LoadedModel, folder: Path) -> DetectorArtifact:
    export_loaded(loaded, folder / "m.onnx", dynamic_size=True)
    with DetectorArtifact(folder / "m.onnx", "onnxruntime", batch_size=3, threads=1) as opened:
        yield opened


@given(st.lists(images(), min_size=1, max_size=3))
def test_the_exported_file_finds_what_mmdet_finds(loaded, artifact, folder, photos: list[np.ndarray]):
    paths = [folder / f"{index}.png" for index in range(len(photos))]
    for path, photo in zip(paths, photos):
        assert cv2.imwrite(str(path), photo)
    expected = infer(loaded.model, paths)
    for result, sample in zip(artifact(paths), expected):
        assert not result.problem
        sides = (detections_from_sample(sample, artifact.classes), result.detections)
        difference = compare_image(*(arrays_from_detections(side) for side in sides))
        assert not difference.violations(TOLERANCE)
