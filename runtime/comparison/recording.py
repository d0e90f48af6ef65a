"""Recorded results: what a model found in some images, in one ``.npz`` that needs no model to be read.

The arrays, all images one after the other (n detections in total):

``header``          JSON (UTF-8 bytes as uint8): ``format``, ``model`` (``ModelMetadata``), ``source`` (what ran, in
                    words), ``made_with`` (versions and settings), and ``images``: name, SHA-256 of the file, height
                    and width in px, each
``num_detections``  (number of images,) int64
``boxes``           (n, 4) float32, [x1, y1, x2, y2] in original px
``scores``          (n,) float32
``labels``          (n,) int32
``mask_bytes``      (n,) int64, lengths in ``masks``; empty for a model without masks
``masks``           uint8, COCO's compressed run lengths at original resolution, one after the other
``keypoints``       (n, P, 3) float32, x and y in original px and a score; of a model with P key points only

Every value is checked when a recording is read, and nothing is decompressed before the sizes that it declares are:
``MASKRCNN_MAX_RECORDING_BYTES`` in the environment raises their limit.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Optional

import numpy as np

from runtime.detections import Detections
from runtime.documents import parsed
from runtime.files import make_folder, sha256_of, whole_file
from runtime.messages import listed, said, shown
from runtime.metadata import ModelMetadata
from runtime.npz import Expected, read_arrays
from runtime.reading import limit
from runtime.rle import MAX_PIXELS, RunLengthMasks, checked_counts, load_pycocotools

SUFFIX = ".npz"
FORMAT = 1
LIMIT_VARIABLE = "MASKRCNN_MAX_RECORDING_BYTES"
# Of all arrays together; 20000 images of 100 masks take less.
MAX_BYTES = 1 << 30
_ARRAYS = {
    "header": Expected("uint8", (None,)),
    "num_detections": Expected("int64", (None,)),
    "boxes": Expected("float32", (None, 4)),
    "scores": Expected("float32", (None,)),
    "labels": Expected("int32", (None,)),
    "mask_bytes": Expected("int64", (None,)),
    "masks": Expected("uint8", (None,)),
}
_COMMANDS = "`python -m export.reference` or `python -m runtime.record`"


@dataclass(frozen=True)
class RecordedImage:
    """An image that was recorded: its file's name and SHA-256, its height and width in px."""

    name: str
    sha256: str
    height: int
    width: int


@dataclass(frozen=True, eq=False)
class Recording:
    """A recorded run.

    Attributes:
        path: the file.
        metadata: the model's.
        source: what ran, in words.
        made_with: versions and settings of the run.
        images: in the order of the run.
        detections: of each image.
    """

    path: Path
    metadata: ModelMetadata
    source: str
    made_with: dict
    images: tuple[RecordedImage, ...]
    detections: tuple[Detections, ...]

    @cached_property
    def _indices(self) -> dict[str, list[int]]:
        indices: dict[str, list[int]] = {}
        for index, image in enumerate(self.images):
            indices.setdefault(image.name, []).append(index)
        return indices

    def find(self, image: Path) -> Detections:
        """Return what was found in an image file.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the recording has no image of this name, or one with other bytes.
        """
        check_image_file(image)
        if image.name not in self._indices:
            raise ValueError(
                f"recording {self.path}: expected results of {image.name}, found those of "
                f"{listed([i.name for i in self.images], 4, 'no image')}; record it again with --images {image}"
            )
        digest = sha256_of(image)
        for index in self._indices[image.name]:
            if self.images[index].sha256 == digest:
                return self.detections[index]
        expected = self.images[self._indices[image.name][0]].sha256
        raise ValueError(
            f"recording {self.path}: image {image}: expected the file that was recorded "
            f"(SHA-256 {expected[:12]}), found another one of that name ({digest[:12]}); "
            "take the recorded image, or record again"
        )


