"""The whole way, from images to detections, in one object."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np

from runtime.backends import load_backend
from runtime.closing import Closing
from runtime.detections import Detections
from runtime.host.preprocess import check_image, size_alone
from runtime.metadata import ModelMetadata
from runtime.pipeline import FileResult, Source, detect_files, in_threads, run_batches
from runtime.ranges import MAX_BATCH, checked_count
from runtime.runner import Runner, Timings
from runtime.transforms import Size


class Detector(Closing):
    """An exported Mask R-CNN.

    Example:
        >>> with Detector("out/maskrcnn.onnx") as detector:
        ...     (detections,) = detector([read_image("street.jpg")])
        >>> detections.boxes, detections.scores, detections.names, detections.masks

    Calls from several threads are safe.
    """

    def __init__(
        self,
        model: Union[str, Path],
        backend: str = "auto",
        *,
        batch_size: Optional[int] = None,
        host: bool = False,
        **options: Any,
    ) -> None:
        """Load the model.

        Args:
            model: path of an exported model, or of an engine built from one.
            backend: ``onnxruntime``; ``openvino``; ``tensorrt``, which builds an ONNX's engine on first use; or
                ``auto``: TensorRT for an engine, and for an ONNX where TensorRT and a GPU are there, else OpenVINO
                where it is installed.
            batch_size: most images that run at once; None runs a call's images in one batch.
            host: have images prepared and masks pasted on the CPU, where a GPU could do it too.
            options: the backend's: ``device``, ``providers``, ``threads``, ``precision`` for onnxruntime;
                ``threads``, ``precision``, ``streams``, ``cache``, ``sizes`` for OpenVINO; ``plugins``, ``config``,
                ``rebuild``, ``device_index``, ``cuda_graphs``, ``streams`` for TensorRT.

        Raises:
            FileNotFoundError: no such model.
            ValueError: not a model of ours, or an unusable argument.
            RuntimeError: the backend or device is not available.
        """
        self.batch_size = None if batch_size is None else checked_count("batch_size", batch_size, MAX_BATCH)
        self.backend = load_backend(model, backend, batch=batch_size, **options)
        try:
            self._runner = self.backend.new_runner(host=host)
        except BaseException:
            self.backend.close()
            raise

    @property
    def metadata(self) -> ModelMetadata:
        """The model's facts: classes, input size, thresholds."""
        return self.backend.metadata

    @property
    def runner(self) -> Runner:
        """What takes single images and batches of them; it is closed with the detector."""
        return self._runner

    @property
    def device_failure(self) -> str:
        """Why images are not prepared and masks not encoded on the GPU; empty if they are."""
        return self._runner.device_failure

    @property
    def path(self) -> str:
        """``device`` where images are prepared and masks encoded on the GPU, else ``host``."""
        return "host" if self.device_failure else "device"

    @property
    def notes(self) -> list[str]:
        """What runs more slowly than it could, and why."""
        return self.backend.notes

    def __call__(self, images: Sequence[np.ndarray], timings: Timings = None) -> list[Detections]:
        """Detect objects.

        Args:
            images: (H, W, 3) uint8 BGR arrays of any sizes and number; (H, W) of a model that reads grey images.
                ``runtime.images.read_image(path, detector.metadata.load)`` reads files as the model was trained.
            timings: if given, each stage's milliseconds are added, summed over the batches: on the GPU ``copy_in``,
                ``prepare``, ``engine``, ``encode``, ``copy_out``; on the CPU ``prepare``, ``engine``, ``results``.

        Returns:
            One ``Detections`` per image, in the same order, best first. No images give an empty list.

        Raises:
            ValueError: an image is not such an array or does not fit into the model's fixed size.
        """
        if isinstance(images, np.ndarray) and images.ndim == 3:
            raise ValueError(
                f"images: expected a list of (H, W, 3) arrays, found one array of shape {images.shape}; "
                "pass [image]"
            )
        for index, image in enumerate(images):
            check_image(image, f"images[{index}]", self.metadata)
        staged = self._staged(images)
        size = self._batch_of(max(1, len(images)))
        batches = ((None, batch) for batch in iter(lambda: list(islice(staged, size)), []))
        return [
            detections
            for _, found in run_batches(self._runner, batches, timings=timings)
            for detections in found
        ]

    def _staged(self, images: Sequence[np.ndarray]) -> Iterator[Any]:
        threads = min(len(images), self._runner.num_stagers)
        if threads <= 1:
            return map(self._runner.stage, images)
        return in_threads(self._runner.stage, images, threads, 2 * threads)

    def _batch_of(self, num_images: int) -> int:
        """Return how many of so many images run at once."""
        return min(self.batch_size or num_images, self._runner.largest_batch or num_images)

    @property
    def file_batch(self) -> int:
        """How many images ``detect_files`` runs at once."""
        return self._batch_of(self.batch_size or 1)

    def detect_files(
        self,
        paths: Iterable[Union[str, Source]],
        *,
        min_score: float = 0.0,
        threads: Optional[int] = None,
        keep_images: bool = False,
        check_outputs: bool = False,
        timings: Timings = None,
        by_size: bool = False,
    ) -> Generator[FileResult, None, None]:
        """Yield what is found in image files or addresses, in their order; see ``runtime.pipeline.detect_files``.

        Files are read in threads while batches of ``batch_size`` run. What cannot be read, or does not fit into the
        model, is a result with an ``error``. With ``by_size``, images that have one size in the network's input run
        together, and each gives what it gives alone; else a batch is padded to its largest image, as mmdet pads.
        """
        return detect_files(
            self._runner,
            paths,
            load=self.metadata.load,
            batch_size=self.file_batch,
            min_score=min_score,
            threads=threads,
            keep_images=keep_images,
            check_outputs=check_outputs,
            timings=timings,
            size_of=self.input_size if by_size and self.metadata.size is None else None,
        )

    def input_size(self, height: int, width: int) -> Size:
        """Return the (height, width) in px of the network's input for one image of a (height, width), alone.

        Raises:
            ValueError: the image would have too many pixels.
        """
        return size_alone(height, width, self.metadata)

    def close(self) -> None:
        """Release the model."""
        self._runner.close()
        self.backend.close()
