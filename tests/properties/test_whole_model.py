"""Any images, any batch, through a whole model of dynamic size: image files into mmdet, and into the exported file."""

from pathlib import Path

import cv2
import pytest
from hypothesis import event, given
from hypothesis import strategies as st
from mmdet.structures import DetDataSample

from benchmarks.handover import ExposedModel, infer_from, own_outputs
from benchmarks.inference import detections_from_sample, infer
from export.model import LoadedModel
from runtime.comparison.detections import arrays_from_detections
from runtime.comparison.difference import Tolerance, compare_image
from runtime.comparison.sources import DetectorArtifact, load_batch
from runtime.detections import Detections
from tests.export.test_graph import export_loaded
from tests.models import tiny_config, tiny_model
from tests.properties.strategies import images

# Of a tensor's largest value: what two libraries' convolutions of 16 to 64 channels differ by.
ROUNDING = 1e-5
# The masks of random weights are noise, with contours everywhere. In an image two pixels high each pixel may lie
# halfway between two rows of saturated cells, 0 and 1: just the threshold.
TOLERANCE = Tolerance(box_px=0.02, score=1e-4, mask=1e-3, mask_px=20)


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


@pytest.fixture(scope="module")
def exposed(artifact: DetectorArtifact) -> ExposedModel:
    return ExposedModel(artifact.path)


def violations(samples: list[DetDataSample], found: list[Detections]) -> list[str]:
    words = []
    for sample, detections in zip(samples, found):
        sides = (detections_from_sample(sample, detections.classes), detections)
        words += compare_image(*(arrays_from_detections(side) for side in sides)).violations(TOLERANCE)
    return words


@given(st.lists(images(), min_size=1, max_size=3))
def test_the_exported_file_finds_what_mmdet_finds(loaded, artifact, exposed, folder, photos):
    """From the same pixels; where scores are equal but for rounding, from the same feature maps and RPN outputs."""
    paths = [folder / f"{index}.png" for index in range(len(photos))]
    for path, photo in zip(paths, photos):
        assert cv2.imwrite(str(path), photo)
    results = list(artifact(paths))
    assert not any(result.problem for result in results)
    found = [result.detections for result in results]
    agree = not violations(infer(loaded.model, paths), found)
    event("equal" if agree else "another order of scores")
    if not agree:
        batch = load_batch(paths, artifact.metadata)
        _, theirs = exposed(batch)
        assert max(theirs.relative_difference(own_outputs(loaded.model, batch)).values()) < ROUNDING
        assert not violations(infer_from(loaded.model, paths, theirs), found)