class RecordingWriter:
    """Collects detections image by image, and writes them when the run ends without an exception."""

    def __init__(self, path: Path, metadata: ModelMetadata, *, source: str, made_with: dict) -> None:
        """Prepare a recording.

        Args:
            path: the file to write, ``.npz``.
            metadata: the model's.
            source: what runs, in words.
            made_with: versions and settings of the run, plain JSON values.

        Raises:
            ValueError: another suffix.
            RuntimeError: pycocotools is not installed. Said here, not after the first batch.
        """
        if path.suffix.lower() != SUFFIX:
            raise ValueError(f"recording {path}: expected a name ending in {SUFFIX}, found {path.suffix!r}")
        load_pycocotools()
        make_folder(path.parent)
        self._path = path
        self._header = {
            "format": FORMAT,
            "model": json.loads(metadata.to_json()),
            "source": source,
            "made_with": made_with,
        }
        self._images: list[RecordedImage] = []
        self._detections: list[Detections] = []
        self._counts: list[bytes] = []
        self._has_masks = metadata.masks != "none"
        self._num_keypoints = len(metadata.keypoints)

    def add(self, image: Path, detections: Detections) -> None:
        """Append one image's detections; their masks are run-length encoded here and not kept otherwise."""
        self._images.append(RecordedImage(image.name, sha256_of(image), *detections.image_size))
        if self._has_masks:
            self._counts.extend(lengths["counts"].encode("ascii") for lengths in detections.rle())
        self._detections.append(replace(detections, mask_source=None))

    def __enter__(self) -> "RecordingWriter":
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        if kind is not None:
            return
        with whole_file(self._path) as file:
            arrays: dict[str, Any] = dict(self._arrays())
            np.savez_compressed(file, **arrays)

    def _arrays(self) -> dict[str, np.ndarray]:
        found = self._detections
        header = json.dumps({**self._header, "images": [asdict(image) for image in self._images]})
        points = {}
        if self._num_keypoints:
            parts = [d.keypoints for d in found if d.keypoints is not None]
            points = {"keypoints": _joined(parts, np.float32, (0, self._num_keypoints, 3))}
        return {
            **points,
            "header": np.frombuffer(header.encode("utf-8"), np.uint8),
            "num_detections": np.array([len(d) for d in found], np.int64),
            "boxes": _joined([d.boxes for d in found], np.float32, (0, 4)),
            "scores": _joined([d.scores for d in found], np.float32, (0,)),
            "labels": _joined([d.labels for d in found], np.int32, (0,)),
            "mask_bytes": np.array([len(c) for c in self._counts], np.int64),
            "masks": np.frombuffer(b"".join(self._counts), np.uint8),
        }


def read_recording(path: Path, max_bytes: Optional[int] = None) -> Recording:
    """Read what ``RecordingWriter`` wrote, and check every value. No pickle is ever loaded.

    Args:
        path: the file.
        max_bytes: most that its arrays may take once they are decompressed; None: what the environment says
            (``LIMIT_VARIABLE``), or ``MAX_BYTES``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a recording, another format number, or a damaged one; names the file and the place.
        RuntimeError: it has masks, and pycocotools is not installed.
    """
    most = limit(LIMIT_VARIABLE, MAX_BYTES) if max_bytes is None else max_bytes
    arrays = _load_arrays(path, _ARRAYS, most)
    header = _header(path, arrays["header"])
    try:
        metadata = _metadata(header)
        images = _images(header)
        source, made_with = _typed(header, "source", str), _typed(header, "made_with", dict)
        if metadata.keypoints:
            expected = {"keypoints": Expected("float32", (None, len(metadata.keypoints), 3))}
            arrays |= _load_arrays(path, expected, most - sum(array.nbytes for array in arrays.values()))
        detections = tuple(_split(arrays, images, metadata))
    except ValueError as error:
        raise ValueError(
            f"recording {path}: expected a whole recording, found a damaged one: {error}; record it again"
        ) from error
    return Recording(path, metadata, source, made_with, images, detections)


