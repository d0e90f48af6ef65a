"""Annotations in COCO's format, from a file in which every value that is used is checked before anything runs.

What cocoapi and mmdet take is taken: ids with gaps, strings as ids, missing ``area`` and ``iscrowd``, objects without a
mask. What they fall over, or what changes their figures in silence, is refused with its place in the file.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, Optional, Union

import numpy as np

from runtime.documents import parsed
from runtime.messages import shown
from runtime.reading import bounded_bytes, limit
from runtime.rle import MAX_PIXELS, check_runs, checked_counts, counts_from_runs, load_pycocotools

Identity = Union[int, str]
ImageSize = tuple[int, int]

_LISTS = ("images", "annotations", "categories")
LIMIT_VARIABLE = "MASKRCNN_MAX_ANNOTATION_BYTES"
# Python takes ten times as much memory for what is in it.
MAX_BYTES = 1 << 31
# px; far beyond any image, and squares of it are still exact.
_LARGEST = 1 << 26
# px; pycocotools walks along a polygon's outline and keeps each step.
_LONGEST_OUTLINE = 1 << 22
_REMEDY = "correct the file"
_MISSING = object()


class _Wrong(ValueError):
    """A value of an entry that cannot be used: its key, and what stands in the message."""

    def __init__(self, key: str, expected: str, found: Any, remedy: str = _REMEDY) -> None:
        super().__init__(key)
        self.key = key
        self.said = f"expected {expected}, found {_found(found)}; {remedy}"


class _Words(str):
    """Text that is shown as it is, not as a value."""


def _found(value: Any) -> str:
    if value is _MISSING:
        return "none"
    return str(value) if isinstance(value, _Words) else shown(value)


def read_annotations(path: Path) -> dict[str, list[dict]]:
    """Return a file's content, in the types that pycocotools needs, without what is not used.

    Returns:
        ``images``: ``id``, ``file_name``, and ``height`` and ``width`` (None where they are not said);
        ``categories``: ``id``, ``name``; ``annotations``: ``id`` (may be None), ``image_id``, ``category_id``,
        ``bbox``, ``iscrowd``, ``area`` (None where it is not said), ``segmentation`` as it was found, which
        ``with_masks`` checks, and ``keypoints`` and ``num_keypoints`` where there are any.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not such a file; names the entry, what was expected, what was found, and the remedy.
    """
    content = _content(path, _LISTS)
    images, categories = _images_and_categories(path, content)
    image_ids, category_ids = ({entry["id"] for entry in entries} for entries in (images, categories))
    annotations = _checked(
        path,
        "annotations",
        content["annotations"],
        lambda entry: _annotation(entry, image_ids, category_ids),
    )
    _check_unique(path, "annotations", annotations)
    return {"images": images, "categories": categories, "annotations": annotations}


def read_images_and_categories(path: Path) -> tuple[list[dict], list[dict]]:
    """Return ``images`` and ``categories`` of a file, which may have no annotations; see ``read_annotations``."""
    return _images_and_categories(path, _content(path, ("images", "categories")))


def read_results(
    path: Path, sizes: Mapping[Identity, Optional[ImageSize]], truth: Mapping[str, Sequence[dict]]
) -> list[dict]:
    """Return the rows of a file in COCO's results format, in the types that pycocotools needs.

    Args:
        path: of the file: a list of ``image_id``, ``category_id``, ``bbox``, ``score``, and where there are any
            ``segmentation`` (run lengths or polygons) and ``keypoints``.
        sizes: (height, width) px of the images that count, by id; rows of others are left out.
        truth: of ``read_annotations``, whose images and categories the rows are of.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not such a file, or of other images or categories; names the row.
    """
    most = limit(LIMIT_VARIABLE, MAX_BYTES)
    try:
        content = parsed(bounded_bytes(path, most, f"if that is meant, set {LIMIT_VARIABLE} to as much"))
    except ValueError as error:
        raise ValueError(f"results {path}: {error}; {_REMEDY}") from error
    if not isinstance(content, list):
        raise ValueError(
            f"results {path}: expected COCO's results, a list of detections, found {_kind(content)}; name the "
            "results.json of `python -m runtime.infer --annotations`, or another tool's"
        )
    names = {entry["id"]: entry["file_name"] for entry in truth["images"]}
    category_ids = {entry["id"] for entry in truth["categories"]}
    rows = _checked(
        path, "results", content, lambda row: _result(row, names, category_ids, sizes), kind="results"
    )
    return [row for row in rows if row is not None]


def with_masks(
    path: Path, annotations: Sequence[dict], sizes: Mapping[Identity, Optional[ImageSize]]
) -> list[dict]:
    """Return annotations whose masks are COCO's compressed run lengths; others have no ``segmentation``.

    An area that is not said is the mask's, without one the box's.

    Args:
        path: of their file, for messages.
        annotations: all of ``read_annotations``.
        sizes: (height, width) of the images to evaluate, by id; annotations of others are left out. None is a size
            that nobody needs: no annotation of the image has a mask.

    Raises:
        ValueError: a mask that is none; names the entry.
        RuntimeError: pycocotools is not installed.
    """
    load_pycocotools()

    def masked(entry: dict) -> Optional[dict]:
        return _masked(entry, sizes[entry["image_id"]]) if entry["image_id"] in sizes else None

    return [entry for entry in _checked(path, "annotations", annotations, masked) if entry is not None]


def _images_and_categories(path: Path, content: Mapping[str, list]) -> tuple[list[dict], list[dict]]:
    images = _checked(path, "images", content["images"], _image)
    categories = _checked(path, "categories", content["categories"], _category)
    for name, entries in (("images", images), ("categories", categories)):
        _check_unique(path, name, entries)
    return images, categories


def _result(
    row: dict,
    names: Mapping[Identity, str],
    category_ids: Collection[Identity],
    sizes: Mapping[Identity, Optional[ImageSize]],
) -> Optional[dict]:
    """Return a checked row of results; None of an image that does not count."""
    remedy = "make the results with `--annotations` of this very file"
    image_id, category_id = _identity(row, "image_id"), _identity(row, "category_id")
    if image_id not in names:
        raise _Wrong("image_id", "an id of the annotations' images", image_id, remedy)
    if category_id not in category_ids:
        raise _Wrong("category_id", "an id of the annotations' categories", category_id, remedy)
    name = row.get("file_name")
    if isinstance(name, str) and _bare(name) != _bare(names[image_id]):
        # Ids of another numbering, which would be evaluated on the wrong images in silence.
        raise _Wrong(
            "file_name", f"{names[image_id]!r}, which the annotations' image {image_id} is", name, remedy
        )
    if image_id not in sizes:
        return None
    checked: dict[str, Any] = {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": _box(row),
        "score": _number(row.get("score", _MISSING), "score", -float(_LARGEST), float(_LARGEST)),
    }
    size = sizes[image_id] or _size_of(row.get("segmentation"))
    counts = _counts(row.get("segmentation"), size)
    if counts is not None:
        checked["segmentation"] = {"size": list(size), "counts": counts.decode("ascii")}
    return {**checked, **{k: v for k, v in _keypoints(row).items() if k == "keypoints"}}


def _size_of(segmentation: Any) -> Optional[ImageSize]:
    """Return the size that run lengths name themselves, where the annotations do not say their image's."""
    if segmentation in (None, []):
        return None
    size = segmentation.get("size") if isinstance(segmentation, dict) else None
    if not isinstance(size, list) or len(size) != 2 or not all(_is_whole(v) and v > 0 for v in size):
        remedy = "write height and width of the image into the annotations"
        raise _Wrong(
            "segmentation.size", "the image's [height, width]", _MISSING if size is None else size, remedy
        )
    return int(size[0]), int(size[1])


