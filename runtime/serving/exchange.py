"""What a front end and the model's process say to each other, pickled, over one connection."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Optional, Union

from runtime.detections import Detections
from runtime.metadata import ModelMetadata


@dataclass(frozen=True)
class ModelFacts:
    """What a front end knows of a model that another process runs.

    Attributes:
        metadata: the model's.
        backend: its name.
        num_slots: batches that one front end has under way.
        largest_batch, device_failure: see ``runtime.runner.Runner``.
    """

    metadata: ModelMetadata
    backend: str
    num_slots: int
    largest_batch: Optional[int]
    device_failure: str


@dataclass(frozen=True)
class SharedImage:
    """Pixels in shared memory.

    Attributes:
        segment: its number.
        shape: of the uint8 array that it begins with.
    """

    segment: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Listening:
    """The front end takes connections."""


@dataclass(frozen=True)
class NotStarted:
    """The front end ends, since it cannot begin."""

    reason: str


@dataclass(frozen=True)
class Share:
    """A segment of shared memory is there; the descriptor of its file follows."""

    segment: int
    num_bytes: int


@dataclass(frozen=True)
class Unshare:
    """A segment is not used any more."""

    segment: int


@dataclass(frozen=True)
class Batch:
    """Images to be run together; the answer has the same number."""

    number: int
    model: str
    images: tuple[SharedImage, ...]
    min_score: float
    check_masks: bool


@dataclass(frozen=True)
class Ping:
    """Asks whether anybody is there."""


@dataclass(frozen=True)
class Run:
    """A batch as the model ran it: the number of its images, of whichever front ends, and each stage's ms."""

    num_images: int
    timings: Mapping[str, float]


@dataclass(frozen=True)
class Answer:
    """What came of a batch, as ``runtime.runner.Pending.result`` returns it.

    Attributes:
        number: the batch's.
        found, problems: of its images.
        runs: that are to be counted with it; each is with one answer.
    """

    number: int
    found: list[Detections]
    problems: Mapping[int, str]
    runs: tuple[Run, ...] = ()


@dataclass(frozen=True)
class Failure:
    """Why nothing came of a batch; ``is_refusal``: a ``ValueError``, else a ``RuntimeError``."""

    number: int
    reason: str
    is_refusal: bool


@dataclass(frozen=True)
class Pong:
    """Answers ``Ping``: whether the threads of all models run."""

    is_alive: bool


@dataclass(frozen=True)
class End:
    """Answer what was taken, and end."""


FromFrontEnd = Union[Listening, NotStarted, Share, Unshare, Batch, Ping]
ToFrontEnd = Union[Answer, Failure, Pong, End]
