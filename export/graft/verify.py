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
from export.graft.grid import Size
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
    keypoint_px: Optional[float] = None


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

    With a dynamic size half of the first image is one more, so that several sizes are run.

    Args:
        made: what was grafted.
        path: where it was written.
        images: files.

    Raises:
        OSError, ValueError: an image cannot be read.
    """
    pictures, names = [read_image(image) for image in images], [image.name for image in images]
    if made.metadata.size is None:
        pictures.append(_half(pictures[0]))
        names.append(f"half of {names[0]}")
    side = _Decoder(made, pictures)
    head, notes = made.head, []
    if not any(len(side.found(index, side.alone(index)).boxes) for index in range(len(pictures))):
        head = side.head = _lowered(side, len(pictures))
        notes.append(
            f"nothing is found at {made.head.score_threshold:g} in these images; compared at "
            f"{head.score_threshold:.3g} instead. Name images with such objects: --images"
        )
        path = _written(made, head, path.with_name("lowered.onnx"))
    cases, differences = [], []
    for batch in BATCHES:
        with Detector(path, "onnxruntime", batch_size=batch) as detector:
            found = detector(side.pictures)
        for index, (name, have) in enumerate(zip(names, found)):
            case, words = _compared(name, batch, side.expected(index, batch), have)
            cases.append(case)
            differences += [f"{name} at batch {batch}: {w}" for w in words]
    return Verification(tuple(cases), tuple(differences), head.score_threshold, tuple(notes))


def _half(picture: np.ndarray) -> np.ndarray:
    """Return the half whose aspect ratio is twice the picture's: the network's input is of another size."""
    height, width = picture.shape[:2]
    return picture[: (height + 1) // 2] if height <= width else picture[:, : (width + 1) // 2]


class _Decoder:
    """The network alone, and the decoder in NumPy, on the same images."""

    def __init__(self, made: Grafted, pictures: Sequence[np.ndarray]) -> None:
        self.pictures = pictures
        self.head = made.head
        self._made = made
        self._network = Network(made.network, made.given, "the network")
        self._outputs: dict[tuple[int, Size], tuple[reference.Prepared, dict]] = {}

    def alone(self, index: int) -> Size:
        """Return the size of the network's input for one image."""
        return self._input_size([index])

    def _input_size(self, indices: Sequence[int]) -> Size:
        if self._made.metadata.size is not None:
            return self._made.size
        shapes = [self.pictures[i].shape[:2] for i in indices]
        return reference.batch_size(shapes, self.head, self._made.head.input.size)

    def _run(self, index: int, size: Size) -> tuple[reference.Prepared, dict]:
        key = (index, size)
        if key not in self._outputs:
            made = self._made
            into = size if made.metadata.size is not None else made.head.input.size
            prepared = reference.prepare(self.pictures[index], made.head, into, size)
            arrays = self._network(prepared.pixels[None])
            outputs = {role: [arrays[n][0] for n in names] for role, names in made.match.tensors.items()}
            self._outputs[key] = prepared, outputs
        return self._outputs[key]

    def found(self, index: int, size: Size) -> reference.Found:
        """Return what is in an image in an input of a size, px of the input."""
        return reference.decode(self._run(index, size)[1], self.head, size)

    def expected(self, index: int, batch: int) -> DetectionArrays:
        """Return what is in an image in its batch, px of the image."""
        start = index // batch * batch
        size = self._input_size(range(start, min(start + batch, len(self.pictures))))
        prepared, _ = self._run(index, size)
        found = reference.in_image(self.found(index, size), prepared, self.head)
        masks = None
        if found.grids is not None:
            masks = reference.masks_in_image(found, prepared, size, self.head.mask_threshold)
        return DetectionArrays(found.boxes, found.scores, found.labels, masks, found.keypoints)


def _lowered(side: _Decoder, num_images: int) -> Head:
    """Return the head with a threshold that something passes."""
    head = side.head
    side.head = replace(head, score_threshold=0.0, max_per_img=1)
    scores = [s for i in range(num_images) for s in side.found(i, side.alone(i)).scores.tolist()]
    return replace(head, score_threshold=max(scores, default=0.0) * _SHARE)


def _written(made: Grafted, head: Head, path: Path) -> Path:
    metadata = replace(made.metadata, score_threshold=head.score_threshold)
    onnx.save(assembled(made.network, made.given, head, made.match, metadata), path)
    return path


def _compared(name: str, batch: int, want: DetectionArrays, have: Detections) -> tuple[Case, list[str]]:
    difference = compare_image(want, arrays_from_detections(have))
    words = difference.violations(TOLERANCE)
    case = Case(
        name,
        batch,
        difference.expected,
        difference.found,
        difference.box_px,
        difference.score,
        difference.mask,
        difference.keypoint_px,
    )
    return case, words
