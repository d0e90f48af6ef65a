"""Build a TensorRT engine: ``python -m runtime.build model.onnx``.

Writes ``model.engine`` and ``model.engine.json``, what it was built from. An engine that is there and still good is
kept. The exit status is 0, 2 if there is no engine to be had, or 130 or 143 after SIGINT or SIGTERM: what was there
stays.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from runtime.cli import EXIT_OK, CommandParser, batch, command, count, run_as_program
from runtime.engine.config import PRECISIONS, REBUILD, EngineConfig
from runtime.interrupts import loading
from runtime.ranges import MAX_DEVICE_INDEX, MAX_WORKSPACE_MIB


@command
def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command; return its exit status."""
    args = _parser().parse_args(argv)
    keywords = _keywords(args)
    # Only now: signals are handled, and the arguments are known to be good.
    with loading():
        from runtime.console import say
        from runtime.engine.builds import build_engine
        from runtime.engine.files import engine_path
        from runtime.engine.report import print_engine, shown_progress
        from runtime.files import refuse_inputs

    inputs = [path for path in (args.model, args.plan, args.plugins) if path is not None]
    for output in (args.output or engine_path(args.model), args.timing_cache):
        if output is not None:
            refuse_inputs(output, inputs)
    with shown_progress(args.verbose) as monitor:
        built = build_engine(**keywords, monitor=monitor, echo=say if args.verbose else None, notify=say)
    print_engine(built.path, built.sidecar)
    return EXIT_OK


def _keywords(args: argparse.Namespace) -> dict[str, Any]:
    """Return what ``build_engine`` is asked for."""
    from runtime.engine.shape_options import batch_ranges, shape_option, size_ranges, tactic_sources

    height, width = size_ranges(args.size)
    config = EngineConfig(
        batch=tuple(args.batch),
        profiles=batch_ranges(args.profiles),
        height=height,
        width=width,
        shapes=tuple(shape_option(text) for text in args.shape),
        precision=args.precision,
        workspace_mib=args.workspace,
        tactic_sources=tactic_sources(args.tactic_sources),
    )
    return {
        "model": args.model,
        "engine": args.output,
        "config": config,
        "plan": args.plan,
        "use_plan": not args.no_plan,
        "timing_cache": args.timing_cache,
        "plugins": args.plugins,
        "device_index": args.device_index,
        "rebuild": args.rebuild,
        "allow_slower": args.allow_slower,
    }


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m runtime.build", doc=__doc__)
    parser.add_argument(
        "model", type=Path, metavar="MODEL.onnx", help="exported by export.maskrcnn, or any other ONNX"
    )
    parser.add_argument("-o", "--output", type=Path, help="the engine (default: MODEL.engine)")
    profile = parser.add_argument_group("profile")
    profile.add_argument(
        "--batch",
        nargs=3,
        type=batch,
        metavar=("MIN", "OPT", "MAX"),
        default=EngineConfig().batch,
        help="images at once; tuned for OPT, and for one image alone (default: 1 8 8)",
    )
    profile.add_argument(
        "--profiles",
        nargs="+",
        metavar="MIN:OPT:MAX",
        help="ranges of images at once that the engine is tuned for, each by itself, instead of --batch; a number is "
        "a range of its own",
    )
    profile.add_argument(
        "--size",
        nargs="+",
        metavar="HxW",
        help="MIN OPT MAX, or one, for a model of dynamic size (default: what the model's resize rule needs)",
    )
    profile.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="NAME=MIN,OPT,MAX",
        help="shapes of one input, such as 1x3x320x320, instead of --batch and --size; may be repeated",
    )
    precision = parser.add_argument_group("precision")
    precision.add_argument("--precision", choices=PRECISIONS, default="fp16", help="default: %(default)s")
    plan = precision.add_mutually_exclusive_group()
    plan.add_argument(
        "--plan",
        type=Path,
        help="nodes that stay FP32 (default: MODEL.plan.json, or else the graph's geometry; see runtime.precision)",
    )
    plan.add_argument(
        "--no-plan",
        action="store_true",
        help="leave every layer to TensorRT; without the plugins, or in graphs of others, boxes and masks suffer",
    )
    precision.add_argument(
        "--allow-slower",
        action="store_true",
        help="take an engine in which more than 5 %% of the dense arithmetic runs in a slower precision than asked",
    )
    build = parser.add_argument_group("build")
    build.add_argument(
        "--workspace",
        type=count(MAX_WORKSPACE_MIB),
        metavar="MIB",
        help="most memory of layers (default: TensorRT's)",
    )
    build.add_argument(
        "--tactic-sources",
        metavar="A,B",
        help="libraries for kernels, e.g. cublas,cudnn; `none`: TensorRT's own only",
    )
    build.add_argument(
        "--timing-cache", type=Path, help="file of kernel timings, read and extended: later builds are fast"
    )
    build.add_argument("--plugins", type=Path, help="plugin library (default: where `make plugins` puts it)")
    build.add_argument(
        "--device-index", type=count(MAX_DEVICE_INDEX, 0), default=0, help="GPU (default: %(default)s)"
    )
    build.add_argument(
        "--rebuild",
        choices=REBUILD,
        default="auto",
        help="auto: build what is missing or stale; never: refuse it; always (default: %(default)s)",
    )
    build.add_argument("--verbose", action="store_true", help="print TensorRT's whole log")
    return parser


if __name__ == "__main__":
    run_as_program(main)
