"""Services that the tests share."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from runtime import Detector
from tests.runtime import fakes
from tests.runtime.serving.servers import FakeDetector, FakeRunner, Served, served


@pytest.fixture(scope="session")
def points_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fake without masks, of any size."""
    return fakes.save(
        tmp_path_factory.mktemp("models") / "boxes.onnx", fakes.metadata(size=None, masks="none")
    )


@pytest.fixture(scope="session")
def detectors(fake_model: Path, points_model: Path) -> Iterator[dict[str, Detector]]:
    """Two models: with masks, and without."""
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(Detector(path, "onnxruntime", threads=1))
            for name, path in (("fake", fake_model), ("boxes", points_model))
        }


@pytest.fixture(scope="module")
def service(detectors: dict[str, Detector]) -> Iterator[Served]:
    """Both models behind a socket."""
    with served(detectors) as running:
        yield running


@pytest.fixture
def runner() -> Iterator[FakeRunner]:
    """A runner that does what the test wants."""
    runner = FakeRunner()
    yield runner
    runner.may_run.set()


@pytest.fixture
def fake_detector(runner: FakeRunner) -> FakeDetector:
    """What the service needs of a detector, around the runner."""
    return FakeDetector(runner)
