"""Serve models over HTTP: ``python -m runtime.serve MODEL ...``.

Needs the extra ``serve``. SIGINT and SIGTERM end the service when what it has taken is answered, with status 0; a
second one ends it at once. The exit status is 2 where it could not begin.
"""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from runtime.cli import (
    EXIT_OK,
    CommandParser,
    add_backend,
    add_host,
    add_openvino,
    batch,
    command,
    count,
    given_options,
    not_negative,
    run_as_program,
    threads,
)
from runtime.engine.config import REBUILD
from runtime.interrupts import PATIENCE_SECONDS, held, loading, received, released
from runtime.serving.options import LOGS, MIB, ServingOptions

if TYPE_CHECKING:
    from runtime.detector import Detector

_DEFAULTS = ServingOptions()
_NAME = re.compile(r"[\w.-]+", re.ASCII)
_MAX_PORT = 65535


@command
def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command; return its exit status."""
    args = _parser().parse_args(argv)
    models, options = named_models(args.models), _options(args)
    # Only now: signals are handled, and the arguments are known to be good.
    with loading():
        from runtime.serving.app import create_app
        from runtime.serving.server import LineLog, opened_socket, serve, url_of

    with held(), ExitStack() as stack:
        with released(PATIENCE_SECONDS):
            detectors = _opened(models, args, stack)
            opened = stack.enter_context(opened_socket(args.address, args.port))
            log = stack.enter_context(LineLog(lambda line: print(line, flush=True)))
            app = create_app(detectors, options, log=log)
        print(
            f"{', '.join(models)} at {url_of(opened)} (API: {url_of(opened)}/docs); Ctrl-C ends it",
            flush=True,
        )
        serve(app, opened, lambda: received() is not None)
    return EXIT_OK


def named_models(arguments: Sequence[str]) -> dict[str, Path]:
    """Return the models by name: ``NAME=PATH``, or a path whose stem is the name.

    Raises:
        ValueError: a name that does not fit into a path of HTTP, or that two models have.
    """
    models: dict[str, Path] = {}
    for argument in arguments:
        name, separator, path = argument.partition("=")
        if not separator or Path(argument).exists():
            name, path = Path(argument).stem, argument
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"{argument}: expected a name of letters, digits, '.', '-' and '_', found {name!r}; name it: "
                "NAME=PATH"
            )
        if name in models:
            raise ValueError(
                f"{argument}: expected another name than {name!r}, which {models[name]} has; NAME=PATH"
            )
        models[name] = Path(path)
    return models


def _opened(models: Mapping[str, Path], args: argparse.Namespace, stack: ExitStack) -> "dict[str, Detector]":
    """Return the detectors, each of which has run."""
    from runtime.console import status
    from runtime.detector import Detector
    from runtime.serving.service import warm_up

    detectors = {}
    for name, path in models.items():
        with status(f"loading {path}"):
            options = given_options(path, args)
            detector = Detector(path, args.backend, batch_size=args.max_batch, **options)
            detectors[name] = stack.enter_context(detector)
            warm_up(detector)
        for note in detector.notes:
            print(f"{name}: {note}", file=sys.stderr, flush=True)
    return detectors


def _options(args: argparse.Namespace) -> ServingOptions:
    return ServingOptions(
        max_batch=args.max_batch,
        max_delay_ms=args.max_delay_ms,
        max_queue=args.max_queue,
        timeout_s=args.timeout_s,
        max_body_bytes=args.max_body_mb * MIB,
        max_memory_bytes=args.max_memory_mb * MIB,
        max_pixels=args.max_pixels,
        max_images=args.max_images,
        client_timeout_s=args.client_timeout_s,
        max_connections=args.max_connections,
        drain_delay_s=args.drain_delay_s,
        log=args.log,
    )


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m runtime.serve", doc=__doc__)
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="exported models or engines, each a path or NAME=PATH; the first is the default",
    )
    parser.add_argument(
        "--address", default="127.0.0.1", help="to listen at; 0.0.0.0 for all (default: %(default)s)"
    )
    parser.add_argument(
        "--port", type=count(_MAX_PORT, 0), default=8000, help="0: any that is free (default: %(default)s)"
    )
    _add_limits(parser)
    parser.add_argument(
        "--log", choices=LOGS, default="plain", help="a line for each request (default: %(default)s)"
    )
    add_backend(parser)
    parser.add_argument("--device", choices=("cpu", "cuda"), help="cuda: of onnxruntime (default: cpu)")
    parser.add_argument(
        "--plugins", type=Path, help="plugin library of TensorRT (default: where it is built)"
    )
    parser.add_argument("--rebuild", choices=REBUILD, help="what to do about an ONNX without a good engine")
    parser.add_argument(
        "--threads", type=threads, help="CPU threads of each model (default: as many as there are cores)"
    )
    add_openvino(parser)
    add_host(parser)
    return parser


def _add_limits(parser: argparse.ArgumentParser) -> None:
    """Add the fields of ``ServingOptions``."""

    def add(name: str, kind: Any, words: str, default: Any = None) -> None:
        value = getattr(_DEFAULTS, name) if default is None else default
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=kind, default=value, help=f"{words} (default: {value:g})")

    add("max_batch", batch, "most images that run at once")
    add("max_delay_ms", not_negative, "how long an image waits for others to run with")
    add("max_queue", count(), "images of a model that wait; then 429")
    add("timeout_s", not_negative, "for an answer; then 504")
    add("max_body_mb", count(), "MiB of one request; then 413", _DEFAULTS.max_body_bytes // MIB)
    add("max_memory_mb", count(), "MiB of all requests together; then 503", _DEFAULTS.max_memory_bytes // MIB)
    add("max_pixels", count(), "of one image, by its header; then 413")
    add("max_images", count(), "of one request; then 413")
    add("client_timeout_s", not_negative, "for a client to send a request; then 408")
    add("max_connections", count(), "open at once; then 503")
    add("drain_delay_s", not_negative, "between not ready and the end of listening, after a signal")


if __name__ == "__main__":
    run_as_program(main)
