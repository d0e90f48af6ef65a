"""The command line that records; what it writes is tested with those that read it."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from runtime import record
from tests.runtime import fakes
from tests.runtime.comparison.test_sources import changed_model


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "0.png"
    path.write_bytes(cv2.imencode(".png", fakes.random_image(64, 96))[1].tobytes())
    return path


def _run(*arguments: object) -> int:
    return record.main([str(a) for a in arguments])


REFUSALS = {
    "a missing model": ("gone.onnx", "0.png", "r.npz", "model gone.onnx: expected a file, found nothing"),
    "a missing image": (
        "m.onnx",
        "gone.png",
        "r.npz",
        "gone.png: expected an image, a folder or a glob pattern",
    ),
    "another suffix": ("m.onnx", "0.png", "r.json", "recording r.json: expected a name ending in .npz"),
    "NaN": ("nan.onnx", "0.png", "r.npz", "image 0.png: model output dets[0, 1]: expected finite boxes"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_is_refused_leaves_no_file(
    name: str, image: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(image.parent)
    fakes.save(Path("m.onnx"))
    changed_model(Path("nan.onnx"), "unit_boxes", (0, 1, 2), np.nan)
    model, source, output, message = REFUSALS[name]
    assert _run(model, "--images", source, "-o", output) == 2
    assert f"error: {message}" in capsys.readouterr().err
    assert not Path(output).exists()
