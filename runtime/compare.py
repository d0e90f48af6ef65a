"""Two models, or recorded results, on the same images: ``python -m runtime.compare A B --images ...``.

A and B are exported models, engines, or ``.npz`` of ``export.reference`` or ``runtime.record``. Detections are
matched by class and box; A is what is expected. ``--layers`` names the first intermediate tensor at which two models
part. The exit status is 0, 1 beyond the tolerance, or 2 if nothing could be compared.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Optional

import numpy as np
from rich.table import Table
from rich.text import Text

from runtime.backends import BACKENDS
from runtime.cli import (
    EXIT_DIFFERENT,
    EXIT_OK,
    EXIT_REFUSED,
    add_images,
    add_run_options,
    backend_options,
    not_negative,
    positive,
    score,
)
from runtime.comparison.detections import ImageComparison, compare
from runtime.comparison.difference import Difference, Tolerance
from runtime.comparison.layer_table import LayerOptions, compare_files, print_layers
from runtime.console import table_console, tracked, write_json
from runtime.images import find_images

_NUM_DESCRIBED = 10


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command; return its exit status."""
    args = _parse_arguments(argv)
    try:
        images = find_images(args.images)
        agree = _compare_layers(images, args) if args.layers else _compare_detections(images, args)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_REFUSED
    return EXIT_OK if agree else EXIT_DIFFERENT


def _compare_detections(images: Sequence[Path], args: argparse.Namespace) -> bool:
    tolerance = Tolerance(args.box_px, args.score, args.mask, min_score=args.min_score)
    comparison = compare(
        args.expected,
        args.found,
        images,
        tolerance=tolerance,
        backends=(args.backend_a, args.backend_b),
        batch=args.batch,
        host=args.host,
        options=[
            backend_options(path, backend, args)
            for path, backend in ((args.expected, args.backend_a), (args.found, args.backend_b))
        ],
        progress=tracked,
    )
    comparisons = comparison.images
    _print_report(comparisons, tolerance, args)
    for side, made_by in (("A", comparison.expected), ("B", comparison.found)):
        print(f"{side}: results of the {made_by}")
    if args.json:
        ways = {"expected": asdict(comparison.expected), "found": asdict(comparison.found)}
        write_json(args.json, {**_report(comparisons, tolerance, args), "made_by": ways})
    return comparison.agrees


def _compare_layers(images: Sequence[Path], args: argparse.Namespace) -> bool:
    options = LayerOptions(
        backends=(args.backend_a, args.backend_b),
        tolerance=args.layer_tolerance,
        chunk=args.layer_chunk,
        device=args.device,
        threads=args.threads,
    )
    report = compare_files(Path(args.expected), Path(args.found), images[: args.batch], options)
    print_layers(report, options.tolerance)
    if args.json:
        header = {"expected": args.expected, "found": args.found, "tolerance": options.tolerance}
        write_json(args.json, {**header, **asdict(report)})
    return report.first is None


def _statistics(differences: Sequence[Difference]) -> dict[str, Any]:
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


def _report(comparisons: Sequence[ImageComparison], tolerance: Tolerance, args: argparse.Namespace) -> dict:
    return {
        "expected": args.expected,
        "found": args.found,
        "tolerance": asdict(tolerance),
        "within": not any(c.violations for c in comparisons),
        "all": _statistics([c.difference for c in comparisons]),
        "images": [
            {
                "image": c.image.name,
                "within": not c.violations,
                "violations": c.violations,
                **_statistics([c.difference]),
            }
            for c in comparisons
        ],
    }


def _print_report(
    comparisons: Sequence[ImageComparison], tolerance: Tolerance, args: argparse.Namespace
) -> None:
    table = Table(title=Text(f"{args.expected} (A) and {args.found} (B): differences"))
    table.add_column("image")
    for heading in ("matched", "missing", "extra", "box px median", "90 %", "max", "score", "masks", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    for c in comparisons:
        table.add_row(Text(c.image.name, overflow="fold"), *_cells([c], tolerance))
    table.add_section()
    table.add_row("all", *_cells(comparisons, tolerance))
    table_console().print(table)
    beyond = [c for c in comparisons if c.violations]
    for c in beyond[:_NUM_DESCRIBED]:
        for violation in c.violations:
            print(f"{c.image.name}: {violation}")
    if len(beyond) > _NUM_DESCRIBED:
        print(f"and {len(beyond) - _NUM_DESCRIBED} more images; --json has them all")


def _cells(comparisons: Sequence[ImageComparison], tolerance: Tolerance) -> list[str]:
    figures = _statistics([c.difference for c in comparisons])
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


def _parse_arguments(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    limits = Tolerance()
    parser = argparse.ArgumentParser(prog="python -m runtime.compare", description=__doc__.split("\n\n")[0])
    parser.add_argument("expected", metavar="A", help="a model, an engine, or recorded results (.npz)")
    parser.add_argument("found", metavar="B", help="the same, to be held against A")
    add_images(parser)
    for side in "ab":
        parser.add_argument(
            f"--backend-{side}", choices=BACKENDS, default="auto", help="default: by the suffix"
        )
    add_run_options(parser)
    tolerance = parser.add_argument_group("tolerance")
    tolerance.add_argument(
        "--box-px", type=not_negative, default=limits.box_px, help="px of a corner (default: %(default)s)"
    )
    tolerance.add_argument(
        "--score", type=not_negative, default=limits.score, help="of a score (default: %(default)s)"
    )
    tolerance.add_argument(
        "--mask",
        type=not_negative,
        default=limits.mask,
        help="share of an image's mask pixels (default: %(default)s)",
    )
    tolerance.add_argument(
        "--min-score",
        type=score,
        default=limits.min_score,
        help="detections below it need no counterpart: in FP16 some cross the model's threshold "
        "(default: %(default)s)",
    )
    layers = parser.add_argument_group("layers")
    layers.add_argument(
        "--layers",
        action="store_true",
        help="name the first intermediate tensor at which two models part, on the first --batch images; "
        "beside an engine the other model is its ONNX",
    )
    layers.add_argument(
        "--layer-tolerance",
        type=not_negative,
        default=1e-3,
        help="relative to a tensor's largest value (default: %(default)s)",
    )
    layers.add_argument(
        "--layer-chunk",
        type=positive,
        default=8,
        metavar="N",
        help="tensors marked at once (default: %(default)s)",
    )
    parser.add_argument(
        "--json", type=Path, metavar="OUT", help="write the figures of every image, or tensor"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
