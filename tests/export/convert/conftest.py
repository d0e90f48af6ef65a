"""Models that are converted."""

from pathlib import Path

import onnx
import pytest

from examples import CHECKPOINT_PATH, CONFIG_PATH
from export.graph import GraphOptions, onnx_from_model, simplified, with_metadata
from export.metadata import metadata_from_model
from export.model import load_model

IMAGES = Path(__file__).parents[3] / "examples" / "images"


@pytest.fixture(scope="session")
def any_size_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model, of images of any size."""
    loaded = load_model(str(CONFIG_PATH), CHECKPOINT_PATH)
    metadata = metadata_from_model(loaded, size=None)
    assert metadata.size is None
    path = tmp_path_factory.mktemp("any_size") / "any.onnx"
    onnx.save(
        with_metadata(
            simplified(onnx_from_model(loaded.model, GraphOptions((448, 640), dynamic_size=True))), metadata
        ),
        path,
    )
    return path


@pytest.fixture
def photos() -> list[Path]:
    """A portrait and a landscape."""
    return [IMAGES / "portrait.jpg", IMAGES / "landscape.jpg"]
