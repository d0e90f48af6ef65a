"""Kill commands at random moments, and fill the disk: ``python -m tests.fuzz.kills --rounds 200 --seed 1``.

After each: what is there is whole, or is what was there before, or nothing is; after SIGINT, SIGTERM and a full disk
nothing temporary is left, there and in the system's folder for that; after SIGKILL the next run of the command removes
what is.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Optional

from runtime.cli import CommandParser

SECONDS = 60.0
FULL, SMALL = "full disk", "file size limit"
SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}
# Of twenty rounds.
SHARES = {"infer": 4, "record": 4, "build": 3, "export": 3, "graft": 2, "quantize": 2, "run": 2}


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the rounds; print what failed and return 1 if anything did."""
    args = _parse_arguments(argv)
    os.environ["OMP_NUM_THREADS"] = "1"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kills-", dir=args.folder)))
        rounds = Rounds(folder, args.seed, _small_disk(folder / "disk", stack) if args.full_disk else None)
        for number in range(args.rounds):
            rounds.run(number)
            if number % 50 == 49:
                print(f"{number + 1} of {args.rounds}", file=sys.stderr, flush=True)
        rounds.finish()
    report = {"seed": args.seed, "rounds": args.rounds, "disk": rounds.disk is not None, **rounds.report()}
    print(json.dumps(report, indent=1))
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if rounds.failures else 0


