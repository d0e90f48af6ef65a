"""What the runtime's tests share."""

from pathlib import Path

import pytest

import patches  # noqa: F401  (makes mmdet importable, before any test module imports it)
from tests.runtime import fakes


@pytest.fixture(scope="session")
def fake_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fixed 64x96 fake with cropped masks, in a file."""
    return fakes.save(tmp_path_factory.mktemp("models") / "fake.onnx")
