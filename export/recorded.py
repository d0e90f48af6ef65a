"""What mmdet's own model finds in image files, as a recording."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from export.model import LoadedModel
from export.verify import MmdetInference
from runtime.comparison.recording import RecordingWriter
from runtime.comparison.sources import batches
from runtime.console import tracked
from runtime.detections import Detections
from runtime.masks import MaskCrop
from runtime.metadata import ModelMetadata


@dataclass(frozen=True, eq=False)
class WholeMasks:
    """Masks as mmdet returns them, (n, H, W) bool at original resolution; a ``MaskSource``."""

    masks: np.ndarray

    def crop(self, index: int) -> MaskCrop:
        """Return mask ``index``, all of it."""
        return MaskCrop(self.masks[index], 0, 0)

    def select(self, keep: np.ndarray) -> "WholeMasks":
        """Return the masks at ``keep`` ((n,) bool or indices)."""
        return WholeMasks(self.masks[keep])


def record_reference(
    loaded: LoadedModel, metadata: ModelMetadata, images: Sequence[Path], output: Path, *, batch_size: int
) -> str:
    """Take images through mmdet's own test pipeline and model, in float32, and write an ``.npz``.

    Args:
        loaded: the unpatched model.
        metadata: of the file that it is a reference for; with a size of its own, mmdet resizes into that.
        images: the files.
        output: the ``.npz``.
        batch_size: images that run at once.

    Returns:
        What was recorded, in words.

    Raises:
        OSError, ValueError: an image cannot be read or does not fit into the size.
    """
    device = next(loaded.model.parameters()).device
    made_with = {**metadata.versions, "device": str(device), "batch": batch_size}
    source = f"PyTorch {torch.__version__}, {loaded.name}, {device}"
    num_detections, start = 0, time.perf_counter()
    with RecordingWriter(output, metadata, source=source, made_with=made_with) as writer:
        results = _results(loaded, metadata, images, batch_size)
        for path, detections in tracked(results, len(images), "recording"):
            writer.add(path, detections)
            num_detections += len(detections)
    seconds = time.perf_counter() - start
    size = "x".join(map(str, metadata.size)) if metadata.size else "dynamic"
    return (
        f"{num_detections} detections in {len(images)} images, {source}, size {size}, "
        f"{len(images) / seconds:.2f} images/s"
    )


def _results(
    loaded: LoadedModel, metadata: ModelMetadata, images: Sequence[Path], batch_size: int
) -> Iterator[tuple[Path, Detections]]:
    mmdet = MmdetInference(loaded, metadata)
    for paths in batches(images, batch_size):
        prepared = mmdet.prepare(paths)
        for index, (path, arrays) in enumerate(zip(paths, mmdet.detect(prepared))):
            masks = None if arrays.masks is None else WholeMasks(arrays.masks)
            labels = arrays.labels.astype(np.int32)
            size = prepared.geometry(index)[0]
            yield path, Detections(arrays.boxes, arrays.scores, labels, size, metadata.classes, masks)
