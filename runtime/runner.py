"""What a loaded model is, and what gets batches of images through it: protocols."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Optional, Protocol, Union

import numpy as np

from runtime.contract import Tensor
from runtime.detections import Detections
from runtime.metadata import ModelMetadata

if TYPE_CHECKING:
    import onnx

Timings = Optional[dict[str, float]]
Problems = Optional[dict[int, str]]
Feeds = Mapping[str, np.ndarray]
# Makes an array of a shape and dtype, of no particular content: ``numpy.empty``, or one in page-locked memory.
NewArray = Callable[[tuple[int, ...], np.dtype], np.ndarray]
# Runs one model of any inputs and outputs; where it has a method `close`, that is called when the model is done with.
LayerRunner = Callable[[Feeds], Mapping[str, np.ndarray]]
# Makes the runner of a model in memory.
LayerRunnerFactory = Callable[["onnx.ModelProto"], LayerRunner]


def add_timings(timings: Timings, spent: Mapping[str, float]) -> None:
    """Add the ms of stages to ``timings``, if there are any."""
    if timings is not None:
        for stage, milliseconds in spent.items():
            timings[stage] = timings.get(stage, 0.0) + milliseconds


class Pending(Protocol):
    """A batch under way."""

    def result(self, timings: Timings = None, problems: Problems = None) -> list[Detections]:
        """Wait for the detections, one ``Detections`` per image.

        Args:
            timings: if given, the stages' ms are added.
            problems: if given, an image for which the model's output is not a result (NaN, a label without a class)
                counts as one without detections, and its index in the batch gets the reason.

        Raises:
            RuntimeError: the device failed, or the model's output is no result and ``problems`` is None.
        """


class Runner(Protocol):
    """A loaded model that takes images as they were decoded, several batches at once. For any thread.

    Attributes:
        num_slots: how many batches to have under way.
        num_stagers: how many threads are worth having for ``stage``.
        largest_batch: most images of one batch; None: any number.
        device_failure: why images are not prepared and masks not encoded on the GPU; empty if they are.
    """

    num_slots: int
    num_stagers: int
    largest_batch: Optional[int]
    device_failure: str

    def stage(self, image: np.ndarray) -> Any:
        """Return what ``submit`` takes for an image, (H, W, 3) uint8 BGR.

        Raises:
            ValueError: it does not fit into the model's fixed size.
        """

    def submit(self, staged: Sequence[Any], min_score: float = 0.0, *, check_masks: bool = False) -> Pending:
        """Put one or more staged images on their way.

        Args:
            staged: what ``stage`` returned.
            min_score: detections below it are left out.
            check_masks: look for NaN among the masks' probabilities, which pasting makes an empty mask of; on a device
                that takes a copy of them.

        Raises:
            ValueError: a size that the model does not take.
            RuntimeError: the model is closed, or the device failed.
        """

    def close(self) -> None:
        """Release what is not the backend's."""


class ArrayModel(Protocol):
    """The part of ``Backend`` that the host needs."""

    metadata: ModelMetadata

    def run(self, images: np.ndarray, image_sizes: np.ndarray) -> dict[str, np.ndarray]:
        """See ``Backend.run``."""


class Backend(Protocol):
    """A loaded model.

    Attributes:
        name: of the backend.
        metadata: the model's facts.
    """

    name: str

    metadata: ModelMetadata

    def run(self, images: np.ndarray, image_sizes: np.ndarray) -> dict[str, np.ndarray]:
        """Run one batch.

        Args:
            images: (B, 3, H, W) float32, normalised and padded, B at least 1.
            image_sizes: (B, 2) float32, each image's (height, width) inside its padding, px.

        Returns:
            ``num_dets`` (B,) int32, ``dets`` (B, K, 5) float32, ``labels`` (B, K) int32, and unless
            ``metadata.masks`` is ``none``, ``masks``: (B, K, m, m) float32 or (B, K, H, W) uint8. The arrays
            are the caller's: a later ``run`` does not change them.

        Raises:
            ValueError: arrays of another rank, dtype or size.
        """

    def new_runner(self, *, host: bool = False) -> Runner:
        """Return what takes images instead of arrays; close it before the backend.

        Args:
            host: have images prepared and masks pasted on the CPU; else it is the fastest way that there is.
        """

    @property
    def notes(self) -> list[str]:
        """What runs more slowly than it could, and why."""

    def close(self) -> None:
        """Release the model. Calling it again does nothing; ``run`` raises afterwards."""


class TensorModel(Protocol):
    """A loaded model of any inputs and outputs. For any thread.

    Attributes:
        inputs, outputs: by name, in the ONNX's order.
    """

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]

    def run(self, feeds: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Return every output by name, of its dtype; the arrays are the caller's.

        Args:
            feeds: every input by name, of its dtype, rank and fixed dimensions.

        Raises:
            ValueError: a shape that the model does not take.
            RuntimeError: the model is closed, or failed.
        """

    def close(self) -> None:
        """Release the model. Calling it again does nothing."""


class BackendModule(Protocol):
    """What a module of ``runtime.backends`` declares.

    Attributes:
        NAME: of the backend.
        SUFFIXES: of the files that it reads.
        Options: a frozen dataclass.
    """

    NAME: str
    SUFFIXES: tuple[str, ...]
    Options: Any

    @staticmethod
    def open_model(model: Union[str, Path], **options: Any) -> Backend:
        """Open a model; ``options`` are fields of ``Options``.

        Raises:
            FileNotFoundError, ValueError, RuntimeError: see ``runtime.backends.load_backend``.
        """

    @staticmethod
    def open_tensors(model: Union[str, Path], **options: Any) -> TensorModel:
        """Open a model of any inputs and outputs; ``options`` are fields of ``Options``.

        Raises:
            FileNotFoundError, ValueError, RuntimeError: see ``runtime.backends.load_tensors``.
        """

    @staticmethod
    def is_usable(device: Optional[str]) -> bool:
        """Return whether ``auto`` may choose it here, for a device that was named or None."""

    @staticmethod
    def ignores(option: str, value: Any) -> bool:
        """Return whether another backend's option asks nothing of this one."""

    @staticmethod
    def layers(path: Path, other: Path, batch: int, **options: Any) -> tuple[Any, LayerRunnerFactory]:
        """Return the ONNX behind a model file, and what runs it with extra outputs.

        Args:
            path: of the file.
            other: the file that it is compared with.
            batch: images that it is run with.
            options: fields of ``Options``.

        Raises:
            FileNotFoundError, ValueError, RuntimeError: the ONNX is not to be had, or the backend is not there.
        """
