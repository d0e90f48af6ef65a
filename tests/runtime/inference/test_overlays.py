"""Overlays' names: unique on any file system, short enough, always the same, and over nothing but overlays."""

import errno
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.inference import overlays
from runtime.inference.overlays import OverlayError, overlay_paths, write_overlay
from runtime.png_marks import is_overlay
from tests.runtime.test_detections import _detections

IMAGE = np.zeros((40, 50, 3), np.uint8)


def _names(paths: list[Path], out: Path) -> list[str]:
    return [path.name for path in overlay_paths(paths, out)]


def _same_on_some_system(name: str) -> str:
    """What a file system that ignores case and normal form takes for one name, written another way than the code."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())


def test_overlays_of_equal_names_do_not_collide(tmp_path: Path) -> None:
    paths = [tmp_path / n for n in ("x/a.jpg", "y/a.jpg", "y/A.png", "z/y/a.bmp", "x/a-b.jpg")]
    # y/A.png: neither A.png nor y_A.png differs from its neighbours' where case is ignored.
    assert _names(paths, tmp_path / "out") == ["a.png", "y_a.png", "A_2.png", "a_3.png", "a-b.png"]


def test_names_that_differ_by_normal_form_do_not_collide(tmp_path: Path) -> None:
    stems = ["\u00e9", "e\u0301", "E\u0301", "\u00c9", "ﬃ", "FFI", "ß", "SS"]
    names = _names([tmp_path / "x" / f"{stem}.jpg" for stem in stems], tmp_path / "out")
    assert len({_same_on_some_system(name) for name in names}) == len(stems)


def test_long_names_are_cut_and_stay_apart(tmp_path: Path) -> None:
    stems = ["a" * 251, "a" * 250 + "b", "ä" * 125, "日" * 83, "日" * 83 + "a"]
    paths = [tmp_path / "x" / f"{stem}.jpg" for stem in stems]
    names = _names(paths, tmp_path)
    assert names[0] == "a" * 251 + ".png"  # 255 bytes, as it is
    assert len(set(names)) == len(names)
    for name in names:
        assert len(name.encode()) <= 255
        write_overlay(tmp_path / name, IMAGE, _detections())
    assert _names(paths, tmp_path) == names
    twice = [tmp_path / folder / ("a" * 251 + ".jpg") for folder in "xyz"]
    assert len({n for n in _names(twice, tmp_path) if len(n) <= 255}) == 3


def test_bytes_that_are_not_utf_8_are_written_in_ascii(tmp_path: Path) -> None:
    paths = [tmp_path / os.fsdecode(name) for name in (b"\xff\xfe.jpg", b"a\xe4.jpg", b"%FF%FE.jpg")]
    names = _names(paths, tmp_path / "out")
    assert names[:2] == ["%FF%FE.png", "a%E4.png"]
    assert len(set(names)) == 3


@given(st.lists(st.binary(min_size=1, max_size=255).filter(lambda b: not set(b) & {0, 47}), min_size=1))
def test_whatever_the_names_overlays_differ(names: list[bytes]) -> None:
    paths = [Path("/nowhere/in") / os.fsdecode(name) for name in names if name not in (b".", b"..")]
    found = [path.name for path in overlay_paths(paths, Path("/nowhere/out"))]
    assert len({_same_on_some_system(name) for name in found}) == len(paths)
    assert all(len(name.encode()) <= 255 for name in found)
    assert found == [path.name for path in overlay_paths(paths, Path("/nowhere/out"))]


def test_thousands_of_equal_names_take_no_longer_each(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Counted, not timed: one look per candidate, and few candidates per image."""
    looks = []
    is_free = overlays._is_free
    monkeypatch.setattr(overlays, "_is_free", lambda *a: looks.append(a[0]) or is_free(*a))
    paths = [tmp_path / str(index) / "same" / "a.jpg" for index in range(3000)]
    assert len(set(overlay_paths(paths, tmp_path / "out"))) == 3000
    assert len(looks) < 4 * 3000


def test_only_overlays_are_replaced(tmp_path: Path) -> None:
    """A file of the user's that is no input stays too, and so does whatever else has the name."""
    image = tmp_path / "in" / "a.jpg"
    (tmp_path / "a.png").write_bytes(b"the user's own")
    (tmp_path / "in_a.png").symlink_to("nowhere")
    (tmp_path / "a_2.png").mkdir()
    assert _names([image], tmp_path) == ["a_3.png"]
    write_overlay(tmp_path / "a_3.png", IMAGE, _detections())
    assert is_overlay(tmp_path / "a_3.png")
    assert _names([image], tmp_path) == ["a_3.png"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EIO])
def test_a_disk_that_takes_nothing_is_an_os_error(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(path: Path, data: bytes) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(overlays, "write_whole", failing)
    with pytest.raises(OSError, match="a.png"):
        write_overlay(tmp_path / "a.png", IMAGE, _detections())


@pytest.mark.parametrize("number", [errno.EILSEQ, errno.ENAMETOOLONG, errno.EINVAL])
def test_a_name_that_no_file_can_have_is_one_overlays_problem(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(path: Path, data: bytes) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(overlays, "write_whole", failing)
    with pytest.raises(OverlayError, match="a.png.*; rename the image"):
        write_overlay(tmp_path / "a.png", IMAGE, _detections())


def test_what_came_in_the_way_is_one_overlays_problem(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(
        OverlayError, match="pipe.png: expected a regular file or a new name, found a named pipe"
    ):
        write_overlay(tmp_path / "pipe.png", IMAGE, _detections())
