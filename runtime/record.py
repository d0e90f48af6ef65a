"""Record what a model finds in images: ``python -m runtime.record MODEL --images ... -o results.npz``.

``runtime.compare`` and ``runtime.evaluate`` read the ``.npz`` in the model's place, on a box that has not got its
backend. The exit status is 0, or 2 if nothing could be recorded. ``export.reference`` records PyTorch's results.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from runtime.backends import BACKENDS
from runtime.cli import EXIT_OK, EXIT_REFUSED, add_images, add_run_options, backend_options
from runtime.comparison.sources import open_artifact, record
from runtime.console import tracked
from runtime.images import find_images


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command; return its exit status."""
    args = _parse_arguments(argv)
    try:
        images = find_images(args.images)
        options = backend_options(args.model, args.backend, args)
        with open_artifact(args.model, args.backend, args.batch, host=args.host, **options) as artifact:
            results = record(artifact, images, args.output)
            num_detections = sum(len(r.detections) for r in tracked(results, len(images), "recording"))
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_REFUSED
    print(f"{args.output}: {num_detections} detections in {len(images)} images of {args.model}")
    return EXIT_OK


def _parse_arguments(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m runtime.record", description=__doc__.split("\n\n")[0])
    parser.add_argument("model", metavar="MODEL", help="a model or an engine")
    add_images(parser)
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("out/results.npz"), help="default: %(default)s"
    )
    parser.add_argument("--backend", choices=BACKENDS, default="auto", help="default: by the model's suffix")
    add_run_options(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
