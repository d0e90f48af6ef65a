"""``python -m export.quantize MODEL.onnx --images ... -o MODEL.int8.onnx``: float becomes INT8, with Q/DQ pairs.

Needs onnx and onnxruntime, neither PyTorch nor mmdet. The exit status is 0, or 2 for refused input, which a model is
too that cannot be quantized within ``--ap-drop``.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from export.quantization.choices import ACTIVATIONS, DEFAULT_METHOD, DEFAULT_PERCENTILE, METHODS
from runtime.cli import (
    EXIT_OK,
    CommandParser,
    batch,
    command,
    not_negative,
    positive,
    run_as_program,
    selected_images,
    threads,
)
from runtime.files import refuse_inputs
from runtime.interrupts import loading

if TYPE_CHECKING:
    from rich.table import Table

    from export.quantization.api import QuantizeResult
    from export.quantization.sensitivity import LayerFigures

NUM_WORST = 5
_NUM_SHOWN = 15


@command
def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command; return its exit status."""
    args = _parser().parse_args(argv)
    # Only now: signals are handled, and the arguments are known to be good.
    with loading():
        import export.quantization.api  # noqa: F401
        from runtime.console import write_json

    result = _accepted(args) if args.as_is else _quantized(args)
    if args.report:
        write_json(args.report, _report(result, args))
    _print(result)
    return EXIT_OK


def _accepted(args: argparse.Namespace) -> "QuantizeResult":
    from export.quantization.api import accept_quantized, default_output

    if args.images:
        raise ValueError("--as-is: expected no --images, found some; a quantized model needs no calibration")
    output = args.output or default_output(args.model, "int8")
    _check_report(args, [args.model, output])
    return accept_quantized(args.model, output)


def _quantized(args: argparse.Namespace) -> "QuantizeResult":
    from export.quantization.api import QuantizeOptions, default_output, quantize_model
    from runtime.console import tracked

    if not args.images:
        raise ValueError(
            "--images: expected images to calibrate on, found none; give files, folders or patterns of what the model "
            "will see"
        )
    images = selected_images(args.images)
    output = args.output or default_output(args.model, args.activations)
    _check_report(args, [args.model, output, *images])
    options = QuantizeOptions(
        activations=args.activations,
        reduce_range=args.reduce_range,
        equalize=args.equalize,
        leave_out=args.leave_out,
        plan=args.plan,
        cache=args.cache,
        num_worst=args.worst if args.worst is not None else NUM_WORST if args.report else None,
        ap_drop=args.ap_drop,
        dataset=args.dataset,
        limit=args.limit,
    )
    return quantize_model(
        args.model,
        output,
        images,
        options=options,
        method=args.method,
        percentile=args.percentile,
        batch=args.batch,
        threads=args.threads,
        progress=tracked,
    )


def _check_report(args: argparse.Namespace, read: Sequence[Path]) -> None:
    if args.report:
        others = (args.plan, args.cache, args.dataset)
        refuse_inputs(args.report, [*read, *(path for path in others if path is not None)])


def _report(result: "QuantizeResult", args: argparse.Namespace) -> dict:
    return {
        "model": str(args.model),
        "output": str(result.path),
        "num_bytes": result.num_bytes,
        "quantization": asdict(result.record),
        "num_nodes": result.num_nodes,
        "num_detections": result.num_detections,
        "layers": [
            {**asdict(figure), "share": None if figure.agreement is None else figure.agreement.share}
            for figure in result.ranking
        ],
        "trials": [asdict(trial) for trial in result.trials],
    }


def _print(result: "QuantizeResult") -> None:
    from rich.text import Text

    from runtime.console import table_console

    console = table_console()
    if result.ranking:
        console.print(_ranking_table(result.ranking))
    for trial in result.trials:
        drops = ", ".join(f"{kind} AP {-drop:+.4f}" for kind, drop in trial.drops.items())
        verdict = "enough" if trial.within else "too much"
        console.print(
            Text(f"{trial.num_left_out} of the worst layers left out: {drops}, {verdict}"), soft_wrap=True
        )
    for line in _lines(result):
        console.print(Text(line), soft_wrap=True)


def _lines(result: "QuantizeResult") -> list[str]:
    record = result.record
    lines = [f"stays float: {name}: {reason}" for name, reason in record.left_out.items()]
    ranges = "ranges of the file"
    if record.num_images:
        source = "from the cache" if result.from_cache else f"{result.num_detections} detections"
        ranges = f"{record.method} over {record.num_images} images, {source}"
    if record.activations == "uint8" and not record.reduce_range and not _has_vnni():
        lines.append(
            "note: this processor has no VNNI: onnxruntime's 8-bit products may saturate on such, and results differ; "
            "--reduce-range avoids that"
        )
    return [
        *lines,
        f"{result.path}  {result.num_bytes / 1e6:.1f} MB, {record.activations}, {record.num_layers} layers "
        f"({result.num_nodes} nodes) quantized, {len(record.left_out)} float, {ranges}",
    ]


