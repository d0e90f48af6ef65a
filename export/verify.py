"""The exported file against mmdet, on image files: each side reads, resizes, detects and pastes by itself.

mmdet's side is its own test pipeline, data preprocessor and model, unpatched. What they are held against is what
``runtime.infer`` runs.
"""

import patches  # isort: skip  # noqa: F401  makes mmdet importable without mmcv's compiled operators

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional
from unittest import mock

import numpy as np
import onnx
import torch
from mmcv.transforms import Compose
from mmdet.datasets.transforms import Resize as MmdetResize
from mmdet.models.roi_heads.mask_heads import fcn_mask_head
from mmdet.structures import DetDataSample
from torch import Tensor, nn

from export.dataset import test_pipeline
from export.model import LoadedModel
from export.pipeline import RESIZES, built, image_pipeline
from patches.families import family_of
from runtime.comparison.detections import arrays_from_detections
from runtime.comparison.difference import DetectionArrays, Difference, Tolerance, compare
from runtime.detector import Detector
from runtime.graphs.operators import DOMAIN
from runtime.host.preprocess import Batch, check_image, prepare
from runtime.images import read_image
from runtime.metadata import KEY, ModelMetadata
from runtime.transforms import Fit, FixShapeResize

# Fewer detections than these, over all images, prove little.
ENOUGH_DETECTIONS = 10
LOWER_THRESHOLDS = (0.01, 0.001, 1e-4, 0.0)


class MmdetFailedError(ValueError):
    """mmdet itself cannot take an image through the config's pipeline and model."""


@dataclass(frozen=True)
class Case:
    """One image's comparison.

    Attributes:
        batch: number of images that ran together.
        image: index within the batch.
        size: (height, width) of the image inside its padding, px.
        difference: of its detections.
        ordered_ties: PyTorch ran under ``ordered_ties``: as it is, it disagrees.
        path: the image file.
    """

    batch: int
    image: int
    size: tuple[int, int]
    difference: Difference
    ordered_ties: bool = False
    path: Path = Path()

    def within(self, tolerance: Tolerance) -> bool:
        """Return whether this image's results agree."""
        return self.difference.within(tolerance)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A batch of files as mmdet prepares them.

    Attributes:
        images: (B, C, H, W) float32.
        samples: mmdet's description of each image.
        data: the same as the test pipeline left it, which ``test_step`` takes; None where the batch was padded further.
    """

    images: Tensor
    samples: list[DetDataSample]
    data: Optional[dict[str, list]] = None

    def geometry(self, index: int) -> tuple[tuple[int, ...], ...]:
        """Return an image's original size, its size in the batch, and its scale factor."""
        sample = self.samples[index]
        return tuple(sample.ori_shape[:2]), tuple(sample.img_shape[:2]), tuple(sample.scale_factor)


