"""Files written whole: whatever happens on the way, a reader finds one version, all of it."""

import errno
import hashlib
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime import files
from runtime.files import refuse_inputs, sha256_of, whole_file, withdraw, working_folder, write_whole
from tests.runtime.processes import SECONDS, first_line

DEAD_PROCESS = 2**22 + 1  # above Linux's largest process id


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.bin"
    write_whole(path, b"one")
    write_whole(str(path), b"two, and longer")
    assert path.read_bytes() == b"two, and longer"
    with whole_file(path) as file:
        file.write(b"thr")
        assert path.read_bytes() == b"two, and longer"
        file.write(b"ee")
    assert path.read_bytes() == b"three"
    with whole_file(path, "w") as file:
        file.write("vier ≥ 4\n")
    assert path.read_bytes() == "vier ≥ 4\n".encode()
    assert _names(path.parent) == ["file.bin"]


@pytest.mark.parametrize("mode", ["rb", "a", "r+b", "x"])
def test_only_writing_is_a_mode(mode: str, tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="mode: expected 'wb' or 'w', found"),
        whole_file(tmp_path / "f", mode),
    ):
        pass
    assert _names(tmp_path) == []


def test_the_temporary_file_says_whose_it_is(tmp_path: Path) -> None:
    with whole_file(tmp_path / "model.onnx"), whole_file(tmp_path / "model.onnx"):
        first, second = _names(tmp_path)
    for name in (first, second):
        assert name.startswith(".model.onnx.")
        assert name.endswith(".part")
        assert f"-{os.getpid()}-" in name


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_the_file_before_it(error: type[BaseException], tmp_path: Path) -> None:
    write_whole(tmp_path / "file", b"before")
    with pytest.raises(error), whole_file(tmp_path / "file") as file:
        file.write(b"half")
        raise error
    assert (tmp_path / "file").read_bytes() == b"before"
    assert _names(tmp_path) == ["file"]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_permissions_are_those_of_any_new_file(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_whole(tmp_path / "file", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("name", ["a" * 255, "ä" * 127, "a" * 250 + ".onnx"])
def test_names_of_the_greatest_length(name: str, tmp_path: Path) -> None:
    with whole_file(tmp_path / name) as file:
        file.write(b"x")
        assert len(_names(tmp_path)[0].encode()) <= 255
    assert _names(tmp_path) == [name]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "file")
    write_whole(tmp_path / "link", b"one")
    write_whole(tmp_path / "link", b"two")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "file").read_bytes() == b"two"


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "null").symlink_to("/dev/null")
    for path, found in (
        (tmp_path, "a folder"),
        (tmp_path / "fifo", "a named pipe"),
        (Path("/dev/null"), "a device"),
        (tmp_path / "null", "a device"),
    ):
        with pytest.raises(ValueError, match=f"{path}: expected a regular file or a new name, found {found}"):
            write_whole(path, b"")
    assert _names(tmp_path) == ["fifo", "null"]


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for folder in ("file", "file/deeper"):
        target = tmp_path / folder / "out"
        with pytest.raises(OSError) as error:
            write_whole(target, b"")
        assert str(target) in str(error.value)
        assert error.value.errno in (errno.EEXIST, errno.ENOTDIR)


def _leftover(folder: Path, process: int, *, target: str = "file", machine: str = files._MACHINE) -> Path:
    path = folder / f".{target}.{machine}-{process}-0123abcd.part"
    path.write_bytes(b"half")
    return path


def test_leftovers_of_killed_processes_go_with_the_next_write(tmp_path: Path) -> None:
    dead = _leftover(tmp_path, DEAD_PROCESS)
    old = _leftover(tmp_path, os.getppid())
    alive = _leftover(tmp_path, os.getpid())
    elsewhere = _leftover(tmp_path, DEAD_PROCESS, machine="0" * 8)
    others = [
        _leftover(tmp_path, DEAD_PROCESS, target="another"),
        _leftover(tmp_path, DEAD_PROCESS, target="file.bin"),
        tmp_path / ".file.part",
    ]
    others[-1].write_bytes(b"")
    os.utime(old, (0, time.time() - 3601))
    write_whole(tmp_path / "file", b"whole")
    assert not dead.exists()
    assert not old.exists()
    assert alive.exists()
    assert elsewhere.exists()
    assert all(path.exists() for path in others)


def test_a_large_folder_is_not_read_at_every_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_MANY_FILES", 3)
    monkeypatch.setattr(files, "_SHARE", 1e9)
    for index in range(5):
        (tmp_path / str(index)).write_bytes(b"")
    first, second = (_leftover(tmp_path, DEAD_PROCESS), "file")
    write_whole(tmp_path / second, b"")
    assert not first.exists()
    first = _leftover(tmp_path, DEAD_PROCESS)
    write_whole(tmp_path / second, b"")
    assert first.exists()


def _write_versions(path: Path, letter: bytes) -> None:
    for _ in range(25):
        write_whole(path, letter * 300_000)


def test_processes_that_write_one_name_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0" * 300_000)
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_versions, args=(path, bytes([letter]))) for letter in b"abcd"]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        data = path.read_bytes()
        assert len(data) == 300_000
        assert len(set(data)) == 1
        seen.add(data[:1])
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert len(seen) > 1
    assert _names(tmp_path) == ["file"]


_KILLED = """
import sys, time
from runtime.files import whole_file
with whole_file(sys.argv[1]) as file:
    file.write(b"half")
    file.flush()
    print("written", flush=True)
    time.sleep(60)
"""


