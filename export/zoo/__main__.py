"""``python -m export.zoo``: export every two-stage config that mmdet ships, and compare it with PyTorch.

Weights are random (``export.random_weights``), the size is small, batches are 1 and 2 with landscape and portrait
images. Configs whose models are the same are measured once. The results' file is written after every model; a run
goes on where the last one stopped, and measures anew what was measured with other sources of ``patches`` and
``export``.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from export.zoo.verdicts import PENDING, RESULTS
from runtime.cli import CommandParser, command, not_negative, positive, run_as_program, threads
from runtime.interrupts import loading

_RESULTS_DIR = Path(__file__).parents[2] / "benchmarks" / "results"
OUTPUTS = {
    "onnxruntime": _RESULTS_DIR / "zoo.json",
    "openvino": _RESULTS_DIR / "zoo_openvino.json",
}


@command
def main(argv: Optional[Sequence[str]] = None) -> int:
    """Measure what has no result yet; return 1 if any result is wrong or failed, 2 for refused input."""
    args = _parser().parse_args(argv)
    args.output = args.output or OUTPUTS[args.backend]
    # Only now: signals are handled, and the arguments are known to be good.
    with loading():
        from export.zoo.run import run

    return run(args)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m export.zoo", doc=__doc__)
    choice = parser.add_argument_group("which models")
    choice.add_argument("--only", type=_pattern, metavar="REGEX", help="configs in whose name this is found")
    choice.add_argument(
        "--folder", nargs="+", metavar="FOLDER", help="configs of these folders of mmdet's configs/"
    )
    choice.add_argument(
        "--retry",
        type=_results,
        default=(),
        metavar="RESULT,...",
        help="measure what has these results, whatever code they were measured with, and nothing else: "
        + ", ".join((*RESULTS, PENDING)),
    )
    work = parser.add_argument_group("how")
    work.add_argument(
        "--backend", choices=OUTPUTS, default="onnxruntime", help="what runs the files; default: %(default)s"
    )
    work.add_argument("--jobs", type=positive, default=1, help="processes at a time; default: %(default)s")
    work.add_argument("--threads", type=threads, help="CPU threads of each; default: the cores, shared out")
    work.add_argument(
        "--minutes", type=not_negative, help="begin no model after this long; those that run end"
    )
    work.add_argument(
        "--timeout",
        type=not_negative,
        default=600.0,
        metavar="S",
        help="seconds for a model; default: %(default)s",
    )
    work.add_argument(
        "--memory",
        type=not_negative,
        default=8192.0,
        metavar="MIB",
        help="resident memory for a model, MiB; default: %(default)s",
    )
    parser.add_argument("-o", "--output", type=Path, help="default: the backend's in benchmarks/results/")
    return parser


def _pattern(text: str) -> "re.Pattern[str]":
    try:
        return re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise argparse.ArgumentTypeError(
            f"expected a regular expression, found {text[:40]!r}: {error}"
        ) from error


def _results(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    known = (*RESULTS, PENDING)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(known)}, found {', '.join(unknown)}")
    return names


if __name__ == "__main__":
    run_as_program(main)
