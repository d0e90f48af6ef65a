"""What the command lines share: how they end, argument types, the options of a backend.

Imports little: a command's arguments are read, and its signals handled, before its libraries are loaded.
"""

import argparse
import functools
import math
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, NoReturn, Optional, Union

from runtime.backends import BACKENDS, backend_name, supported_options
from runtime.embedded import IMAGES_DIR as DEFAULT_IMAGES
from runtime.files import remove_partial_files
from runtime.interrupts import Interrupted, handled, received
from runtime.messages import printable
from runtime.ranges import CPU_PRECISIONS, MAX_BATCH, MAX_THREADS
from runtime.streams import safe_streams

EXIT_OK, EXIT_DIFFERENT, EXIT_REFUSED, EXIT_FAILED = 0, 1, 2, 3
_MOST = 10**9
# An option whose value is given with it: ``--out=--``, ``-o--``.
_DASHES = re.compile(r"(--[^=]+=|-[^-]=?)--")

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


class CommandParser(argparse.ArgumentParser):
    """Reads a command line; what it prints survives any standard output, as ``command`` makes them.

    An option's value is never ``--``: Python up to 3.12 makes an empty list of it, whatever the option's type.
    """

    def __init__(
        self, *arguments: Any, doc: Optional[str] = None, paragraph: int = 0, **options: Any
    ) -> None:
        """Make a parser.

        Args:
            arguments, options: see ``argparse.ArgumentParser``.
            doc: the module's docstring, of which one paragraph is the description; None under ``python -OO``.
            paragraph: which one.
        """
        if doc is not None:
            options["description"] = doc.split("\n\n")[paragraph].replace("%", "%%")
        super().__init__(*arguments, **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """See ``argparse.ArgumentParser``."""
        words = list(sys.argv[1:] if args is None else args)
        options = words[: words.index("--")] if "--" in words else words
        for word in filter(_DASHES.fullmatch, options):
            self.error(
                f"argument {word[:-2].rstrip('=')}: expected a value, found '--'; a file's name is './--'"
            )
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, in one line of what can be printed, and end with ``EXIT_REFUSED``."""
        super().error(printable(message))


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
    """Add how models run: ``--batch``, ``--device``, ``--threads``, ``--precision``, ``--streams``, ``--host``."""
    parser.add_argument("--batch", type=batch, default=1, help="images at once (default: %(default)s)")
    # Named, so that `auto` means the CPU for an ONNX even where TensorRT is: it is compared with its engine.
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="cuda: of onnxruntime (default: %(default)s)"
    )
    parser.add_argument(
        "--threads",
        type=threads,
        help="CPU threads of onnxruntime and OpenVINO (default: as many as there are cores)",
    )
    add_openvino(parser)
    add_host(parser)


def add_openvino(parser: argparse.ArgumentParser) -> None:
    """Add ``--precision`` and ``--streams``."""
    parser.add_argument(
        "--precision",
        choices=CPU_PRECISIONS,
        help="of floats in OpenVINO (default: fp32, on every processor), and of onnxruntime on a GPU (default: TF32)",
    )
    parser.add_argument(
        "--streams",
        type=threads,
        metavar="N",
        help="batches that OpenVINO, or TensorRT on a GPU, runs at once (default: 1)",
    )


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


def add_tensor_inputs(parser: Any) -> None:
    """Add ``--input``, ``--random`` and ``--shape``, for ``runtime.tensor_files``, to a parser or a group of one."""
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="NAME=FILE.npy",
        help="an input; or FILE.npz with several by name; may be repeated",
    )
    parser.add_argument(
        "--random", type=count(2**31 - 1, 0), metavar="SEED", help="make up the inputs that are not given"
    )
    parser.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="NAME=1x3x640x640",
        help="of an input that is made up, where it is free (default: 1)",
    )


def given_options(model: Union[str, Path], args: argparse.Namespace) -> dict[str, Any]:
    """Return a ``Detector``'s options as they were given; the backend refuses those that it has not got.

    Raises:
        ValueError: no backend reads the model.
    """
    names = ("device", "host", "threads", "precision", "streams", "plugins", "rebuild")
    notify = {"notify": lambda line: print(line, file=sys.stderr, flush=True)}
    name = backend_name(model, args.backend, args.device)
    return {**{option: getattr(args, option) for option in names}, **supported_options(name, notify)}


def backend_options(model: Union[str, Path], backend: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return what the model's backend takes of ``add_run_options``; nothing for a recording.

    An ONNX in another precision than its backend computes in is left to the backend to refuse.

    Raises:
        ValueError: no backend reads the model.
    """
    from runtime.comparison.recording import SUFFIX  # loads NumPy
    from runtime.comparison.sources import split_precision

    path, precision = split_precision(model)
    if path.suffix.lower() == SUFFIX:
        return {}
    name = backend_name(path, backend, args.device)
    precision = precision or args.precision
    given = {"device": args.device, "threads": args.threads, "precision": precision, "streams": args.streams}
    options = {option: value for option, value in supported_options(name, given).items() if value is not None}
    if precision is not None and path.suffix.lower() == ".onnx":
        options["precision"] = precision
    return options
