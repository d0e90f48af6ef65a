"""The whole way, from images to detections, in one object."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Optional, Union

import numpy as np

from runtime.backends import load_backend
from runtime.detections import Detections
from runtime.metadata import ModelMetadata
from runtime.postprocess import detections_from_outputs
from runtime.preprocess import prepare


class Detector:
    """An exported Mask R-CNN.

    Example:
        >>> with Detector("out/maskrcnn.onnx") as detector:
        ...     (detections,) = detector([read_image("street.jpg")])
        >>> detections.boxes, detections.scores, detections.names, detections.masks
    """

    def __init__(
        self,
        model: Union[str, Path],
        backend: str = "auto",
        *,
        batch_size: Optional[int] = None,
        **options: Any,
    ) -> None:
        """Load the model.

        Args:
            model: path of an exported model, or of an engine built from one.
            backend: ``onnxruntime``; ``tensorrt``, which builds an ONNX's engine on first use; or ``auto``: TensorRT
                for an engine, and for an ONNX where TensorRT and a GPU are there.
            batch_size: most images that run at once; None runs a call's images in one batch.
            options: the backend's: ``device``, ``providers`` and ``threads`` for onnxruntime; ``plugins``, ``config``,
                ``rebuild``, ``device_index`` for TensorRT.

        Raises:
            FileNotFoundError: no such model.
            ValueError: not a model of ours, or an unusable argument.
            RuntimeError: the backend or device is not available.
        """
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, found {batch_size}")
        self.batch_size = batch_size
        self.backend = load_backend(model, backend, batch=batch_size, **options)

    @property
    def metadata(self) -> ModelMetadata:
        """The model's facts: classes, input size, thresholds."""
        return self.backend.metadata

    def __call__(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """Detect objects.

        Args:
            images: (H, W, 3) uint8 BGR arrays of any sizes and number. ``runtime.images.read_image`` reads
                files.

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
        step = self.batch_size or max(1, len(images))
        return [
            detections
            for start in range(0, len(images), step)
            for detections in self._detect_batch(images[start : start + step])
        ]

    def _detect_batch(self, images: Sequence[np.ndarray]) -> list[Detections]:
        batch = prepare(images, self.metadata)
        outputs = self.backend.run(batch.images, batch.image_sizes)
        return detections_from_outputs(outputs, batch, self.metadata)

    def close(self) -> None:
        """Release the model."""
        self.backend.close()

    def __enter__(self) -> "Detector":
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()
