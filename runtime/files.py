"""Files: written whole or not at all, told apart by their content, and no output over an input."""

import errno
import hashlib
import os
import re
import secrets
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Optional, Union

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

PathLike = Union[str, "os.PathLike[str]"]

SUFFIX = ".part"
_MODES = ("wb", "w")
_CHUNK = 1 << 24
_LONGEST_NAME = 255  # bytes, of Linux's file systems
_OLD_SECONDS = 3600
# Of a working folder: a model may be worked on for hours after its weights were written there.
_OLD_FOLDER_SECONDS = 24 * 3600
_LOCK_SECONDS = 5.0
# The folder of a file is searched for leftovers before each write; a folder of more files than this less often, so
# that searching takes one part in _SHARE of the time.
_MANY_FILES = 1000
_SHARE = 20
_next_search: dict[str, float] = {}
_partial_files: set[Path] = set()
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _machine() -> str:
    """Return 8 hex digits of what process ids mean something in: the host, and on Linux the container."""
    with suppress(OSError):
        return _digest(f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}")
    return _digest(socket.gethostname())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


_MACHINE = _machine()


def write_whole(path: PathLike, data: bytes) -> None:
    """Write a file whole; see ``whole_file``."""
    with _whole_file(path, "wb", len(data)) as file:
        file.write(data)