def _bare(name: str) -> str:
    return name.replace("\\", "/").rpartition("/")[2]


def _kind(content: Any) -> str:
    return (
        f"an object with {', '.join(map(shown, content))[:200]}"
        if isinstance(content, dict)
        else shown(content)
    )


def _content(path: Path, lists: Sequence[str]) -> dict:
    try:
        most = limit(LIMIT_VARIABLE, MAX_BYTES)
        content = parsed(bounded_bytes(path, most, f"if that is meant, set {LIMIT_VARIABLE} to as much"))
    except ValueError as error:
        raise ValueError(f"annotations {path}: {error}; {_REMEDY}") from error
    if not isinstance(content, dict) or not all(isinstance(content.get(name), list) for name in lists):
        found = ", ".join(map(shown, content)) if isinstance(content, dict) else f"a {type(content).__name__}"
        raise ValueError(
            f"annotations {path}: expected COCO's format with the lists {', '.join(lists)}, found {found[:200]}; "
            "name the annotations of an object detection dataset"
        )
    if not content["images"]:
        raise ValueError(f"annotations {path}: expected at least one image, found none; name another file")
    return content


def _checked(
    path: Path, name: str, entries: Sequence[Any], check: Callable[[dict], Any], *, kind: str = "annotations"
) -> list:
    """Return what ``check`` makes of each entry; its errors get their place."""
    checked = []
    for index, entry in enumerate(entries):
        try:
            if not isinstance(entry, dict):
                raise _Wrong("", "an object", entry)
            checked.append(check(entry))
        except _Wrong as wrong:
            raise ValueError(
                f"{kind} {path}: {_place(name, index, entry, wrong.key)}: {wrong.said}"
            ) from None
    return checked


