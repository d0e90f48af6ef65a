"""The kinds of input, and which share of the cases each has."""

from dataclasses import dataclass

from tests.fuzz.kinds import (
    arguments,
    artifacts,
    datasets,
    images,
    metadata,
    models,
    training,
)
from tests.fuzz.trial import Make


@dataclass(frozen=True)
class Kind:
    """What makes a trial, and of 200 cases how many are of this kind."""

    make: Make
    share: int


KINDS: dict[str, Kind] = {
    "annotations": Kind(datasets.annotations, 30),
    "recordings": Kind(datasets.recordings, 25),
    "metadata": Kind(metadata.metadata, 18),
    "outputs": Kind(metadata.outputs, 8),
    "models": Kind(models.models, 22),
    "precision": Kind(models.precision, 6),
    "plans": Kind(artifacts.plans, 9),
    "sidecars": Kind(artifacts.sidecars, 9),
    "images": Kind(images.images, 28),
    "checkpoints": Kind(training.checkpoints, 16),
    "configs": Kind(training.configs, 8),
    "arguments": Kind(arguments.arguments, 12),
    "names": Kind(arguments.names, 7),
    "environments": Kind(arguments.environments, 2),
}
