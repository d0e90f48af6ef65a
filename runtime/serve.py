"""Serve models over HTTP: ``python -m runtime.serve MODEL ...``.

Needs the extra ``serve``, with ``--ray`` also ``ray``. SIGINT and SIGTERM end the service when what it has taken is
answered, with status 0; a second one ends it at once. The exit status is 2 where it could not begin.
"""

import argparse
import math
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from runtime.backends import backend_name, supported_options
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
    positive,
    run_as_program,
    threads,
)
from runtime.engine.config import REBUILD
from runtime.interrupts import PATIENCE_SECONDS, held, loading, received, released
from runtime.ranges import MAX_PROCESSES
from runtime.serving.options import LOGS, MIB, ServingOptions
from runtime.streams import unwaited

if TYPE_CHECKING:
    from runtime.detector import Detector
    from runtime.serving.replicas import ModelFile, Replicas

_DEFAULTS = ServingOptions()
_NAME = re.compile(r"[\w.-]+", re.ASCII)
_MAX_PORT = 65535
_LOG = "plain"
_RAY_ADDRESS = "RAY_ADDRESS"
_POLL_SECONDS = 0.1
_STANDARD_ERROR = 2
_OPENCV_LEVEL = "OPENCV_LOG_LEVEL"
# A thread that computes in Python hands over to the one that answers after so long.
_SWITCH_SECONDS = 0.001
# What Ray's proxies do in their own way, and what is said to Ray alone.
_NOT_OF_RAY = ("client_timeout_s", "max_connections", "drain_delay_s", "log", "processes")
_OF_RAY = ("ray_address", "replicas", "max_replicas", "cpus", "gpus", "surge")


