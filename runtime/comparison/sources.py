"""What can be compared and evaluated: a model that runs here, or the recorded results of one that ran elsewhere."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Optional, Protocol, Union

import numpy as np

from runtime.backends import backend_name
from runtime.comparison.recording import SUFFIX, RecordingWriter, check_image_file, read_recording
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.files import sha256_of
from runtime.host.postprocess import detections_from_outputs
from runtime.host.preprocess import Batch, network_size, prepare
from runtime.images import read_image
from runtime.metadata import ModelMetadata


@dataclass(frozen=True, eq=False)
class ImageResult:
    """What an artifact has to say about one image.

    Attributes:
        path: the image file.
        detections: in original px; none where there is a problem.
        problem: why the model's output is not a result (NaN, a label without a class), in words; else empty.
    """

    path: Path
    detections: Detections
    problem: str = ""


class Artifact(Protocol):
    """Something that has detections for image files.

    Attributes:
        name: for tables.
        metadata: the model's facts.
        model_seconds: time that the model itself took so far, or None for a recording.
    """

    name: str
    metadata: ModelMetadata
    model_seconds: Optional[float]

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names; a label is an index into them."""

    def __call__(self, images: Sequence[Path]) -> Iterator[ImageResult]:
        """Return the results of each image file, in order, made while they are asked for.

        Raises:
            FileNotFoundError: an image is missing. Said before the first result.
            ValueError: an image cannot be read or does not fit into the model, or a recording has not got it.
        """

    def close(self) -> None:
        """Release the model."""

    def __enter__(self) -> "Artifact": ...

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None: ...


def open_artifact(
    path: Union[str, Path], backend: str = "auto", batch_size: int = 1, **options: Any
) -> Artifact:
    """Open a model or a recording.

    Args:
        path: an ``.npz`` that was recorded, or whatever ``Detector`` opens.
        backend: see ``Detector``; of no meaning to a recording.
        batch_size: images that run at once; of no meaning to a recording.
        options: the backend's.

    Raises:
        FileNotFoundError, ValueError, RuntimeError: see ``Detector`` and ``read_recording``.
    """
    if Path(path).suffix.lower() == SUFFIX:
        return RecordedArtifact(Path(path))
    return DetectorArtifact(Path(path), backend, batch_size, **options)


