"""What the runtime's tests share."""

from pathlib import Path

import onnx
import pytest

import patches  # noqa: F401  (makes mmdet importable, before any test module imports it)
from examples import IMAGES_DIR
from export.graph import GraphOptions, onnx_from_model, simplified
from tests.models import tiny_model
from tests.runtime import fakes

SIZE = (128, 192)


@pytest.fixture(scope="session")
def fake_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fixed 64x96 fake with cropped masks, in a file."""
    return fakes.save(tmp_path_factory.mktemp("models") / "fake.onnx")


@pytest.fixture(scope="session")
def tiny() -> onnx.ModelProto:
    """Stock Mask R-CNN with few channels and random weights, fixed size, cropped masks."""
    return simplified(onnx_from_model(tiny_model(), GraphOptions(SIZE)))


@pytest.fixture(scope="session")
def tiny_dynamic() -> onnx.ModelProto:
    """The same with dynamic size and pasted masks, as traced."""
    return onnx_from_model(tiny_model(), GraphOptions(SIZE, dynamic_size=True, masks="full"))


@pytest.fixture(scope="session")
def images() -> list[Path]:
    """Two embedded images of different size, with many objects and with few."""
    return [IMAGES_DIR / "landscape.jpg", IMAGES_DIR / "square.jpg"]
