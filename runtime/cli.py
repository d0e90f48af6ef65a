"""What the command lines share: argument types, the options of a backend, progress, tables."""

import argparse
import json
import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, TypeVar, Union

from rich.console import Console
from rich.progress import Progress

from runtime.backends import backend_name
from runtime.embedded import IMAGES_DIR as DEFAULT_IMAGES
from runtime.engine.sidecar import write_whole
from runtime.recording import SUFFIX

Item = TypeVar("Item")

EXIT_OK, EXIT_DIFFERENT, EXIT_REFUSED = 0, 1, 2
# Without a terminal, rich assumes 80 columns and folds tables.
_WIDTH_WITHOUT_TERMINAL = 140


def positive(text: str) -> int:
    """Parse an int of 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, found {value}")
    return value


def score(text: str) -> float:
    """Parse a float from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected 0 to 1, found {value:g}")
    return value


def not_negative(text: str) -> float:
    """Parse a float of 0 or more."""
    value = float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"expected 0 or more, found {value:g}")
    return value


def add_images(parser: argparse.ArgumentParser) -> None:
    """Add ``--images``: what ``runtime.images.find_images`` takes."""
    parser.add_argument(
        "--images",
        nargs="+",
        default=[str(DEFAULT_IMAGES)],
        metavar="IMAGE",
        help="image files, folders and glob patterns (default: the embedded examples/images)",
    )


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add how models run: ``--batch``, ``--device``, ``--threads``."""
    parser.add_argument("--batch", type=positive, default=1, help="images at once (default: %(default)s)")
    # Named, so that `auto` means onnxruntime for an ONNX even where TensorRT is: it is compared with its engine.
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="of onnxruntime (default: %(default)s)"
    )
    parser.add_argument(
        "--threads", type=positive, help="CPU threads of onnxruntime (default: as many as there are cores)"
    )


def backend_options(model: Union[str, Path], backend: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return what the model's backend takes of ``add_run_options``; nothing for a recording or an engine.

    Raises:
        ValueError: no backend reads the model.
    """
    if Path(model).suffix.lower() == SUFFIX or backend_name(model, backend, args.device) == "tensorrt":
        return {}
    return {"device": args.device, "threads": args.threads}


def tracked(items: Iterable[Item], total: int, description: str) -> Iterator[Item]:
    """Yield the items with a progress bar on a terminal's standard error."""
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        yield from progress.track(items, total=total, description=description)


@contextmanager
def status(text: str) -> Iterator[Callable[[str], None]]:
    """Show a line while something runs, on a terminal's standard error; yields what changes it."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    with Console(stderr=True).status(text) as shown:
        yield shown.update


def table_console() -> Console:
    """Return the console for tables on standard output."""
    return Console(width=None if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL, highlight=False)


def write_json(path: Path, content: Any) -> None:
    """Write a report, under its name only when it is whole. NaN is written as null, which JSON has."""
    text = json.dumps(_finite(content), indent=1, allow_nan=False) + "\n"
    write_whole(path, text.encode("utf-8"))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