class Rounds:
    """Commands that are killed one after another, each into a folder of its own that fills with earlier results."""

    def __init__(self, folder: Path, seed: int, disk: Optional[Path]) -> None:
        from tests.fuzz import runs

        self._runs = runs
        self._folder = folder
        self._random = random.Random(seed)
        self.disk = disk
        self.failures: list[str] = []
        self._counts: Counter = Counter()
        self._left: dict[str, list[str]] = {}
        self._temporary = folder / "temporary"
        self._temporary.mkdir()
        tempfile.tempdir = os.environ["TMPDIR"] = str(self._temporary)
        runs.prepared(folder / "inputs", 2)
        # Each spread over the twenty: a few rounds have some of every command.
        turns = [((number + 0.5) / share, name) for name, share in SHARES.items() for number in range(share)]
        self._names = [name for _, name in sorted(turns)]
        self._seconds = {name: self._measured(name) for name in SHARES}

    def run(self, number: int) -> None:
        """Start a command and end it before its time."""
        name = self._names[number % len(self._names)]
        how = self._random.choice([*SIGNALS, FULL if self.disk else SMALL])
        out = self.disk if how == FULL else self._folder / name
        job = self._runs.JOBS[name](self._folder / "inputs", out, self._random.randrange(2))
        before = job.written()
        temporary = set(os.listdir(self._temporary))
        child, status = self._ended(job, how, name)
        what = f"{number} {name}, {how}: "
        self._counts[name, how, "whole" if status == 0 else "ended"] += 1
        self._check(what, job, before, child, status)
        left = self._runs.leftovers(out)
        if how != "SIGKILL":
            # What an earlier SIGKILL left goes with the next write, which this run may not have come to.
            new = [path for path in left if path not in self._left.get(name, [])]
            new += sorted(set(os.listdir(self._temporary)) - temporary)
            if new:
                self._fail(what, f"left {new}", child)
        if how == "SIGKILL" and left:
            self._counts[name, how, "left"] += 1
        if how == FULL:
            self._empty(out)
        else:
            self._left[name] = left

    def finish(self) -> None:
        """Run every command to its end: its results are whole, and nothing is left of those that were killed."""
        for name in SHARES:
            job = self._runs.JOBS[name](self._folder / "inputs", self._folder / name, 0)
            child = self._runs.forked(job.run, self._folder / "said")
            status = child.wait(SECONDS)
            if status != 0 or job.written() is None:
                self._fail(f"{name} at the end: ", f"status {status}, {job.written()}", child)
            self._check(f"{name} at the end: ", job, job.written(), child, status)
            left = self._runs.leftovers(self._folder / name)
            if left:
                self._fail(f"{name} at the end: ", f"left {left}", child)
        left = sorted(os.listdir(self._temporary))
        if left:
            self._fail("at the end: ", f"left {left} in the system's folder", child)

    def _ended(self, job: Any, how: str, name: str) -> tuple[Any, Optional[int]]:
        said = self._folder / "said"
        if how == SMALL:
            limit = int(2 ** self._random.uniform(0, 20))
            child = self._runs.forked(job.run, said, most_bytes=limit)
            return child, child.wait(SECONDS)
        if how == FULL:
            room = int(2 ** self._random.uniform(8, 21))
            free = shutil.disk_usage(self.disk).free
            (self.disk / "ballast").write_bytes(b"\0" * max(0, free - room))
            child = self._runs.forked(job.run, said)
            return child, child.wait(SECONDS)
        child = self._runs.forked(job.run, said)
        time.sleep(self._random.uniform(0, 1.1 * self._seconds[name]))
        child.kill(SIGNALS[how])
        return child, child.wait(SECONDS)

    def _check(self, what: str, job: Any, before: Optional[str], child: Any, status: Optional[int]) -> None:
        said = child.said.read_text(errors="replace")
        if status is None:
            self._fail(what, "hangs", child)
        if "Traceback (most recent call last)" in said or status in (3, 99):
            self._fail(what, f"status {status}: {said[-1500:]}", child)
        try:
            wrong = job.wrong()
            after = job.written()
        except Exception as error:
            wrong, after = f"{type(error).__name__}: {error}", before
        if wrong:
            self._fail(what, wrong, child)
        if before is not None and after is None and "SIGKILL" not in what and "build" not in what:
            self._fail(what, f"lost: {before} was there", child)
        if status == 0 and after is None:
            self._fail(what, "status 0, and nothing there", child)

    def _fail(self, what: str, words: str, child: Any) -> None:
        said = child.said.read_text(errors="replace")[-300:]
        self.failures.append(f"{what}{words}")
        print(f"{what}{words}\n  said: {said}", flush=True)

    def _measured(self, name: str) -> float:
        """Return how long a command takes that nobody ends."""
        job = self._runs.JOBS[name](self._folder / "inputs", self._folder / f"{name}-first", 0)
        (self._folder / f"{name}-first").mkdir()
        start = time.monotonic()
        child = self._runs.forked(job.run, self._folder / "said")
        status = child.wait(SECONDS)
        if status != 0:
            raise RuntimeError(f"{name}: status {status}: {child.said.read_text()[-2000:]}")
        (self._folder / name).mkdir()
        return time.monotonic() - start

    @staticmethod
    def _empty(folder: Path) -> None:
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def report(self) -> dict[str, Any]:
        """Return how many rounds of each kind ended before their time, and what failed."""
        counts: dict[str, dict[str, int]] = {}
        for (name, how, ended), number in sorted(self._counts.items()):
            counts.setdefault(f"{name}, {how}", {})[ended] = number
        return {"counts": counts, "num_failures": len(self.failures), "failures": self.failures[:20]}


def _small_disk(folder: Path, stack: ExitStack) -> Optional[Path]:
    """Return a file system of 3 MB; None where this user may not mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(folder)]
    if subprocess.run(mount, capture_output=True, timeout=SECONDS).returncode:
        print("no tmpfs here: a limit of the files' size instead", file=sys.stderr)
        return None
    stack.callback(subprocess.run, ["umount", str(folder)], check=True)
    return folder


def _parse_arguments(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = CommandParser(prog="python -m tests.fuzz.kills", doc=__doc__)
    parser.add_argument("--rounds", type=int, default=100, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--full-disk", action="store_true", help="fill a tmpfs, which root can mount")
    parser.add_argument("--folder", type=Path, help="where files are made (default: the system's)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the counts")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
