"""What the command lines share: how they end, argument types, the options of a backend.

Imports little: a command's arguments are read, and its signals handled, before its libraries are loaded.
"""

import argparse
import functools
import math
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, Optional, Union

from runtime.backends import BACKENDS, backend_name, supported_options
from runtime.embedded import IMAGES_DIR as DEFAULT_IMAGES
from runtime.files import remove_partial_files
from runtime.interrupts import Interrupted, handled, received
from runtime.messages import printable
from runtime.ranges import MAX_BATCH, MAX_THREADS
from runtime.streams import safe_streams

EXIT_OK, EXIT_DIFFERENT, EXIT_REFUSED, EXIT_FAILED = 0, 1, 2, 3
_MOST = 10**9

Main = Callable[[Optional[Sequence[str]]], int]


def command(main: Main) -> Main:
    """Make a command of a function that returns an exit status.

    Its output never ends it (``runtime.streams``), signals do without a traceback (``runtime.interrupts``), a refusal
    is a line on standard error and ``EXIT_REFUSED``, and a defect of ours says how to report it (``EXIT_FAILED``).
    """

    @functools.wraps(main)
    def run(argv: Optional[Sequence[str]] = None) -> int:
        with safe_streams(), handled():
            return _ended(main, argv)

    return run


def _ended(main: Main, argv: Optional[Sequence[str]]) -> int:
    try:
        return main(argv)
    except KeyboardInterrupt as error:
        return _interrupted(error.number if isinstance(error, Interrupted) else signal.SIGINT)
    except Exception as error:
        number = received()
        # After a signal: what an interrupted library made of it.
        return _failed(error) if number is None else _interrupted(number)


def _interrupted(number: int) -> int:
    remove_partial_files()
    error = Interrupted(number)
    print(f"{error}; what was not finished is not written", file=sys.stderr)
    return error.exit_status


def _failed(error: Exception) -> int:
    """Say what a command failed of."""
    if isinstance(error, MemoryError):
        print(f"error: memory ran out; use a smaller batch or fewer images {error}".rstrip(), file=sys.stderr)
        return EXIT_REFUSED
    if isinstance(error, (OSError, ValueError, RuntimeError)):
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return EXIT_REFUSED
    traceback.print_exception(type(error), error, error.__traceback__)
    print(
        "error: the command itself failed; please report the lines above, with the versions that `pip freeze` prints",
        file=sys.stderr,
    )
    return EXIT_FAILED


def run_as_program(main: Main) -> None:
    """End the process with the command's exit status; a signal that comes later still ends it silently."""
    status = main(None)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(status)


def count(most: int = _MOST, least: int = 1) -> Callable[[str], int]:
    """Return what parses a whole number of a range."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(
                f"expected a whole number from {least} to {most}, found {text[:40]!r}"
            )
        return value

    return parse


positive = count()
threads = count(MAX_THREADS)
batch = count(MAX_BATCH)


def score(text: str) -> float:
    """Parse a float from 0 to 1."""
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected 0 to 1, found {text[:40]!r}")
    return value


def not_negative(text: str) -> float:
    """Parse a float of 0 or more."""
    value = _number(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"expected 0 or more, found {text[:40]!r}")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def add_images(parser: argparse.ArgumentParser) -> None:
    """Add ``--images``: what ``runtime.image_files.find_images`` takes."""
    parser.add_argument(
        "--images",
        nargs="+",
        default=[str(DEFAULT_IMAGES)],
        metavar="IMAGE",
        help="image files, folders and glob patterns (default: the embedded examples/images)",
    )


def selected_images(sources: Sequence[str]) -> list[Path]:
    """Return the images that are meant, and say on standard error what is not taken of folders and patterns.

    Raises:
        OSError, ValueError: see ``runtime.image_files.select_images``.
    """
    from runtime.image_files import select_images

    selection = select_images(sources)
    for line in selection.ignored:
        print(printable(line), file=sys.stderr, flush=True)
    return list(selection.paths)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add how models run: ``--batch``, ``--device``, ``--threads``, ``--host``."""
    parser.add_argument("--batch", type=batch, default=1, help="images at once (default: %(default)s)")
    # Named, so that `auto` means onnxruntime for an ONNX even where TensorRT is: it is compared with its engine.
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="of onnxruntime (default: %(default)s)"
    )
    parser.add_argument(
        "--threads", type=threads, help="CPU threads of onnxruntime (default: as many as there are cores)"
    )
    add_host(parser)


def add_host(parser: argparse.ArgumentParser) -> None:
    """Add ``--host``."""
    parser.add_argument(
        "--host",
        action="store_true",
        help="prepare images and paste masks on the CPU, where an engine would have the GPU do it",
    )


def add_backend(parser: argparse.ArgumentParser, name: str = "--backend") -> None:
    """Add a choice of backend."""
    parser.add_argument(name, choices=BACKENDS, default="auto", help="default: by the model's suffix")


def backend_options(model: Union[str, Path], backend: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return what the model's backend takes of ``add_run_options``; nothing for a recording.

    Raises:
        ValueError: no backend reads the model.
    """
    from runtime.comparison.recording import SUFFIX  # loads NumPy

    if Path(model).suffix.lower() == SUFFIX:
        return {}
    name = backend_name(model, backend, args.device)
    return supported_options(name, {"device": args.device, "threads": args.threads})
