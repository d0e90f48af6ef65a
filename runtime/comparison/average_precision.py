"""Detections against a dataset in COCO's format: average precision, as pycocotools' own ``COCOeval`` has it."""

import contextlib
import io
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any, Optional

import numpy as np

from runtime.comparison.annotations import Identity, ImageSize, read_annotations, with_masks
from runtime.detections import Detections
from runtime.image_size import stored_size
from runtime.images import read_image
from runtime.messages import listed, shown
from runtime.rle import load_pycocotools

METRICS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
# COCO's number of detections per image; those of the lowest scores beyond it do not count.
_MAX_DETECTIONS = 100
# Of each image and class, by which COCO measures key points.
MAX_KEYPOINT_DETECTIONS = 20
_REMEDY = "name their folder with --images"
# COCO has measured how far annotators of its 17 joints are apart, in shares of the object's size; of other key points
# this stands for that, which is between its eyes (0.025) and its wrists (0.062).
KEYPOINT_SIGMA = 0.05
NUM_COCO_KEYPOINTS = 17


@dataclass(frozen=True)
class DatasetImage:
    """One image of a dataset.

    Attributes:
        image_id: its COCO id.
        path: its file.
        size: (height, width) in px as annotated; None where the annotations do not say.
    """

    image_id: Identity
    path: Path
    size: Optional[ImageSize] = None


@dataclass(frozen=True, eq=False)
class CocoDataset:
    """Images with their annotations.

    Attributes:
        path: the annotations' file.
        truth: ``images``, ``categories`` and ``annotations`` of the images to evaluate, in COCO's format: every value
            checked, masks as compressed run lengths, no ``segmentation`` where there is no mask.
        images: those to evaluate, all there are or the first few.
        notes: what a reader of the figures has to know.
    """

    path: Path
    truth: dict
    images: tuple[DatasetImage, ...]
    notes: tuple[str, ...] = ()

    @property
    def has_masks(self) -> bool:
        """Whether the annotations have masks."""
        return all("segmentation" in annotation for annotation in self.truth["annotations"])

    def annotations_of(self, categories: Collection[Identity]) -> list[dict]:
        """Return the annotations of some categories."""
        return [a for a in self.truth["annotations"] if a["category_id"] in categories]


def read_dataset(
    annotations: Path, folder: Optional[Path], limit: Optional[int] = None, *, remedy: str = _REMEDY
) -> CocoDataset:
    """Read annotations and find their images.

    Args:
        annotations: JSON in COCO's format; see ``runtime.comparison.annotations`` for what it may leave out.
        folder: where the ``file_name`` of its images lie; None: nowhere, results are there already.
        limit: take the first so many images only.
        remedy: of images that are missing, for the message.

    Raises:
        FileNotFoundError: no such file, or images are missing; names them.
        ValueError: not COCO's format, or an image has another size than it says; names the place.
        RuntimeError: pycocotools is not installed.
    """
    if not annotations.is_file():
        raise FileNotFoundError(
            f"annotations {annotations}: expected a file in COCO's format, found nothing; "
            "name it with --annotations, and its images' folder with --images"
        )
    truth = read_annotations(annotations)
    entries = truth["images"][:limit]
    if folder is None:
        return _without_images(annotations, truth, entries)
    paths, notes = _image_files(annotations, folder, [entry["file_name"] for entry in entries], remedy)
    with_segmentation = {a["image_id"] for a in truth["annotations"] if a["segmentation"] not in (None, [])}
    images = tuple(
        DatasetImage(
            entry["id"], path, _image_size(annotations, index, entry, path, entry["id"] in with_segmentation)
        )
        for index, (entry, path) in enumerate(zip(entries, paths))
    )
    sizes = {image.image_id: image.size for image in images}
    masked = with_masks(annotations, truth["annotations"], sizes)
    return CocoDataset(annotations, {**truth, "images": entries, "annotations": masked}, images, notes)


