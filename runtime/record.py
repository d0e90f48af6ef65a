"""Record what a model finds in images: ``python -m runtime.record MODEL --images ... -o results.npz``.

``runtime.compare`` and ``runtime.evaluate`` read the ``.npz`` in the model's place, on a box that has not got its
backend. The exit status is 0, 2 if nothing could be recorded, or 130 or 143 after SIGINT or SIGTERM: then nothing is
written. ``export.reference`` records PyTorch's results.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from runtime.cli import (
    EXIT_OK,
    CommandParser,
    add_backend,
    add_images,
    add_run_options,
    backend_options,
    command,
    run_as_program,
    selected_images,
)
from runtime.interrupts import loading


@command
def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command; return its exit status."""
    args = _parser().parse_args(argv)
    # Only now: signals are handled, and the arguments are known to be good.
    with loading():
        from runtime.comparison.sources import open_artifact, record
        from runtime.console import status, tracked
        from runtime.files import refuse_inputs

    images = selected_images(args.images)
    refuse_inputs(args.output, [args.model, *images])
    options = backend_options(args.model, args.backend, args)
    with status(f"loading {args.model}"):
        opened = open_artifact(args.model, args.backend, args.batch, host=args.host, **options)
    with opened as artifact:
        results = record(artifact, images, args.output)
        num_detections = sum(len(r.detections) for r in tracked(results, len(images), "recording"))
    print(f"{args.output}: {num_detections} detections in {len(images)} images of {args.model}")
    return EXIT_OK


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m runtime.record", doc=__doc__)
    parser.add_argument("model", metavar="MODEL", help="a model or an engine")
    add_images(parser)
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("out/results.npz"), help="default: %(default)s"
    )
    add_backend(parser)
    add_run_options(parser)
    return parser


if __name__ == "__main__":
    run_as_program(main)