def _has_vnni() -> bool:
    """Return False on an x86 processor without it, as far as Linux says."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return True
    return "avx2" not in flags or "vnni" in flags


def _ranking_table(ranking: "Sequence[LayerFigures]") -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(title="what INT8 costs each layer alone, the worst first")
    table.add_column("layer")
    table.add_column("")
    for heading in ("signal to noise, dB", "detections that stay", "box, px", "score"):
        table.add_column(heading, justify="right", no_wrap=True)
    for figure in ranking[:_NUM_SHOWN]:
        found = figure.agreement
        cells = ("", "", "")
        if found is not None:
            cells = (f"{found.agreeing} of {found.total}", f"{found.box_px:.2f}", f"{found.score:.3f}")
        table.add_row(Text(figure.layer, overflow="fold"), figure.op_type, f"{figure.snr_db:.1f}", *cells)
    if len(ranking) > _NUM_SHOWN:
        table.add_row(f"and {len(ranking) - _NUM_SHOWN} more", "", "", "", "", "", style="dim")
    return table


def _parser() -> argparse.ArgumentParser:
    description = "Quantize an exported model to INT8, with explicit Q/DQ pairs."
    parser = CommandParser(prog="python -m export.quantize", description=description)
    parser.add_argument(
        "model", type=Path, metavar="MODEL", help="a float32 .onnx of export.maskrcnn or export.graft"
    )
    parser.add_argument(
        "--images",
        nargs="+",
        metavar="IMAGE",
        help="to calibrate on: image files, folders and glob patterns; no annotations are needed",
    )
    parser.add_argument("-o", "--output", type=Path, help="default: MODEL.int8.onnx, or MODEL.uint8.onnx")
    parser.add_argument(
        "--activations",
        choices=ACTIVATIONS,
        default="int8",
        help="int8: symmetric, for TensorRT and OpenVINO; uint8: for onnxruntime on a CPU (default: %(default)s)",
    )
    parser.add_argument(
        "--method",
        choices=METHODS,
        default=DEFAULT_METHOD,
        help="how ranges are found (default: %(default)s)",
    )
    parser.add_argument(
        "--percentile",
        type=float,
        metavar="P",
        help=f"of the values that stay inside a range, with --method percentile (default: {DEFAULT_PERCENTILE})",
    )
    parser.add_argument("--batch", type=batch, default=1, help="images at once (default: %(default)s)")
    parser.add_argument("--cache", type=Path, help="ranges: read where the file is there, else written")
    parser.add_argument(
        "--plan", type=Path, help="whose nodes stay float (default: MODEL.plan.json, or the default plan)"
    )
    parser.add_argument(
        "--leave-out", nargs="+", default=(), metavar="LAYER", help="names of layers that stay float"
    )
    parser.add_argument(
        "--no-equalize",
        dest="equalize",
        action="store_false",
        help="leave the channels between layers as they are in size; by default they are made alike first",
    )
    parser.add_argument(
        "--reduce-range", action="store_true", help="weights of 7 bits, for x86 processors without VNNI"
    )
    parser.add_argument(
        "--as-is",
        action="store_true",
        help="MODEL has Q/DQ pairs already, by training or another tool: check it, and write down that it has",
    )
    parser.add_argument("--threads", type=threads, help="CPU threads (default: as many as there are cores)")
    _add_accuracy(parser)
    return parser


def _add_accuracy(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("accuracy")
    group.add_argument(
        "--report",
        type=Path,
        metavar="JSON",
        help="rank the layers by what INT8 costs them, and write all figures",
    )
    group.add_argument(
        "--worst",
        type=int,
        metavar="N",
        help=f"rank the layers, and hold the detections of the N worst against float (default with --report: "
        f"{NUM_WORST})",
    )
    group.add_argument(
        "--ap-drop",
        type=not_negative,
        metavar="X",
        help="leave the worst layers out until box and mask AP lose X at most, of 1",
    )
    group.add_argument(
        "--dataset",
        type=Path,
        metavar="ANNOTATIONS",
        help="for --ap-drop: annotations in COCO's format beside their images, or the folder of both",
    )
    group.add_argument("--limit", type=positive, metavar="N", help="only the first N images of it")


if __name__ == "__main__":
    run_as_program(main)