def _without_images(annotations: Path, truth: dict, entries: Sequence[dict]) -> CocoDataset:
    """Return a dataset without files; masks need the sizes that the annotations say."""
    images = []
    masked_ids = {a["image_id"] for a in truth["annotations"] if a["segmentation"] not in (None, [])}
    for entry in entries:
        size = None if None in (entry["height"], entry["width"]) else (entry["height"], entry["width"])
        if size is None and entry["id"] in masked_ids:
            raise ValueError(
                f"annotations {annotations}: {entry['file_name']}: expected its height and width, found none; write "
                "them, or name the images' folder with --images: they are then read from the image"
            )
        images.append(DatasetImage(entry["id"], Path(entry["file_name"]), size))
    masked = with_masks(annotations, truth["annotations"], {image.image_id: image.size for image in images})
    return CocoDataset(annotations, {**truth, "images": list(entries), "annotations": masked}, tuple(images))


def category_ids(classes: Sequence[str], dataset: CocoDataset) -> tuple[Optional[Identity], ...]:
    """Return each label's category id: the category of the same name; None for a class that the dataset has not.

    As in mmdet's ``CocoMetric``, what counts are the categories that both have.

    Raises:
        ValueError: a name stands for several, none is shared, or one differs in its case or its spaces only.
    """
    names = [category["name"] for category in dataset.truth["categories"]]
    repeated = {name for name, number in Counter(names).items() if number > 1 and name in classes}
    if repeated or len(set(classes)) < len(classes):
        raise ValueError(
            f"classes: expected every name once, found {len(classes)} classes of {len(set(classes))} names and "
            f"{len(names)} categories of {len(set(names))} names in {dataset.path}; give each its own name"
        )
    _check_near_names(classes, names, dataset.path)
    ids = {category["name"]: category["id"] for category in dataset.truth["categories"]}
    if not set(ids) & set(classes):
        raise ValueError(
            f"classes: expected categories of the model's names in {dataset.path}, found none of {listed(classes)}, "
            f"but {listed(names)}; give annotations of the model's classes, or a model of theirs"
        )
    return tuple(ids.get(name) for name in classes)


def _check_near_names(classes: Sequence[str], names: Sequence[str], path: Path) -> None:
    """Refuse categories that are named almost like classes: without them, the others' AP would look like the whole."""
    missing = {_plain(name): name for name in classes if name not in names}
    near = [
        f"{name!r} for {missing[_plain(name)]!r}"
        for name in names
        if _plain(name) in missing and name not in classes
    ]
    if near:
        raise ValueError(
            f"classes: expected the model's names in {path}, letter for letter, found {listed(near)}; "
            "rename the categories"
        )


def _plain(name: str) -> str:
    """Return a name without what people write in different ways."""
    return "".join(c for c in name.casefold() if c.isalnum()) or name


def _image_files(
    annotations: Path, folder: Path, names: Sequence[str], remedy: str
) -> tuple[list[Path], tuple[str, ...]]:
    """Return the images' files, and what is worth saying about how they were found."""
    paths = [_existing((folder / name, folder / name.replace("\\", "/"))) for name in names]
    absent = [index for index, path in enumerate(paths) if path is None]
    bare = [PureWindowsPath(name).name for name in names]
    if not absent:
        return paths, ()
    # A name stands for one image only.
    if len(set(bare)) == len(bare):
        for index in absent:
            paths[index] = _existing((folder / bare[index],))
    missing = [names[index] for index in absent if paths[index] is None]
    if missing:
        raise FileNotFoundError(
            f"{annotations}: expected its {len(names)} images in {folder}, "
            f"found {len(missing)} missing: {listed(missing)}; {remedy}"
        )
    return paths, (
        f"{annotations}: {len(absent)} of {len(names)} images were found in {folder} by their bare names, as "
        f"{bare[absent[0]]} for {names[absent[0]]}",
    )


def _existing(paths: Iterable[Path]) -> Optional[Path]:
    # os.path and not Path: a name may be longer than a file system takes, or hold what no path may.
    return next((path for path in paths if os.path.isfile(path)), None)


def _image_size(
    annotations: Path, index: int, entry: Mapping[str, Any], path: Path, is_needed: bool
) -> Optional[ImageSize]:
    """Return an image's (height, width): what its entry says and its file does not contradict, or the file's."""
    said = (entry["height"], entry["width"])
    if None in said:
        return read_image(path).shape[:2] if is_needed else None
    if stored_size(path) in (None, said):
        return said
    # Turned as its orientation says, the image may have the size after all.
    found = read_image(path).shape[:2]
    if found != said:
        kind = "swapped" if found == said[::-1] else "of another image"
        raise ValueError(
            f"annotations {annotations}: images[{index}] (id {shown(entry['id'])}, {entry['file_name']}): expected "
            f"its file's height {found[0]} and width {found[1]}, found {said[0]} and {said[1]}, which are {kind}; "
            "correct them, or leave both out: they are then read from the image"
        )
    return said


