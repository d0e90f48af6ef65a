"""The exported file against the model it came from: onnxruntime and unpatched PyTorch on the same pixels."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional
from unittest import mock

import numpy as np
import torch
from mmdet.structures import DetDataSample
from torch import Tensor, nn

from runtime.detector import Detector
from runtime.difference import DetectionArrays, Difference, Tolerance, compare
from runtime.metadata import ModelMetadata
from runtime.postprocess import detections_from_outputs
from runtime.preprocess import Batch, prepare


@dataclass(frozen=True)
class Case:
    """One batch's comparison.

    Attributes:
        batch: number of images.
        image: index within the batch.
        size: (height, width) of the image inside its padding, px.
        difference: of its detections.
        ordered_ties: PyTorch ran under ``ordered_ties``: as it is, it disagrees.
    """

    batch: int
    image: int
    size: tuple[int, int]
    difference: Difference
    ordered_ties: bool = False

    def within(self, tolerance: Tolerance) -> bool:
        """Return whether this image's results agree."""
        return self.difference.within(tolerance)


def verify(
    path: Path,
    model: nn.Module,
    batches: Sequence[Sequence[np.ndarray]],
    *,
    threads: Optional[int] = None,
    tolerance: Optional[Tolerance] = None,
) -> list[Case]:
    """Compare the file with the model; where an image disagrees, with the model under ``ordered_ties``.

    Args:
        path: the ONNX file.
        model: the unpatched detector in evaluation mode.
        batches: lists of (H, W, 3) uint8 BGR images; each list is run as one batch.
        threads: of onnxruntime; None for as many as there are cores.
        tolerance: beyond which an image disagrees; None for the default one.

    Returns:
        A case per image. Masks are compared at the original image's resolution, as mmdet pastes them; a file with
        ``full`` masks at the network's, where it pastes them itself.
    """
    cases = []
    with Detector(path, "onnxruntime", threads=threads) as detector:
        for images in batches:
            batch = prepare(images, detector.metadata)
            outputs = detector.backend.run(batch.images, batch.image_sizes)
            found = exported_detections(outputs, batch, detector.metadata)
            cases += _compare_with_model(model, batch, found, detector.metadata, tolerance or Tolerance())
    return cases


def _compare_with_model(
    model: nn.Module,
    batch: Batch,
    found: list[DetectionArrays],
    metadata: ModelMetadata,
    tolerance: Tolerance,
) -> list[Case]:
    sizes = [(int(h), int(w)) for h, w in batch.image_sizes]
    differences = compare(reference_detections(model, batch, metadata), found)
    cases = [Case(len(batch), i, sizes[i], difference) for i, difference in enumerate(differences)]
    if all(case.within(tolerance) for case in cases):
        return cases
    with ordered_ties():
        again = compare(reference_detections(model, batch, metadata), found)
    agreeing = (
        replace(case, difference=d, ordered_ties=True) if d.within(tolerance) else case
        for case, d in zip(cases, again)
    )
    return [case if case.within(tolerance) else other for case, other in zip(cases, agreeing)]


@contextmanager
def ordered_ties() -> Iterator[None]:
    """Sort equal values by index inside the block.

    mmdet orders proposals with a sort that is not stable: which of two equal scores comes first, and so which of two
    boxes NMS keeps, depends on the number of values and on the machine. Scores that saturate are often equal. The
    exported graph takes the lower index first.
    """
    sort = Tensor.sort

    def stable_sort(self: Tensor, dim: int = -1, descending: bool = False, stable: bool = True) -> Any:
        return sort(self, stable=True, dim=dim, descending=descending)

    with mock.patch.object(Tensor, "sort", stable_sort):
        yield


def reference_detections(model: nn.Module, batch: Batch, metadata: ModelMetadata) -> list[DetectionArrays]:
    """Run mmdet's own ``predict``, in float32.

    Returns:
        Per image, in original px with masks at original resolution; for ``full`` masks in network px.
    """
    device = next(model.parameters()).device
    images = torch.from_numpy(batch.images).to(device)
    # PyTorch convolves in TF32 on a GPU unless told otherwise, which is no reference for float32.
    with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        samples = model.predict(images, data_samples(batch), rescale=metadata.masks != "full")
    return [_arrays(sample.pred_instances, metadata) for sample in samples]


def exported_detections(
    outputs: dict[str, np.ndarray], batch: Batch, metadata: ModelMetadata
) -> list[DetectionArrays]:
    """Bring the graph's outputs to where ``reference_detections`` are."""
    if metadata.masks != "full":
        return [
            DetectionArrays(d.boxes, d.scores, d.labels, d.masks if d.has_masks else None)
            for d in detections_from_outputs(outputs, batch, metadata)
        ]
    found = []
    for i, count in enumerate(outputs["num_dets"]):
        height, width = (int(v) for v in batch.image_sizes[i])
        dets = outputs["dets"][i, :count]
        masks = outputs["masks"][i, :count, :height, :width]
        found.append(DetectionArrays(dets[:, :4], dets[:, 4], outputs["labels"][i, :count], masks))
    return found


def data_samples(batch: Batch) -> list[DetDataSample]:
    """Return mmdet's description of the images of a batch, which its ``predict`` takes beside the pixels."""
    samples = []
    for size, factors, original in zip(batch.image_sizes, batch.scale_factors, batch.original_sizes):
        shape = (int(size[0]), int(size[1]))
        meta = {
            "img_shape": shape,
            "ori_shape": tuple(original),
            "scale_factor": tuple(float(f) for f in factors),
            "batch_input_shape": batch.images.shape[2:],
            "pad_shape": batch.images.shape[2:],
        }
        samples.append(DetDataSample(metainfo=meta))
    return samples


def _arrays(instances: object, metadata: ModelMetadata) -> DetectionArrays:
    masks = instances.masks.cpu().numpy() if metadata.masks != "none" else None
    return DetectionArrays(
        instances.bboxes.cpu().numpy(), instances.scores.cpu().numpy(), instances.labels.cpu().numpy(), masks
    )