class MmdetInference:
    """mmdet's own way from image files to detections, for batches of any number.

    With a file of ``--size`` the config's resize makes the size that the file asks for, and batches are padded to it;
    the pixels are mmdet's in either case.
    """

    def __init__(self, loaded: LoadedModel, metadata: ModelMetadata) -> None:
        """Build the test pipeline.

        Raises:
            export.pipeline.UnsupportedPipelineError: mmdet cannot build it.
        """
        self._loaded, self._metadata = loaded, metadata
        steps = test_pipeline(loaded.config).steps
        transforms = built(steps)
        into = [step for step in metadata.steps if isinstance(step, (Fit, FixShapeResize))]
        # Of a file of --size: the config's own steps are left as they are.
        if into and metadata.steps != image_pipeline(steps).steps:
            transforms = [_resized_into(into[0], t) if isinstance(t, RESIZES) else t for t in transforms]
        self._pipeline = Compose(transforms)

    def prepare(self, paths: Sequence[Path]) -> Prepared:
        """Take files through the test pipeline and the data preprocessor.

        Raises:
            MmdetFailedError: mmdet cannot.
        """
        try:
            items = [self._pipeline({"img_path": str(path), "img_id": 0}) for path in paths]
            data = {
                "inputs": [i["inputs"] for i in items],
                "data_samples": [i["data_samples"] for i in items],
            }
            with torch.no_grad():
                done = self._loaded.preprocessor(data, False)
        except Exception as error:
            raise MmdetFailedError(
                f"{', '.join(map(str, paths))}: expected mmdet's own test pipeline to take the image, found "
                f"{type(error).__name__}: {' '.join(str(error).split())}; correct the test pipeline, or the file"
            ) from error
        return self._padded(done["inputs"], done["data_samples"], data)

    def _padded(self, images: Tensor, samples: list[DetDataSample], data: dict[str, list]) -> Prepared:
        for sample in samples:
            if "scale_factor" not in sample:  # nothing was resized
                sample.set_metainfo({"scale_factor": (1.0, 1.0)})
        if self._metadata.size is not None and tuple(images.shape[2:]) != self._metadata.size:
            height, width = self._metadata.size
            padding = (0, width - images.shape[3], 0, height - images.shape[2])
            data = None
            if min(padding) < 0:
                raise MmdetFailedError(
                    f"image: expected to fit into {height}x{width}, found {images.shape[2]}x{images.shape[3]}"
                )
            images = nn.functional.pad(images, padding, value=self._metadata.pad_value)
            for sample in samples:
                sample.set_metainfo({"batch_input_shape": (height, width), "pad_shape": (height, width)})
        return Prepared(images, samples, data)

    def detect(self, prepared: Prepared) -> list[DetectionArrays]:
        """Run mmdet's own ``test_step``, as ``inference_detector`` does, in float32.

        Returns:
            Per image, in original px with masks at original resolution; for ``full`` masks in network px.

        Raises:
            MmdetFailedError: mmdet cannot.
        """
        # PyTorch convolves in TF32 on a GPU unless told otherwise, which is no reference for float32.
        with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                with pasting_as_on_a_gpu():
                    found = self._test_step(prepared)
            except Exception as error:
                raise MmdetFailedError(
                    f"expected mmdet's own model to run, found {type(error).__name__}: {' '.join(str(error).split())}; "
                    "correct the config"
                ) from error
        return [_arrays(sample.pred_instances, self._metadata) for sample in found]

    def _test_step(self, prepared: Prepared) -> list[DetDataSample]:
        model = self._loaded.whole or self._loaded.model
        samples = [DetDataSample(metainfo=sample.metainfo) for sample in prepared.samples]
        if self._metadata.masks == "full":
            return self._loaded.model.predict(prepared.images, samples, rescale=False)
        if prepared.data is None:
            return model(prepared.images, samples, mode="predict")
        return model.test_step({"inputs": prepared.data["inputs"], "data_samples": samples})

    @contextmanager
    def score_threshold(self, threshold: float) -> Iterator[None]:
        """Detect with another threshold inside the block."""
        model = self._loaded.model
        cfg = family_of(model).score_settings(model)
        before = cfg.score_thr
        cfg.score_thr = threshold
        try:
            yield
        finally:
            cfg.score_thr = before


def _resized_into(step: "Fit | FixShapeResize", replaced: Any) -> Any:
    """Return a transform that resizes by mmdet's ``Resize`` to the size that the step says."""

    def transform(results: dict) -> dict:
        height, width = step.size(*results["img"].shape[:2])
        resize = MmdetResize(
            scale=(width, height), keep_ratio=False, backend=step.backend, interpolation=step.interpolation
        )
        return resize(results)

    return transform


