"""Two models, or recorded results, on the same images: ``python -m runtime.compare A B --images ...``.

A and B are exported models, engines, or ``.npz`` of ``export.reference`` or ``runtime.record``. Detections are
matched by class and box; A is what is expected. ``--layers`` names the first intermediate tensor at which two models
part. With ``--input`` or ``--random``, outputs of any two models are compared by name. The exit status is 0, 1 beyond
the tolerance, 2 if nothing could be compared, or 130 or 143 after SIGINT or SIGTERM.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Optional

from runtime.cli import (
    EXIT_DIFFERENT,
    EXIT_OK,
    CommandParser,
    add_backend,
    add_images,
    add_run_options,
    add_tensor_inputs,
    backend_options,
    command,
    count,
    not_negative,
    run_as_program,
    score,
    selected_images,
)
from runtime.files import refuse_inputs
from runtime.interrupts import loading
from runtime.ranges import MAX_CHUNK


@command
def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command; return its exit status."""
    args = _parser().parse_args(argv)
    if args.input or args.random is not None:
        return EXIT_OK if _compare_tensors(args) else EXIT_DIFFERENT
    images = selected_images(args.images)
    if args.json:
        refuse_inputs(args.json, [args.expected, args.found, *images])
    agree = _compare_layers(images, args) if args.layers else _compare_detections(images, args)
    return EXIT_OK if agree else EXIT_DIFFERENT


def _compare_detections(images: Sequence[Path], args: argparse.Namespace) -> bool:
    with loading():
        from runtime.comparison.detections import compare
        from runtime.comparison.difference import Tolerance
        from runtime.comparison.report import comparison_report, print_comparison
        from runtime.console import tracked, write_json

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
    shown = (args.expected, args.found, comparison.images, tolerance)
    print_comparison(*shown)
    for side, made_by in (("A", comparison.expected), ("B", comparison.found)):
        print(f"{side}: results of the {made_by}")
    if args.json:
        ways = {"expected": asdict(comparison.expected), "found": asdict(comparison.found)}
        write_json(args.json, {**comparison_report(*shown), "made_by": ways})
    return comparison.agrees


def _compare_layers(images: Sequence[Path], args: argparse.Namespace) -> bool:
    with loading():
        from runtime.comparison.layer_table import LayerOptions, compare_files, print_layers
        from runtime.console import write_json

    options = LayerOptions(
        backends=(args.backend_a, args.backend_b),
        tolerance=args.layer_tolerance,
        chunk=args.layer_chunk,
        device=args.device,
        threads=args.threads,
        precision=args.precision,
    )
    report = compare_files(Path(args.expected), Path(args.found), images[: args.batch], options)
    print_layers(report, options.tolerance)
    if args.json:
        header = {"expected": args.expected, "found": args.found, "tolerance": options.tolerance}
        write_json(args.json, {**header, **asdict(report)})
    return report.first is None


def _compare_tensors(args: argparse.Namespace) -> bool:
    with loading():
        from runtime.comparison.sources import split_precision
        from runtime.comparison.tensors import compare_tensors, print_tensor_differences
        from runtime.console import status, write_json
        from runtime.session import Session
        from runtime.tensor_files import made_feeds, read_inputs

    if args.layers:
        raise ValueError("--layers: expected images, found --input or --random; leave either out")
    given, files = read_inputs(args.input)
    if args.json:
        refuse_inputs(args.json, [args.expected, args.found, *files])
    outputs: list[dict] = []
    feeds: dict = {}
    for model, backend in ((args.expected, args.backend_a), (args.found, args.backend_b)):
        path, options = split_precision(model)[0], backend_options(model, backend, args)
        with status(f"running {path}"), Session(path, backend, **options) as session:
            feeds = feeds or made_feeds(path, session.inputs, given, args.shape, args.random)
            outputs.append(session(feeds))
    expected, found = outputs
    rows = compare_tensors(expected, found, args.layer_tolerance)
    print_tensor_differences(rows, args.layer_tolerance)
    if args.json:
        header = {"expected": args.expected, "found": args.found, "tolerance": args.layer_tolerance}
        write_json(args.json, {**header, "outputs": [asdict(row) for row in rows]})
    return all(row.agrees for row in rows)


def _parser() -> argparse.ArgumentParser:
    with loading():
        from runtime.comparison.difference import Tolerance

    limits = Tolerance()
    parser = CommandParser(prog="python -m runtime.compare", doc=__doc__)
    parser.add_argument("expected", metavar="A", help="a model, an engine, or recorded results (.npz)")
    parser.add_argument("found", metavar="B", help="the same, to be held against A")
    add_images(parser)
    for side in "ab":
        add_backend(parser, f"--backend-{side}")
    add_run_options(parser)
    tolerance = parser.add_argument_group("tolerance")
    for name, words in (
        ("box_px", "px of a corner"),
        ("score", "of a score"),
        ("mask", "share of mask pixels"),
    ):
        option, default = f"--{name.replace('_', '-')}", getattr(limits, name)
        tolerance.add_argument(
            option, type=not_negative, default=default, help=f"{words} (default: %(default)s)"
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
        help="relative to a tensor's largest value; of outputs too (default: %(default)s)",
    )
    layers.add_argument(
        "--layer-chunk",
        type=count(MAX_CHUNK),
        default=8,
        metavar="N",
        help="tensors marked at once (default: %(default)s)",
    )
    add_tensor_inputs(
        parser.add_argument_group("tensors: models of any inputs, whose outputs are compared by name")
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write every image's, or tensor's, figures")
    return parser


if __name__ == "__main__":
    run_as_program(main)
