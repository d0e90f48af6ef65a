"""What two artifacts' differences look like: a table, and the figures for ``--json``."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from runtime.comparison.detections import ImageComparison
from runtime.comparison.difference import Difference, Tolerance
from runtime.console import table_console
from runtime.messages import printable

_NUM_DESCRIBED = 10


def statistics(differences: Sequence[Difference]) -> dict[str, Any]:
    """Return the figures of one image, or of all."""
    boxes_px = np.concatenate([np.zeros(0), *(d.boxes_px for d in differences)])
    masks = [d.mask for d in differences if d.mask is not None]
    median, p90 = np.percentile(boxes_px, (50, 90)) if len(boxes_px) else (0.0, 0.0)
    return {
        "expected": sum(d.expected for d in differences),
        "found": sum(d.found for d in differences),
        "matched": sum(d.matched for d in differences),
        "missing": [s for d in differences for s in d.missing],
        "extra": [s for d in differences for s in d.extra],
        "box_px": {
            "median": float(median),
            "p90": float(p90),
            "max": float(np.max(boxes_px, initial=0.0)),
        },
        "score": float(np.max([d.score for d in differences], initial=0.0)),
        "mask": max(masks) if masks else None,
        "mask_px": sum(d.mask_px for d in differences),
        "keypoint_px": max((d.keypoint_px for d in differences if d.keypoint_px is not None), default=None),
    }


def comparison_report(
    expected: str, found: str, comparisons: Sequence[ImageComparison], tolerance: Tolerance
) -> dict[str, Any]:
    """Return what ``--json`` writes: the figures of all images, and of each."""
    return {
        "expected": expected,
        "found": found,
        "tolerance": asdict(tolerance),
        "within": not any(c.violations for c in comparisons),
        "all": statistics([c.difference for c in comparisons]),
        "images": [
            {
                "image": c.image.name,
                "within": not c.violations,
                "violations": c.violations,
                **statistics([c.difference]),
            }
            for c in comparisons
        ],
    }


def print_comparison(
    expected: str, found: str, comparisons: Sequence[ImageComparison], tolerance: Tolerance
) -> None:
    """Print a row per image, and what is beyond the tolerance."""
    table = Table(title=Text(printable(f"{expected} (A) and {found} (B): differences")))
    table.add_column("image")
    for heading in ("matched", "missing", "extra", "box px median", "90 %", "max", "score", "masks", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    for c in comparisons:
        table.add_row(Text(printable(c.image.name), overflow="fold"), *_cells([c], tolerance))
    table.add_section()
    table.add_row("all", *_cells(comparisons, tolerance))
    table_console().print(table)
    beyond = [c for c in comparisons if c.violations]
    for c in beyond[:_NUM_DESCRIBED]:
        for violation in c.violations:
            print(printable(f"{c.image.name}: {violation}"))
    if len(beyond) > _NUM_DESCRIBED:
        print(f"and {len(beyond) - _NUM_DESCRIBED} more images; --json has them all")


def _cells(comparisons: Sequence[ImageComparison], tolerance: Tolerance) -> list[str]:
    figures = statistics([c.difference for c in comparisons])
    verdict = "[red]differs[/]" if any(c.violations for c in comparisons) else "[green]agrees[/]"
    return [
        f"{figures['matched']} of {figures['expected']}",
        _unmatched(figures["missing"], tolerance.min_score),
        _unmatched(figures["extra"], tolerance.min_score),
        *(f"{figures['box_px'][name]:.1e}" for name in ("median", "p90", "max")),
        f"{figures['score']:.1e}",
        "-" if figures["mask"] is None else f"{figures['mask']:.1e}",
        verdict,
    ]


def _unmatched(scores: Sequence[float], min_score: float) -> str:
    low = sum(s < min_score for s in scores)
    return f"{len(scores)} ({low} below {min_score:g})" if low else str(len(scores))
