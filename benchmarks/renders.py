"""``python -m benchmarks.renders NAME=MODEL...``: average precision of files of one model on many renders.

The changes that a few dozen images show are chance in the third decimal; renders are as many as one likes. They have
the sizes of the evaluation set and a seed of their own, so that none is in it or among those that quantization sees.
Needs no PyTorch; TensorRT's engines are models too.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from benchmarks.cpu_case import processor
from examples.shapes import write_coco
from runtime.cli import CommandParser, positive
from runtime.comparison.average_precision import read_dataset
from runtime.comparison.evaluation import evaluate_artifact
from runtime.comparison.sources import open_artifact
from runtime.console import write_json
from runtime.evaluate import ANNOTATIONS

SEED = 50001
# (height, width) px, of shapes_val
SIZES = ((800, 1216), (480, 640), (600, 800), (768, 512), (1080, 1920))


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Evaluate, print and write the JSON after every model, return 0."""
    args = _parser().parse_args(argv)
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_coco(Path(folder), num=args.num, seed=SEED, sizes=SIZES)
        dataset = read_dataset(Path(folder) / ANNOTATIONS, Path(folder))
        for name, path in args.models:
            with open_artifact(path, backend=args.backend, batch_size=args.batch) as artifact:
                found = evaluate_artifact(artifact, dataset)
            rows[name] = {
                "detections": found.num_detections,
                "average_precision": {kind: ap["AP"] for kind, ap in found.average_precision.items()},
            }
            print(name, rows[name], flush=True)
            write_json(
                args.output,
                {**processor(), "backend": args.backend, "images": args.num, "seed": SEED, "models": rows},
            )
    return 0


def _named(text: str) -> tuple[str, Path]:
    name, _, path = text.partition("=")
    if not path:
        raise argparse.ArgumentTypeError(f"expected NAME=FILE, found {text}")
    return name, Path(path)


def _parser() -> CommandParser:
    parser = CommandParser(prog="python -m benchmarks.renders", doc=__doc__)
    parser.add_argument("models", type=_named, nargs="+", metavar="NAME=MODEL")
    parser.add_argument("--backend", default="auto", help="default: %(default)s")
    parser.add_argument("--batch", type=positive, default=1, help="default: %(default)s")
    parser.add_argument("--num", type=positive, default=500, help="renders; default: %(default)s")
    parser.add_argument("--output", type=Path, required=True)
    return parser


if __name__ == "__main__":
    sys.exit(main())