@contextmanager
def whole_file(path: PathLike, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file that takes its name when the block ends without an exception; until then, the one before stays.

    The data go to a temporary file beside it, ``.NAME.<machine>-<process>-<random>.part``, which is removed if
    the block fails. What killed processes left of the same name goes with the next write of it: where the process is
    dead, or nothing was written for an hour. A missing folder is made, a symbolic link is followed, permissions are
    those of any new file.

    Args:
        path: of the file.
        mode: ``wb``, or ``w`` for UTF-8 text.

    Raises:
        ValueError: another mode, or something is there that is no regular file.
        OSError: it cannot be written; names the file, ``errno`` is the system's.
    """
    with _whole_file(path, mode, None) as file:
        yield file


def make_folder(path: PathLike) -> None:
    """Make a folder, and those above it, where there is none.

    Raises:
        OSError: it cannot be made; names the folder and the remedy, ``errno`` is the system's.
    """
    with _errors_of(path, None):
        Path(path).mkdir(parents=True, exist_ok=True)


def withdraw(path: PathLike) -> None:
    """Remove the file that ``whole_file`` is about to replace; a link to it stays.

    Of files that belong together, the one without which nobody reads the others goes before they are replaced, and is
    itself replaced last: a process that is killed in between leaves no mixture.
    """
    with suppress(FileNotFoundError), _errors_of(path, None):
        os.unlink(os.path.realpath(path))


@contextmanager
def working_folder(beside: Optional[PathLike] = None) -> Iterator[Path]:
    """Make a folder for files that are not to stay; it goes when the block ends, whatever ends it.

    What killed processes left goes first, as with ``whole_file``: where the process is dead, or of another machine and
    a day old.

    Args:
        beside: the file that it is for, with which it shares the file system and the beginning of the name; None: the
            system's folder for such.

    Raises:
        OSError: it cannot be made; names the place.
    """
    place = Path(tempfile.gettempdir()) / "maskrcnn" if beside is None else Path(os.path.realpath(beside))
    folder = place.with_name(_temporary_name(place.name))
    _partial_files.add(folder)
    try:
        with _errors_of(place.parent, None):
            place.parent.mkdir(parents=True, exist_ok=True)
            with suppress(OSError):
                _remove_leftovers(place)
            folder.mkdir(mode=0o700)
        yield folder
    finally:
        _remove(folder)
        _partial_files.discard(folder)


def append_whole(file: IO[bytes], data: bytes, path: PathLike) -> int:
    """Append to a file, past its buffer: all of the data or nothing.

    Args:
        file: that nothing else is written to.
        data: what is appended.
        path: which a message names.

    Returns:
        Where the data begin.

    Raises:
        OSError: it cannot be written; names the file.
    """
    number = file.fileno()
    end = os.lseek(number, 0, os.SEEK_END)
    try:
        with _errors_of(path, len(data)):
            left = memoryview(data)
            while left:
                left = left[os.write(number, left) :]
    except BaseException:
        with suppress(OSError):
            os.ftruncate(number, end)
        raise
    return end


def publish(file: IO[bytes], path: PathLike) -> None:
    """Give a file of ``whole_file`` its name already, while it is still being written.

    The name is a second one: when the block ends, whatever has the name by then is replaced. Where the file system has
    no hard links, the name comes with the end of the block.
    """
    target = Path(os.path.realpath(path))
    second = target.with_name(_temporary_name(target.name))
    _partial_files.add(second)
    try:
        os.link(file.name, second)
        os.replace(second, target)
    except OSError:
        with suppress(OSError):
            second.unlink()
    finally:
        _partial_files.discard(second)


@contextmanager
def locked(folder: PathLike) -> Iterator[None]:
    """Let no other process replace files of this folder in the meantime, if that process asks as well.

    Where folders cannot be locked, or another process takes longer than seconds, it goes on without.
    """
    if fcntl is None:
        yield
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        patience = time.monotonic() + _LOCK_SECONDS
        while not _is_locked(number) and time.monotonic() < patience:
            time.sleep(0.01)
        yield
    finally:
        os.close(number)


def _is_locked(number: int) -> bool:
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # no locks here
    return True


def remove_partial_files() -> None:
    """Remove what this process has begun to write: it is about to end without a chance to."""
    for path in list(_partial_files):
        _remove(path)


def _remove(path: Path) -> None:
    """Remove a temporary file or folder, if it is there and can be."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        path.unlink()


def remove_abandoned(folder: PathLike) -> None:
    """Remove the temporary files and folders that killed processes left in a folder, of whatever name."""
    with suppress(OSError):
        _remove_matching(Path(folder), os.listdir(folder), r"\..+\.")


def sha256_of(path: PathLike) -> str:
    """Return a file's SHA-256 as hexadecimal text."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def file_identity(path: PathLike) -> Optional[tuple[int, ...]]:
    """Return what changes when a file is written or replaced; None without a file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def refuse_inputs(output: PathLike, inputs: Iterable[PathLike]) -> None:
    """Refuse to write over what is read. Links, and files that do not exist yet, are seen through.

    Raises:
        ValueError: the output is one of the inputs, or a folder.
    """
    if os.path.isdir(output):
        raise ValueError(f"output {output}: expected the name of a file, found a folder; name a file in it")
    for path in inputs:
        if _is_same(output, path):
            raise ValueError(
                f"output {output}: expected a file that is not read, found the input {path}; name another file"
            )


def _is_same(one: PathLike, other: PathLike) -> bool:
    with suppress(OSError):
        return os.path.samefile(one, other)
    return os.path.realpath(one) == os.path.realpath(other)


@contextmanager
def _whole_file(path: PathLike, mode: str, num_bytes: Optional[int]) -> Iterator[IO[Any]]:
    """See ``whole_file``; ``num_bytes`` are to be written, None if that is not known."""
    if mode not in _MODES:
        raise ValueError(f"mode: expected {' or '.join(map(repr, _MODES))}, found {mode!r}")
    target = Path(os.path.realpath(path))
    _check_target(path, target)
    with _errors_of(path, num_bytes):
        target.parent.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):  # a folder that may be written to and not be listed
            _remove_leftovers(target)
    partial, file = target.with_name(_temporary_name(target.name)), None
    _partial_files.add(partial)
    try:
        with _errors_of(path, num_bytes):
            file = _created(partial, mode)
        with _errors_of(path, num_bytes, file):
            yield file
            file.flush()
            os.fsync(file.fileno())
            file.close()
            os.replace(partial, target)
            partial.unlink(missing_ok=True)  # `replace` does nothing with two names of one file
    except BaseException:
        with suppress(OSError):  # what is in its buffer finds no room either
            if file is not None:
                file.close()
        with suppress(OSError):
            partial.unlink()
        raise
    finally:
        _partial_files.discard(partial)


