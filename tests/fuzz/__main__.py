"""Try damaged input by the thousand: ``python -m tests.fuzz --cases 20000 --seed 1 --json FILE``."""

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Optional

from tests.fuzz import trial as verdicts
from tests.fuzz.trial import Case, Outcome

REGRESSIONS = Path(__file__).parent / "regressions.json"


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run cases, print what failed, and return 1 if anything did."""
    args = _parse_arguments(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from tests.fuzz.pool import outcomes

    wanted = list(cases(args.cases, args.seed, args.kinds))
    if args.only is not None:
        wanted = [Case(args.kinds[0], args.seed, args.only)]
    elif args.regressions:
        wanted = [*regressions(), *wanted]
    start, found = time.monotonic(), []
    log = args.log.open("w") if args.log else None
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=args.folder) as folder:
        for outcome in outcomes(wanted, Path(folder), num_workers=args.workers, keep=args.keep):
            found.append(outcome)
            if outcome.verdict not in (verdicts.OK, verdicts.CLEAN) or args.only is not None:
                if log is not None:
                    print(json.dumps(outcome.to_dict()), file=log, flush=True)
                else:
                    print(f"{outcome.case} {outcome.verdict}: {outcome.name!r}\n{outcome.said}\n", flush=True)
            if len(found) % 500 == 0:
                print(
                    f"{len(found)} of {len(wanted)}, {time.monotonic() - start:.0f} s",
                    file=sys.stderr,
                    flush=True,
                )
    report = summary(found, args.seed)
    print(json.dumps(report["kinds"], indent=1))
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if failed(found) else 0


def cases(number: int, seed: int, kinds: Sequence[str] = ()) -> Iterator[Case]:
    """Yield cases of all kinds, in turn, by their shares."""
    from tests.fuzz.kinds import KINDS

    chosen = {name: kind for name, kind in KINDS.items() if not kinds or name in kinds}
    total = sum(kind.share for kind in chosen.values())
    given: Counter = Counter()
    for index in range(1, number + 1):
        # The kind that is furthest behind its share.
        name = max(chosen, key=lambda n: chosen[n].share * index / total - given[n])
        yield Case(name, seed, given[name])
        given[name] += 1


def regressions() -> list[Case]:
    """Return the cases that once failed."""
    return [Case(*case) for case in json.loads(REGRESSIONS.read_text())]


def failed(found: Sequence[Outcome]) -> list[Outcome]:
    """Return what may not be."""
    return [outcome for outcome in found if outcome.verdict not in (verdicts.OK, verdicts.CLEAN)]


def summary(found: Sequence[Outcome], seed: int) -> dict[str, Any]:
    """Return counts by kind and verdict, and the slowest case of each kind."""
    kinds: dict[str, Any] = {}
    for outcome in found:
        kind = kinds.setdefault(
            outcome.case.kind, {"cases": 0, **dict.fromkeys(verdicts.VERDICTS, 0), "slowest_s": 0.0}
        )
        kind["cases"] += 1
        kind[outcome.verdict] += 1
        kind["slowest_s"] = max(kind["slowest_s"], round(outcome.seconds, 1))
    total = {name: sum(kind[name] for kind in kinds.values()) for name in ("cases", *verdicts.VERDICTS)}
    return {"seed": seed, "all": total, "kinds": dict(sorted(kinds.items()))}


def _parse_arguments(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=2000, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--kinds", nargs="+", default=[], metavar="KIND", help="default: all")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="the case of this number, of the one kind")
    parser.add_argument("--regressions", action="store_true", help="those that once failed, too")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where files are made (default: the system's)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="copy the files of failed cases there")
    parser.add_argument(
        "--log", type=Path, metavar="OUT", help="write failed cases there, a line of JSON each"
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write counts by kind and verdict")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
