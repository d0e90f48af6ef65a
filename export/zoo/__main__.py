"""``python -m export.zoo``: export every two-stage config that mmdet ships, and compare it with PyTorch.

Weights are random (``export.random_weights``), the size is small, batches are 1 and 2 with landscape and portrait
images. Configs whose models are the same are measured once. The results' file is written after every model; a run
goes on where the last one stopped, and measures anew what was measured with other sources of ``patches`` and
``export``.
"""

import argparse
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Optional

from rich.console import Console
from rich.markup import escape

from export.zoo.check import EXACT, FAILED, REFUSED, RESULTS, WRONG, measure
from export.zoo.models import ROOT, ZooConfig, code_fingerprint, representatives, zoo_configs
from export.zoo.results import PENDING, ZooResults, config_rows, ranked_reasons
from export.zoo.workers import Limits, Outcome, run_each
from runtime.cli import positive, threads

OUTPUTS = {
    "onnxruntime": ROOT / "benchmarks" / "results" / "zoo.json",
    "openvino": ROOT / "benchmarks" / "results" / "zoo_openvino.json",
}
COLOURS = {EXACT: "green", REFUSED: "yellow", WRONG: "bold red", FAILED: "red"}
EXIT_REFUSED = 2


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Measure what has no result yet; return 1 if any result is wrong or failed, 2 for refused input."""
    args = _parser().parse_args(argv)
    console = Console()
    try:
        results = ZooResults.read(args.output or OUTPUTS[args.backend])
        configs = zoo_configs()
        return run(args, configs, results, console)
    except (OSError, ValueError) as error:
        console.print(f"[bold red]error[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        return EXIT_REFUSED


def run(args: argparse.Namespace, configs: Sequence[ZooConfig], results: ZooResults, console: Console) -> int:
    """Configs -> distinct models -> those to measure -> rows -> counts and reasons."""
    models = representatives(configs)
    selected = {config.key for config in _selected(configs, args)}
    code = code_fingerprint()
    results.forget_others({model.key for model in models})
    pending = results.pending([m for m in models if m.key in selected], code, args.retry)
    console.print(
        f"{len(configs)} configs, {len(models)} distinct models, {len(pending)} to measure", highlight=False
    )
    for number, row in enumerate(_measured(pending, code, args), 1):
        results.models[row["model"]] = row
        results.write(configs)
        _print_row(f"{number}/{len(pending)}", row, console)
    results.write(configs)
    return _report(configs, results, code, console)


def _measured(pending: Sequence[ZooConfig], code: str, args: argparse.Namespace) -> Iterable[dict[str, Any]]:
    keys = {config.name: config.key for config in pending}
    threads = args.threads or max(1, (os.cpu_count() or 1) // args.jobs)
    deadline = None if args.minutes is None else time.monotonic() + 60 * args.minutes
    outcomes = run_each(
        measure,
        list(keys),
        threads,
        args.backend,
        jobs=args.jobs,
        limits=Limits(args.timeout, args.memory),
        deadline=deadline,
    )
    for outcome in outcomes:
        yield _row(outcome, keys[outcome.argument], code)


def _row(outcome: Outcome, key: str, code: str) -> dict[str, Any]:
    row = {"config": outcome.argument, "model": key, "code": code}
    if outcome.problem is not None:
        row.update(result=FAILED, reason=outcome.problem, seconds=outcome.seconds)
    else:
        row.update(outcome.value)
    return {**row, "peak_mib": outcome.peak_mib}


def _selected(configs: Sequence[ZooConfig], args: argparse.Namespace) -> list[ZooConfig]:
    found = [
        config
        for config in configs
        if (args.only is None or args.only.search(config.name))
        and (not args.folder or config.folder in args.folder)
    ]
    if not found:
        folders = ", ".join(sorted({config.folder for config in configs}))
        raise ValueError(
            f"--only, --folder: expected to select a config, found none of {len(configs)}; folders: {folders}"
        )
    return found


def _print_row(number: str, row: dict[str, Any], console: Console) -> None:
    result = f"[{COLOURS.get(row['result'], 'yellow')}]{row['result']}[/]"
    matched = f"  {sum(row['matched'])} of {sum(row['detections'])}" if "matched" in row else ""
    reason = f"  {escape(row['reason'])}" if row["reason"] else ""
    line = f"{number:>8} {row['seconds']:6.1f} s  {result}  {row['config']}{matched}{reason}"
    console.print(line, highlight=False, soft_wrap=True)


def _report(configs: Sequence[ZooConfig], results: ZooResults, code: str, console: Console) -> int:
    console.print()
    for result, reason, count in ranked_reasons(configs, results.models):
        console.print(f"{count:4} {result}: {escape(reason)}", highlight=False, soft_wrap=True)
    counts = Counter(row["result"] for row in config_rows(configs, results.models))
    shares = [f"{counts[result]} {result}" for result in (*RESULTS, PENDING) if counts[result]]
    stale = sum(row["code"] != code for row in results.models.values())
    old = f"; {stale} models were measured with other code" if stale else ""
    console.print(f"{len(configs)} configs: {', '.join(shares)}{old}", highlight=False, soft_wrap=True)
    console.print(escape(str(results.path)), highlight=False, soft_wrap=True)
    return int(counts[WRONG] + counts[FAILED] > 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m export.zoo", description=__doc__.split("\n")[0])
    choice = parser.add_argument_group("which models")
    choice.add_argument(
        "--only", type=re.compile, metavar="REGEX", help="configs in whose name this is found"
    )
    choice.add_argument(
        "--folder", nargs="+", metavar="FOLDER", help="configs of these folders of mmdet's configs/"
    )
    choice.add_argument(
        "--retry",
        type=_results,
        default=(),
        metavar="RESULT,...",
        help="measure what has these results, whatever code they were measured with, and nothing else: "
        + ", ".join((*RESULTS, PENDING)),
    )
    work = parser.add_argument_group("how")
    work.add_argument(
        "--backend", choices=OUTPUTS, default="onnxruntime", help="what runs the files; default: %(default)s"
    )
    work.add_argument("--jobs", type=positive, default=1, help="processes at a time; default: %(default)s")
    work.add_argument("--threads", type=threads, help="CPU threads of each; default: the cores, shared out")
    work.add_argument("--minutes", type=float, help="begin no model after this long; those that run end")
    work.add_argument(
        "--timeout", type=float, default=600.0, metavar="S", help="seconds for a model; default: %(default)s"
    )
    work.add_argument(
        "--memory",
        type=float,
        default=8192.0,
        metavar="MIB",
        help="resident memory for a model, MiB; default: %(default)s",
    )
    parser.add_argument("-o", "--output", type=Path, help="default: the backend's in benchmarks/results/")
    return parser


def _results(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    known = (*RESULTS, PENDING)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(known)}, found {', '.join(unknown)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
