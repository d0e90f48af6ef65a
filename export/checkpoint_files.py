"""What a path given as a checkpoint leads to, and what a file is that is no checkpoint."""

import codecs
import os
import re
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import NamedTuple, Optional

HEAD_BYTES = 4096
# A scheme has two letters or more (C: is a drive); pathlib makes one slash of two. mmengine nests: openmmlab:s3://
URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+:)+/")
WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\|[^/]*\\[^/]*$")
REMOTE = re.compile(r"[\w.-]+@[\w.-]+:|[A-Za-z][\w-]*(\.[\w-]+)+:/")
DOWNLOAD_AGAIN = "Download it again."
GIVE_PTH = "Give the .pth file that training wrote."


class Kind(NamedTuple):
    """A kind of file: what it is called, and what to do."""

    found: str
    remedy: str


# First bytes of files that lie beside checkpoints or are taken for one.
SIGNATURES: tuple[tuple[int, bytes, Kind], ...] = (
    (0, b"\xff\xd8\xff", Kind("a JPEG image", GIVE_PTH)),
    (0, b"\x89PNG\r\n", Kind("a PNG image", GIVE_PTH)),
    (0, b"GIF8", Kind("a GIF image", GIVE_PTH)),
    (0, b"BM", Kind("a BMP image", GIVE_PTH)),
    (0, b"II*\0", Kind("a TIFF image", GIVE_PTH)),
    (0, b"MM\0*", Kind("a TIFF image", GIVE_PTH)),
    (8, b"WEBP", Kind("a WebP image", GIVE_PTH)),
    (4, b"ftyp", Kind("a video or an image (ISO media)", GIVE_PTH)),
    (0, b"%PDF", Kind("a PDF document", GIVE_PTH)),
    (0, b"\x1f\x8b", Kind("a gzip file", "Unpack it (gunzip, or tar -xzf), then give the .pth file.")),
    (0, b"BZh", Kind("a bzip2 file", "Unpack it (bunzip2, or tar -xjf), then give the .pth file.")),
    (0, b"\xfd7zXZ", Kind("an xz file", "Unpack it (unxz, or tar -xJf), then give the .pth file.")),
    (0, b"\x28\xb5\x2f\xfd", Kind("a Zstandard file", "Unpack it (unzstd), then give the .pth file.")),
    (0, b"\x04\x22\x4d\x18", Kind("an LZ4 file", "Unpack it (unlz4), then give the .pth file.")),
    (0, b"7z\xbc\xaf", Kind("a 7-Zip archive", "Unpack it, then give the .pth file.")),
    (0, b"Rar!", Kind("a RAR archive", "Unpack it, then give the .pth file.")),
    (
        0,
        b"\x89HDF",
        Kind("an HDF5 file (Keras weights)", "Keras models are not read; give mmdetection's .pth file."),
    ),
    (4, b"TFL3", Kind("a TensorFlow Lite model", "Give the .pth file that it was made from.")),
    (0, b"ftrt", Kind("a TensorRT engine", "Give the .pth file that it was built from.")),
    (0, b"ptrt", Kind("a TensorRT engine", "Give the .pth file that it was built from.")),
    (0, b"GGUF", Kind("a GGUF model", "Give mmdetection's .pth file.")),
    (0, b"\x93NUMPY", Kind("a NumPy array", GIVE_PTH)),
    (0, b"\x7fELF", Kind("a program or library (ELF)", GIVE_PTH)),
    (0, b"MZ", Kind("a program or library (Windows)", GIVE_PTH)),
    (0, b"SQLite format 3", Kind("an SQLite data base", GIVE_PTH)),
)


def shown(text: object, limit: int = 300) -> str:
    """Return the text as one line that any terminal prints: what is not printable escaped, long text cut."""
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text)[: limit + 1])
    return line if len(line) <= limit else f"{line[:limit]}..."


def local_file(path: Path) -> Path:
    """Return the path of a regular file, with ``~`` expanded as mmengine does.

    Raises:
        FileNotFoundError: nothing is there, or the path is a URL, of Windows, or on another machine.
        ValueError: a directory, a device, a pipe.
        OSError: it cannot be looked at, for want of permission for example.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return _absent(path)
    except ValueError as error:  # a NUL byte, or a surrogate
        raise FileNotFoundError(_nothing_at(path)) from error
    except OSError as error:
        raise unreadable(path, error) from error
    if not stat.S_ISREG(mode):
        raise ValueError(f"checkpoint {shown(path)}: expected a file, found {_special(path, mode)}")
    return Path(path)


def unreadable(path: Path, error: OSError) -> OSError:
    """Return the error of a file that the system does not let be read, of the same class, with what to do."""
    kind = PermissionError if isinstance(error, PermissionError) else OSError
    reason = error.strerror or type(error).__name__
    return kind(
        f"checkpoint {shown(path)}: expected a file that can be read, found: {reason}. "
        "Check the path, its permissions and the disk."
    )


def kind_of(path: Path) -> Kind:
    """Name a file that is not of ``torch.save`` by its content, whatever its suffix says.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    for recognized in (_empty, _zip, _tar, _text, _signature, _safetensors, _pickle, _onnx):
        kind = recognized(path, head)
        if kind is not None:
            return kind
    if not head.strip(b"\0"):
        return Kind(
            "a file that begins with nothing but zeros, as an interrupted download leaves it", DOWNLOAD_AGAIN
        )
    return Kind(f"a file of unknown kind that begins with the bytes {head[:8].hex(' ')}", GIVE_PTH)


