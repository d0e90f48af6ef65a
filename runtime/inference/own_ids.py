"""Ids of the user's own data set: image and category ids of results are those of a file of annotations.

So ``COCO("my.json").loadRes("out/results.json")`` finds the images and the categories that are meant.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Optional

from runtime.comparison.annotations import Identity, read_images_and_categories
from runtime.comparison.average_precision import CocoDataset, category_ids
from runtime.messages import counted, in_utf8, listed
from runtime.pipeline import Source
from runtime.remote import RemoteImage


@dataclass(frozen=True, eq=False)
class OwnDataset:
    """What a file of annotations says about images and categories.

    Attributes:
        path: of the file.
        images, categories: its entries, checked; see ``read_annotations``.
    """

    path: Path
    images: Sequence[dict]
    categories: Sequence[dict]

    def category_ids(self, classes: Sequence[str]) -> tuple[Optional[Identity], ...]:
        """Return the id of the category of each class's name; None for a class without one.

        Raises:
            ValueError: see ``runtime.comparison.average_precision.category_ids``.
        """
        return category_ids(classes, CocoDataset(self.path, {"categories": self.categories}, ()))


@dataclass(frozen=True, eq=False)
class Matched:
    """Image files with their entries.

    Attributes:
        paths: of the files that have one, in their order.
        entries: of each.
        notes: what was left out, and what the sources lack.
    """

    paths: tuple[Source, ...]
    entries: tuple[dict, ...]
    notes: tuple[str, ...]


def read_own_dataset(path: Path) -> OwnDataset:
    """Read the images and the categories of a file in COCO's annotations format; it need not have annotations.

    Raises:
        OSError, ValueError: it cannot be read, or is none; names the entry.
    """
    images, categories = read_images_and_categories(path)
    return OwnDataset(path, images, categories)


def match_images(dataset: OwnDataset, paths: Sequence[Source]) -> Matched:
    """Find each file's entry: the one whose ``file_name`` ends the file's path, else the only one of its bare name.

    Files without an entry are left out, and said.

    Raises:
        ValueError: no file has an entry, one could have several, or several have the same.
    """
    by_name: dict[str, list[dict]] = {}
    for entry in dataset.images:
        by_name.setdefault(_parts(entry["file_name"])[-1], []).append(entry)
    found: list[tuple[Source, dict]] = []
    others = []
    for path in paths:
        entry = _entry(dataset, path, by_name.get(in_utf8(path.name), []))
        if entry is None:
            others.append(in_utf8(path.name))
        else:
            found.append((path, entry))
    if not found:
        raise ValueError(
            f"--annotations {dataset.path}: expected its images among the sources, found none of them in "
            f"{counted(len(paths), 'file')}, such as {listed(others, 3)}; its first is "
            f"{dataset.images[0]['file_name']!r}"
        )
    _check_once(dataset, found)
    notes = tuple(_notes(dataset, others, len(found)))
    return Matched(tuple(path for path, _ in found), tuple(entry for _, entry in found), notes)


def _entry(dataset: OwnDataset, path: Source, candidates: Sequence[dict]) -> Optional[dict]:
    parts = [path.name] if isinstance(path, RemoteImage) else [in_utf8(p) for p in path.resolve().parts]
    lengths = [(len(own), entry) for own, entry in ((_parts(e["file_name"]), e) for e in candidates)]
    ending = [(length, entry) for length, entry in lengths if parts[-length:] == _parts(entry["file_name"])]
    most = max((length for length, _ in ending), default=0)
    meant = [entry for length, entry in ending if length == most] or list(candidates)
    if len(meant) > 1:
        ids = listed([repr(entry["id"]) for entry in meant])
        raise ValueError(
            f"--annotations {dataset.path}: expected one image for {path}, found the ids {ids}; "
            "write their folders into file_name"
        )
    return meant[0] if meant else None


def _parts(name: str) -> list[str]:
    # Annotations are written on Windows too.
    return [part for part in PureWindowsPath(name).parts if part not in (".", "\\", "/")] or [name]


def _check_once(dataset: OwnDataset, found: Sequence[tuple[Source, dict]]) -> None:
    first: dict[Identity, Source] = {}
    for path, entry in found:
        other = first.setdefault(entry["id"], path)
        if other != path:
            raise ValueError(
                f"--annotations {dataset.path}: expected one file for the image {entry['file_name']!r} (id "
                f"{entry['id']!r}), found {other} and {path}; name one of them"
            )


def _notes(dataset: OwnDataset, others: Sequence[str], num_found: int) -> Iterator[str]:
    if others:
        yield (
            f"left out, since {dataset.path} does not list them: {counted(len(others), 'image')} ({listed(others, 3)})"
        )
    missing = len(dataset.images) - num_found
    if missing:
        yield (
            f"{missing} of {counted(len(dataset.images), 'image')} of {dataset.path} are not among the sources: to a "
            "tool that evaluates all, they are images without detections"
        )
