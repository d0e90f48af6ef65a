"""PyTorch, onnxruntime and TensorRT on the same images in one run: ``python -m benchmarks.latency``.

Each measures a sweep of batches, the stages around the network, memory, one large image, and JPEG files to COCO's run
lengths; and each shows that it found what PyTorch in FP32 found in the same run. One JSON, written after every case;
what is there already is not measured again. PyTorch runs in a process of its own where ``--pytorch-python`` names its
interpreter. The three never run at the same time. Ends with a table, a picture, and the project's bars.
"""

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Callable, Optional

from benchmarks.latency.cases import Options, Results, Side, run_cases
from benchmarks.latency.plot import draw
from benchmarks.latency.report import BATCHES, rich_table, sections
from examples import CHECKPOINT_PATH, CONFIG_PATH
from runtime.cli import EXIT_DIFFERENT, EXIT_OK, EXIT_REFUSED, CommandParser, positive
from runtime.console import table_console

# In this order: the reference first.
SIDES = ("pytorch", "tensorrt", "onnxruntime")
# They are this interpreter's; the other's are named in its command.
_OWN_VARIABLES = ("PYTHONHOME", "PYTHONPATH", "LD_LIBRARY_PATH")
_LEFT_FOR_THE_END_SECONDS = 20.0


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Measure, print, return 0, or 1 where a case failed, or 2 for refused input."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(argv)
    deadline = time.monotonic() + args.minutes * 60 - _LEFT_FOR_THE_END_SECONDS
    try:
        if args.report:
            results, left = Results(args.out), []
        else:
            results, left = _measure(args, argv, deadline)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_REFUSED
    if not args.no_report:
        _print_report(results)
        _draw(results)
    if left:
        print(f"{len(left)} cases left for want of time, run again: {', '.join(left)}")
    failed = any("error" in case for case in results.data["cases"].values())
    return EXIT_DIFFERENT if failed else EXIT_OK


def _measure(args: argparse.Namespace, argv: Sequence[str], deadline: float) -> tuple[Results, list[str]]:
    """Measure side after side; return the results and the cases for which there was no time."""
    options = _options(args)
    results = Results(args.out, options.settings())
    left: list[str] = []
    for side in args.sides:
        if args.only and not any(fnmatch(side, pattern.split("/")[0]) for pattern in args.only):
            continue
        if side == "pytorch" and args.pytorch_python:
            _run_pytorch(args.pytorch_python, argv, deadline)
            results.load()
        else:
            left += _run_side(side, options, results, args, deadline)
    return results, left


def _run_side(
    name: str, options: Options, results: Results, args: argparse.Namespace, deadline: float
) -> list[str]:
    """Measure one side in this process; one that cannot be is skipped, with the reason."""
    try:
        side = _OPEN[name](options)
    except (ImportError, RuntimeError) as error:
        results.data["skipped"][name] = " ".join(str(error).split())
        results.save()
        print(f"{name}: skipped: {error}", flush=True)
        return []
    results.data["skipped"].pop(name, None)
    results.data["skipped"].update({f"{name}/{variant}": why for variant, why in side.skipped.items()})
    results.data["circumstances"][name] = {
        **side.circumstances,
        "python": sys.version.split()[0],
        "cores": _cores(),
        "threads": args.threads,
    }
    try:
        return run_cases(side.cases(), results, only=args.only, retry=args.retry, deadline=deadline)
    finally:
        side.close()
        results.save()


def _open_pytorch(options: Options) -> Side:
    import patches  # noqa: F401  (first: without mmcv's compiled operators mmdet is importable only after it)
    from benchmarks.latency.pytorch_side import PyTorchSide

    return PyTorchSide(options)


def _open_onnxruntime(options: Options) -> Side:
    from benchmarks.latency.onnxruntime_side import OnnxRuntimeSide

    return OnnxRuntimeSide(options)


def _open_tensorrt(options: Options) -> Side:
    from benchmarks.latency.tensorrt_side import TensorRTSide

    return TensorRTSide(options)


_OPEN: dict[str, Callable[[Options], Side]] = {
    "pytorch": _open_pytorch,
    "onnxruntime": _open_onnxruntime,
    "tensorrt": _open_tensorrt,
}