def _absent(path: Path) -> Path:
    text = str(path)
    expanded = Path(os.path.expanduser(text))
    if text.startswith("~") and expanded != Path(text):
        return local_file(expanded)
    if REMOTE.match(text):
        raise FileNotFoundError(
            f"checkpoint {shown(path)}: expected a file on this machine, found a path on another one. "
            "Copy it here first."
        )
    if URL.match(text):
        raise FileNotFoundError(_url(text))
    if WINDOWS.match(text) and os.name != "nt":
        raise FileNotFoundError(
            f"checkpoint {shown(path)}: expected a file on this machine, found a path of Windows. "
            "Give the path by which this machine reaches the file (under WSL, C:\\ is /mnt/c)."
        )
    raise FileNotFoundError(_nothing_at(path))


def _url(text: str) -> str:
    scheme, _, rest = text.partition(":/")
    local = scheme.lower() == "file"
    url = f"{scheme}://{'/' * local}{rest.lstrip('/')}"
    if local:
        remedy = f"Give the path: /{rest.lstrip('/')}"
    elif scheme.lower() in ("http", "https", "ftp"):
        remedy = f"Download it first (wget {shown(url)}), then give the file."
    else:
        remedy = "Download it first, then give the file."
    return f"checkpoint {shown(url)}: expected a file on this machine, found a URL. {remedy}"


def _nothing_at(path: Path) -> str:
    text = shown(path)
    if "\0" not in str(path) and os.path.islink(path):
        text += f", a link to {shown(os.readlink(path))}"
    where = "" if PurePath(path).is_absolute() else f" (relative to {shown(os.getcwd())})"
    return f"checkpoint: expected a file, found nothing at {text}. Check the path{where}."


def _special(path: Path, mode: int) -> str:
    if not stat.S_ISDIR(mode):
        kinds = ((stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISCHR, "a device"))
        named = next((name for test, name in kinds if test(mode)), "a device")
        return f"{named}. Write its content into a file, then give the file."
    try:
        names = sorted(os.listdir(path))
    except OSError:
        names = []
    weights = [n for n in names if n.endswith((".pth", ".pt", ".ckpt", ".bin"))]
    if weights:
        return f"a directory. Give one of its files: {_names(weights)}."
    inside = f"a directory ({_names(names)})" if names else "an empty directory"
    return f"{inside}. {GIVE_PTH}"


def _empty(_: Path, head: bytes) -> Optional[Kind]:
    return None if head else Kind("an empty file", "Copy or download it again.")


def _signature(_: Path, head: bytes) -> Optional[Kind]:
    return next((kind for at, magic, kind in SIGNATURES if head[at : at + len(magic)] == magic), None)


def _zip(path: Path, head: bytes) -> Optional[Kind]:
    if head[:4] not in (b"PK\x03\x04", b"PK\x05\x06"):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # zipfile raises anything for a damaged directory
        return Kind("a damaged zip archive", "Copy or download it again.")
    return _zip_content(names)


def _zip_content(names: list[str]) -> Kind:
    if any(n.endswith("constants.pkl") or "/code/" in n for n in names):
        return Kind(
            "a TorchScript archive (torch.jit.save), a compiled model",
            "Give the .pth file that training wrote, with the state dict.",
        )
    weights = [n for n in names if n.endswith((".pth", ".pt"))]
    if weights:
        return Kind(
            f"a zip archive that holds {_names(weights)}", "Unpack it (unzip), then give the .pth file."
        )
    if names and all(n.endswith(".npy") for n in names):
        return Kind("NumPy arrays (.npz)", GIVE_PTH)
    if any(n.endswith("data.pkl") for n in names):
        return Kind(
            f"a checkpoint that was packed anew by another program ({_names(names)})",
            "Unpack it (unzip); give the .pth file, or save it again with torch.save.",
        )
    if any(n.endswith((".h5", "model.json")) for n in names):
        return Kind(f"the archive of an exported or a Keras model ({_names(names)})", GIVE_PTH)
    return Kind(f"a zip archive of {_names(names)}" if names else "an empty zip archive", GIVE_PTH)