def test_kill_leaves_the_file_before_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, b"before")
    with subprocess.Popen([sys.executable, "-c", _KILLED, str(path)], stdout=subprocess.PIPE) as process:
        assert first_line(process) == b"written\n"
        process.send_signal(signal.SIGKILL)
    assert path.read_bytes() == b"before"
    assert len(_names(tmp_path)) == 2
    write_whole(path, b"after")
    assert path.read_bytes() == b"after"
    assert _names(tmp_path) == ["file"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    if mounted.returncode:
        pytest.skip(f"no small file system here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True, timeout=SECONDS)


def test_a_full_disk_is_said_with_the_file(small_disk: Path) -> None:
    path = small_disk / "file"
    write_whole(path, b"before")
    message = r"No space left on device: expected room for 100000 bytes; .*small/file"
    with pytest.raises(OSError, match=message) as error:
        write_whole(path, bytes(100_000))
    assert error.value.errno == errno.ENOSPC
    assert error.value.filename == str(path)
    with (
        pytest.raises(OSError, match=r"No space left .* more than \d+ bytes") as error,
        whole_file(path) as file,
    ):
        for _ in range(100):
            file.write(bytes(1000))
    assert error.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"before"
    assert _names(small_disk) == ["file"]


def test_a_full_disk_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same where no file system can be mounted: the disk is full when the data are to reach it."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_whole(tmp_path / "file", b"before")
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="expected room for 7 bytes") as error:
        write_whole(tmp_path / "file", b"another")
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(tmp_path / "file"))
    assert (tmp_path / "file").read_bytes() == b"before"
    assert _names(tmp_path) == ["file"]


def test_errors_of_other_files_stay_theirs(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gone"), whole_file(tmp_path / "file") as file:
        file.write((tmp_path / "gone").read_bytes())


def test_the_digest(tmp_path: Path) -> None:
    content = bytes(range(256)) * 1000
    (tmp_path / "file").write_bytes(content)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_an_output_is_no_input(tmp_path: Path) -> None:
    model, other = tmp_path / "model.onnx", tmp_path / "other.onnx"
    model.write_bytes(b"")
    (tmp_path / "link").symlink_to(model)
    os.link(model, tmp_path / "hard")
    (tmp_path / "folder").mkdir()
    refuse_inputs(tmp_path / "new", [model, other])
    refuse_inputs(other, [model])
    for output in (model, tmp_path / "link", tmp_path / "hard", tmp_path / "folder" / ".." / "model.onnx"):
        with pytest.raises(
            ValueError, match=r"expected a file that is not read, found the input .*model\.onnx"
        ):
            refuse_inputs(output, [other, model])
    with pytest.raises(ValueError, match=r"found the input .*other\.onnx"):
        refuse_inputs(tmp_path / "folder" / ".." / "other.onnx", [other])
    with pytest.raises(ValueError, match=r"folder: expected the name of a file, found a folder"):
        refuse_inputs(tmp_path / "folder", [model])


def test_a_working_folder_goes_with_its_block(tmp_path: Path) -> None:
    for beside in (tmp_path / "new" / "m.onnx", None):
        with working_folder(beside) as folder:
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            assert beside is None or folder.parent == tmp_path / "new"
            (folder / "a").write_bytes(b"")
            (folder / "b").mkdir()
        assert not folder.exists()
        with pytest.raises(KeyError), working_folder(beside) as folder:
            raise KeyError
        assert not folder.exists()
    with pytest.raises(OSError, match="/dev/null"), working_folder("/dev/null/x/m.onnx"):
        pass


_IN_A_FOLDER = """
import signal, sys, time
from runtime.files import remove_partial_files, working_folder
with working_folder(sys.argv[1] or None) as folder:
    (folder / "weights").write_bytes(b"half")
    if sys.argv[2]:
        remove_partial_files()
    print(folder, flush=True)
    time.sleep(60)
"""


def _killed_in_a_folder(beside: str, environment: dict, ended: str = "") -> Path:
    command = [sys.executable, "-c", _IN_A_FOLDER, beside, ended]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, **environment}) as process:
        folder = Path(first_line(process).decode().strip())
        process.kill()
    return folder


def test_what_a_killed_process_worked_in_goes_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a file, and in the system's folder; another file's, and a living process's, stay."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for beside in (tmp_path / "m.onnx", None):
        left = _killed_in_a_folder(str(beside or ""), {"TMPDIR": str(tmp_path)})
        assert (left / "weights").exists()
        other = _killed_in_a_folder(str(tmp_path / "other"), {})
        with working_folder(beside) as first:
            assert not left.exists()
            assert other.exists()
            with working_folder(beside):
                assert first.exists()
        files.remove_abandoned(tmp_path)
        assert _names(tmp_path) == []


def test_a_process_that_is_ended_removes_its_folder(tmp_path: Path) -> None:
    assert not _killed_in_a_folder(str(tmp_path / "m.onnx"), {}, "ended").exists()


def test_a_link_in_the_place_of_a_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_bytes(b"")
    link = tmp_path / f".m.onnx.{files._MACHINE}-{DEAD_PROCESS}-0123abcd.part"
    link.symlink_to(tmp_path / "precious")
    with working_folder(tmp_path / "m.onnx"):
        assert not link.is_symlink()
    assert (tmp_path / "precious" / "file").exists()


def test_what_is_withdrawn_is_the_file_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to("file")
    withdraw(tmp_path / "link")
    assert _names(tmp_path) == ["link"]
    withdraw(tmp_path / "link")
    write_whole(tmp_path / "link", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
