"""The average precision of a model, or of recorded results, on a dataset."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional, Union

from runtime.comparison.annotations import Identity, read_results
from runtime.comparison.average_precision import (
    KEYPOINT_SIGMA,
    MAX_KEYPOINT_DETECTIONS,
    METRICS,
    NUM_COCO_KEYPOINTS,
    CocoDataset,
    Precision,
    category_ids,
    measured_precision,
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
        average_precision: ``METRICS`` under ``box`` and, where there are any, ``mask`` and ``keypoints``; 0 to 1, None
            without objects.
        path, path_reason: which way its results were made, and why it was not the device's; see ``MadeBy``.
        seconds: from reading images to run lengths.
        model_seconds: of which in the model itself; None for a recording.
        problems: images for which the model's output was not a result, and why.
        notes: what the figures leave out.
        by_class: AP and AP50 of each class that counts, by its name, under the same kinds.
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
    by_class: dict[str, dict[str, dict[str, Optional[float]]]] = field(default_factory=dict)

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
    images: Optional[Union[str, Path]],
    *,
    limit: Optional[int] = None,
    classes: Sequence[str] = (),
    backend: str = "auto",
    batch: int = 1,
    host: bool = False,
    progress: Progress = no_progress,
    **options: Any,
) -> Evaluation:
    """Run a model, or read recorded results, over a dataset, and measure the average precision.

    Args:
        model: an exported model, an engine, a recording (``.npz``), or results in COCO's format (``.json``).
        annotations: a JSON file in COCO's format.
        images: the images' folder; None: nowhere, of results.
        limit: only the first so many images; None: all.
        classes: only these; none: all that the model and the annotations have.
        backend, host, options: see ``Detector``.
        batch: images that run at once.
        progress: shows how far it is.

    Raises:
        FileNotFoundError, ValueError, RuntimeError: see ``read_dataset``, ``open_artifact`` and ``evaluate_artifact``.
    """
    dataset = read_dataset(Path(annotations), None if images is None else Path(images), limit)
    if is_results(model):
        return evaluate_results(Path(model), dataset, classes)
    with open_artifact(model, backend, batch, host=host, **options) as artifact:
        return evaluate_artifact(artifact, dataset, progress, classes)


def is_results(path: Union[str, Path]) -> bool:
    """Return whether a file is one of results in COCO's format, by its suffix."""
    return Path(path).suffix.lower() == ".json"