def _place(name: str, index: int, entry: Any, key: str) -> str:
    identity = entry.get("id") if isinstance(entry, dict) else None
    known = "" if identity is None or key == "id" else f" (id {shown(identity)})"
    return f"{name}[{index}]{'.' + key if key else ''}{known}"


def _check_unique(path: Path, name: str, entries: Sequence[dict]) -> None:
    places: dict[Identity, int] = {}
    for index, entry in enumerate(entries):
        first = places.setdefault(entry["id"], index)
        if first != index and entry["id"] is not None:
            raise ValueError(
                f"annotations {path}: {name}[{index}].id: expected an id of its own, found {shown(entry['id'])}, "
                f"which {name}[{first}] has; number them anew, or remove one of the two"
            )


def _image(entry: dict) -> dict:
    name = entry.get("file_name", _MISSING)
    if not isinstance(name, str) or not name:
        raise _Wrong("file_name", "the name of the image's file", name)
    sides = [_side(entry, key) for key in ("height", "width")]
    if None not in sides and sides[0] * sides[1] > MAX_PIXELS:
        raise _Wrong("height, width", f"up to {MAX_PIXELS} pixels", sides)
    height, width = (None, None) if None in sides else sides
    return {"id": _identity(entry, "id"), "file_name": name, "height": height, "width": width}


def _side(entry: dict, key: str) -> Optional[int]:
    value = entry.get(key)
    if value is None:
        return None
    if not _is_whole(value) or not 1 <= value <= MAX_PIXELS:
        raise _Wrong(
            key, "a number of pixels, 1 or more", value, "leave it out: it is then read from the image"
        )
    return int(value)


def _category(entry: dict) -> dict:
    name = entry.get("name", _MISSING)
    if not isinstance(name, str):
        raise _Wrong("name", "the category's name", name)
    return {"id": _identity(entry, "id"), "name": name}


def _annotation(entry: dict, images: Collection[Identity], categories: Collection[Identity]) -> dict:
    area = entry.get("area")
    return {
        "id": None if entry.get("id") is None else _identity(entry, "id"),
        "image_id": _reference(entry, "image_id", images, "images"),
        "category_id": _reference(entry, "category_id", categories, "categories"),
        "bbox": _box(entry),
        "area": None if area is None else _number(area, "area", 0, float(_LARGEST) ** 2),
        "iscrowd": _crowd(entry),
        "segmentation": entry.get("segmentation"),
        **_keypoints(entry),
    }


def _keypoints(entry: dict) -> dict:
    """Return an object's key points, [x, y, v, ...] with v above 0 where one is annotated; none where it has none."""
    points = entry.get("keypoints")
    if points is None or points == []:
        return {}
    if not isinstance(points, list) or len(points) % 3:
        raise _Wrong("keypoints", "[x, y, v, ...]", points)
    numbers = [_number(v, f"keypoints[{i}]", -_LARGEST, _LARGEST) for i, v in enumerate(points)]
    return {"keypoints": numbers, "num_keypoints": sum(v > 0 for v in numbers[2::3])}


def _identity(entry: dict, key: str) -> Identity:
    value = entry.get(key, _MISSING)
    if _is_whole(value):
        return int(value)
    if not isinstance(value, str):
        raise _Wrong(key, "a whole number or a string", value)
    return value


def _reference(entry: dict, key: str, known: Collection[Identity], name: str) -> Identity:
    identity = _identity(entry, key)
    if identity not in known:
        other = _other_form(identity)
        remedy = f"remove the annotation, or add what it belongs to to {name}"
        if other in known:
            remedy = f"write it as in {name}: {shown(other)}"
        raise _Wrong(key, f"an id of {name}", identity, remedy)
    return identity


def _other_form(identity: Identity) -> Identity:
    """Return a number's digits, or the number of digits."""
    is_number = isinstance(identity, str) and identity.isdecimal() and len(identity) < 20
    return int(identity) if is_number else str(identity)


def _box(entry: dict) -> list:
    box = entry.get("bbox", _MISSING)
    if not isinstance(box, list) or len(box) != 4:
        raise _Wrong("bbox", "[x, y, width, height] in px", box)
    return [
        _number(value, f"bbox[{index}]", -_LARGEST if index < 2 else 0, _LARGEST)
        for index, value in enumerate(box)
    ]


def _number(value: Any, key: str, least: float, most: float) -> Union[int, float]:
    # NaN fails both comparisons.
    if type(value) not in (int, float) or not least <= value <= most:
        raise _Wrong(key, f"a number from {least:g} to {most:g}", value)
    return value


