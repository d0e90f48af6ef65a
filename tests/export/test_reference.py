"""The recorded results of the unpatched model: equal to its own, and to the exported file's."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from export.metadata import metadata_from_model
from export.model import LoadedModel
from export.recorded import record_reference
from export.reference import main
from export.verify import MmdetInference
from runtime.compare import main as compare_main
from runtime.comparison.difference import DetectionArrays
from runtime.comparison.recording import read_recording
from runtime.comparison.sources import open_artifact
from runtime.metadata import ModelMetadata
from tests.export.test_graph import export_loaded
from tests.models import structured_photos, tiny_config, tiny_model, write_config

SIZE = (128, 192)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return LoadedModel(tiny_model(), tiny_config(), "tiny", None)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A landscape, a portrait, and one in which nothing is."""
    folder = tmp_path_factory.mktemp("images")
    photos = [*structured_photos((128, 192), (150, 100)), np.zeros((64, 200, 3), np.uint8)]
    paths = [folder / f"{index}.png" for index in range(3)]
    for path, photo in zip(paths, photos):
        cv2.imwrite(str(path), photo)
    return paths


def by_mmdet(loaded: LoadedModel, paths: list[Path], metadata: ModelMetadata) -> list[DetectionArrays]:
    mmdet = MmdetInference(loaded, metadata)
    return mmdet.detect(mmdet.prepare(paths))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_it_is_what_the_model_finds(
    loaded: LoadedModel, images: list[Path], tmp_path: Path, batch_size: int, dynamic: bool
) -> None:
    metadata = metadata_from_model(loaded, size=None if dynamic else SIZE, dynamic_size=dynamic, masks="crop")
    output = tmp_path / "r.npz"
    record_reference(loaded, metadata, images, output, batch_size=batch_size)
    recording = read_recording(output)
    assert recording.metadata == metadata
    assert recording.made_with["torch"] == torch.__version__
    assert recording.made_with["device"] == "cpu"
    expected = [
        arrays
        for start in range(0, len(images), batch_size)
        for arrays in by_mmdet(loaded, images[start : start + batch_size], metadata)
    ]
    assert len(expected[0].boxes) > 3
    for path, arrays in zip(images, expected):
        found = recording.find(path)
        np.testing.assert_array_equal(found.boxes, arrays.boxes)
        np.testing.assert_array_equal(found.scores, arrays.scores)
        np.testing.assert_array_equal(found.labels, arrays.labels)
        np.testing.assert_array_equal(found.masks, arrays.masks)


def test_the_exported_file_agrees_with_it(loaded: LoadedModel, images: list[Path], tmp_path: Path) -> None:
    """On a box without mmdet the recording is all that there is of PyTorch."""
    export_loaded(loaded, tmp_path / "m.onnx", size=SIZE)
    metadata = metadata_from_model(loaded, size=SIZE, dynamic_size=False, masks="crop")
    record_reference(loaded, metadata, images, tmp_path / "r.npz", batch_size=1)
    arguments = [tmp_path / "r.npz", tmp_path / "m.onnx", "--batch", 2, "--images", *images]
    assert compare_main([str(a) for a in arguments]) == 0


def test_a_detector_without_masks(images: list[Path], tmp_path: Path) -> None:
    loaded = LoadedModel(tiny_model(masks=False), tiny_config(masks=False), "tiny", None)
    metadata = metadata_from_model(loaded, size=SIZE, dynamic_size=False, masks="crop")
    record_reference(loaded, metadata, images, tmp_path / "r.npz", batch_size=2)
    with open_artifact(tmp_path / "r.npz") as artifact:
        assert not any(result.detections.has_masks for result in artifact(images))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, loaded: LoadedModel) -> list[Path]:
    """Config and checkpoint."""
    folder = tmp_path_factory.mktemp("files")
    torch.save({"state_dict": loaded.model.state_dict()}, folder / "tiny.pth")
    return [write_config(tiny_config(), folder / "tiny.py"), folder / "tiny.pth"]


def _run(*arguments: object) -> int:
    return main([str(a) for a in arguments])


def test_the_command(
    files: list[Path], images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    output = tmp_path / "deep" / "r.npz"
    options = ("--size", *SIZE, "--batch", 2, "--max-per-img", 7, "-o", output)
    assert _run(*files, "--images", *images, *options) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"{output}: " in shown
    assert f"detections in 3 images, PyTorch {torch.__version__}, tiny, cpu, size 128x192" in shown
    recording = read_recording(output)
    assert (recording.metadata.config, recording.metadata.size) == ("tiny", SIZE)
    assert len(recording.metadata.checkpoint_sha256) == 64
    assert [len(d) for d in recording.detections[:2]] == [7, 7]


REFUSALS = {
    "no checkpoint": (["{config}"], "expected CONFIG and CHECKPOINT, found only"),
    "a missing checkpoint": (
        ["{config}", "gone.pth"],
        "checkpoint: expected a file, found nothing at gone.pth",
    ),
    "a missing image": (
        ["{config}", "none", "--images", "gone.jpg"],
        "gone.jpg: expected an image, a folder or a",
    ),
    "an odd size": (["{config}", "none", "--size", "100", "96"], "--size: expected multiples of 32"),
    "a suffix": (["{config}", "none", "-o", "r.json"], "expected a name ending in .npz, found '.json'"),
    "no GPU": (
        ["{config}", "none", "--device", "cuda"],
        "--device: expected a device that PyTorch sees, found cuda",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_is_refused(
    name: str, files: list[Path], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arguments, message = REFUSALS[name]
    assert _run(*(a.format(config=files[0]) for a in arguments)) == 2
    assert message in " ".join(capsys.readouterr().err.split())
