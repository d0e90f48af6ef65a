"""COCO box and mask AP of models and recorded results: ``python -m runtime.evaluate ARTIFACT ... --dataset DIR``.

An artifact is an exported model, an engine, or an ``.npz`` of ``export.reference`` or ``runtime.record``. Several are
shown side by side, with the difference to the first. The exit status is 0, 1 if a model's output was not a result
for some image (NaN; such an image counts as one without detections), or 2 if nothing could be done.

What counts are the categories that a model and the annotations both have, by name. Whatever else a reader of the
figures has to know (classes without a category, objects without a mask) is said on standard error.
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Optional

from rich.table import Table
from rich.text import Text

from runtime.backends import BACKENDS
from runtime.cli import EXIT_DIFFERENT, EXIT_OK, EXIT_REFUSED, add_run_options, backend_options, positive
from runtime.comparison.average_precision import (
    CocoDataset,
    category_ids,
    read_dataset,
)
from runtime.comparison.evaluation import Evaluation, evaluate_artifact
from runtime.comparison.recording import SUFFIX
from runtime.comparison.sources import Artifact, MadeBy, open_artifact
from runtime.console import table_console, tracked, write_json
from runtime.files import refuse_inputs

ANNOTATIONS = "annotations.json"
_HEADINGS = ("AP", "AP50", "AP75", "small", "medium", "large")


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command; return its exit status."""
    args = _parse_arguments(argv)
    try:
        dataset = _dataset(args)
        if args.json:
            refuse_inputs(args.json, [dataset.path, *args.artifacts])
        with ExitStack() as stack:
            artifacts = _open_all(args, stack)
            for artifact in artifacts:
                _check_classes(artifact, dataset)
            evaluations = _evaluate_all(artifacts, dataset)
        _print_report(evaluations, dataset)
        if args.json:
            write_json(args.json, _report(evaluations, dataset))
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_REFUSED
    return EXIT_DIFFERENT if any(evaluation.problems for evaluation in evaluations) else EXIT_OK


def _open_all(args: argparse.Namespace, stack: ExitStack) -> list[Artifact]:
    """Open the artifacts; recordings first, so that a damaged one is refused before a model is loaded or built."""
    order = sorted(enumerate(args.artifacts), key=lambda item: Path(item[1]).suffix.lower() != SUFFIX)
    opened = {index: stack.enter_context(_open(path, args)) for index, path in order}
    return [opened[index] for index in range(len(args.artifacts))]


def _evaluate_all(artifacts: Sequence[Artifact], dataset: CocoDataset) -> list[Evaluation]:
    """Evaluate in order, but recordings first: one that lacks an image is refused before a model has run."""
    order = sorted(range(len(artifacts)), key=lambda index: artifacts[index].model_seconds is not None)
    evaluations = {index: evaluate_artifact(artifacts[index], dataset, tracked) for index in order}
    return [evaluations[index] for index in range(len(artifacts))]


def _open(path: str, args: argparse.Namespace) -> Artifact:
    options = backend_options(path, args.backend, args)
    return open_artifact(path, args.backend, args.batch, host=args.host, **options)


def _check_classes(artifact: Artifact, dataset: CocoDataset) -> None:
    """Refuse before hours of work, and say whose classes they are."""
    try:
        category_ids(artifact.classes, dataset)
    except ValueError as error:
        raise ValueError(f"{artifact.name}: {error}") from error


def _dataset(args: argparse.Namespace) -> CocoDataset:
    if args.dataset is not None:
        folder, annotations = args.images or args.dataset, args.annotations or args.dataset / ANNOTATIONS
    elif args.images is not None and args.annotations is not None:
        folder, annotations = args.images, args.annotations
    else:
        raise ValueError(
            f"dataset: expected --dataset DIR (images beside {ANNOTATIONS}) or --images DIR --annotations JSON, "
            "found neither"
        )
    return read_dataset(annotations, folder, args.limit)


def _report(evaluations: Sequence[Evaluation], dataset: CocoDataset) -> dict:
    return {
        "annotations": str(dataset.path),
        "num_images": len(dataset.images),
        "notes": list(dataset.notes),
        "artifacts": [
            {**asdict(evaluation), "difference_to_first": evaluation.minus(evaluations[0])}
            for evaluation in evaluations
        ],
    }


def _print_report(evaluations: Sequence[Evaluation], dataset: CocoDataset) -> None:
    table = Table(title=f"COCO AP on {len(dataset.images)} images of {dataset.path}")
    table.add_column("artifact")
    table.add_column("")
    for heading in (*_HEADINGS, "detections", "images/s", "of the model"):
        table.add_column(heading, justify="right", no_wrap=True)
    first = evaluations[0]
    for evaluation in evaluations:
        facts = (str(evaluation.num_detections), *_rates(evaluation))
        for kind, values in evaluation.average_precision.items():
            name, shown = (evaluation.name, facts) if kind == "box" else ("", ("", "", ""))
            cells = (f"{v:.3f}" if v is not None else "-" for v in values.values())
            table.add_row(Text(name, overflow="fold"), kind, *cells, *shown)
        if evaluation is not first:
            for kind, values in evaluation.minus(first).items():
                cells = (f"{v:+.4f}" if v is not None else "-" for v in values.values())
                table.add_row("  - the first", kind, *cells, "", "", "", style="dim")
        table.add_section()
    table_console().print(table)
    for note in dataset.notes:
        print(f"note: {note}", file=sys.stderr)
    for evaluation in evaluations:
        print(f"{evaluation.name}: results of the {MadeBy(evaluation.path, evaluation.path_reason)}")
    for evaluation in evaluations:
        for note in evaluation.notes:
            print(f"{evaluation.name}: note: {note}", file=sys.stderr)
        for problem in evaluation.problems:
            print(f"{evaluation.name}: counted as without detections: {problem}", file=sys.stderr)


def _rates(evaluation: Evaluation) -> tuple[str, str]:
    """Return images per second, whole and of the model alone; a recording was not run."""
    if evaluation.model_seconds is None:
        return "-", "-"
    return (
        f"{evaluation.num_images / evaluation.seconds:.2f}",
        f"{evaluation.num_images / max(evaluation.model_seconds, 1e-9):.2f}",
    )


def _parse_arguments(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m runtime.evaluate", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "artifacts",
        nargs="+",
        metavar="ARTIFACT",
        help="a model, an engine, or recorded results (.npz); differences are to the first",
    )
    data = parser.add_argument_group("dataset")
    data.add_argument("--dataset", type=Path, metavar="DIR", help=f"images beside {ANNOTATIONS}")
    data.add_argument("--images", type=Path, metavar="DIR", help="the images' folder, where it is another")
    data.add_argument("--annotations", type=Path, metavar="JSON", help="annotations in COCO's format")
    data.add_argument("--limit", type=positive, metavar="N", help="only the first N images")
    parser.add_argument("--backend", choices=BACKENDS, default="auto", help="default: by the model's suffix")
    add_run_options(parser)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures, unrounded")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
