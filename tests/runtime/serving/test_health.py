"""When a replica of Ray's is healthy; no Ray is needed."""

from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np
import pytest

from runtime.serving import ServingOptions
from runtime.serving.batching import Job
from runtime.serving.replicas import Health, Replicas
from runtime.serving.service import Service
from tests.runtime.serving.servers import SECONDS, FakeDetector, FakeRunner, found, png


class LosableDetector(FakeDetector):
    """A detector whose device may be lost."""

    is_lost, num_warm_ups = False, 0

    def __call__(self, images: Sequence[np.ndarray]) -> list:
        self.num_warm_ups += 1
        if self.is_lost:
            raise RuntimeError("the device was lost")
        return [found(image) for image in images]


def asked(service: Service, value: int) -> "Future":
    """Return what becomes of an image whose pixels have the value."""
    job = Job(png(value), "image", deadline=float("inf"))
    service.model().batcher.submit([job])
    return job.future


def test_an_image_may_be_to_blame_or_the_model(runner: FakeRunner) -> None:
    detector = LosableDetector(runner)
    with Service({"m": detector}, ServingOptions(max_delay_ms=0)) as service:
        health = Health(service)
        health.check()
        assert asked(service, 5).result(SECONDS)
        health.check()
        assert detector.num_warm_ups == 0
        runner.spoilt[7] = RuntimeError("too large")
        assert "the model failed on it: too large" in str(asked(service, 7).exception(SECONDS))
        health.check()
        health.check()
        assert detector.num_warm_ups == 1
        detector.is_lost = True
        health.check()  # nobody has asked since
        assert asked(service, 7).exception(SECONDS)
        for _ in range(2):  # Ray asks several times
            with pytest.raises(RuntimeError, match="the device was lost"):
                health.check()
    with pytest.raises(RuntimeError, match="a model's thread has ended"):
        health.check()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"least": 0},
            "min_replicas, max_replicas: expected 1 or more, and no more of the first, found 0 and 1",
        ),
        ({"least": 3, "most": 2}, "found 3 and 2"),
        ({"cpus": -1}, "cpus: expected a number from 0, found -1"),
        ({"gpus": float("nan")}, "gpus: expected a number from 0, found nan"),
    ],
)
def test_numbers_of_replicas(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Replicas(**fields)
