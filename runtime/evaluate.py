"""COCO box and mask AP of models and recorded results: ``python -m runtime.evaluate ARTIFACT ... --dataset DIR``.

An artifact is an exported model, an engine, an ``.npz`` of ``export.reference`` or ``runtime.record``, or a ``.json``
of results in COCO's format, of whatever program. Several are shown side by side, with the difference to the first. The
exit status is 0, 1 if a model's output was not a result for some image (NaN; such an image counts as one without
detections), 2 if nothing could be done, or 130 or 143 after SIGINT or SIGTERM.

What counts are the categories that a model and the annotations both have, by name. Whatever else a reader of the
figures has to know (classes without a category, objects without a mask) is said on standard error.
"""

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from runtime.cli import (
    EXIT_DIFFERENT,
    EXIT_OK,
    CommandParser,
    add_backend,
    add_run_options,
    backend_options,
    command,
    positive,
    run_as_program,
)
from runtime.files import refuse_inputs
from runtime.interrupts import loading

if TYPE_CHECKING:
    from runtime.comparison.average_precision import CocoDataset
    from runtime.comparison.sources import Artifact

ANNOTATIONS = "annotations.json"


@command
def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command; return its exit status."""
    args = _parser().parse_args(argv)
    # Only now: signals are handled, and the arguments are known to be good.
    with loading():
        from runtime.comparison.evaluation import evaluate_in_order, evaluate_results, is_results
        from runtime.comparison.evaluation_report import (
            evaluation_report,
            print_by_class,
            print_evaluations,
        )
        from runtime.console import tracked, write_json

    dataset = _dataset(args)
    if args.json:
        refuse_inputs(args.json, [dataset.path, *args.artifacts, *(image.path for image in dataset.images)])
    # Files of results first: a damaged one is refused before a model is loaded.
    done = {a: evaluate_results(Path(a), dataset, args.classes) for a in args.artifacts if is_results(a)}
    models = [artifact for artifact in args.artifacts if not is_results(artifact)]
    with ExitStack() as stack:
        opened = _open_all(models, args, stack)
        done.update(zip(models, evaluate_in_order(opened, dataset, tracked, args.classes)))
    evaluations = [done[artifact] for artifact in args.artifacts]
    print_evaluations(evaluations, dataset)
    if args.per_class:
        print_by_class(evaluations)
    if args.json:
        write_json(args.json, evaluation_report(evaluations, dataset))
    return EXIT_DIFFERENT if any(evaluation.problems for evaluation in evaluations) else EXIT_OK


def _open_all(models: Sequence[str], args: argparse.Namespace, stack: ExitStack) -> "list[Artifact]":
    """Open the artifacts; recordings first, so that a damaged one is refused before a model is loaded or built."""
    from runtime.comparison.recording import SUFFIX
    from runtime.comparison.sources import open_artifact
    from runtime.console import tracked

    order = sorted(enumerate(models), key=lambda item: Path(item[1]).suffix.lower() != SUFFIX)
    opened = {}
    for index, path in tracked(order, len(order), "loading"):
        options = backend_options(path, args.backend, args)
        artifact = open_artifact(path, args.backend, args.batch, host=args.host, **options)
        opened[index] = stack.enter_context(artifact)
    return [opened[index] for index in range(len(models))]


def _dataset(args: argparse.Namespace) -> "CocoDataset":
    from runtime.comparison.average_precision import read_dataset
    from runtime.comparison.evaluation import is_results

    if args.dataset is not None:
        folder, annotations = args.images or args.dataset, args.annotations or args.dataset / ANNOTATIONS
    elif args.images is not None and args.annotations is not None:
        folder, annotations = args.images, args.annotations
    elif args.annotations is not None and all(map(is_results, args.artifacts)):
        folder, annotations = None, args.annotations  # nothing is run
    else:
        raise ValueError(
            f"dataset: expected --dataset DIR (images beside {ANNOTATIONS}) or --images DIR --annotations JSON, "
            "found neither"
        )
    return read_dataset(annotations, folder, args.limit)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m runtime.evaluate", doc=__doc__)
    parser.add_argument(
        "artifacts",
        nargs="+",
        metavar="ARTIFACT",
        help="a model, an engine, recorded results (.npz), or results in COCO's format (.json); differences are to the "
        "first",
    )
    data = parser.add_argument_group("dataset")
    data.add_argument("--dataset", type=Path, metavar="DIR", help=f"images beside {ANNOTATIONS}")
    data.add_argument("--images", type=Path, metavar="DIR", help="the images' folder, where it is another")
    data.add_argument("--annotations", type=Path, metavar="JSON", help="annotations in COCO's format")
    data.add_argument("--limit", type=positive, metavar="N", help="only the first N images")
    data.add_argument("--classes", nargs="+", default=(), metavar="NAME", help="only these classes")
    add_backend(parser)
    add_run_options(parser)
    parser.add_argument("--per-class", action="store_true", help="print AP and AP50 of each class too")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures, unrounded")
    return parser


if __name__ == "__main__":
    run_as_program(main)