class _Artifact:
    """What the two kinds share."""

    def __init__(self, path: Path, metadata: ModelMetadata) -> None:
        self.path = path
        self.name = str(path)
        self.metadata = metadata

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names; a label is an index into them."""
        return self.metadata.classes

    def close(self) -> None:
        """Release what is open."""

    def __enter__(self) -> "_Artifact":
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()


class RecordedArtifact(_Artifact):
    """An ``.npz`` of results; fulfils ``Artifact``."""

    def __init__(self, path: Path) -> None:
        """Read the recording.

        Raises:
            FileNotFoundError, ValueError: see ``read_recording``.
        """
        self.recording = read_recording(path)
        super().__init__(path, self.recording.metadata)
        self.model_seconds = None

    def __call__(self, images: Sequence[Path]) -> Iterator[ImageResult]:
        """Return what was recorded for these very files; see ``Artifact``."""
        results = [ImageResult(path, self.recording.find(path)) for path in images]
        return iter(results)


class DetectorArtifact(_Artifact):
    """A model that runs here; fulfils ``Artifact``."""

    def __init__(self, path: Path, backend: str = "auto", batch_size: int = 1, **options: Any) -> None:
        """Load the model.

        Raises:
            FileNotFoundError, ValueError, RuntimeError: see ``Detector``.
        """
        self._detector = Detector(path, backend, batch_size=batch_size, **options)
        super().__init__(path, self._detector.metadata)
        self.backend = backend_name(path, backend)
        self.batch_size = batch_size
        self.model_seconds: Optional[float] = 0.0

    def __call__(self, images: Sequence[Path]) -> Iterator[ImageResult]:
        """Run the images batch by batch; see ``Artifact``."""
        for path in images:
            check_image_file(path)
        return self._run(images)

    def _run(self, images: Sequence[Path]) -> Iterator[ImageResult]:
        for paths in batches(images, self.batch_size):
            batch = load_batch(paths, self.metadata)
            start = time.perf_counter()
            outputs = self._detector.backend.run(batch.images, batch.image_sizes)
            self.model_seconds += time.perf_counter() - start
            for index, path in enumerate(paths):
                yield _result(path, *_one_image(outputs, batch, index), self.metadata)

    def close(self) -> None:
        """Release the model."""
        self._detector.close()


def record(artifact: Artifact, images: Sequence[Path], output: Path) -> Iterator[ImageResult]:
    """Write an artifact's results to an ``.npz``, and yield each when it is recorded.

    Raises:
        RuntimeError: the model's output for an image is not a result.
        FileNotFoundError, ValueError: see ``Artifact``.
    """
    source = f"{artifact.name} ({getattr(artifact, 'backend', 'recording')})"
    made_with = {
        "model_sha256": sha256_of(artifact.path),
        "backend": getattr(artifact, "backend", None),
        "batch": getattr(artifact, "batch_size", None),
    }
    results = artifact(images)
    with RecordingWriter(output, artifact.metadata, source=source, made_with=made_with) as writer:
        for result in results:
            if result.problem:
                raise RuntimeError(f"image {result.path}: {result.problem}")
            writer.add(result.path, result.detections)
            yield result


def batches(items: Sequence[Path], size: int) -> Iterator[Sequence[Path]]:
    """Yield ``size`` items at a time; the last time it may be fewer."""
    return (items[start : start + size] for start in range(0, len(items), size))


def load_batch(paths: Sequence[Path], metadata: ModelMetadata) -> Batch:
    """Read image files and prepare them for a model.

    Raises:
        OSError, ValueError: a file cannot be read, is not an image, or does not fit into the model; names it.
    """
    images = []
    for path in paths:
        image = read_image(path, metadata.load)
        try:
            network_size(image.shape[0], image.shape[1], metadata)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        images.append(image)
    return prepare(images, metadata)


def _one_image(
    outputs: Mapping[str, np.ndarray], batch: Batch, index: int
) -> tuple[dict[str, np.ndarray], Batch]:
    """Return one image's outputs and its part of the batch, each still with a batch axis."""
    part = slice(index, index + 1)
    own = Batch(
        images=batch.images[part],
        image_sizes=batch.image_sizes[part],
        scale_factors=batch.scale_factors[part],
        original_sizes=batch.original_sizes[part],
    )
    return {name: value[part] for name, value in outputs.items()}, own


def _result(
    path: Path, outputs: Mapping[str, np.ndarray], batch: Batch, metadata: ModelMetadata
) -> ImageResult:
    try:
        (detections,) = detections_from_outputs(outputs, batch, metadata)
        problem = _mask_problem(outputs, len(detections))
    except RuntimeError as error:
        detections, problem = None, str(error)
    if problem:
        detections = _nothing(batch.original_sizes[0], metadata.classes)
    return ImageResult(path, detections, problem)


def _mask_problem(outputs: Mapping[str, np.ndarray], num_dets: int) -> str:
    """Return what is wrong with the probabilities: pasting would turn NaN into an empty mask in silence."""
    masks = outputs.get("masks")
    if masks is None or masks.dtype.kind != "f" or np.isfinite(masks[0, :num_dets]).all():
        return ""
    row, *cell = (int(v) for v in np.argwhere(~np.isfinite(masks[0, :num_dets]))[0])
    return (
        f"model output masks[{row}]: expected finite probabilities, found {masks[(0, row, *cell)]} at {cell}; "
        "a half-precision model has overflowed: run it in FP32"
    )


def _nothing(image_size: tuple[int, int], classes: tuple[str, ...]) -> Detections:
    return Detections(
        np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32), image_size, classes
    )
