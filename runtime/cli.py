"""What the command lines share: argument types, exit codes, the options of a backend."""

import argparse
from pathlib import Path
from typing import Any, Union

from runtime.backends import backend_name, supported_options
from runtime.backends.openvino import PRECISIONS
from runtime.comparison.recording import SUFFIX
from runtime.comparison.sources import split_precision
from runtime.embedded import IMAGES_DIR as DEFAULT_IMAGES

EXIT_OK, EXIT_DIFFERENT, EXIT_REFUSED = 0, 1, 2


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
    """Add how models run: ``--batch``, ``--device``, ``--threads``, ``--precision``, ``--streams``, ``--host``."""
    parser.add_argument("--batch", type=positive, default=1, help="images at once (default: %(default)s)")
    # Named, so that `auto` means the CPU for an ONNX even where TensorRT is: it is compared with its engine.
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="cuda: of onnxruntime (default: %(default)s)"
    )
    parser.add_argument(
        "--threads",
        type=positive,
        help="CPU threads of onnxruntime and OpenVINO (default: as many as there are cores)",
    )
    add_openvino(parser)
    add_host(parser)


def add_openvino(parser: argparse.ArgumentParser) -> None:
    """Add ``--precision`` and ``--streams``."""
    parser.add_argument(
        "--precision", choices=PRECISIONS, help="of floats in OpenVINO (default: fp32, on every processor)"
    )
    parser.add_argument(
        "--streams", type=positive, metavar="N", help="batches that OpenVINO runs at once (default: 1)"
    )


def add_host(parser: argparse.ArgumentParser) -> None:
    """Add ``--host``."""
    parser.add_argument(
        "--host",
        action="store_true",
        help="prepare images and paste masks on the CPU, where an engine would have the GPU do it",
    )


def backend_options(model: Union[str, Path], backend: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return what the model's backend takes of ``add_run_options``; nothing for a recording.

    An ONNX in another precision than its backend computes in is left to the backend to refuse.

    Raises:
        ValueError: no backend reads the model.
    """
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
