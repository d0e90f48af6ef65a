"""Detect in any number of images with Ray Data: ``python -m runtime.batch SOURCE... --model M --output DIR``.

Writes Parquet files: ``detections/`` with a row for each image, ``failed/`` with those that could not be used, and why.
A run that was killed goes on where it was when the same command is given again; no image is there twice or missing. The
exit status is 0, 1 where images could not be used, 2 where it was refused or failed, or 130 or 143 after a signal.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from runtime.backends import BACKENDS, backend_name, supported_options
from runtime.cli import (
    EXIT_DIFFERENT,
    EXIT_OK,
    CommandParser,
    add_openvino,
    batch,
    command,
    not_negative,
    positive,
    run_as_program,
    score,
    threads,
)
from runtime.interrupts import loading


@command
def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command; return its exit status."""
    args = _parser().parse_args(argv)
    with loading():
        from runtime.bulk.job import Workers, detect_all
        from runtime.bulk.worker import Task
        from runtime.console import tracked
        from runtime.contract import check_model_file

    task = Task(
        # Workers have folders of their own.
        model=str(check_model_file(args.model).absolute()),
        folder=str(args.output.absolute()),
        backend=args.backend,
        batch_size=args.batch,
        min_score=args.score,
        threads=args.readers,
        options=_options(args),
    )
    summary = detect_all(
        args.sources,
        task,
        block_size=args.block,
        column=args.column,
        workers=Workers(args.workers, args.cpus, args.gpus, args.address),
        progress=tracked,
    )
    print(
        f"{summary.images} images in {summary.blocks} blocks ({summary.resumed} done before): "
        f"{summary.images - summary.failed} detected, {summary.failed} failed; in {args.output}"
    )
    return EXIT_DIFFERENT if summary.failed else EXIT_OK


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the backend's options; threads are the worker's CPUs, which Ray counts, where none are named."""
    name = backend_name(args.model, args.backend, args.device)
    given = {
        "device": args.device,
        "threads": args.threads or max(1, int(args.cpus)),
        "precision": args.precision,
        "streams": args.streams,
        "plugins": args.plugins,
    }
    return {option: value for option, value in supported_options(name, given).items() if value is not None}


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m runtime.batch", doc=__doc__)
    add = parser.add_argument
    add(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="image files, folders, patterns; .txt lists of paths; .parquet files with a column of paths or bytes",
    )
    add("--model", type=Path, required=True, help="an exported model or engine, on every node")
    add("--output", type=Path, required=True, metavar="DIR", help="a folder that every node sees")
    add("--column", metavar="NAME", help="of Parquet files (default: path, image or bytes)")
    add("--block", type=positive, default=1000, help="images written at once (default: %(default)s)")
    add("--score", type=score, default=0.05, help="least score (default: %(default)s)")
    add("--batch", type=batch, default=1, help="images at once in a model (default: %(default)s)")
    add("--workers", type=positive, default=1, help="models side by side (default: %(default)s)")
    add("--cpus", type=not_negative, default=1, help="of each worker (default: %(default)s)")
    add(
        "--gpus",
        type=not_negative,
        default=0,
        help="of each worker, also a part of one (default: %(default)s)",
    )
    add("--address", help="of a Ray cluster (default: RAY_ADDRESS, or Ray on this machine)")
    add(
        "--readers",
        type=threads,
        default=2,
        help="threads that read files in a worker (default: %(default)s)",
    )
    add("--backend", choices=BACKENDS, default="auto", help="see runtime.infer")
    add("--device", choices=("cpu", "cuda"), help="cuda: of onnxruntime (default: cpu)")
    add("--threads", type=threads, help="CPU threads of the model (default: --cpus)")
    add("--plugins", type=Path, help="plugin library of TensorRT")
    add_openvino(parser)
    return parser


if __name__ == "__main__":
    run_as_program(main)
