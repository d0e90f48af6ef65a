"""Which files are taken, which are not, and that this is said; nothing is opened that could block."""

import os
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest

from runtime.image_files import find_images, select_images
from runtime.png_marks import is_overlay, marked
from tests.runtime import fakes
from tests.runtime.processes import run

PNG = cv2.imencode(".png", fakes.random_image(40, 50))[1].tobytes()


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def _names(sources: list[str], root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in find_images(sources)]


def test_files_folders_and_globs_are_found_in_order_and_once(tmp_path: Path) -> None:
    _touch(tmp_path, "b.jpg", "a.PNG", "notes.txt", "deep/c.webp", "raw.dat")
    assert _names([str(tmp_path)], tmp_path) == ["a.PNG", "b.jpg"]
    assert _names([f"{tmp_path}/b.jpg", str(tmp_path)], tmp_path) == ["b.jpg", "a.PNG"]
    assert _names([f"{tmp_path}/**/*"], tmp_path) == ["a.PNG", "b.jpg", "deep/c.webp"]
    # A file is named on purpose, whatever its suffix.
    assert _names([f"{tmp_path}/raw.dat"], tmp_path) == ["raw.dat"]


def test_brackets_in_a_files_name_are_no_pattern(tmp_path: Path) -> None:
    _touch(tmp_path, "photo[1].jpg", "photo1.jpg")
    assert _names([f"{tmp_path}/photo[1].jpg"], tmp_path) == ["photo[1].jpg"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("none.jpg", "none.jpg: expected an image, a folder or a glob pattern, found nothing by that name"),
        ("bare", "folder .*bare: expected images .*, found none; name another folder"),
        (
            "empty",
            r"folder .*empty: expected images .*, found none but 1 folder, 2 others \(.txt\); name another",
        ),
        ("*.png", r"pattern .*\*.png: expected images .*, found none"),
        ("no\0name", "no\0name: expected an image, a folder or a glob pattern, found nothing"),
    ],
)
def test_a_source_without_images_is_refused(source: str, message: str, tmp_path: Path) -> None:
    _touch(tmp_path, "empty/notes.txt", "empty/more.txt", "empty/deep/a.jpg", "b.jpg")
    (tmp_path / "bare").mkdir()
    with pytest.raises(FileNotFoundError, match=message):
        find_images([f"{tmp_path}/b.jpg", f"{tmp_path}/{source}"])


def test_what_is_not_taken_is_said(tmp_path: Path) -> None:
    _touch(tmp_path, "a.jpg", "b.jpg", "x/deep.jpg", "y/deep.jpg", "1.mp4", "2.MP4", "3.avi")
    _touch(tmp_path, "a.txt", "b.txt", "c.json", "d.csv", "e.xml", "Makefile")
    (tmp_path / "o.png").write_bytes(marked(PNG))
    selection = select_images([str(tmp_path), f"{tmp_path}/a.*", f"{tmp_path}/b.jpg"])
    assert [path.name for path in selection.paths] == ["a.jpg", "b.jpg"]
    assert set(selection.ignored[0].removeprefix(f"ignored in {tmp_path}: ").split(", ")) == {
        "3 videos (.mp4",
        ".avi)",
        "6 others (.txt",
        "no suffix",
        ".json and 2 more)",
        "1 overlay of an earlier run",
        "2 folders",
    }
    assert selection.ignored[1:] == (f"ignored in {tmp_path}/a.*: 1 other (.txt)",)


@pytest.fixture
def special(tmp_path: Path) -> Iterator[Path]:
    """A folder with an image, and with what has an image's name and is none that can be read."""
    _touch(tmp_path, "good.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "null.jpg").symlink_to("/dev/zero")
    (tmp_path / "broken.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "folder.jpg").mkdir()
    with closing(socket.socket(socket.AF_UNIX)) as listening:
        before = Path.cwd()
        os.chdir(tmp_path)  # the name of a socket is short
        listening.bind("socket.jpg")
        os.chdir(before)
        yield tmp_path


@pytest.mark.parametrize("pattern", ["", "/*", "/**/*.jpg"])
def test_what_could_block_is_left_alone(pattern: str, special: Path) -> None:
    selection = select_images([f"{special}{pattern}"])
    assert [path.name for path in selection.paths] == ["good.jpg"]
    (line,) = selection.ignored
    for words in (
        "2 broken links (broken.jpg, loop.jpg)",
        "1 folder",
        "1 device (null.jpg)",
        "1 named pipe (pipe.jpg)",
        "1 socket (socket.jpg)",
    ):
        assert words in line


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("pipe.jpg", "named pipe"),
        ("null.jpg", "device"),
        ("broken.jpg", "broken link"),
        ("socket.jpg", "socket"),
    ],
)
def test_what_is_named_and_could_block_is_refused(name: str, kind: str, special: Path) -> None:
    with pytest.raises(
        ValueError, match=f"{name}: expected an image, .* found a {kind}; name a regular file"
    ):
        select_images([str(special / "good.jpg"), str(special / name)])


def test_the_command_does_not_wait_for_a_pipe(special: Path, fake_model: Path, tmp_path: Path) -> None:
    (special / "good.jpg").write_bytes(PNG)
    for source, status in ((special, 0), (special / "pipe.jpg", 2), (b"%s/\xff.jpg" % bytes(special), 2)):
        code, _, said = run("runtime.infer", source, "--model", fake_model, "--out", tmp_path / "out")
        assert code == status
        assert ("ignored in" if code == 0 else "error: ") in said
        assert "Traceback" not in said


def test_names_that_are_not_utf_8_are_found(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff\xfe.png")).write_bytes(PNG)
    assert [os.fsencode(path.name) for path in find_images([str(tmp_path)])] == [b"\xff\xfe.png"]


def test_only_marked_pngs_are_overlays(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    for content, expected in ((marked(PNG), True), (PNG, False), (b"", False), (marked(PNG)[:60], False)):
        path.write_bytes(content)
        assert is_overlay(path) is expected
    assert not is_overlay(tmp_path / "none.png")
    with pytest.raises(ValueError, match="expected a PNG, found"):
        marked(b"\xff\xd8\xff")


def test_a_marked_png_is_the_same_image() -> None:
    pixels = cv2.imdecode(np.frombuffer(marked(PNG), np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(pixels, fakes.random_image(40, 50))
