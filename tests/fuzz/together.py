"""Processes that write at once: ``python -m tests.fuzz.together --rounds 100``.

Two, then four, into one folder: under one name, where the last one's whole result stays; and under names of their own,
where each has its own. Every process that ends with 0 had its result whole, none is of two runs.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from runtime.cli import CommandParser

SECONDS = 120.0
# How many, and whether each has a name of its own.
WAYS = ((2, False), (4, False), (4, True))
COMMANDS = ("infer", "record", "build", "export's last step")


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the rounds; print what failed and return 1 if anything did."""
    args = _parse_arguments(argv)
    os.environ["OMP_NUM_THREADS"] = "1"
    from tests.fuzz import runs

    failures: list[str] = []
    counts: Counter = Counter()
    with tempfile.TemporaryDirectory(prefix="together-", dir=args.folder) as name:
        folder = Path(name)
        runs.prepared(folder / "inputs", 4)
        for number in range(args.rounds):
            for command in COMMANDS:
                for processes, own_names in WAYS:
                    what = f"{processes} of {command}, {'own names' if own_names else 'one name'}"
                    said = _round(runs, folder, command, processes, own_names=own_names)
                    counts[what] += 1
                    failures += [f"{number}, {what}: {words}" for words in said]
                    for words in said:
                        print(f"{number}, {what}: {words}", flush=True)
            if number % 20 == 19:
                print(f"{number + 1} of {args.rounds}", file=sys.stderr, flush=True)
    report = {
        "rounds": dict(sorted(counts.items())),
        "num_failures": len(failures),
        "failures": failures[:20],
    }
    print(json.dumps(report, indent=1))
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if failures else 0


def _round(runs: Any, folder: Path, command: str, num_processes: int, *, own_names: bool) -> list[str]:
    """Run processes at once; return what is wrong."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    make = runs.JOBS[command]
    stems = [[f"own-{variant}"] if own_names else [] for variant in range(num_processes)]
    jobs = [make(folder / "inputs", out, variant, *stem) for variant, stem in enumerate(stems)]
    reading, writing = os.pipe()
    children = [
        runs.forked(job.run, folder / f"said-{index}", start=reading) for index, job in enumerate(jobs)
    ]
    os.write(writing, b"x" * num_processes)
    statuses = [child.wait(SECONDS) for child in children]
    os.close(reading)
    os.close(writing)
    said = [child.said.read_text(errors="replace")[-500:] for child in children]
    found = [f"status {status}: {words}" for status, words in zip(statuses, said) if status != 0]
    for variant, job in enumerate(jobs if own_names else jobs[:1]):
        found += _wrong(job, [variant] if own_names else range(num_processes))
    left = runs.leftovers(out)
    return [*found, f"left {left}"] if left else found


def _wrong(job: Any, variants: Sequence[int]) -> list[str]:
    """Say what is wrong with a result that has to be one of these variants'."""
    try:
        wrong, written = job.wrong(), job.written()
    except Exception as error:
        return [f"{type(error).__name__}: {error}"]
    found = [wrong] if wrong else []
    if written not in {f"circle-{variant}" for variant in variants}:
        found.append(f"a result of {written}, expected one of {list(variants)}")
    return found


def _parse_arguments(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = CommandParser(prog="python -m tests.fuzz.together", doc=__doc__)
    parser.add_argument("--rounds", type=int, default=100, help="default: %(default)s")
    parser.add_argument("--folder", type=Path, help="where files are made (default: the system's)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the counts")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