def _created(path: Path, mode: str) -> IO[Any]:
    """Open a new file; its permissions are the umask's."""
    if mode == "wb":
        return path.open("xb")
    return path.open("x", encoding="utf-8", newline="\n")


def _check_target(path: PathLike, target: Path) -> None:
    try:
        mode = target.stat().st_mode
    except OSError:
        return  # nothing there, or what prevents it from being made says so itself
    if not stat.S_ISREG(mode):
        kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"))
        found = next((name for is_kind, name in kinds if is_kind(mode)), "a device")
        raise ValueError(
            f"output {path}: expected a regular file or a new name, found {found}; name another file"
        )


@contextmanager
def _errors_of(path: PathLike, num_bytes: Optional[int], file: Optional[IO[Any]] = None) -> Iterator[None]:
    """Name the file in the errors of the system that name none, or the temporary one."""
    try:
        yield
    except OSError as error:
        is_ours = (
            file is None or error.filename == file.name or (error.filename is None and error.errno in _FULL)
        )
        if not is_ours or error.errno is None:
            raise
        raise OSError(error.errno, _said(error, num_bytes, file), str(path)) from error


def _said(error: OSError, num_bytes: Optional[int], file: Optional[IO[Any]]) -> str:
    text = os.strerror(error.errno)
    if error.errno not in _FULL:
        return f"cannot write, name another folder: {text}"
    return f"{text}: expected room for {_size(num_bytes, file)}; free some, or name another folder"


def _size(num_bytes: Optional[int], file: Optional[IO[Any]]) -> str:
    if num_bytes is not None:
        return f"{num_bytes} bytes"
    if file is None or file.closed:
        return "a file"
    return f"more than {os.fstat(file.fileno()).st_size} bytes"


def _temporary_name(name: str) -> str:
    return f"{_prefix(name)}{_MACHINE}-{os.getpid()}-{secrets.token_hex(4)}{SUFFIX}"


def _prefix(name: str) -> str:
    """Return what the temporary names of a file begin with; cut so that they are not too long."""
    longest = len(f"..{_MACHINE}-{2**32}-{_MACHINE}{SUFFIX}")
    kept = os.fsencode(name)[: _LONGEST_NAME - longest]
    return f".{kept.decode(errors='ignore') if len(kept) < len(os.fsencode(name)) else name}."


def _remove_leftovers(target: Path) -> None:
    """Remove the temporary files of processes that were killed while they wrote this file."""
    folder = str(target.parent)
    start = time.monotonic()
    if start < _next_search.get(folder, start):
        return
    names = os.listdir(folder)
    _remove_matching(target.parent, names, re.escape(_prefix(target.name)))
    if len(names) > _MANY_FILES:
        _next_search[folder] = start + _SHARE * (time.monotonic() - start)


def _remove_matching(folder: Path, names: Iterable[str], prefix: str) -> None:
    pattern = re.compile(prefix + r"([0-9a-f]{8})-(\d+)-[0-9a-f]{8}" + re.escape(SUFFIX))
    for name in names:
        found = pattern.fullmatch(name)
        if found and _is_abandoned(folder / name, found[1], int(found[2])):
            _remove(folder / name)


def _is_abandoned(path: Path, machine: str, process: int) -> bool:
    # Another machine's, or another container's, process ids say nothing here.
    if machine == _MACHINE and not _is_alive(process):
        return True
    with suppress(OSError):
        found = path.stat()
        seconds = _OLD_FOLDER_SECONDS if stat.S_ISDIR(found.st_mode) else _OLD_SECONDS
        return time.time() - found.st_mtime > seconds
    return False


def _is_alive(process: int) -> bool:
    if os.name != "posix":  # there, os.kill ends it
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True  # of another user
    return True
