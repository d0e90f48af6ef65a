"""Services behind a real socket, in a thread of the tests; and runners that do what a test wants."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Callable, Optional

import cv2
import httpx
import numpy as np

from runtime.detections import Detections
from runtime.serving import ServingOptions, create_app
from runtime.serving.server import opened_socket, serve, url_of
from tests.runtime import fakes

SECONDS = 20


@dataclass(eq=False)
class Served:
    """A running service.

    Attributes:
        url: where it is.
        app: of ``create_app``.
        lines: that it has logged.
    """

    url: str
    app: Any
    lines: list[str] = field(default_factory=list)

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.rpartition("/")[2].rpartition(":")
        return host, int(port)

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=SECONDS, **options)

    def metric(self, name: str, **labels: str) -> float:
        """Return a sample, 0 where there is none yet."""
        return self.app.state.service.metrics.registry.get_sample_value(f"maskrcnn_{name}", labels) or 0.0


@contextmanager
def served(models: Mapping[str, Any], options: Optional[ServingOptions] = None) -> Iterator[Served]:
    """Serve models on a free port until the end of the block; what was taken is answered by then."""
    lines: list[str] = []
    app = create_app(models, options, log=lines.append)
    opened, over = opened_socket("127.0.0.1", 0), threading.Event()
    thread = threading.Thread(target=serve, args=(app, opened, over.is_set))
    thread.start()
    try:
        yield Served(url_of(opened), app, lines)
    finally:
        over.set()
        thread.join(SECONDS)
        assert not thread.is_alive(), "the service did not end"


@dataclass(eq=False)
class FakeBatch:
    """A batch of ``FakeRunner``."""

    runner: "FakeRunner"
    staged: list[np.ndarray]

    def result(self, timings: Any = None, problems: Any = None) -> list[Detections]:
        self.runner.may_run.wait(SECONDS)
        return self.runner.run(self.staged, problems)


class FakeRunner:
    """A runner that keeps account of its batches, and waits until it may run.

    Attributes:
        batches: the images of each batch that was run, as the value of their first pixel.
        num_submitted: batches, those that wait included.
        may_run: set from the beginning; cleared, batches wait.
        spoilt: an image of this first pixel makes its batch fail with the exception.
        unclear: an image of this first pixel has an output that is no result.
    """

    num_stagers, device_failure = 1, ""

    def __init__(self, num_slots: int = 1, largest_batch: Optional[int] = None) -> None:
        self.num_slots, self.largest_batch = num_slots, largest_batch
        self.batches: list[list[int]] = []
        self.num_submitted = 0
        self.may_run = threading.Event()
        self.may_run.set()
        self.spoilt: dict[int, Exception] = {}
        self.unclear: set[int] = set()

    def stage(self, image: np.ndarray) -> np.ndarray:
        return image

    def submit(self, staged: Sequence[np.ndarray], min_score: float = 0.0, **_: Any) -> FakeBatch:
        self.num_submitted += 1
        return FakeBatch(self, list(staged))

    def run(self, staged: list[np.ndarray], problems: Optional[dict[int, str]]) -> list[Detections]:
        values = [int(image[0, 0, 0]) for image in staged]
        self.batches.append(values)
        for value in values:
            if value in self.spoilt:
                raise self.spoilt[value]
        for index, value in enumerate(values):
            if value in self.unclear:
                problems[index] = "NaN"
        return [found(image) for image in staged]

    def close(self) -> None:
        self.may_run.set()


class FakeDetector:
    """What the service needs of a ``Detector``, around a ``FakeRunner``."""

    def __init__(self, runner: FakeRunner) -> None:
        self.runner, self.metadata = runner, fakes.metadata(size=None, steps=(), masks="none")
        self.backend = type("Backend", (), {"name": "onnxruntime"})


def found(image: np.ndarray) -> Detections:
    """Return two detections whose boxes have the image's first pixel in them."""
    value = float(image[0, 0, 0])
    return Detections(
        boxes=np.array([[value, 0, value + 1, 1], [0, 0, 2, 2]], np.float32),
        scores=np.array([0.9, 0.2], np.float32),
        labels=np.array([1, 0], np.int32),
        image_size=image.shape[:2],
        classes=fakes.CLASSES,
    )


def png(value: int, height: int = 4, width: int = 6) -> bytes:
    """Return an image file, all of whose pixels have the value."""
    return cv2.imencode(".png", np.full((height, width, 3), value, np.uint8))[1].tobytes()


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    pause = threading.Event()
    for _ in range(SECONDS * 200):
        if condition():
            return
        pause.wait(0.005)
    raise AssertionError("waited in vain")