def _crowd(entry: dict) -> int:
    value = entry.get("iscrowd")
    if value is None:
        return 0
    if type(value) not in (int, float, bool) or value not in (0, 1):
        raise _Wrong("iscrowd", "0 or 1", value)
    return int(value)


def _is_whole(value: Any) -> bool:
    return type(value) is int or (type(value) is float and value.is_integer())


def _masked(entry: dict, size: Optional[ImageSize]) -> dict:
    counts = _counts(entry["segmentation"], size)
    masked = {key: value for key, value in entry.items() if key != "segmentation"}
    if counts is not None:
        masked["segmentation"] = {"size": list(size), "counts": counts.decode("ascii")}
    if masked["area"] is None:
        _, _, width, height = entry["bbox"]
        masked["area"] = (
            width * height if counts is None else float(load_pycocotools().area(masked["segmentation"]))
        )
    return masked


def _counts(segmentation: Any, size: Optional[ImageSize]) -> Optional[bytes]:
    """Return compressed run lengths; None without a mask."""
    if segmentation is None or segmentation == []:
        return None
    if isinstance(segmentation, list):
        return _counts_from_polygons(segmentation, size)
    if isinstance(segmentation, dict):
        return _counts_from_lengths(segmentation, size)
    raise _Wrong("segmentation", "a list of polygons, run lengths, or null", segmentation)


def _counts_from_polygons(polygons: list, size: ImageSize) -> bytes:
    for index, polygon in enumerate(polygons):
        _check_polygon(polygon, f"segmentation[{index}]")
    # pycocotools knows polygons by the first one's length; the order means nothing.
    polygons = sorted(polygons, key=len, reverse=True)
    if len(polygons[0]) < 6:
        raise _Wrong(
            "segmentation",
            "a polygon of at least 3 points (6 numbers)",
            polygons,
            "draw it, or leave segmentation out: the object then has a box only",
        )
    coco_mask = load_pycocotools()
    return coco_mask.merge(coco_mask.frPyObjects(polygons, *size))["counts"]


def _check_polygon(polygon: Any, key: str) -> None:
    expected = "a polygon, [x1, y1, x2, y2, ...] in px"
    if not isinstance(polygon, list) or not set(map(type, polygon)) <= {int, float}:
        raise _Wrong(key, expected, polygon)
    if len(polygon) < 2 or len(polygon) % 2:
        raise _Wrong(key, expected, _Words(f"{len(polygon)} numbers: {shown(polygon)}"))
    if not (min(polygon) >= -_LARGEST and max(polygon) <= _LARGEST):
        raise _Wrong(key, f"coordinates from {-_LARGEST} to {_LARGEST}", polygon)
    values = np.array([*polygon, *polygon[:2]], np.float64)
    length = np.abs(values[2:] - values[:-2]).sum()  # of the way along x and along y
    if not np.isfinite(length):
        raise _Wrong(key, "finite coordinates", polygon)
    if length > _LONGEST_OUTLINE:
        raise _Wrong(key, f"an outline of up to {_LONGEST_OUTLINE} px", _Words(f"one of {length:.0f} px"))


def _counts_from_lengths(lengths: dict, size: ImageSize) -> bytes:
    found = lengths.get("size", _MISSING)
    is_size = isinstance(found, list) and len(found) == 2 and all(map(_is_whole, found))
    if not is_size or tuple(found) != tuple(size):
        raise _Wrong(
            "segmentation.size",
            f"the image's [height, width], {list(size)}",
            found,
            "the mask is of another image, or the image's height and width are not its file's",
        )
    counts = lengths.get("counts", _MISSING)
    try:
        if isinstance(counts, str):
            return checked_counts(counts, size)
        if isinstance(counts, list) and all(map(_is_whole, counts)):
            return _counts_from_runs(counts, size)
    except ValueError as error:
        raise _Wrong(
            "segmentation.counts", *_halves(error), "encode the mask again with pycocotools.mask.encode"
        ) from None
    raise _Wrong("segmentation.counts", "a string, or a list of whole numbers", counts)


def _counts_from_runs(runs: list, size: ImageSize) -> bytes:
    # As Python's numbers first: an int64 has no room for some.
    if not all(0 <= run <= MAX_PIXELS for run in runs):
        raise ValueError(f"expected runs of 0 to {MAX_PIXELS} pixels, found {shown(runs)}")
    lengths = np.array(runs, np.int64)
    check_runs(lengths, size)
    return counts_from_runs(lengths, size)


def _halves(error: ValueError) -> tuple[str, _Words]:
    """Return what was expected and what was found from "expected ..., found ..."."""
    expected, _, found = str(error).partition(", found ")
    return expected.replace("expected ", "", 1), _Words(found)
