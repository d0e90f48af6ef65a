"""What ``runtime.infer`` is asked to look at: image files, addresses, videos, or images from standard input."""

import glob
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.image_files import VIDEO_SUFFIXES, select_images
from runtime.pipeline import Source
from runtime.reading import SMALL, bounded_bytes
from runtime.remote import RemoteImage, is_address
from runtime.video.reader import LIVE_SCHEMES

STANDARD_INPUT = "-"
_CAMERA = "camera:"


@dataclass(frozen=True)
class Sources:
    """What is meant, of one kind.

    Attributes:
        images: files and addresses, each once.
        videos: files, streams (``rtsp://``) and cameras (``camera:0``).
        from_stdin: whether images come as JSON lines.
        ignored: a line for each folder or pattern of which not all is taken.
    """

    images: tuple[Source, ...] = ()
    videos: tuple[str, ...] = ()
    from_stdin: bool = False
    ignored: tuple[str, ...] = ()


def select_sources(names: Sequence[str], *, recursive: bool = False) -> Sources:
    """Return what the names stand for.

    Args:
        names: files, folders, patterns, http(s) addresses; or videos, streams, cameras; or ``-`` alone.
        recursive: take folders with those within them.

    Raises:
        FileNotFoundError, ValueError: see ``select_images``; or images and videos are named together.
    """
    if STANDARD_INPUT in names:
        if len(names) > 1:
            raise ValueError(
                f"sources: expected {STANDARD_INPUT!r} (JSON lines from standard input) alone, found "
                f"{len(names) - 1} more; leave the others out"
            )
        return Sources(from_stdin=True)
    videos = tuple(dict.fromkeys(name for name in names if is_video(name)))
    if videos and len(videos) < len(dict.fromkeys(names)):
        other = next(name for name in names if name not in videos)
        raise ValueError(
            f"sources: expected images or videos, found both, such as {other} and {videos[0]}; run them apart"
        )
    if videos:
        return Sources(videos=tuple(dict.fromkeys(file for name in videos for file in _videos_of(name))))
    return _images(names, recursive)


def is_video(name: str) -> bool:
    """Return whether a source is a video file, a stream or a camera, by its name."""
    scheme = name.partition("://")[0].lower() if "://" in name else ""
    if scheme in LIVE_SCHEMES or name.startswith(_CAMERA):
        return True
    return Path(name).suffix.lower() in VIDEO_SUFFIXES and not _is_folder(name)


def listed_sources(path: Path) -> list[str]:
    """Return the sources in a text file, one in each line; empty lines are passed over.

    They are as on the command line: relative to the working directory.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file of text, or holds no source.
    """
    try:
        text = bounded_bytes(path, SMALL).decode("utf-8-sig", "surrogateescape")
    except ValueError as error:
        raise ValueError(f"--list {path}: {error}") from error
    names = [line.strip("\r") for line in text.split("\n")]
    names = [name for name in names if name.strip()]
    if not names:
        raise ValueError(f"--list {path}: expected a source in each line, found none; name another file")
    if any("\0" in name for name in names):
        raise ValueError(f"--list {path}: expected text, found a byte 0; name a list of paths, not an image")
    return names


def _images(names: Sequence[str], recursive: bool) -> Sources:
    found: dict[Source, None] = {}
    ignored: list[str] = []
    for name in names:
        if is_address(name):
            found[RemoteImage(name)] = None
            continue
        selection = select_images([name], recursive=recursive)
        found.update(dict.fromkeys(selection.paths))
        ignored += selection.ignored
    return Sources(images=tuple(found), ignored=tuple(ignored))


def _videos_of(name: str) -> list[str]:
    """Return the files that a pattern matches, or the name itself."""
    if "://" in name or name.startswith(_CAMERA) or os.path.lexists(name) or not glob.has_magic(name):
        return [name]
    found = sorted(path for path in glob.iglob(name, recursive=True) if os.path.isfile(path))
    if not found:
        raise FileNotFoundError(f"pattern {name}: expected videos, found none; name another pattern or files")
    return found


def _is_folder(name: str) -> bool:
    try:
        return stat.S_ISDIR(Path(name).stat().st_mode)
    except (OSError, ValueError):
        return False