def result_rows(
    detections: Detections, image_id: Identity, categories: Sequence[Optional[Identity]]
) -> list[dict]:
    """Return one row of COCO's results format per detection, unrounded, with its mask if there is one.

    Args:
        detections: in original px.
        image_id: the image's COCO id.
        categories: category id of each label; detections of labels without one are left out.
    """
    if None in categories:
        detections = detections.select(
            np.array([categories[label] is not None for label in detections.labels], bool)
        )
    corners = detections.boxes.astype(float)
    sizes = corners[:, 2:] - corners[:, :2]
    rows = [
        {
            "image_id": image_id,
            "category_id": categories[label],
            "bbox": [*corner, *size],
            "score": score,
        }
        for corner, size, label, score in zip(
            corners[:, :2].tolist(), sizes.tolist(), detections.labels.tolist(), detections.scores.tolist()
        )
    ]
    if detections.has_masks:
        for row, lengths in zip(rows, detections.rle()):
            row["segmentation"] = lengths
    if detections.keypoints is not None:
        for row, points in zip(rows, detections.keypoints.astype(float)):
            row["keypoints"] = points.ravel().tolist()
    return rows


@dataclass(frozen=True)
class Precision:
    """COCO's average precision, 0 to 1; None where the dataset has no object of that size or category.

    Attributes:
        overall: ``METRICS`` under ``box``, ``mask`` and ``keypoints``.
        by_category: ``AP`` and ``AP50`` of each category's id, under the same kinds.
    """

    overall: dict[str, dict[str, Optional[float]]]
    by_category: dict[str, dict[Identity, dict[str, Optional[float]]]]


def average_precision(truth: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], **chosen: Any) -> dict:
    """Return COCO's average precision, 0 to 1: ``Precision.overall`` of ``measured_precision``."""
    return measured_precision(truth, rows, **chosen).overall


def measured_precision(
    truth: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    *,
    masks: bool = True,
    num_keypoints: int = 0,
    image_ids: Optional[Sequence[Identity]] = None,
    category_ids: Optional[Sequence[Identity]] = None,
) -> Precision:
    """Return COCO's average precision, 0 to 1, of all and of each category.

    Args:
        truth: annotations in COCO's format. They are not changed.
        rows: detections in COCO's results format, with ``bbox`` and, for masks, ``segmentation``.
        masks: measure masks too.
        num_keypoints: measure so many key points of each object too; 0 for none.
        image_ids: evaluate these images only; None for all.
        category_ids: evaluate these categories only; None for all.

    Returns:
        ``METRICS`` under ``box``, ``mask`` and ``keypoints``; None where the dataset has no object of that size. Sizes
        are areas: of boxes for ``box``, of masks for ``mask``, as mmdet and detectron2 count them.

    Raises:
        ValueError: a row of an image or a category that the truth has not.
        RuntimeError: pycocotools is not installed.
    """
    load_pycocotools()
    numbers = {name: _numbers(entry["id"] for entry in truth[name]) for name in ("images", "categories")}
    for index, row in enumerate(rows):
        for key, name in (("image_id", "images"), ("category_id", "categories")):
            if row[key] not in numbers[name]:
                raise ValueError(f"rows[{index}].{key}: expected an id of the {name}, found {row[key]!r}")
    chosen = {
        "images": list(numbers["images"]) if image_ids is None else image_ids,
        "categories": list(numbers["categories"]) if category_ids is None else category_ids,
    }
    problem = _Problem(truth, rows, numbers, chosen)
    done = {"box": _evaluated(problem, "bbox", ("segmentation", "keypoints"))}
    if masks:
        # Given a box, pycocotools would take the box's area for the mask's.
        done["mask"] = _evaluated(problem, "segm", ("bbox", "keypoints"))
    if num_keypoints:
        done["keypoints"] = _evaluated(problem, "keypoints", ("bbox", "segmentation"), num_keypoints)
    return Precision(
        {kind: _overall(evaluation, kind == "keypoints") for kind, evaluation in done.items()},
        {kind: _by_category(evaluation, problem) for kind, evaluation in done.items()},
    )


