"""What can be compared and evaluated: a model that runs here, or the recorded results of one that ran elsewhere."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Optional, Protocol, TypeVar, Union

from runtime.closing import Closing
from runtime.comparison.recording import SUFFIX, RecordingWriter, check_image_file, read_recording
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.files import sha256_of
from runtime.host.preprocess import Batch, network_size, prepare
from runtime.images import read_image
from runtime.metadata import ModelMetadata
from runtime.ranges import CPU_PRECISIONS

Opened = TypeVar("Opened")


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


@dataclass(frozen=True)
class MadeBy:
    """Which way results were made.

    Attributes:
        path: ``device`` (images prepared and masks encoded on the GPU), ``host``, or ``recorded`` where a recording
            does not say.
        reason: why it was not the device.
    """

    path: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.path} path" + (f" ({self.reason})" if self.reason else "")


class Artifact(Protocol):
    """Something that has detections for image files.

    Attributes:
        path: of the file.
        name: for tables.
        metadata: the model's facts.
        made_by: which way its results are made.
    """

    path: Path
    name: str
    metadata: ModelMetadata
    made_by: MadeBy

    @property
    def model_seconds(self) -> Optional[float]:
        """Time that the model itself took so far, or None for a recording."""

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

    def __enter__(self: Opened) -> Opened: ...

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None: ...


def split_precision(source: Union[str, Path]) -> tuple[Path, Optional[str]]:
    """Return the file of ``model.onnx@bf16``, and the precision; None where the name has none."""
    path, mark, precision = str(source).rpartition("@")
    if mark and precision in CPU_PRECISIONS and not Path(source).exists():
        return Path(path), precision
    return Path(source), None


def open_artifact(
    path: Union[str, Path], backend: str = "auto", batch_size: int = 1, *, host: bool = False, **options: Any
) -> Artifact:
    """Open a model or a recording.

    Args:
        path: an ``.npz`` that was recorded, or whatever ``Detector`` opens; ``@bf16`` behind it is the precision.
        backend: see ``Detector``; of no meaning to a recording.
        batch_size: images that run at once; of no meaning to a recording.
        host: see ``Detector``; of no meaning to a recording.
        options: the backend's.

    Raises:
        FileNotFoundError, ValueError, RuntimeError: see ``Detector`` and ``read_recording``.
    """
    file, precision = split_precision(path)
    if file.suffix.lower() == SUFFIX:
        return RecordedArtifact(file)
    if precision is not None:
        options["precision"] = precision
    return DetectorArtifact(file, backend, batch_size, host=host, **options)


class _Artifact(Closing):
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


class RecordedArtifact(_Artifact):
    """An ``.npz`` of results; fulfils ``Artifact``."""

    def __init__(self, path: Path) -> None:
        """Read the recording.

        Raises:
            FileNotFoundError, ValueError: see ``read_recording``.
        """
        self.recording = read_recording(path)
        super().__init__(path, self.recording.metadata)
        made_with = self.recording.made_with
        self.made_by = MadeBy(made_with.get("path") or "recorded", made_with.get("path_reason") or "")

    @property
    def model_seconds(self) -> Optional[float]:
        """None: nothing runs."""
        return None

    def __call__(self, images: Sequence[Path]) -> Iterator[ImageResult]:
        """Return what was recorded for these very files; see ``Artifact``."""
        results = [ImageResult(path, self.recording.find(path)) for path in images]
        return iter(results)


class DetectorArtifact(_Artifact):
    """A model that runs here; fulfils ``Artifact``."""

    def __init__(
        self,
        path: Path,
        backend: str = "auto",
        batch_size: int = 1,
        *,
        host: bool = False,
        **options: Any,
    ) -> None:
        """Load the model.

        Raises:
            FileNotFoundError, ValueError, RuntimeError: see ``Detector``.
        """
        self._detector = Detector(path, backend, batch_size=batch_size, host=host, **options)
        super().__init__(path, self._detector.metadata)
        if options.get("precision") not in (None, CPU_PRECISIONS[0]):
            self.name += f"@{options['precision']}"
        self.backend = self._detector.backend.name
        self.batch_size = batch_size
        self.made_by = MadeBy(self._detector.path, self._detector.device_failure)
        self._timings: dict[str, float] = {}

    def __call__(self, images: Sequence[Path]) -> Iterator[ImageResult]:
        """Run the images batch by batch; see ``Artifact``."""
        for path in images:
            check_image_file(path)
        return self._run(images)

    def _run(self, images: Sequence[Path]) -> Iterator[ImageResult]:
        for found in self._detector.detect_files(images, check_outputs=True, timings=self._timings):
            if found.detections is None:
                kind = OSError if isinstance(found.cause, OSError) else ValueError
                raise kind(found.error) from found.cause
            yield ImageResult(images[found.index], found.detections, found.problem)

    @property
    def model_seconds(self) -> Optional[float]:
        """Time that the model itself took so far."""
        return self._timings.get("engine", 0.0) / 1e3

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
        "path": artifact.made_by.path,
        "path_reason": artifact.made_by.reason,
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