def evaluate_results(path: Path, dataset: CocoDataset, classes: Sequence[str] = ()) -> Evaluation:
    """Measure the average precision of a file of results in COCO's format, whatever program has written it.

    Every category of the annotations counts, also one of which nothing was found, as in pycocotools.

    Raises:
        OSError, ValueError: see ``runtime.comparison.annotations.read_results``, and ``evaluate_artifact``.
        RuntimeError: pycocotools is not installed.
    """
    start = time.perf_counter()
    sizes = {image.image_id: image.size for image in dataset.images}
    rows = read_results(path, sizes, dataset.truth)
    names = tuple(category["name"] for category in dataset.truth["categories"])
    num_points = max((len(row.get("keypoints", ())) // 3 for row in rows), default=0)
    facts = _Facts(names, any("segmentation" in row for row in rows), num_points)
    own = tuple(category["id"] for category in dataset.truth["categories"])
    measured = _measured(facts, dataset, _chosen(own, names, classes, dataset), rows)
    return Evaluation(
        name=str(path),
        num_images=len(dataset.images),
        num_detections=len(rows),
        average_precision=measured.values,
        seconds=time.perf_counter() - start,
        model_seconds=None,
        problems=(),
        notes=measured.notes,
        by_class=measured.by_class,
    )


def evaluate_artifact(
    artifact: Artifact,
    dataset: CocoDataset,
    progress: Progress = no_progress,
    classes: Sequence[str] = (),
) -> Evaluation:
    """Run an artifact over a dataset, image by image, and measure its average precision.

    Args:
        artifact: which runs.
        dataset: its images and objects.
        progress: shows how far it is.
        classes: only these count; none: all that both have.

    Raises:
        ValueError: the classes are not the dataset's, or an image cannot be read or does not fit the model.
        RuntimeError: pycocotools is not installed.
    """
    categories = _chosen(category_ids(artifact.classes, dataset), artifact.classes, classes, dataset)
    facts = _Facts(artifact.classes, artifact.metadata.masks != "none", len(artifact.metadata.keypoints))
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
    waited_for = (_measured(facts, dataset, categories, rows) for _ in range(1))
    (measured,) = progress(waited_for, 1, f"average precision of {artifact.name}")
    return Evaluation(
        name=artifact.name,
        num_images=len(dataset.images),
        num_detections=len(rows),
        average_precision=measured.values,
        seconds=seconds,
        model_seconds=artifact.model_seconds,
        problems=tuple(problems),
        notes=(*measured.notes, *_notes_on_sizes(other_sizes if "mask" in measured.values else [])),
        path=artifact.made_by.path,
        path_reason=artifact.made_by.reason,
        by_class=measured.by_class,
    )


def evaluate_in_order(
    artifacts: Sequence[Artifact],
    dataset: CocoDataset,
    progress: Progress = no_progress,
    classes: Sequence[str] = (),
) -> list[Evaluation]:
    """Evaluate several artifacts; recordings first: one that lacks an image is refused before a model has run.

    Raises:
        ValueError: see ``evaluate_artifact``; classes that are not the dataset's are refused before anything has run.
    """
    for artifact in artifacts:
        try:
            _chosen(category_ids(artifact.classes, dataset), artifact.classes, classes, dataset)
        except ValueError as error:
            raise ValueError(f"{artifact.name}: {error}") from error
    order = sorted(range(len(artifacts)), key=lambda index: artifacts[index].model_seconds is not None)
    evaluations = {index: evaluate_artifact(artifacts[index], dataset, progress, classes) for index in order}
    return [evaluations[index] for index in range(len(artifacts))]


@dataclass(frozen=True)
class _Facts:
    """What finds objects: its class names, whether it has masks, how many key points."""

    classes: tuple[str, ...]
    has_masks: bool
    num_keypoints: int


@dataclass(frozen=True)
class _Measured:
    """Average precision, overall and by class, and what it leaves out."""

    values: dict[str, dict[str, Optional[float]]]
    by_class: dict[str, dict[str, dict[str, Optional[float]]]]
    notes: tuple[str, ...]


def _chosen(
    categories: Sequence[Optional[Identity]],
    names: Sequence[str],
    classes: Sequence[str],
    dataset: CocoDataset,
) -> tuple[Optional[Identity], ...]:
    """Return the categories, None for those of other classes than the chosen ones.

    Raises:
        ValueError: a chosen class is none that counts.
    """
    if not classes:
        return tuple(categories)
    known = [name for name, identity in zip(names, categories) if identity is not None]
    unknown = [name for name in classes if name not in known]
    if unknown:
        raise ValueError(
            f"--classes: expected names that are classes and categories of {dataset.path} ({listed(known, 12)}), "
            f"found {listed(unknown)}; correct or leave them out"
        )
    return tuple(identity if name in classes else None for name, identity in zip(names, categories))


def _measured(
    facts: _Facts, dataset: CocoDataset, categories: Sequence[Optional[Identity]], rows: Sequence[dict]
) -> _Measured:
    """Return the average precision, and what it leaves out; masks count where every object has one."""
    shared = [identity for identity in categories if identity is not None]
    objects = dataset.annotations_of(set(shared))
    num_without = sum("segmentation" not in annotation for annotation in objects)
    other_points = sum(len(a.get("keypoints", ())) != 3 * facts.num_keypoints for a in objects)
    precision = measured_precision(
        dataset.truth,
        rows,
        masks=facts.has_masks and not num_without,
        num_keypoints=0 if other_points else facts.num_keypoints,
        image_ids=[image.image_id for image in dataset.images],
        category_ids=shared,
    )
    notes = list(_notes_on_classes(facts.classes, dataset, categories))
    if facts.has_masks and num_without:
        notes.append(f"no AP of masks: {num_without} of {len(objects)} objects are annotated without one")
    if facts.num_keypoints:
        notes.append(_note_on_keypoints(facts.num_keypoints, other_points, len(objects)))
    if facts.num_keypoints and not other_points:
        notes += _notes_on_crowds(objects, [row for row in rows if row["category_id"] in shared])
    return _Measured(precision.overall, _by_name(precision, dataset), tuple(notes))


def _by_name(precision: Precision, dataset: CocoDataset) -> dict[str, dict[str, dict[str, Optional[float]]]]:
    names = {category["id"]: category["name"] for category in dataset.truth["categories"]}
    return {
        kind: {names[identity]: values for identity, values in by_category.items()}
        for kind, by_category in precision.by_category.items()
    }


def _note_on_keypoints(num_keypoints: int, others: int, num_objects: int) -> str:
    if others:
        missing = f"{others} of {num_objects} objects"
        return f"no AP of key points: {missing} are annotated without the model's {num_keypoints}"
    if num_keypoints == NUM_COCO_KEYPOINTS:
        return "AP of key points by COCO's own tolerances of 17 joints"
    return f"AP of key points with a tolerance of {KEYPOINT_SIGMA:g} of the object's size for each"


def _notes_on_crowds(
    objects: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """Say where AP of key points leaves detections out: it counts ``MAX_KEYPOINT_DETECTIONS`` of an image and class."""
    annotated, found = _crowded(a for a in objects if a.get("num_keypoints")), _crowded(rows)
    if annotated or found:
        yield (
            f"AP of key points counts the best {MAX_KEYPOINT_DETECTIONS} detections of an image and class, as COCO has "
            f"it: {len(annotated)} of the images have more annotated objects of a class, {len(found)} more detections"
        )


def _crowded(rows: Iterable[Mapping[str, Any]]) -> set[Identity]:
    """Return the images with more rows of a class than AP of key points counts."""
    counts = Counter((row["image_id"], row["category_id"]) for row in rows)
    return {image for (image, _), count in counts.items() if count > MAX_KEYPOINT_DETECTIONS}


def _notes_on_classes(
    classes: Sequence[str], dataset: CocoDataset, categories: Sequence[Optional[Identity]]
) -> Iterator[str]:
    known = [category["name"] for category in dataset.truth["categories"]]
    left = [name for name, identity in zip(classes, categories) if identity is None and name in known]
    if left:
        yield f"AP over the {sum(identity is not None for identity in categories)} classes that were chosen"
    missing = [name for name in classes if name not in known]
    if missing and not left:
        yield (
            f"AP over {len(categories) - len(missing)} of {len(categories)} classes: no category of the annotations is "
            f"named {listed(missing)}"
        )
    others = [name for name in known if name not in classes]
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
