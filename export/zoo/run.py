"""A run over the zoo: what is measured, in which order, and what is printed of it."""

import argparse
import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape

from export.zoo.check import measure
from export.zoo.models import ZooConfig, code_fingerprint, representatives, zoo_configs
from export.zoo.results import ZooResults, config_rows, ranked_reasons
from export.zoo.verdicts import EXACT, FAILED, PENDING, REFUSED, RESULTS, WRONG
from export.zoo.workers import Limits, Outcome, run_each
from runtime.console import table_console

COLOURS = {EXACT: "green", REFUSED: "yellow", WRONG: "bold red", FAILED: "red"}


def run(args: argparse.Namespace) -> int:
    """Configs -> distinct models -> those to measure -> rows -> counts and reasons; return the exit status.

    Raises:
        OSError, ValueError: the results' file is another, or no config is selected.
    """
    console = table_console()
    results, configs = ZooResults.read(args.output), zoo_configs()
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
