"""``python -m export.maskrcnn [CONFIG CHECKPOINT]``: a trained mmdet Mask R-CNN becomes one portable ONNX file."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import numpy as np
import onnx
import torch
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from examples import CHECKPOINT_PATH, CONFIG_PATH, IMAGES_DIR
from export.graph import (
    MAX_OPSET,
    MIN_OPSET,
    GraphOptions,
    num_nodes,
    onnx_from_model,
    simplified,
    with_metadata,
)
from export.metadata import metadata_from_model
from export.model import LoadedModel, load_model
from export.steps import Steps
from export.verify import Case, verify
from runtime.difference import Tolerance
from runtime.images import read_image
from runtime.metadata import ModelMetadata
from runtime.precision import PrecisionPlan, default_plan, plan_path

DEFAULT_OUTPUT = Path("out/maskrcnn.onnx")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")

TIES = (
    "equal where PyTorch sorts equal scores by index, as the file does; mmdet's own sort is not stable, so that its "
    "proposals depend on the machine where two scores are equal"
)
EXIT_DIFFERENT = 1
EXIT_REFUSED = 2


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Export, verify, and return 0, 1 beyond tolerance or 2 for refused input."""
    args = _parser().parse_args(argv)
    console = Console()
    try:
        return export(args, console)
    except (OSError, ValueError, NotImplementedError) as error:
        console.print(f"[bold red]error[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        return EXIT_REFUSED


def export(args: argparse.Namespace, console: Console) -> int:
    """Config and checkpoint -> patched model -> ONNX -> verified file."""
    steps = Steps(console)
    _check_arguments(args)
    images = [] if args.no_verify else _verification_images(args.images)
    with steps(f"load {Path(args.config or CONFIG_PATH).stem}"):
        loaded = _load(args)
        metadata = metadata_from_model(
            loaded, size=args.size, dynamic_size=args.dynamic_size, masks=args.masks
        )
    with steps("trace") as step:
        model = onnx_from_model(loaded.model, _graph_options(args, metadata))
        step.note(f"{num_nodes(model)} nodes")
    if not args.no_simplify:
        with steps("simplify") as step:
            model = simplified(model)
            step.note(f"{num_nodes(model)} nodes")
    with steps("check"):
        model = with_metadata(model, metadata)
        onnx.checker.check_model(model, full_check=True)
        plan = default_plan(model)
    partial = _write(model, args.output)
    if images:
        with steps("verify with onnxruntime against unpatched PyTorch"):
            cases = verify(partial, loaded.model, [images[:1], images[:2]])
        if not _report(cases, console):
            return _keep_failed(partial, args.output, console)
    os.replace(partial, args.output)
    plan.save(plan_path(args.output))
    _failed(args.output).unlink(missing_ok=True)
    console.print(_summary(args.output, metadata, loaded, plan), highlight=False, soft_wrap=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m export.maskrcnn",
        description="Export an mmdet Mask R-CNN (or another two-stage detector of its parts) to one ONNX file.",
    )
    parser.add_argument(
        "config", nargs="?", help="an mmdet config: a file, or the bare name of one that mmdet ships"
    )
    parser.add_argument(
        "checkpoint", nargs="?", type=Path, help="its weights (.pth); `none` for random weights"
    )
    parser.add_argument("-o", "--output", type=Path, default=DEFAULT_OUTPUT, help="default: %(default)s")
    size = parser.add_argument_group("input size")
    size.add_argument(
        "--size", nargs=2, type=int, metavar=("H", "W"), help="px; default: the config's test size"
    )
    size.add_argument("--dynamic-size", action="store_true", help="take any height and width at run time")
    graph = parser.add_argument_group("graph")
    graph.add_argument(
        "--masks",
        choices=("crop", "full"),
        default="crop",
        help="crop: 28x28 probabilities, pasted by the runtime at the original resolution (exact). "
        "full: pasted in the graph at network size (self-contained, less accurate once resized)",
    )
    graph.add_argument(
        "--opset", type=int, default=MIN_OPSET, help=f"{MIN_OPSET} to {MAX_OPSET}; default: %(default)s"
    )
    graph.add_argument(
        "--max-per-img", type=int, metavar="K", help="rows in the outputs; default: the config's"
    )
    graph.add_argument("--no-simplify", action="store_true", help="leave the graph as traced")
    run = parser.add_argument_group("run")
    run.add_argument("--no-verify", action="store_true", help="do not compare with PyTorch")
    run.add_argument(
        "--images",
        nargs="+",
        type=Path,
        metavar="IMAGE",
        help="two or more to verify with, of different size",
    )
    run.add_argument("--device", default="cpu", help="where PyTorch runs; default: %(default)s")
    run.add_argument(
        "--trust-checkpoint", action="store_true", help="let an old checkpoint's pickle run code"
    )
    run.add_argument(
        "--allow-mismatch", action="store_true", help="export although checkpoint and model keys differ"
    )
    return parser


def _check_arguments(args: argparse.Namespace) -> None:
    if args.config is not None and args.checkpoint is None:
        raise ValueError(
            f"expected CONFIG and CHECKPOINT, found only {args.config}; "
            "give the checkpoint, or `none` for random weights"
        )
    if args.max_per_img is not None and args.max_per_img < 1:
        raise ValueError(f"--max-per-img: expected at least 1, found {args.max_per_img}")
    if torch.device(args.device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"--device: expected a device that PyTorch sees, found {args.device}; leave it out for the CPU"
        )
    if args.size is not None:
        args.size = tuple(args.size)


def _load(args: argparse.Namespace) -> LoadedModel:
    config, checkpoint = args.config, args.checkpoint
    if config is None:
        config, checkpoint = str(CONFIG_PATH), CHECKPOINT_PATH
    elif str(checkpoint) == "none":
        checkpoint = None
    return load_model(
        config,
        checkpoint,
        device=args.device,
        max_per_img=args.max_per_img,
        trust_pickle=args.trust_checkpoint,
        allow_mismatch=args.allow_mismatch,
    )


def _graph_options(args: argparse.Namespace, metadata: ModelMetadata) -> GraphOptions:
    size = metadata.size or tuple(
        -(-v // metadata.size_divisor) * metadata.size_divisor for v in sorted(metadata.resize.size)
    )
    return GraphOptions(size=size, dynamic_size=args.dynamic_size, masks=metadata.masks, opset=args.opset)


def _verification_images(paths: Optional[Sequence[Path]]) -> list[np.ndarray]:
    """Return two images of different size or more."""
    if paths is None:
        paths = sorted(p for p in IMAGES_DIR.glob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    images = [read_image(path) for path in paths]
    for second in images[1:]:
        if second.shape != images[0].shape:
            return [images[0], second]
    raise ValueError(
        f"--images: expected two images of different size to verify a batch with, found {len(images)} "
        "image(s) of one size; give another, or --no-verify"
    )


def _write(model: onnx.ModelProto, output: Path) -> Path:
    """Write beside the output, so that a file which is there stays until the new one is known to be good."""
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f"{output.stem}.partial.onnx")
    onnx.save(model, str(partial))
    return partial


def _failed(output: Path) -> Path:
    return output.with_name(f"{output.stem}.failed.onnx")


def _keep_failed(partial: Path, output: Path, console: Console) -> int:
    failed = _failed(output)
    os.replace(partial, failed)
    console.print(
        f"[bold red]error[/] the exported file differs from PyTorch; it is kept as {escape(str(failed))}",
        highlight=False,
        soft_wrap=True,
    )
    return EXIT_DIFFERENT


def _report(cases: Sequence[Case], console: Console) -> bool:
    tolerance = Tolerance()
    table = Table(title="onnxruntime and PyTorch: worst difference", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("batch", "image", "size", "matched", "box px", "score", "masks", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    for case in cases:
        d = case.difference
        table.add_row(
            str(case.batch),
            str(case.image),
            f"{case.size[0]}x{case.size[1]}",
            f"{d.matched} of {d.expected}" + (f", found {d.found}" if d.found != d.expected else ""),
            f"{d.box_px:.1e}",
            f"{d.score:.1e}",
            "-" if d.mask is None else f"{d.mask:.1e}",
            ("[green]equal[/]" if case.within(tolerance) else "[red]differs[/]") + " *" * case.ordered_ties,
        )
    console.print(table)
    if any(case.ordered_ties for case in cases):
        console.print(f"* {TIES}", highlight=False, soft_wrap=True)
    failed = [case for case in cases if not case.within(tolerance)]
    for case in failed:
        console.print(
            f"batch {case.batch}, image {case.image}: {escape(case.difference.worst)}", highlight=False
        )
    return not failed


def _summary(output: Path, metadata: ModelMetadata, loaded: LoadedModel, plan: PrecisionPlan) -> str:
    size = "x".join(map(str, metadata.size)) if metadata.size else "dynamic"
    weights = (
        "random weights" if loaded.checkpoint is None else f"checkpoint {metadata.checkpoint_sha256[:12]}"
    )
    facts = (
        f"{output.stat().st_size / 1e6:.1f} MB, batch dynamic, size {size}, {len(metadata.classes)} classes"
    )
    path = escape(str(output))
    return (
        f"[bold]{path}[/]  {facts}, masks {metadata.masks}, {weights}\n"
        f"[bold]{escape(str(plan_path(output)))}[/]  {len(plan.nodes)} nodes that stay FP32 in an FP16 engine\n"
        f"run it: python -m runtime.infer --model {path} --batch 2 IMAGE..."
    )


if __name__ == "__main__":
    sys.exit(main())