def _run_pytorch(command: str, argv: Sequence[str], deadline: float) -> None:
    """Have another interpreter measure PyTorch into the same JSON, and wait for it."""
    words = shlex.split(command)
    first = next((i for i, word in enumerate(words) if "=" not in word), len(words))
    environment = {name: value for name, value in os.environ.items() if name not in _OWN_VARIABLES}
    environment.update(word.split("=", 1) for word in words[:first])
    seconds = deadline - time.monotonic()
    limits = [] if seconds == float("inf") else ["--minutes", str(max(0.0, seconds) / 60)]
    child = [
        *words[first:],
        "-m",
        "benchmarks.latency",
        *argv,
        "--sides",
        "pytorch",
        "--pytorch-python",
        "",
        "--no-report",
        *limits,
    ]
    try:
        status = subprocess.run(
            child, env=environment, timeout=None if not limits else max(1.0, seconds)
        ).returncode
    except subprocess.TimeoutExpired:
        print(f"pytorch: stopped after {seconds:.0f} s", flush=True)
        return
    if status not in (EXIT_OK, EXIT_DIFFERENT):
        raise RuntimeError(
            f"--pytorch-python: expected {child[0]} to measure PyTorch, found that it ended with {status}; see above"
        )


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _print_report(results: Results) -> None:
    console = table_console()
    for section in sections(results.data):
        console.print(rich_table(section))


def _draw(results: Results) -> None:
    path = results.path.with_suffix(".png")
    try:
        draw(results.data["cases"], path)
    except ImportError as error:
        print(
            f"no picture: {error}; `python -m benchmarks.latency --report --out {results.path}` draws it where "
            "matplotlib is"
        )
    else:
        print(f"wrote {results.path} and {path}")


def _options(args: argparse.Namespace) -> Options:
    if args.dataset is None:
        raise ValueError("--dataset: expected a folder with annotations.json and its images, found none")
    config, checkpoint = args.config, args.checkpoint
    if (config is None) != (checkpoint is None):
        raise ValueError(
            "--config, --checkpoint: expected both or neither, found one; name the other as well"
        )
    if config is None:
        config, checkpoint = str(CONFIG_PATH), CHECKPOINT_PATH
    args.folder.mkdir(parents=True, exist_ok=True)
    return Options(
        model=args.model,
        full=args.full,
        config=config,
        checkpoint=checkpoint,
        size=tuple(args.size),
        dataset=args.dataset,
        images=args.images,
        folder=args.folder,
        batches=tuple(args.batches),
        profile=tuple(args.profile),
        repeat=args.repeat,
        seconds=args.seconds,
        device=args.device,
        threads=args.threads,
        timing_cache=args.timing_cache,
        tactic_sources=args.tactic_sources,
    )


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m benchmarks.latency", doc=__doc__)
    add = parser.add_argument
    add(
        "--model",
        type=Path,
        default=Path("out/maskrcnn.onnx"),
        help="exported, masks crop; default: %(default)s",
    )
    add("--full", type=Path, help="the same model exported with --masks full")
    add("--config", help="of the model in PyTorch; default: the embedded model's")
    add("--checkpoint", type=Path, help="likewise")
    add(
        "--size", type=int, nargs=2, default=(448, 640), metavar=("H", "W"), help="of the network's input, px"
    )
    add("--dataset", type=Path, help="folder with annotations.json and its images")
    add("--images", type=positive, metavar="N", help="only the first N images of it")
    add("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="what is measured here; default: all")
    add("--pytorch-python", metavar="COMMAND", help="starts PyTorch's interpreter: 'PYTHONPATH=... python3'")
    add("--device", choices=("cuda", "cpu"), default="cuda", help="of PyTorch; default: %(default)s")
    add("--threads", type=positive, help="of onnxruntime, and of PyTorch on the CPU; default: all cores")
    add("--batches", type=positive, nargs="+", default=BATCHES, help="default: 1 2 4 8 16 32")
    add(
        "--profile",
        type=positive,
        nargs=3,
        default=(1, 8, 32),
        metavar=("MIN", "OPT", "MAX"),
        help="of the engines",
    )
    add("--engines", dest="folder", type=Path, default=Path("out"), help="folder of engines and recordings")
    add("--timing-cache", type=Path, help="TensorRT's, read and extended")
    add("--tactic-sources", help="of runtime.build, `none` where cuDNN is missing")
    add("--repeat", type=positive, default=50, help="most repetitions; default: %(default)s")
    add(
        "--seconds",
        type=float,
        default=2.0,
        help="after which no other repetition begins; default: %(default)s",
    )
    add("--minutes", type=float, default=float("inf"), help="begin nothing that would take longer")
    add("--only", nargs="+", default=[], metavar="PATTERN", help="cases such as 'tensorrt/fp16/*'")
    add("--retry", action="store_true", help="measure again what failed")
    add("--report", action="store_true", help="measure nothing: tables and picture of what is there")
    add("--no-report", action="store_true", help="measure only")
    add("--out", type=Path, default=Path("out/latency.json"), help="default: %(default)s")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
