"""How far a model's detections are those of the FP32 model, as one number."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Optional, Union

import numpy as np

from runtime.comparison.detections import arrays_from_detections
from runtime.comparison.difference import DetectionArrays, match_detections
from runtime.graphs.session import open_session
from runtime.host.postprocess import detections_from_outputs
from runtime.host.preprocess import Batch, network_size, prepare
from runtime.images import read_image
from runtime.metadata import ModelMetadata
from runtime.plan_search.tolerance import AgreementTolerance
from runtime.runner import Backend

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Agreement:
    """What was found over all images.

    Attributes:
        total: detections of ``min_score`` or more, counterparts counted once.
        agreeing: those with a counterpart within the tolerance.
        box_px, score, mask: largest differences among the detections that have a counterpart at all.
        missing, extra: detections of the FP32 model, and of the other, without one.
        problem: why there are no detections, in words; else empty.
    """

    total: int
    agreeing: int
    box_px: float = 0.0
    score: float = 0.0
    mask: float = 0.0
    missing: int = 0
    extra: int = 0
    problem: str = ""

    @property
    def share(self) -> float:
        """Share of detections that agree, 0 where the model gives none for NaN."""
        return 0.0 if self.problem else self.agreeing / self.total if self.total else 1.0

    def within(self, tolerance: AgreementTolerance) -> bool:
        """Return whether enough detections agree."""
        return self.share >= tolerance.share


def agreement_of_image(
    expected: DetectionArrays, found: DetectionArrays, tolerance: AgreementTolerance
) -> Agreement:
    """Match one image's detections and count the ones that agree. Either side may be empty."""
    pairs = match_detections(expected, found)
    counted = [(i, j) for i, j in pairs if max(expected.scores[i], found.scores[j]) >= tolerance.min_score]
    missing = _num_unmatched(expected, {i for i, _ in pairs}, tolerance.min_score)
    extra = _num_unmatched(found, {j for _, j in pairs}, tolerance.min_score)
    differences = np.array([_differences(expected, found, i, j) for i, j in counted]).reshape(-1, 3)
    limits = (tolerance.box_px, tolerance.score, tolerance.mask)
    box_px, score, mask = (float(v) for v in differences.max(axis=0, initial=0.0))
    return Agreement(
        total=len(counted) + missing + extra,
        agreeing=int((differences <= limits).all(axis=1).sum()),
        box_px=box_px,
        score=score,
        mask=mask,
        missing=missing,
        extra=extra,
    )


def summed(parts: Iterable[Agreement]) -> Agreement:
    """Return the agreement over several images."""
    parts = list(parts)
    return Agreement(
        total=sum(part.total for part in parts),
        agreeing=sum(part.agreeing for part in parts),
        box_px=max((part.box_px for part in parts), default=0.0),
        score=max((part.score for part in parts), default=0.0),
        mask=max((part.mask for part in parts), default=0.0),
        missing=sum(part.missing for part in parts),
        extra=sum(part.extra for part in parts),
        problem=next((part.problem for part in parts if part.problem), ""),
    )


def _num_unmatched(detections: DetectionArrays, matched: set[int], min_score: float) -> int:
    return sum(i not in matched and bool(score >= min_score) for i, score in enumerate(detections.scores))


def _differences(
    expected: DetectionArrays, found: DetectionArrays, i: int, j: int
) -> tuple[float, float, float]:
    mask = 0.0
    if expected.masks is not None and found.masks is not None:
        a, b = expected.masks[i].astype(bool, copy=False), found.masks[j].astype(bool, copy=False)
        mask = int(np.count_nonzero(a ^ b)) / max(1, int(np.count_nonzero(a | b)))
    box = np.abs(expected.boxes[i] - found.boxes[j]).max()
    return float(box), float(abs(expected.scores[i] - found.scores[j])), float(mask)


class Judge:
    """Runs models on the same images and compares their detections with the FP32 model's.

    Attributes:
        expected: the FP32 model's detections of each image.
    """

    def __init__(
        self,
        backend: Backend,
        images: Sequence[Union[str, Path]],
        tolerance: AgreementTolerance,
        *,
        threads: Optional[int] = None,
    ) -> None:
        """Run the FP32 model.

        Args:
            backend: the FP32 model, opened.
            images: files, each a batch of its own.
            tolerance: see there.
            threads: CPU threads of onnxruntime; None lets it choose.

        Raises:
            OSError, ValueError: an image cannot be read or does not fit into the model, or the FP32 model finds
                nothing in any image that a comparison could be made with.
        """
        self._metadata = backend.metadata
        self._batches = [_batch(Path(path), backend.metadata) for path in images]
        self._tolerance = tolerance
        self._threads = threads
        outputs = [backend.run(batch.images, batch.image_sizes) for batch in self._batches]
        self.expected = [self._arrays(o, batch) for o, batch in zip(outputs, self._batches)]
        best = max((float(s) for arrays in self.expected for s in arrays.scores), default=0.0)
        if best < tolerance.min_score:
            raise ValueError(
                f"images: expected a detection of score {tolerance.min_score:g} or more in one of them, found "
                f"{best:.2f} at best; give images of what the model knows, or lower --min-score"
            )

    @property
    def feeds(self) -> list[dict[str, np.ndarray]]:
        """The model's inputs, one dictionary per image."""
        return [{"images": b.images, "image_sizes": b.image_sizes} for b in self._batches]

    def __call__(self, model: "onnx.ModelProto") -> Agreement:
        """Run a variant of the model.

        Raises:
            RuntimeError: onnxruntime failed.
        """
        parts: list[Agreement] = []
        with open_session(model, threads=self._threads) as session:
            for expected, batch, feed in zip(self.expected, self._batches, self.feeds):
                try:
                    found = self._arrays(session.run(feed), batch)
                except BrokenOutput as error:
                    return summed([*parts, Agreement(len(expected.scores), 0, problem=str(error))])
                parts.append(agreement_of_image(expected, found, self._tolerance))
        return summed(parts)

    def _arrays(self, outputs: Mapping[str, np.ndarray], batch: Batch) -> DetectionArrays:
        for name, value in outputs.items():
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise BrokenOutput(f"output {name} has NaN or Inf")
        (found,) = detections_from_outputs(outputs, batch, self._metadata)
        return arrays_from_detections(found)


class BrokenOutput(ValueError):
    """A model's output is no result: NaN or Inf."""


def _batch(path: Path, metadata: ModelMetadata) -> Batch:
    image = read_image(path, metadata.load)
    try:
        network_size(image.shape[0], image.shape[1], metadata)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return prepare([image], metadata)
