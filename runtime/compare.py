"""Two models, or recorded results, on the same images: ``python -m runtime.compare A B --images ...``.

A and B are exported models, engines, or ``.npz`` of ``export.reference`` or ``runtime.record``. Detections are
matched by class and box; A is what is expected. ``--layers`` names the first intermediate tensor at which two models
part. The exit status is 0, 1 beyond the tolerance, or 2 if nothing could be compared.
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
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
from runtime.comparison.difference import DetectionArrays, Difference, Tolerance, compare_image
from runtime.comparison.layer_table import LayerOptions, compare_files, print_layers
from runtime.comparison.sources import Artifact, ImageResult, open_artifact
from runtime.console import table_console, tracked, write_json
from runtime.detections import Detections
from runtime.images import find_images

_NUM_DESCRIBED = 10


@dataclass(frozen=True)
class ImageComparison:
    """One image's outcome.

    Attributes:
        image: its path.
        difference: of the detections.
        violations: what is beyond the tolerance, in words; empty if nothing is.
    """

    image: Path
    difference: Difference
    violations: tuple[str, ...]


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


def compare_artifacts(
    expected: Artifact, found: Artifact, images: Sequence[Path], tolerance: Tolerance
) -> list[ImageComparison]:
    """Compare what two artifacts find in image files.

    Raises:
        ValueError: their classes differ, or an image does not fit.
        FileNotFoundError: an image is missing.
    """
    _check_classes(expected, found)
    pairs = zip(expected(images), found(images))
    return [_compared(a, b, tolerance) for a, b in tracked(pairs, len(images), "comparing")]


def arrays_from_detections(detections: Detections) -> DetectionArrays:
    """Return detections as ``compare_image`` takes them; masks are pasted one at a time."""
    masks = _PastedMasks(detections) if detections.has_masks else None
    return DetectionArrays(detections.boxes, detections.scores, detections.labels, masks)


class _PastedMasks(Sequence):
    """(n, H, W) bool masks of which one exists at a time."""

    def __init__(self, detections: Detections) -> None:
        self._detections = detections

    def __len__(self) -> int:
        return len(self._detections)

    def __getitem__(self, index: int) -> np.ndarray:
        mask = np.zeros(self._detections.image_size, bool)
        crop = self._detections.mask_source.crop(index)
        mask[crop.window] = crop.pixels
        return mask


def _compare_detections(images: Sequence[Path], args: argparse.Namespace) -> bool:
    tolerance = Tolerance(args.box_px, args.score, args.mask, min_score=args.min_score)
    with ExitStack() as stack:
        expected = stack.enter_context(_open(args.expected, args.backend_a, args))
        found = stack.enter_context(_open(args.found, args.backend_b, args))
        comparisons = compare_artifacts(expected, found, images, tolerance)
    agree = not any(comparison.violations for comparison in comparisons)
    _print_report(comparisons, tolerance, args)
    for side, artifact in (("A", expected), ("B", found)):
        print(f"{side}: results of the {artifact.made_by}")
    if args.json:
        made_by = {"expected": asdict(expected.made_by), "found": asdict(found.made_by)}
        write_json(args.json, {**_report(comparisons, tolerance, args), "made_by": made_by})
    return agree


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


def _open(path: str, backend: str, args: argparse.Namespace) -> Artifact:
    return open_artifact(path, backend, args.batch, **backend_options(path, backend, args))


def _check_classes(expected: Artifact, found: Artifact) -> None:
    if expected.classes == found.classes:
        return
    pairs = enumerate(zip(expected.classes, found.classes))
    differing = next(
        (f"label {i} is {a!r} and {b!r}" for i, (a, b) in pairs if a != b), "the first are equal"
    )
    raise ValueError(
        f"classes: expected {expected.name} and {found.name} to have the same, found {len(expected.classes)} and "
        f"{len(found.classes)}, {differing}; compare models of the same checkpoint"
    )


def _compared(expected: ImageResult, found: ImageResult, tolerance: Tolerance) -> ImageComparison:
    difference = compare_image(*(arrays_from_detections(side.detections) for side in (expected, found)))
    problems = [
        f"{side} is not a result: {result.problem}"
        for side, result in (("A", expected), ("B", found))
        if result.problem
    ]
    # Where a side has no result, that all detections are missing says nothing more.
    return ImageComparison(expected.path, difference, tuple(problems or difference.violations(tolerance)))


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
