"""The average precision of a model, or of recorded results, on a dataset."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Union

from runtime.comparison.annotations import Identity
from runtime.comparison.average_precision import (
    METRICS,
    CocoDataset,
    average_precision,
    category_ids,
    read_dataset,
    result_rows,
)
from runtime.comparison.detections import Progress, no_progress
from runtime.comparison.sources import Artifact, open_artifact
from runtime.messages import listed


@dataclass(frozen=True)
class Evaluation:
    """What an artifact achieved on a dataset.

    Attributes:
        name: the artifact's.
        num_images, num_detections: evaluated.
        average_precision: ``METRICS`` under ``box`` and, with masks, ``mask``; 0 to 1, None without objects.
        path, path_reason: which way its results were made, and why it was not the device's; see ``MadeBy``.
        seconds: from reading images to run lengths.
        model_seconds: of which in the model itself; None for a recording.
        problems: images for which the model's output was not a result, and why.
        notes: what the figures leave out.
    """

    name: str
    num_images: int
    num_detections: int
    average_precision: dict[str, dict[str, Optional[float]]]
    seconds: float
    model_seconds: Optional[float]
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()
    path: str = ""
    path_reason: str = ""

    def minus(self, other: "Evaluation") -> dict[str, dict[str, Optional[float]]]:
        """Return the differences of what both have."""
        mine, theirs = self.average_precision, other.average_precision
        return {
            kind: {name: _minus(mine[kind][name], theirs[kind][name]) for name in METRICS}
            for kind in mine
            if kind in theirs
        }


def evaluate(
    model: Union[str, Path],
    annotations: Union[str, Path],
    images: Union[str, Path],
    *,
    limit: Optional[int] = None,
    backend: str = "auto",
    batch: int = 1,
    host: bool = False,
    progress: Progress = no_progress,
    **options: Any,
) -> Evaluation:
    """Run a model, or read recorded results, over a dataset, and measure the average precision.

    Args:
        model: an exported model, an engine, or a recording (``.npz``).
        annotations: a JSON file in COCO's format.
        images: the images' folder.
        limit: only the first so many images; None: all.
        backend, host, options: see ``Detector``.
        batch: images that run at once.
        progress: shows how far it is.

    Raises:
        FileNotFoundError, ValueError, RuntimeError: see ``read_dataset``, ``open_artifact`` and ``evaluate_artifact``.
    """
    dataset = read_dataset(Path(annotations), Path(images), limit)
    with open_artifact(model, backend, batch, host=host, **options) as artifact:
        return evaluate_artifact(artifact, dataset, progress)


def evaluate_artifact(
    artifact: Artifact, dataset: CocoDataset, progress: Progress = no_progress
) -> Evaluation:
    """Run an artifact over a dataset, image by image, and measure its average precision.

    Raises:
        ValueError: the classes are not the dataset's, or an image cannot be read or does not fit the model.
        RuntimeError: pycocotools is not installed.
    """
    categories = category_ids(artifact.classes, dataset)
    rows, problems, other_sizes = [], [], []
    start = time.perf_counter()
    results = artifact([image.path for image in dataset.images])
    for image, result in zip(dataset.images, progress(results, len(dataset.images), artifact.name)):
        if result.problem:
            problems.append(f"{result.path.name}: {result.problem}")
        if image.size not in (None, tuple(result.detections.image_size)):
            other_sizes.append(image.path.name)
        kept = result.detections.filter(artifact.metadata.score_threshold)
        rows += result_rows(kept, image.image_id, categories)
    seconds = time.perf_counter() - start
    measured = (_measured(artifact, dataset, categories, rows) for _ in range(1))
    ((values, notes),) = progress(measured, 1, f"average precision of {artifact.name}")
    return Evaluation(
        name=artifact.name,
        num_images=len(dataset.images),
        num_detections=len(rows),
        average_precision=values,
        seconds=seconds,
        model_seconds=artifact.model_seconds,
        problems=tuple(problems),
        notes=(*notes, *_notes_on_sizes(other_sizes if "mask" in values else [])),
        path=artifact.made_by.path,
        path_reason=artifact.made_by.reason,
    )


def evaluate_in_order(
    artifacts: Sequence[Artifact], dataset: CocoDataset, progress: Progress = no_progress
) -> list[Evaluation]:
    """Evaluate several artifacts; recordings first: one that lacks an image is refused before a model has run.

    Raises:
        ValueError: see ``evaluate_artifact``; classes that are not the dataset's are refused before anything has run.
    """
    for artifact in artifacts:
        try:
            category_ids(artifact.classes, dataset)
        except ValueError as error:
            raise ValueError(f"{artifact.name}: {error}") from error
    order = sorted(range(len(artifacts)), key=lambda index: artifacts[index].model_seconds is not None)
    evaluations = {index: evaluate_artifact(artifacts[index], dataset, progress) for index in order}
    return [evaluations[index] for index in range(len(artifacts))]


def _measured(
    artifact: Artifact, dataset: CocoDataset, categories: Sequence[Optional[Identity]], rows: Sequence[dict]
) -> tuple[dict[str, dict[str, Optional[float]]], tuple[str, ...]]:
    """Return the average precision, and what it leaves out; masks count where every object has one."""
    shared = [identity for identity in categories if identity is not None]
    objects = dataset.annotations_of(set(shared))
    num_without = sum("segmentation" not in annotation for annotation in objects)
    has_masks = artifact.metadata.masks != "none"
    values = average_precision(
        dataset.truth,
        rows,
        masks=has_masks and not num_without,
        image_ids=[image.image_id for image in dataset.images],
        category_ids=shared,
    )
    notes = list(_notes_on_classes(artifact, dataset, categories))
    if has_masks and num_without:
        notes.append(f"no AP of masks: {num_without} of {len(objects)} objects are annotated without one")
    return values, tuple(notes)


def _notes_on_classes(
    artifact: Artifact, dataset: CocoDataset, categories: Sequence[Optional[Identity]]
) -> Iterator[str]:
    missing = [name for name, identity in zip(artifact.classes, categories) if identity is None]
    if missing:
        yield (
            f"AP over {len(categories) - len(missing)} of {len(categories)} classes: no category of the annotations is "
            f"named {listed(missing)}"
        )
    others = [c["name"] for c in dataset.truth["categories"] if c["name"] not in artifact.classes]
    if others:
        yield f"categories that the model has not are left out: {listed(others)}"


def _notes_on_sizes(names: Sequence[str]) -> Iterator[str]:
    if names:
        yield (
            f"{len(names)} images have another size than the annotations say, and none of their masks matches: "
            f"{listed(names)}"
        )


def _minus(a: Optional[float], b: Optional[float]) -> Optional[float]:
    return None if a is None or b is None else a - b
