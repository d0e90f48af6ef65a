"""Beside overlays: labels of each image for annotation and training tools, and cut-out images of what was found."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

import cv2
import numpy as np

from runtime.detections import Detections
from runtime.draw import in_color
from runtime.files import write_whole
from runtime.inference.overlays import numbered_names
from runtime.interop.files import as_json
from runtime.interop.labelme import labelme_from_detections
from runtime.interop.yolo import data_yaml, yolo_from_detections
from runtime.messages import in_utf8
from runtime.pipeline import Source
from runtime.png_marks import is_overlay, marked
from runtime.remote import RemoteImage

FORMATS = ("coco", "labelme", "yolo")
CROPS = ("box", "mask")
LABELME_FOLDER, YOLO_FOLDER, CROPS_FOLDER = "labelme", "yolo", "crops"
# px; people cannot edit an outline that has a point at every pixel's corner.
TOLERANCE = 1.0
_LONGEST_CLASS = 60


@dataclass(frozen=True)
class LabelFiles:
    """Files of one run.

    Attributes:
        out: the folder.
        formats: of ``FORMATS``; ``coco`` is written by ``runtime.coco_writer``.
        crops: of ``CROPS``: objects are cut out with their box, or with their mask as transparency; None: they are not.
        sources: all of the run.
        stems: what the files of each are called.
    """

    out: Path
    formats: tuple[str, ...]
    crops: Optional[str]
    sources: Sequence[Source] = field(repr=False)
    stems: Sequence[str] = field(repr=False)

    def begin(self, classes: Sequence[str]) -> None:
        """Write what is of no image: the class names of YOLO."""
        if "yolo" in self.formats:
            folder = self.out / YOLO_FOLDER
            lines = "".join(f"{' '.join(name.split())}\n" for name in classes)
            write_whole(folder / "classes.txt", lines.encode("utf-8", "surrogateescape"))
            write_whole(folder / "data.yaml", data_yaml(classes).encode("utf-8"))

    def write(self, index: int, image: Optional[np.ndarray], drawn: Detections) -> None:
        """Write the files of one source; ``image`` is what is cut out of."""
        stem = os.fsdecode(self.stems[index].encode())
        if "labelme" in self.formats:
            path = self.out / LABELME_FOLDER / f"{stem}.json"
            content = labelme_from_detections(
                drawn, _seen_from(path.parent, self.sources[index]), tolerance=TOLERANCE
            )
            write_whole(path, as_json(content).encode("ascii"))
        if "yolo" in self.formats:
            path = self.out / YOLO_FOLDER / "labels" / f"{stem}.txt"
            write_whole(path, yolo_from_detections(drawn, tolerance=TOLERANCE).encode("ascii"))
        if self.crops is not None:
            write_crops(self.out / CROPS_FOLDER / stem, image, drawn, transparent=self.crops == "mask")


def label_files(
    out: Path, formats: Sequence[str], crops: Optional[str], sources: Sequence[Source]
) -> Optional[LabelFiles]:
    """Return what writes the files; None where none are asked for."""
    if crops is None and not {*formats} - {"coco"}:
        return None
    return LabelFiles(out, tuple(formats), crops, sources, numbered_names(sources))


def write_crops(folder: Path, image: np.ndarray, detections: Detections, *, transparent: bool) -> None:
    """Write a PNG for each detection, ``NUMBER_CLASS.png``, best first; those of an earlier run are removed.

    Args:
        folder: where to.
        image: (H, W, 3) uint8 BGR, or grey or with alpha.
        detections: of this image. One whose box has no pixel of the image has no file.
        transparent: what is outside the mask is transparent; of a model without masks, nothing is.

    Raises:
        OSError: a file cannot be written.
    """
    pixels, written = in_color(image), set()
    for number, one in enumerate(detections, 1):
        top, bottom, left, right = _window(one.boxes[0], one.image_size)
        if top >= bottom or left >= right:
            continue
        cut = pixels[top:bottom, left:right]
        if transparent:
            alpha = np.full(cut.shape[:2], 255, np.uint8)
            if one.has_masks:
                alpha *= one.masks[0, top:bottom, left:right]
            cut = np.dstack((cut, alpha))
        path = folder / f"{number:03}_{safe_name(one.names[0])}.png"
        write_whole(path, marked(cv2.imencode(".png", cut)[1].tobytes()))
        written.add(path.name)
    _remove_others(folder, written)


def safe_name(text: str) -> str:
    """Return a text as a part of a file's name: letters, digits, ``.``, ``_`` and ``-``, not too long."""
    name = re.sub(r"[^\w.-]+", "_", in_utf8(text)).strip("._")
    encoded = "".join(c if c.isprintable() else "_" for c in name).encode("utf-8", "replace")
    return encoded[:_LONGEST_CLASS].decode("utf-8", "ignore") or "object"


def _remove_others(folder: Path, written: set[str]) -> None:
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if path.name not in written and re.match(r"\d{3,}_", path.name) and is_overlay(path):
            path.unlink()


def _window(box: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    height, width = size
    x1, y1 = np.floor(box[:2]).clip(0, (width, height)).astype(int).tolist()
    x2, y2 = np.ceil(box[2:]).clip(0, (width, height)).astype(int).tolist()
    return y1, y2, x1, x2


def _seen_from(folder: Path, source: Source) -> str:
    """Return the image's path relative to a folder; its address where it has one."""
    if isinstance(source, RemoteImage):
        return source.url
    try:
        return in_utf8(Path(os.path.relpath(source.resolve(), folder.resolve())).as_posix())
    except ValueError:  # on another drive
        return in_utf8(source.resolve().as_posix())
