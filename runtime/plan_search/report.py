"""What a search found: a table for people, JSON for programs."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from runtime.plan_search.agreement import AgreementTolerance
from runtime.plan_search.search import Evaluation, SearchResult
from runtime.precision.plan import PrecisionPlan

FORMAT = 1
_NUM_LARGEST = 3


def plan_table(plan: PrecisionPlan) -> Table:
    """Return a table of the plan's groups."""
    table = Table("stays FP32", "why")
    table.add_column("nodes", justify="right")
    for group in plan.groups:
        table.add_row(Text(group.name), Text(group.reason), str(len(group.nodes)))
    return table


def search_table(result: SearchResult) -> Table:
    """Return a table of the plan's groups, what speaks for those that the search added, and their figures."""
    table = Table("stays FP32", "because of")
    for name in ("nodes", "largest |x|", "own error", "error so far"):
        table.add_column(name, justify="right")
    found = {part.group.name: part for part in result.found}
    for group in result.plan.groups:
        part = found.get(group.name)
        worst = part.worst if part else None
        figures = (worst.max_abs, worst.own_error, worst.error) if worst else (None, None, None)
        numbers = ("" if v is None else f"{v:.2g}" for v in figures)
        table.add_row(Text(group.name), part.why if part else "default", str(len(group.nodes)), *numbers)
    return table


def evaluation_line(evaluation: Evaluation) -> str:
    """Return one try in words."""
    agreement = evaluation.agreement
    found = agreement.problem or f"{agreement.agreeing} of {agreement.total} detections agree"
    verdict = "within" if evaluation.within else "beyond"
    return f"{evaluation.seconds:7.1f} s  {evaluation.num_nodes:4d} more nodes in FP32: {found}, {verdict}"


def summary_lines(result: SearchResult, output: Path) -> list[str]:
    """Return the result in words."""
    num_tries = len(result.evaluations)
    seconds = sum(evaluation.seconds for evaluation in result.evaluations)
    tried = f"{num_tries} evaluation{'' if num_tries == 1 else 's'} in {seconds:.0f} s"
    if not result.reached:
        return [
            f"no plan within the tolerance after {tried}; FP32 everywhere is {len(result.plan.nodes)} nodes. "
            "Widen the tolerance, or allow more with --max-evaluations"
        ]
    lines = [f"wrote {output}: {len(result.plan.nodes)} nodes stay FP32, {tried}"]
    if not result.found:
        lines[0] += "; the plan to start from is enough"
        lines += [
            f"{tensor.tensor} overflows in FP16 ({tensor.max_abs:.3g}), which does no harm in these images; "
            f"to be sure, add {tensor.node} and its readers to the plan"
            for tensor in result.figures
            if tensor.overflows and tensor.error is not None
        ]
    if not result.complete:
        lines.append("a smaller plan may exist: the evaluations were used up, see --max-evaluations")
    half = [t for t in result.figures if t.error is not None and t.node not in result.plan.nodes]
    largest = sorted(half, key=lambda tensor: -tensor.max_abs)[:_NUM_LARGEST]
    if largest:
        names = ", ".join(f"{tensor.max_abs:.3g} in {tensor.tensor}" for tensor in largest)
        lines.append(f"largest values that stay FP16, of at most 65504: {names}")
    return lines


def search_report(
    result: SearchResult, tolerance: AgreementTolerance, model: Path, images: Sequence[Path]
) -> dict[str, Any]:
    """Return everything for JSON. Numbers that are not finite are strings."""
    found = {part.group.name: part for part in result.found}
    report = {
        "format": FORMAT,
        "model": model.name,
        "images": [image.name for image in images],
        "tolerance": asdict(tolerance),
        "reached": result.reached,
        "complete": result.complete,
        "groups": [
            {
                "name": group.name,
                "why": found[group.name].why if group.name in found else "default",
                "reason": group.reason,
                "nodes": list(group.nodes),
                "worst": _fields(found[group.name].worst) if group.name in found else None,
            }
            for group in result.plan.groups
        ],
        "evaluations": [{**asdict(e), "share": e.agreement.share} for e in result.evaluations],
        "tensors": [{**asdict(t), "overflows": t.overflows} for t in result.figures],
    }
    return _finite(report)


def _fields(figures: Any) -> Any:
    return None if figures is None else asdict(figures)


def _finite(value: Any) -> Any:
    """Return the value with strings for Inf and NaN, which JSON has not got."""
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