def check_image_file(path: Path) -> None:
    """Refuse a missing image.

    Raises:
        FileNotFoundError: no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"image {path}: expected a file, found nothing there; check the path")


def _load_arrays(path: Path, expected: Mapping[str, Expected], max_bytes: int) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(f"recording {path}: expected a file, found nothing; make it with {_COMMANDS}")
    try:
        return read_arrays(path, expected, max_bytes, f"if that is meant, set {LIMIT_VARIABLE} to as much")
    except ValueError as error:
        raise ValueError(
            f"recording {path}: expected an .npz of plain arrays, found a file that cannot be read so: {error}; "
            f"make it with {_COMMANDS}"
        ) from error


def _header(path: Path, array: np.ndarray) -> dict:
    try:
        header = parsed(array.tobytes())
    except ValueError as error:
        raise ValueError(f"recording {path}: header: {error}; record it again") from error
    number = header.get("format") if isinstance(header, dict) else None
    if number != FORMAT or isinstance(number, bool):
        raise ValueError(
            f"recording {path}: expected format {FORMAT}, found {shown(number)}; record it again with this version"
        )
    return header


def _metadata(header: dict) -> ModelMetadata:
    try:
        return ModelMetadata.from_json(json.dumps(_typed(header, "model", dict)))
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"header.model: expected a model's metadata, found {said(error)}") from error


def _images(header: dict) -> tuple[RecordedImage, ...]:
    return tuple(
        _recorded_image(entry, f"header.images[{index}]")
        for index, entry in enumerate(_typed(header, "images", list))
    )


def _recorded_image(entry: Any, place: str) -> RecordedImage:
    if not isinstance(entry, dict):
        raise ValueError(f"{place}: expected an object, found {shown(entry)}")
    name, digest = _typed(entry, "name", str, place), _typed(entry, "sha256", str, place)
    height, width = _typed(entry, "height", int, place), _typed(entry, "width", int, place)
    if not (height >= 1 and width >= 1 and height * width <= MAX_PIXELS):
        raise ValueError(
            f"{place} ({shown(name)}): expected a height and a width of 1 or more and up to {MAX_PIXELS} pixels, found "
            f"{shown(height)} and {shown(width)}"
        )
    return RecordedImage(name, digest, height, width)


def _typed(entry: dict, key: str, kind: type, place: str = "header") -> Any:
    value = entry.get(key)
    if type(value) is not kind:  # a bool is no int
        found = shown(value) if key in entry else "none"
        raise ValueError(f"{place}.{key}: expected {_KINDS[kind]}, found {found}")
    return value


_KINDS = {str: "a string", int: "a whole number", dict: "an object", list: "a list"}


def _split(
    arrays: dict[str, np.ndarray], images: Sequence[RecordedImage], metadata: ModelMetadata
) -> Iterable[Detections]:
    """Yield the detections of each image."""
    counts = _checked_lengths(arrays, len(images))
    total = sum(counts)
    for name in ("boxes", "scores", "keypoints"):
        if name not in arrays:
            continue
        finite = np.isfinite(arrays[name])
        _check_rows(name, finite.all(axis=tuple(range(1, finite.ndim))), arrays, images)
    labels = arrays["labels"]
    _check_rows("labels", (labels >= 0) & (labels < len(metadata.classes)), arrays, images)
    masks = _split_masks(arrays, total) if metadata.masks != "none" else None
    start = 0
    for image, count in zip(images, counts):
        part = slice(start, start + count)
        size = (image.height, image.width)
        source = None if masks is None else _mask_source(masks[part], image, start)
        rows = (arrays["boxes"][part], arrays["scores"][part], labels[part])
        points = arrays["keypoints"][part] if metadata.keypoints else None
        yield Detections(*rows, size, metadata.classes, source, points, metadata.keypoints, metadata.skeleton)
        start += count


def _checked_lengths(arrays: dict[str, np.ndarray], num_images: int) -> list[int]:
    """Return how many detections each image has, whose sum is the arrays' length."""
    counts = arrays["num_detections"].tolist()
    if min(counts, default=0) < 0:
        raise ValueError(
            f"num_detections[{counts.index(min(counts))}]: expected 0 or more, found {min(counts)}"
        )
    total = sum(counts)
    found = {name: len(arrays[name]) for name in ("boxes", "scores", "labels", "keypoints") if name in arrays}
    if len(counts) != num_images or set(found.values()) != {total}:
        lengths = ", ".join(f"{name} {length}" for name, length in found.items())
        raise ValueError(
            f"arrays of {total} detections in {num_images} images have other lengths: num_detections {len(counts)}, "
            f"{lengths}"
        )
    return counts


def _check_rows(
    name: str, is_good: np.ndarray, arrays: dict[str, np.ndarray], images: Sequence[RecordedImage]
) -> None:
    """Refuse the first bad row with its image."""
    bad = np.flatnonzero(~is_good)
    if not len(bad):
        return
    row = int(bad[0])
    image = images[int(np.searchsorted(np.cumsum(arrays["num_detections"]), row, side="right"))]
    expected = "indices of the model's classes" if name == "labels" else "finite numbers"
    raise ValueError(
        f"{name}[{row}] (image {image.name}): expected {expected}, found {arrays[name][row].tolist()}"
        + (f" and {len(bad) - 1} more of them" if len(bad) > 1 else "")
    )


def _split_masks(arrays: dict[str, np.ndarray], total: int) -> tuple[bytes, ...]:
    data, lengths = arrays["masks"].tobytes(), arrays["mask_bytes"].tolist()
    if min(lengths, default=0) < 0 or len(lengths) != total or sum(lengths) != len(data):
        raise ValueError(
            f"masks of {total} detections have other lengths: mask_bytes {len(lengths)}, of {sum(lengths)} bytes, "
            f"masks {len(data)}"
        )
    ends = np.cumsum(arrays["mask_bytes"]).tolist()
    return tuple(data[start:end] for start, end in zip([0, *ends], ends))


def _mask_source(masks: Sequence[bytes], image: RecordedImage, first: int) -> RunLengthMasks:
    size = (image.height, image.width)
    return RunLengthMasks(tuple(_checked_masks(masks, image, first)), size)


def _checked_masks(masks: Sequence[bytes], image: RecordedImage, first: int) -> Iterator[bytes]:
    for index, counts in enumerate(masks):
        try:
            yield checked_counts(counts, (image.height, image.width))
        except ValueError as error:
            raise ValueError(f"masks[{first + index}] (image {image.name}): {error}") from error


def _joined(parts: Sequence[np.ndarray], dtype: type, empty: tuple[int, ...]) -> np.ndarray:
    return np.concatenate([np.zeros(empty, dtype), *parts]).astype(dtype, copy=False)
