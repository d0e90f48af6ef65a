"""What evaluations look like: a table side by side, and the figures for ``--json``."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Optional

from rich.table import Table
from rich.text import Text

from runtime.comparison.average_precision import CocoDataset
from runtime.comparison.evaluation import Evaluation
from runtime.comparison.sources import MadeBy
from runtime.console import table_console
from runtime.messages import printable

_HEADINGS = ("AP", "AP50", "AP75", "small", "medium", "large")


def evaluation_report(evaluations: Sequence[Evaluation], dataset: CocoDataset) -> dict[str, Any]:
    """Return what ``--json`` writes."""
    return {
        "annotations": str(dataset.path),
        "num_images": len(dataset.images),
        "notes": list(dataset.notes),
        "artifacts": [
            {**asdict(evaluation), "difference_to_first": evaluation.minus(evaluations[0])}
            for evaluation in evaluations
        ],
    }


def print_evaluations(evaluations: Sequence[Evaluation], dataset: CocoDataset) -> None:
    """Print a row per artifact and kind, with differences to the first, and what the figures leave out."""
    table = Table(title=Text(printable(f"COCO AP on {len(dataset.images)} images of {dataset.path}")))
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
    for evaluation in (e for e in evaluations if e.path):
        print(f"{evaluation.name}: results of the {MadeBy(evaluation.path, evaluation.path_reason)}")
    for evaluation in evaluations:
        for note in evaluation.notes:
            print(f"{evaluation.name}: note: {note}", file=sys.stderr)
        for problem in evaluation.problems:
            print(f"{evaluation.name}: counted as without detections: {problem}", file=sys.stderr)


def print_by_class(evaluations: Sequence[Evaluation]) -> None:
    """Print AP and AP50 of each class, a column for each artifact and kind."""
    table = Table(title="AP (AP50) of each class")
    table.add_column("class")
    columns = [(e, kind) for e in evaluations for kind in e.by_class]
    for evaluation, kind in columns:
        table.add_column(Text(printable(f"{evaluation.name}\n{kind}")), justify="right")
    names = dict.fromkeys(name for e, kind in columns for name in e.by_class[kind])
    for name in names:
        cells = (_cell(e.by_class[kind].get(name)) for e, kind in columns)
        table.add_row(Text(printable(name), overflow="fold"), *cells)
    table_console().print(table)


def _cell(values: Optional[dict[str, Optional[float]]]) -> str:
    """Return a class's figures; a dash for one that has no objects, or that an artifact does not know."""
    if values is None or values["AP"] is None:
        return "-"
    return f"{values['AP']:.3f} ({values['AP50']:.3f})"


def _rates(evaluation: Evaluation) -> tuple[str, str]:
    """Return images per second, whole and of the model alone; a recording was not run."""
    if evaluation.model_seconds is None:
        return "-", "-"
    return (
        f"{evaluation.num_images / evaluation.seconds:.2f}",
        f"{evaluation.num_images / max(evaluation.model_seconds, 1e-9):.2f}",
    )
