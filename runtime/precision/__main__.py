"""Precision plans: ``python -m runtime.precision plan|convert|search MODEL.onnx``.

``plan`` writes the default plan, ``convert`` a strongly typed FP16 ONNX, ``search`` the smallest plan with which the
detections stay those of FP32. The exit status is 0, 1 where a search finds no plan within the tolerance, or 2 for
refused input.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from runtime.cli import (
    EXIT_DIFFERENT,
    EXIT_OK,
    CommandParser,
    add_images,
    command,
    count,
    not_negative,
    run_as_program,
    score,
    selected_images,
    threads,
)
from runtime.files import refuse_inputs
from runtime.interrupts import loading
from runtime.plan_search.tolerance import MAX_EVALUATIONS, AgreementTolerance

# Each takes minutes.
MOST_EVALUATIONS = 100_000


@command
def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run a command; return its exit status."""
    args = _parser().parse_args(argv)
    return args.command(args)


# Each loads its libraries only then: signals are handled, and the arguments are known to be good.


def plan_command(args: argparse.Namespace) -> int:
    """Model -> default plan."""
    with loading():
        from rich.text import Text

        from runtime.console import table_console
        from runtime.graphs.load import graph_errors, load_onnx
        from runtime.plan_search.report import plan_table
        from runtime.precision.geometry import default_plan

    if args.output is not None:
        refuse_inputs(args.output, [args.model])
    model = load_onnx(args.model)
    with graph_errors(args.model, model):
        plan = default_plan(model)
    if args.output is None:
        print(plan.to_json(), end="")
        return EXIT_OK
    plan.save(args.output)
    console = table_console()
    console.print(plan_table(plan))
    console.print(Text(f"wrote {args.output}: {len(plan.nodes)} nodes stay FP32"), soft_wrap=True)
    return EXIT_OK


def convert_command(args: argparse.Namespace) -> int:
    """Model and plan -> strongly typed FP16 model."""
    with loading():
        from runtime.graphs.load import graph_errors, import_onnx, load_onnx, save_model
        from runtime.precision.choice import chosen_plan
        from runtime.precision.typed import fp16_model

    output = args.output or args.model.with_suffix(".fp16.onnx")
    refuse_inputs(output, [args.model, *([args.plan] if args.plan else [])])
    model = load_onnx(args.model)
    plan = chosen_plan(args.model, model, args.plan)
    with graph_errors(args.model, model):
        typed = fp16_model(model, plan)
        import_onnx().checker.check_model(typed, full_check=True)
    save_model(typed, output)
    size = output.stat().st_size / 1e6
    print(f"wrote {output}: {size:.1f} MB, FP16 but for {len(plan.nodes)} nodes")
    return EXIT_OK


def search_command(args: argparse.Namespace) -> int:
    """Model, images and a plan to start from -> the smallest plan within the tolerance."""
    with loading():
        from rich.text import Text

        from runtime.backends import load_backend
        from runtime.console import status, table_console, write_json
        from runtime.graphs.load import graph_errors, load_onnx
        from runtime.plan_search.agreement import Judge
        from runtime.plan_search.emulation import Emulator
        from runtime.plan_search.measure import measure
        from runtime.plan_search.report import evaluation_line, search_report, search_table, summary_lines
        from runtime.plan_search.search import PlanSearch
        from runtime.precision.choice import chosen_plan
        from runtime.precision.geometry import default_plan
        from runtime.precision.plan import plan_path

    tolerance = AgreementTolerance(args.box, args.score, args.mask, args.min_score, args.share)
    images = selected_images(args.images)
    output = args.output or plan_path(args.model)
    for path in (output, args.json):
        if path is not None:
            refuse_inputs(path, [args.model, *images])
    model = load_onnx(args.model)
    with graph_errors(args.model, model):
        start = chosen_plan(args.model, model, args.plan) if args.plan else default_plan(model)
        emulator = Emulator(model)
    console = table_console()
    backend = load_backend(args.model, "onnxruntime", threads=args.threads)
    judge = Judge(backend, images, tolerance, threads=args.threads)
    backend.close()
    search = PlanSearch(
        model,
        start,
        evaluate=lambda plan: judge(emulator.model(plan)),
        measure=lambda: measure(emulator, start, judge.feeds, threads=args.threads),
        tolerance=tolerance,
        max_evaluations=args.max_evaluations,
        report=lambda evaluation: console.print(Text(evaluation_line(evaluation)), soft_wrap=True),
    )
    with status("searching for a plan"):
        result = search.run()
    if result.reached:
        result.plan.save(output)
    if args.json:
        write_json(args.json, search_report(result, tolerance, args.model, images))
    console.print(search_table(result))
    for line in summary_lines(result, output):
        console.print(Text(line), soft_wrap=True)
    return EXIT_OK if result.reached else EXIT_DIFFERENT


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m runtime.precision", doc=__doc__, paragraph=1)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    plan = commands.add_parser("plan", help="write the default plan: geometry in FP32, layers in FP16")
    plan.set_defaults(command=plan_command)
    _add_model(plan)
    plan.add_argument("-o", "--output", type=Path, help="default: print it")

    convert = commands.add_parser("convert", help="write a strongly typed FP16 ONNX")
    convert.set_defaults(command=convert_command)
    _add_model(convert)
    convert.add_argument(
        "--plan", type=Path, help="default: MODEL.plan.json where it is there, or else the default plan"
    )
    convert.add_argument("-o", "--output", type=Path, help="default: MODEL.fp16.onnx")

    search = commands.add_parser("search", help="find what else must stay FP32 for the detections to stay")
    search.set_defaults(command=search_command)
    _add_model(search)
    add_images(search)
    search.add_argument("--plan", type=Path, help="what stays FP32 in any case (default: the default plan)")
    search.add_argument(
        "-o", "--output", type=Path, help="where the plan goes (default: MODEL.plan.json, where builds look)"
    )
    search.add_argument("--json", type=Path, help="a report: every group, tensor and evaluation")
    search.add_argument(
        "--max-evaluations",
        type=count(MOST_EVALUATIONS),
        default=MAX_EVALUATIONS,
        help="default: %(default)s",
    )
    search.add_argument("--threads", type=threads, help="CPU threads (default: as many as there are cores)")
    _add_tolerance(search)
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="a float32 .onnx")


def _add_tolerance(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "tolerance", "a detection agrees with its counterpart of the FP32 model within"
    )
    default = AgreementTolerance()
    group.add_argument("--box", type=not_negative, default=default.box_px, help="px (default: %(default)s)")
    group.add_argument(
        "--score", type=not_negative, default=default.score, help="of score (default: %(default)s)"
    )
    group.add_argument(
        "--mask",
        type=not_negative,
        default=default.mask,
        help="share of the pixels of either mask (default: %(default)s)",
    )
    group.add_argument(
        "--min-score",
        type=score,
        default=default.min_score,
        help="detections below need no counterpart (default: %(default)s)",
    )
    group.add_argument(
        "--share",
        type=score,
        default=default.share,
        help="least share of the detections that must agree (default: %(default)s)",
    )


if __name__ == "__main__":
    run_as_program(main)
