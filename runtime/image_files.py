"""Which image files are meant: by files, folders and patterns; and what lies beside them and is left alone."""

import glob
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from runtime.messages import counted, listed, printable
from runtime.png_marks import is_overlay

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
# What is no regular file may block whoever opens it.
_KINDS = (
    (stat.S_ISDIR, "folder"),
    (stat.S_ISFIFO, "named pipe"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISBLK, "device"),
    (stat.S_ISCHR, "device"),
)
_BROKEN_LINK = "broken link"
_NOT_ALLOWED = "path without permission"
_OVERLAY = "overlay of an earlier run"
_PLURALS = {
    _NOT_ALLOWED: "paths without permission",
    _OVERLAY: "overlays of earlier runs",
}
_NUM_EXAMPLES = 3


@dataclass(frozen=True)
class Selection:
    """Image files, and what was not taken.

    Attributes:
        paths: the files, each once.
        ignored: a line for each folder or pattern that has more than images.
    """

    paths: tuple[Path, ...]
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Ignored:
    """Something that is not taken: what it is, and its name, or its suffix where there may be many."""

    kind: str
    example: str


def find_images(sources: Sequence[str]) -> list[Path]:
    """Return the image files that are meant; see ``select_images``."""
    return list(select_images(sources).paths)


def select_images(sources: Sequence[str], *, recursive: bool = False) -> Selection:
    """Return the image files that files, folders and glob patterns name, in that order, each once.

    A folder stands for the images directly in it, sorted by name; ``recursive``: also for those of the folders in it,
    sorted by path, through no symbolic links of folders. A file is taken whatever its suffix; of what a folder
    holds or a glob matches, regular files with an image's suffix that are no overlays (``runtime.inference.overlays``).

    Raises:
        FileNotFoundError: a path that does not exist, a folder without images, a pattern that matches none.
        ValueError: a path of what is no file.
    """
    paths: dict[Path, None] = {}
    notes = []
    for source in sources:
        found, ignored = _images_of(source, recursive)
        paths.update(dict.fromkeys(found))
        if ignored:
            notes.append(f"ignored in {printable(source)}: {_described(ignored)}")
    return Selection(tuple(paths), tuple(notes))


def _images_of(source: str, recursive: bool) -> tuple[list[Path], list[_Ignored]]:
    path = Path(source)
    # Existing paths first: a file may have brackets in its name.
    kind = _kind(path)
    if kind == "file":
        return [path], []
    if kind == "folder":
        among = _files_below(path) if recursive else path.iterdir()
        return _images_among(among, f"folder {source}")
    if not kind and glob.has_magic(source):
        matches = (Path(p) for p in glob.iglob(source, recursive=True))
        return _images_among(matches, f"pattern {source}")
    if kind:
        raise ValueError(
            f"{source}: expected an image, a folder or a glob pattern, found a {kind}; name a regular file"
        )
    raise FileNotFoundError(
        f"{source}: expected an image, a folder or a glob pattern, found nothing by that name"
    )


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield what lies in a folder and in those within it; links of folders may lead in a circle, and are yielded."""
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        yield from (Path(parent, name) for name in (*files, *links))


def _images_among(paths: Iterable[Path], described: str) -> tuple[list[Path], list[_Ignored]]:
    images, ignored = [], []
    for path in sorted(paths):
        reason = _reason_to_ignore(path)
        if reason is None:
            images.append(path)
        else:
            ignored.append(reason)
    if not images:
        others = f" but {_described(ignored)}" if ignored else ""
        raise FileNotFoundError(
            f"{described}: expected images ({', '.join(SUFFIXES)}), found none{others}; "
            "name another folder, files or a pattern"
        )
    return images, ignored


def _reason_to_ignore(path: Path) -> Optional[_Ignored]:
    kind, suffix = _kind(path), path.suffix.lower()
    if kind == "folder":
        return _Ignored(kind, "")
    if kind != "file":
        return _Ignored(kind or _NOT_ALLOWED, path.name)
    if suffix in VIDEO_SUFFIXES:
        return _Ignored("video", suffix)
    if suffix not in SUFFIXES:
        return _Ignored("other", suffix or "no suffix")
    return _Ignored(_OVERLAY, "") if is_overlay(path) else None


def _kind(path: Path) -> str:
    """Return what a path leads to; empty for nothing."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        try:
            return _BROKEN_LINK if stat.S_ISLNK(os.lstat(path).st_mode) else _NOT_ALLOWED
        except PermissionError:
            return _NOT_ALLOWED
        except (OSError, ValueError):
            return ""
    return next((name for is_kind, name in _KINDS if is_kind(mode)), "file")


def _described(ignored: Sequence[_Ignored]) -> str:
    """Return counts and examples: ``3 videos (.mp4), 2 folders, 14 others (.txt, .json)``."""
    counts = Counter(item.kind for item in ignored)
    return ", ".join(_described_kind(kind, ignored, counts[kind]) for kind in counts)


def _described_kind(kind: str, ignored: Sequence[_Ignored], number: int) -> str:
    examples = Counter(printable(item.example) for item in ignored if item.kind == kind and item.example)
    words = f"{number} {_PLURALS[kind]}" if number > 1 and kind in _PLURALS else counted(number, kind)
    shown = [example for example, _ in examples.most_common()]
    return f"{words} ({listed(shown, _NUM_EXAMPLES)})" if shown else words