@dataclass(frozen=True, eq=False)
class _Problem:
    """What COCOeval is asked; ``numbers`` stand for the ids, ``chosen`` ids are evaluated."""

    truth: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    numbers: Mapping[str, Mapping[Identity, int]]
    chosen: Mapping[str, Sequence[Identity]]

    def numbered(self, row: Mapping[str, Any]) -> dict:
        """Return a copy of an annotation or a detection with numbers for ids."""
        return {
            **row,
            "image_id": self.numbers["images"].get(row["image_id"], 0),
            "category_id": self.numbers["categories"].get(row["category_id"], 0),
        }

    def chosen_numbers(self, name: str) -> list[int]:
        """Return the numbers of the images or categories to evaluate."""
        return [self.numbers[name][identity] for identity in self.chosen[name]]


def _numbers(ids: Iterable[Identity]) -> dict[Identity, int]:
    """Return a number from 1 on for each id, in their order: COCOeval sorts ids, and can do so with numbers only.

    The order decides between detections of equal score.
    """
    return {identity: n for n, identity in enumerate(sorted(ids, key=lambda i: (isinstance(i, str), i)), 1)}


def _evaluated(problem: _Problem, iou_type: str, without: Collection[str], num_keypoints: int = 0) -> Any:
    """Return a ``COCOeval`` that has measured."""
    from pycocotools.cocoeval import COCOeval

    # COCOeval prints its progress and its tables.
    with contextlib.redirect_stdout(io.StringIO()):
        expected = _indexed(problem, problem.truth["annotations"])
        results = [
            {k: v for k, v in problem.numbered(row).items() if k not in without} for row in problem.rows
        ]
        found = expected.loadRes(results) if results else _indexed(problem, [])
        evaluation = COCOeval(expected, found, iou_type)
        evaluation.params.imgIds = problem.chosen_numbers("images")
        evaluation.params.catIds = problem.chosen_numbers("categories")
        evaluation.params.maxDets = [MAX_KEYPOINT_DETECTIONS] if num_keypoints else [1, 10, _MAX_DETECTIONS]
        if num_keypoints not in (0, NUM_COCO_KEYPOINTS):
            evaluation.params.kpt_oks_sigmas = np.full(num_keypoints, KEYPOINT_SIGMA)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def _overall(evaluation: Any, of_keypoints: bool) -> dict[str, Optional[float]]:
    names = [name for name in METRICS if not (of_keypoints and name == "AP_small")]
    # -1 stands for "no object of that size".
    found = {name: float(v) if v >= 0 else None for name, v in zip(names, evaluation.stats)}
    return {name: found.get(name) for name in METRICS}


def _by_category(evaluation: Any, problem: _Problem) -> dict[Identity, dict[str, Optional[float]]]:
    """Return AP and AP50 of each category, over all areas, as COCOeval has them before it takes their mean."""
    identities = {number: identity for identity, number in problem.numbers["categories"].items()}
    # Thresholds of IoU (the first is 0.5), recalls, categories, areas (the first: all), numbers of detections.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    return {
        identities[int(number)]: {
            "AP": _mean(precision[:, :, index]),
            "AP50": _mean(precision[0, :, index]),
        }
        for index, number in enumerate(evaluation.params.catIds)
    }


def _mean(precision: np.ndarray) -> Optional[float]:
    # -1 stands for "no object of that category".
    known = precision[precision > -1]
    return float(known.mean()) if known.size else None


def _indexed(problem: _Problem, annotations: Sequence[Mapping[str, Any]]) -> Any:
    """Return a ``COCO`` with copies of the annotations, numbered from 1: to COCOeval, id 0 means "no match"."""
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = {
        "info": {},
        "annotations": [{**problem.numbered(a), "id": number} for number, a in enumerate(annotations, 1)],
        **{
            name: [{**entry, "id": problem.numbers[name][entry["id"]]} for entry in problem.truth[name]]
            for name in ("images", "categories")
        },
    }
    coco.createIndex()
    return coco
