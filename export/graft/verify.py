"""A grafted file against the network alone and a decoder in NumPy, on image files, at batch 1 and 2.

The decoder's side reads, resizes and decodes by itself (``export.graft.reference``); the file's side is what
``runtime.infer`` runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Optional

import numpy as np
import onnx

from export.graft import reference
from export.graft.api import Grafted
from export.graft.assemble import assembled
from export.graft.head import Head
from export.graft.proof import Network
from runtime.comparison.detections import arrays_from_detections
from runtime.comparison.difference import DetectionArrays, Tolerance, compare_image
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.images import read_image

BATCHES = (1, 2)
# float32 sums in another order, through exp: px, scores. A pixel of a mask whose probability is the threshold.
TOLERANCE = Tolerance(box_px=0.05, score=1e-4, mask=1e-3, mask_px=16)
# A network that finds nothing in the images is compared at this share of its best score.
_SHARE = 0.5


@dataclass(frozen=True)
class Case:
    """One image at one batch: its name, the batch, how many detections there are, and the largest differences.

    Attributes:
        box_px, score, keypoint_px: largest differences.
        mask: share of differing pixels; None without masks.
    """

    image: str
    batch: int
    expected: int
    found: int
    box_px: float
    score: float
    mask: Optional[float] = None


@dataclass(frozen=True)
class Verification:
    """What was compared.

    Attributes:
        cases: of every image and batch.
        differences: beyond the tolerance, in words.
        score_threshold: at which it was compared.
        notes: what whoever reads the figures has to know.
    """

    cases: tuple[Case, ...]
    differences: tuple[str, ...]
    score_threshold: float
    notes: tuple[str, ...] = ()


def verify(made: Grafted, path: Path, images: Sequence[Path]) -> Verification:
    """Compare a grafted file with the decoder in NumPy.

    Args:
        made: what was grafted.
        path: where it was written.
        images: files.

    Raises:
        OSError, ValueError: an image cannot be read.
    """
    pictures = [read_image(image) for image in images]
    outputs, prepared = _network_outputs(made, pictures)
    head, notes = made.head, []
    if not any(len(reference.decode(o, head, made.size).boxes) for o in outputs):
        head = _lowered(made, outputs)
        notes.append(
            f"nothing is found at {made.head.score_threshold:g} in these images; compared at "
            f"{head.score_threshold:.3g} instead. Name images with such objects: --images"
        )
        path = _written(made, head, path.with_name("lowered.onnx"))
    expected = [_expected(o, p, head, made.size) for o, p in zip(outputs, prepared)]
    cases, differences = [], []
    for batch in BATCHES:
        with Detector(path, "onnxruntime", batch_size=batch) as detector:
            found = detector(pictures)
        for image, want, have in zip(images, expected, found):
            case, words = _compared(image.name, batch, want, have)
            cases.append(case)
            differences += [f"{image.name} at batch {batch}: {w}" for w in words]
    return Verification(tuple(cases), tuple(differences), head.score_threshold, tuple(notes))


def _network_outputs(made: Grafted, pictures: Sequence[np.ndarray]) -> tuple[list, list]:
    network = Network(made.network, made.given, "the network")
    prepared = [reference.prepare(picture, made.head, made.size) for picture in pictures]
    outputs = []
    for image in prepared:
        arrays = network(image.pixels[None])
        outputs.append({role: [arrays[n][0] for n in names] for role, names in made.match.tensors.items()})
    return outputs, prepared


def _lowered(made: Grafted, outputs: Sequence) -> Head:
    """Return the head with a threshold that something passes."""
    lowest = replace(made.head, score_threshold=0.0, max_per_img=1)
    best = max(
        (float(s) for o in outputs for s in reference.decode(o, lowest, made.size).scores), default=0.0
    )
    return replace(made.head, score_threshold=best * _SHARE)


def _written(made: Grafted, head: Head, path: Path) -> Path:
    metadata = replace(made.metadata, score_threshold=head.score_threshold)
    onnx.save(assembled(made.network, made.given, head, made.match, metadata), path)
    return path


@dataclass(frozen=True, eq=False)
class _Expected:
    arrays: DetectionArrays
    keypoints: Optional[np.ndarray]


def _expected(outputs: dict, prepared: reference.Prepared, head: Head, size: tuple[int, int]) -> _Expected:
    found = reference.in_image(reference.decode(outputs, head, size), prepared, head)
    masks = None
    if found.grids is not None:
        masks = reference.masks_in_image(found, prepared, size, head.mask_threshold)
    return _Expected(DetectionArrays(found.boxes, found.scores, found.labels, masks), found.keypoints)


def _compared(name: str, batch: int, want: _Expected, have: Detections) -> tuple[Case, list[str]]:
    difference = compare_image(want.arrays, arrays_from_detections(have))
    words = difference.violations(TOLERANCE)
    case = Case(
        name,
        batch,
        difference.expected,
        difference.found,
        difference.box_px,
        difference.score,
        difference.mask,
    )
    if not words and want.keypoints is not None and have.keypoints is not None:
        words = _keypoint_words(want, have)
    return case, words


def _keypoint_words(want: _Expected, have: Detections) -> list[str]:
    from runtime.comparison.difference import match_detections

    pairs = match_detections(want.arrays, arrays_from_detections(have))
    for i, j in pairs:
        apart = np.abs(want.keypoints[i] - have.keypoints[j])
        if not (apart[:, :2].max() <= TOLERANCE.box_px and apart[:, 2].max() <= TOLERANCE.score):
            return [f"key points of #{i}: {want.keypoints[i].tolist()} and {have.keypoints[j].tolist()}"]
    return []