def pixel_difference(
    mmdet: MmdetInference, paths: Sequence[Path], metadata: ModelMetadata
) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Prepare files as one batch on either side.

    Returns:
        Where the two differ, in words, empty where every pixel and every size is the same; and each image's (height,
        width) inside its padding.

    Raises:
        OSError, ValueError, RuntimeError: a side cannot take a file; names it.
    """
    images = [read_image(path, metadata.load) for path in paths]
    for path, image in zip(paths, images):
        check_image(image, str(path), metadata)
    expected, found = mmdet.prepare(paths), prepare(images, metadata)
    sizes = tuple((int(h), int(w)) for h, w in found.image_sizes)
    for index, path in enumerate(paths):
        own = found.original_sizes[index], sizes[index], tuple(map(float, found.scale_factors[index]))
        placed = expected.geometry(index)
        for name, a, b in zip(("ori_shape", "img_shape", "scale_factor"), placed, own):
            if tuple(a) != tuple(b):
                return f"{path}: {name}: mmdet has {a}, the runtime {b}", sizes
    theirs = expected.images.cpu().numpy()
    if theirs.shape != found.images.shape:
        return f"{paths[0]}: batch: mmdet has {theirs.shape}, the runtime {found.images.shape}", sizes
    differs = theirs != found.images
    if not differs.any():
        return "", sizes
    where = tuple(int(v) for v in np.argwhere(differs)[0])
    share = float(differs.mean())
    return (
        f"{paths[where[0]]}: {share:.1%} of the network's input differs, first at channel {where[1]}, row {where[2]}, "
        f"column {where[3]}: mmdet has {theirs[where]:.6g}, the runtime {found.images[where]:.6g}",
        sizes,
    )


def verify(
    path: Path,
    mmdet: MmdetInference,
    batches: Sequence[Sequence[Path]],
    *,
    threads: Optional[int] = None,
    tolerance: Optional[Tolerance] = None,
) -> list[Case]:
    """Compare the file with mmdet; where an image disagrees, with mmdet under ``ordered_ties``.

    Args:
        path: the ONNX file.
        mmdet: the other side.
        batches: lists of image files; each list is run as one batch.
        threads: of onnxruntime; None for as many as there are cores.
        tolerance: beyond which an image disagrees; None for the default one.

    Returns:
        A case per image. Masks are compared at the original image's resolution, as mmdet pastes them; a file with
        ``full`` masks at the network's, where it pastes them itself.
    """
    cases = []
    with Detector(path, "onnxruntime", threads=threads) as detector:
        for paths in batches:
            found = exported_detections(detector, paths)
            cases += _compared(mmdet, paths, found, tolerance or Tolerance())
    return cases


def _compared(
    mmdet: MmdetInference, paths: Sequence[Path], found: list[DetectionArrays], tolerance: Tolerance
) -> list[Case]:
    prepared = mmdet.prepare(paths)
    sizes = [prepared.geometry(i)[1] for i in range(len(paths))]
    differences = compare(mmdet.detect(prepared), found)
    cases = [Case(len(paths), i, sizes[i], d, path=paths[i]) for i, d in enumerate(differences)]
    if all(case.within(tolerance) for case in cases):
        return cases
    with ordered_ties():
        again = compare(mmdet.detect(prepared), found)
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


@contextmanager
def pasting_as_on_a_gpu() -> Iterator[None]:
    """Paste masks of boxes that lie outside the image, where mmdet fails on a CPU, as it does on a GPU: empty.

    A test pipeline that pads lets boxes lie in the padding. On a CPU ``_do_paste_mask`` cuts the mask to the box first,
    and asks for a range that ends before it begins.
    """
    paste = fcn_mask_head._do_paste_mask

    def pasted(masks: Tensor, boxes: Tensor, *size: int, skip_empty: bool = True) -> Any:
        try:
            return paste(masks, boxes, *size, skip_empty=skip_empty)
        except RuntimeError:
            return paste(masks, boxes, *size, skip_empty=False)

    with mock.patch.object(fcn_mask_head, "_do_paste_mask", pasted):
        yield


def exported_detections(detector: Detector, paths: Sequence[Path]) -> list[DetectionArrays]:
    """Return what the file finds in image files that run as one batch, where ``MmdetInference.detect`` has it.

    Raises:
        ValueError: a file cannot be read or does not fit into the model.
    """
    metadata = detector.metadata
    images = [read_image(path, metadata.load) for path in paths]
    if metadata.masks != "full":
        return [arrays_from_detections(found) for found in detector(images)]
    batch = prepare(images, metadata)
    return pasted_detections(detector.backend.run(batch.images, batch.image_sizes), batch)


def pasted_detections(outputs: dict[str, np.ndarray], batch: Batch) -> list[DetectionArrays]:
    """Return the detections of a graph that pastes masks itself, in network px."""
    found = []
    for i, count in enumerate(outputs["num_dets"]):
        height, width = (int(v) for v in batch.image_sizes[i])
        dets = outputs["dets"][i, :count]
        masks = outputs["masks"][i, :count, :height, :width]
        found.append(DetectionArrays(dets[:, :4], dets[:, 4], outputs["labels"][i, :count], masks))
    return found


def with_score_threshold(
    model: onnx.ModelProto, metadata: ModelMetadata, threshold: float
) -> onnx.ModelProto:
    """Return a copy of the graph that keeps detections above another score.

    Raises:
        ValueError: the graph has no NMS with the metadata's threshold.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    changed = 0
    for node in copy.graph.node:
        for attribute in node.attribute if node.domain == DOMAIN and node.op_type == "GroupedNMS" else ():
            if attribute.name == "score_threshold" and attribute.f == np.float32(metadata.score_threshold):
                attribute.f = threshold
                changed += 1
    if changed != 1:
        raise ValueError(
            f"graph: expected one GroupedNMS of score {metadata.score_threshold}, found {changed}"
        )
    changed_metadata = ModelMetadata(**{**vars(metadata), "score_threshold": threshold})
    onnx.helper.set_model_props(copy, {KEY: changed_metadata.to_json()})
    return copy


def _arrays(instances: object, metadata: ModelMetadata) -> DetectionArrays:
    masks = instances.masks.cpu().numpy() if metadata.masks != "none" else None
    return DetectionArrays(
        instances.bboxes.cpu().numpy(), instances.scores.cpu().numpy(), instances.labels.cpu().numpy(), masks
    )
