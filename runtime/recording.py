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
"""

import json
import os
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Optional

import numpy as np

from runtime.detections import Detections
from runtime.engine.sidecar import sha256_of
from runtime.metadata import ModelMetadata
from runtime.rle import RunLengthMasks, load_pycocotools

SUFFIX = ".npz"
FORMAT = 1
_ARRAYS = ("header", "num_detections", "boxes", "scores", "labels", "mask_bytes", "masks")
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
                f"{_listed([i.name for i in self.images])}; record it again with --images {image}"
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
        path.parent.mkdir(parents=True, exist_ok=True)
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

    def add(self, image: Path, detections: Detections) -> None:
        """Append one image's detections; their masks are run-length encoded here and not kept otherwise."""
        self._images.append(RecordedImage(image.name, sha256_of(image), *detections.image_size))
        if self._has_masks:
            self._counts.extend(lengths["counts"].encode("ascii") for lengths in detections.rle())
        kept = (detections.boxes, detections.scores, detections.labels)
        self._detections.append(Detections(*kept, detections.image_size, detections.classes))

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
        partial = self._path.with_name(self._path.name + ".part")
        with partial.open("wb") as file:  # a name without .npz would be given one
            np.savez_compressed(file, **self._arrays())
        os.replace(partial, self._path)

    def _arrays(self) -> dict[str, np.ndarray]:
        found = self._detections
        header = json.dumps({**self._header, "images": [asdict(image) for image in self._images]})
        return {
            "header": np.frombuffer(header.encode("utf-8"), np.uint8),
            "num_detections": np.array([len(d) for d in found], np.int64),
            "boxes": _joined([d.boxes for d in found], np.float32, (0, 4)),
            "scores": _joined([d.scores for d in found], np.float32, (0,)),
            "labels": _joined([d.labels for d in found], np.int32, (0,)),
            "mask_bytes": np.array([len(c) for c in self._counts], np.int64),
            "masks": np.frombuffer(b"".join(self._counts), np.uint8),
        }


def read_recording(path: Path) -> Recording:
    """Read what ``RecordingWriter`` wrote. No pickle is ever loaded.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a recording, another format number, or a damaged one.
    """
    arrays = _load_arrays(path)
    header = _header(path, arrays["header"])
    try:
        metadata = ModelMetadata.from_json(json.dumps(header["model"]))
        images = tuple(RecordedImage(**image) for image in header["images"])
        detections = tuple(_split(arrays, images, metadata))
        return Recording(path, metadata, header["source"], header["made_with"], images, detections)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"recording {path}: expected a whole recording, found a damaged one ({error}); record it again"
        ) from error


def check_image_file(path: Path) -> None:
    """Refuse a missing image.

    Raises:
        FileNotFoundError: no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"image {path}: expected a file, found nothing there; check the path")


def _load_arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(f"recording {path}: expected a file, found nothing; make it with {_COMMANDS}")
    try:
        with np.load(path, allow_pickle=False) as content:
            missing = [name for name in _ARRAYS if name not in content]
            if not missing:
                return {name: content[name] for name in _ARRAYS}
            found = ", ".join(content.files) or "none"
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"recording {path}: expected an .npz of plain arrays, found a file that NumPy cannot read so: "
            f"{error}; make it with {_COMMANDS}"
        ) from error
    raise ValueError(
        f"recording {path}: expected the arrays {', '.join(_ARRAYS)}, found {found}; make it with {_COMMANDS}"
    )


def _header(path: Path, array: np.ndarray) -> dict:
    try:
        header = json.loads(array.tobytes().decode("utf-8"))
    except ValueError as error:
        raise ValueError(
            f"recording {path}: expected a JSON header, found {error}; record it again"
        ) from error
    number = header.get("format") if isinstance(header, dict) else None
    if number != FORMAT:
        raise ValueError(
            f"recording {path}: expected format {FORMAT}, found {number}; record it again with this version"
        )
    return header


def _split(
    arrays: dict[str, np.ndarray], images: Sequence[RecordedImage], metadata: ModelMetadata
) -> Iterable[Detections]:
    """Yield the detections of each image."""
    total = int(arrays["num_detections"].sum())
    masks = _split_masks(arrays, total) if metadata.masks != "none" else None
    if len(arrays["num_detections"]) != len(images) or any(
        len(arrays[name]) != total for name in ("boxes", "scores", "labels")
    ):
        raise ValueError(f"arrays of {total} detections in {len(images)} images have other lengths")
    labels = arrays["labels"]
    if total and not (labels.min() >= 0 and labels.max() < len(metadata.classes)):
        raise ValueError(f"labels {labels.min()} to {labels.max()} for {len(metadata.classes)} classes")
    start = 0
    for image, count in zip(images, arrays["num_detections"].tolist()):
        part = slice(start, start + count)
        size = (image.height, image.width)
        source = None if masks is None else RunLengthMasks(masks[part], size)
        rows = (arrays["boxes"][part], arrays["scores"][part], labels[part])
        yield Detections(*rows, size, metadata.classes, source)
        start += count


def _split_masks(arrays: dict[str, np.ndarray], total: int) -> tuple[bytes, ...]:
    data = arrays["masks"].tobytes()
    ends = np.cumsum(arrays["mask_bytes"]).tolist()
    if len(ends) != total or (ends[-1] if ends else 0) != len(data):
        raise ValueError(f"masks of {total} detections have other lengths")
    return tuple(data[start:end] for start, end in zip([0, *ends], ends))


def _joined(parts: Sequence[np.ndarray], dtype: type, empty: tuple[int, ...]) -> np.ndarray:
    return np.concatenate([np.zeros(empty, dtype), *parts]).astype(dtype, copy=False)


def _listed(names: Sequence[str], limit: int = 4) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "no image") + more
