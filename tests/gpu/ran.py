"""What ran on a GPU, as one JSON: ``python -m tests.gpu.ran --out FILE JUNIT.xml [...] [--sanitizer LOG ...]``.

Reads what ``pytest --junitxml`` and compute-sanitizer wrote; needs neither a GPU nor PyTorch.
"""

import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from runtime.cli import CommandParser

_OUTCOMES = ("failure", "error", "skipped")
_ERRORS = re.compile(r"ERROR SUMMARY: (\d+) error")


def outcomes(path: Path) -> dict[str, dict[str, Any]]:
    """Return by test what became of it: ``passed``, ``failure``, ``error`` or ``skipped``, why, and seconds."""
    found: dict[str, dict[str, Any]] = {}
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        parts = [case.find(outcome) for outcome in _OUTCOMES]
        element = next((part for part in parts if part is not None), None)
        result: dict[str, Any] = {"outcome": "passed" if element is None else element.tag}
        if element is not None:
            result["why"] = " ".join((element.get("message") or "").split())[:300]
        result["seconds"] = round(float(case.get("time", 0)), 2)
        found[f"{case.get('classname')}::{case.get('name')}"] = result
    return found


def sanitized(path: Path) -> dict[str, Any]:
    """Return the errors that a log of compute-sanitizer counts, and the operators that ran to their end.

    Raises:
        ValueError: it has no summary: the run did not end.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    summary = _ERRORS.search(text)
    if summary is None:
        raise ValueError(
            f"{path}: expected compute-sanitizer's error summary, found none; the run did not end"
        )
    return {"errors": int(summary.group(1)), "ran": re.findall(r"^(\w+): \d+ rounds$", text, re.MULTILINE)}


def main() -> int:
    """Write the JSON, print the counts, return 0, or 1 where a test failed or the sanitizer found something."""
    parser = CommandParser(prog="python -m tests.gpu.ran", doc=__doc__)
    parser.add_argument("reports", type=Path, nargs="+", metavar="JUNIT.xml")
    parser.add_argument("--sanitizer", type=Path, nargs="*", default=[], metavar="LOG")
    parser.add_argument("--machine", type=json.loads, default={}, metavar="JSON", help="versions, GPU")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    tests: dict[str, dict[str, Any]] = {}
    for path in args.reports:
        tests.update(outcomes(path))
    counts = Counter(result["outcome"] for result in tests.values())
    memcheck = {path.stem: sanitized(path) for path in args.sanitizer}
    report = {"machine": args.machine, "counts": dict(counts), "memcheck": memcheck, "tests": tests}
    args.out.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")
    print(f"{len(tests)} tests: {dict(counts)}; memcheck: {memcheck}")
    failed = counts["failure"] + counts["error"] + sum(log["errors"] for log in memcheck.values())
    return int(failed > 0 or not tests)


if __name__ == "__main__":
    sys.exit(main())