def _tar(path: Path, head: bytes) -> Optional[Kind]:
    if head[257:262] != b"ustar" and not head.startswith((b"sys_info\0", b"storages\0")):
        return None
    if head.startswith((b"sys_info\0", b"storages\0", b"pickle\0", b"tensors\0")):
        return Kind(
            "a checkpoint of PyTorch 0.1 (a tar archive)",
            "If you trust whoever made it, give --trust-checkpoint, or load it with torch.load(weights_only=False) "
            "and save it again.",
        )
    return Kind("a tar archive", f"Unpack it (tar -xf {shown(path.name)}), then give the .pth file.")


def _safetensors(_: Path, head: bytes) -> Optional[Kind]:
    length = int.from_bytes(head[:8], "little")
    if head[8:9] != b"{" or not 2 <= length <= 100_000_000:
        return None
    return Kind(
        "a safetensors file",
        "Convert it: torch.save(safetensors.torch.load_file('x.safetensors'), 'x.pth'), then give x.pth.",
    )


def _pickle(_: Path, head: bytes) -> Optional[Kind]:
    if head[:1] != b"\x80" or not b"\1" <= head[1:2] <= b"\5":
        return None
    return Kind(
        "a pickle that torch.save did not write, or a damaged one",
        "Load it where it was made and save its state dict with torch.save, or copy it again.",
    )


def _onnx(_: Path, head: bytes) -> Optional[Kind]:
    """Name an ONNX file by its first fields: ir_version (1), then producer_name (2), graph (7) or opset_import (8)."""
    first_fields = (b"\x12", b"\x1a", b"\x22", b"\x3a", b"\x42")
    if head[:1] != b"\x08" or not b"\1" <= head[1:2] <= b"\x20" or head[2:3] not in first_fields:
        return None
    return Kind(
        "an ONNX model", "It is exported already: run it, or give the .pth file that it was made from."
    )


def _text(path: Path, head: bytes) -> Optional[Kind]:
    """Name a text by its beginning; None for a binary file."""
    encoding = "utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:  # the incremental decoder lets the last letter be cut
        text = codecs.getincrementaldecoder(encoding)().decode(head).strip()
    except UnicodeDecodeError:
        return None
    if not text:
        return Kind("an empty text", DOWNLOAD_AGAIN) if head.isspace() else None
    if not all(c.isprintable() or c in "\r\n\t\f" for c in text):
        return None
    return next((kind for named in TEXTS for kind in [named(path, text)] if kind), None) or Kind(
        f"a text that begins with {shown(text.splitlines()[0], 60)!r}", GIVE_PTH
    )


def _lfs(_: Path, text: str) -> Optional[Kind]:
    if not text.startswith("version https://git-lfs.github.com/") and not text.startswith(
        "version https://hawser"
    ):
        return None
    return Kind("a Git LFS pointer, not the file that it stands for", "Fetch the file: git lfs pull")


def _html(_: Path, text: str) -> Optional[Kind]:
    lower = text.lower()
    if not lower.startswith("<") or not any(
        tag in lower for tag in ("<html", "<!doctype html", "<head", "<body")
    ):
        return None
    title = re.search(r"<title[^>]*>\s*([^<]+)", text, re.IGNORECASE)
    named = f" (title {shown(title[1].strip(), 60)!r})" if title else ""
    return Kind(
        f"an HTML page{named}",
        "Its address leads to a page, not to the file; download the file itself (of GitHub and Hugging Face the "
        "'raw' or 'resolve' address).",
    )


def _xml(_: Path, text: str) -> Optional[Kind]:
    if not re.match(r"<\?xml|<[A-Za-z]", text):
        return None
    message = re.search(r"<(Code|Message)>([^<]+)", text)
    named = f" ({shown(message[2], 60)!r})" if message else ""
    return Kind(f"an XML document{named}, a server's error or an annotation", DOWNLOAD_AGAIN)


def _json(_: Path, text: str) -> Optional[Kind]:
    if not re.match(r'\{\s*("|\}|$)|\[\s*[\[\]{"\d-]', text):
        return None
    message = re.search(r'"(message|error|detail)"\s*:\s*"([^"]+)"', text)
    named = f" ({shown(message[2], 60)!r})" if message else ""
    return Kind(f"a JSON text{named}, a server's error, a log or an annotation file", GIVE_PTH)


def _path(_: Path, text: str) -> Optional[Kind]:
    """mmengine's ``last_checkpoint`` is a text that holds the newest checkpoint's path."""
    if "\n" in text or not text.endswith((".pth", ".pt", ".ckpt")):
        return None
    return Kind(
        "a text that names a checkpoint, as mmengine's last_checkpoint does", f"Give that file: {shown(text)}"
    )


TEXTS: tuple[Callable[[Path, str], Optional[Kind]], ...] = (_lfs, _html, _xml, _json, _path)


def _names(names: list[str], limit: int = 4) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(shown(n, 60) for n in names[:limit]) + more