@command
def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command; return its exit status."""
    args = _parser().parse_args(argv)
    check_ray_options(args)
    models, options = named_models(args.models), _options(args)
    if args.ray:
        return _serve_in_ray(models, args, options)
    unwaited(_STANDARD_ERROR)
    # Of each damaged image OpenCV would print what its client is told. It looks when it is imported.
    os.environ.setdefault(_OPENCV_LEVEL, "SILENT")
    if args.processes > 1:
        return _serve_from_processes(models, args, options)
    # Only now: signals are handled, and the arguments are known to be good.
    with loading():
        from runtime.serving.app import create_app
        from runtime.serving.server import LineLog, opened_socket, serve, url_of

    with held(), ExitStack() as stack:
        with released(PATIENCE_SECONDS):
            detectors = _opened(models, args, stack)
            _check_connections(options, 1)
            opened = stack.enter_context(opened_socket(args.address, args.port))
            log = stack.enter_context(LineLog(lambda line: print(line, flush=True)))
            app = create_app(detectors, options, log=log)
        _say_where(models, url_of(opened))
        sys.setswitchinterval(_SWITCH_SECONDS)
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


def check_ray_options(args: argparse.Namespace) -> None:
    """Refuse what asks nothing of Ray, or of one process.

    Raises:
        ValueError: names it.
    """
    defaults = {**vars(_DEFAULTS), "log": _LOG, "processes": 1}
    for name in _NOT_OF_RAY if args.ray else ():
        if getattr(args, name) != defaults[name]:
            raise ValueError(
                f"--{name.replace('_', '-')}: expected an option of Ray's, found one of a service without it; "
                "leave it out, or leave --ray out"
            )
    for name in _OF_RAY if not args.ray else ():
        if getattr(args, name):
            raise ValueError(
                f"--{name.replace('_', '-')}: expected --ray with it, found none; add --ray, or leave it out"
            )


def _serve_from_processes(
    models: Mapping[str, Path], args: argparse.Namespace, options: ServingOptions
) -> int:
    """Serve with front ends in processes of their own, until a signal comes."""
    with loading():
        from runtime.serving.front_ends import FrontEnds, check_processes
        from runtime.serving.server import reserved_socket

    check_processes(args.processes)
    with held(), ExitStack() as stack:
        with released(PATIENCE_SECONDS):
            detectors = _opened(models, args, stack)
            _check_connections(options, args.processes)
            reserved = stack.enter_context(reserved_socket(args.address, args.port))
            front_ends = stack.enter_context(FrontEnds(detectors, options, args.processes, reserved))
        _say_where(models, front_ends.url)
        sys.setswitchinterval(_SWITCH_SECONDS)
        front_ends.run(lambda: received() is not None)
    return EXIT_OK


def _check_connections(options: ServingOptions, number: int) -> None:
    """Say where so many processes have fewer descriptors than connections."""
    from runtime.serving.descriptors import num_connections

    found = number * num_connections(math.ceil(options.max_connections / number))
    if found < options.max_connections:
        print(
            f"--max-connections: expected descriptors for {options.max_connections}, found them for {found}; more are "
            "refused (503), or raise the limit (`ulimit -n`)",
            file=sys.stderr,
            flush=True,
        )


def _say_where(models: Mapping[str, Path], url: str) -> None:
    print(f"{', '.join(models)} at {url} (API: {url}/docs); Ctrl-C ends it", flush=True)


def _serve_in_ray(models: Mapping[str, Path], args: argparse.Namespace, options: ServingOptions) -> int:
    """Serve with Ray: here until a signal comes; on a cluster, it goes on when this has ended."""
    with loading():
        from runtime.ray_cluster import Connected, import_ray
        from runtime.serving.replicas import application, listening, run, stop

        ray = import_ray("serve", ", or leave --ray out")
    address = args.ray_address or os.environ.get(_RAY_ADDRESS)
    target = application(_model_files(models, args), options, _replicas(args))
    with held(), ExitStack() as stack:
        with released(PATIENCE_SECONDS):
            stack.enter_context(Connected(ray, address or "local"))
            url = listening(ray, args.address, args.port, is_own=address is None)
            run(target)
        where = f"{', '.join(models)} in Ray at {url}"
        if address is not None:
            print(
                f"{where}; it goes on, the same command again updates it, `serve shutdown` ends it",
                flush=True,
            )
            return EXIT_OK
        print(f"{where}; Ctrl-C ends it", flush=True)
        while received() is None:
            time.sleep(_POLL_SECONDS)
        stop(ray)
    return EXIT_OK


def _model_files(models: Mapping[str, Path], args: argparse.Namespace) -> "dict[str, ModelFile]":
    """Return the models as replicas open them; a model's threads are the replica's CPUs, which Ray counts."""
    from runtime.contract import check_model_file
    from runtime.serving.replicas import ModelFile

    files = {}
    for name, path in models.items():
        absolute = check_model_file(path).absolute()
        options = given_options(absolute, args)
        options.pop("notify", None)
        backend = backend_name(absolute, args.backend, args.device)
        if args.threads is None:
            options.update(supported_options(backend, {"threads": max(1, int(_replicas(args).cpus))}))
        files[name] = ModelFile(str(absolute), args.backend, options)
    return files


def _replicas(args: argparse.Namespace) -> "Replicas":
    from runtime.serving.replicas import Replicas

    least = args.replicas or 1
    given = {name: getattr(args, name) for name in ("cpus", "gpus") if getattr(args, name) is not None}
    return Replicas(least, args.max_replicas or least, has_surge=args.surge, **given)


def _opened(models: Mapping[str, Path], args: argparse.Namespace, stack: ExitStack) -> "dict[str, Detector]":
    """Return the detectors, each of which has run."""
    from runtime.console import status
    from runtime.detector import Detector
    from runtime.serving.priority import yielding
    from runtime.serving.service import warm_up

    detectors = {}
    for name, path in models.items():
        with status(f"loading {path}"):
            options = given_options(path, args)
            open_detector = partial(Detector, path, args.backend, batch_size=args.max_batch, **options)
            detector = detectors[name] = stack.enter_context(yielding(open_detector))
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
    parser.add_argument(
        "--processes",
        type=count(MAX_PROCESSES),
        default=1,
        metavar="N",
        help="that read requests, decode images and write answers, for the model in one (default: %(default)s)",
    )
    _add_limits(parser)
    parser.add_argument(
        "--log", choices=LOGS, default=_LOG, help="a line for each request (default: %(default)s)"
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
    _add_ray(parser)
    return parser


def _add_ray(parser: argparse.ArgumentParser) -> None:
    """Add ``--ray``, and the fields of ``Replicas``."""
    add = parser.add_argument_group("with Ray Serve, the extra ray").add_argument
    add("--ray", action="store_true", help="serve from replicas: processes, GPUs, machines")
    add(
        "--ray-address", metavar="ADDRESS", help="of a cluster (default: RAY_ADDRESS, or Ray on this machine)"
    )
    add("--replicas", type=positive, metavar="N", help="each with all models (default: 1)")
    add("--max-replicas", type=positive, metavar="N", help="as requests come (default: --replicas)")
    add("--cpus", type=not_negative, metavar="N", help="of each replica (default: 1)")
    add("--gpus", type=not_negative, metavar="N", help="of each replica, also a part of one (default: 0)")
    add(
        "--surge",
        action="store_true",
        help="in an update, start a replica before the one that it replaces ends; there has to be room",
    )


def _add_limits(parser: argparse.ArgumentParser) -> None:
    """Add the fields of ``ServingOptions``."""

    def add(name: str, kind: Any, words: str, default: Any = None) -> None:
        value = getattr(_DEFAULTS, name) if default is None else default
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=kind, default=value, help=f"{words} (default: {value:.10g})")

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
