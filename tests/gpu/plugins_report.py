"""A report of the plugin library inside TensorRT, case by case.

Without pytest or torch (TensorRT 8 has bindings for Python 3.10 at most), on NumPy and cuda-python alone:

    MASKRCNN_PLUGINS=build/libmaskrcnn_plugins.so python -m tests.gpu.plugins_report --json OUT.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import traceback
from pathlib import Path

from tests.gpu import trt_harness as harness
from tests.gpu.plugin_cases import CASES, replay

# Of all cases.
REPORT_SECONDS = 4 * 3600


def run_case(name: str) -> dict:
    start = time.perf_counter()
    try:
        outcome = CASES[name]()
        status = "skipped" if "skipped" in outcome else "passed"
        report = {"status": status, "details": outcome}
    except Exception as error:
        report = {"status": "failed", "error": f"{type(error).__name__}: {error}"[:2000]}
        report["traceback"] = traceback.format_exc()[-3000:]
    report["seconds"] = round(time.perf_counter() - start, 2)
    return report


def run_cases(out: Path) -> None:
    """Run what the report does not have yet, and write it after every case."""
    report = json.loads(out.read_text()) if out.is_file() else {"cases": {}}
    harness.load_library()
    report["versions"] = harness.versions()
    for name in CASES:
        if name in report["cases"]:
            continue
        # If the process dies, this is what the report says.
        report["cases"][name] = {"status": "crashed"}
        out.write_text(json.dumps(report, indent=1))
        report["cases"][name] = run_case(name)
        out.write_text(json.dumps(report, indent=1))
        print(name, json.dumps(report["cases"][name])[:600], flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--replay", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.replay:
        replay(arguments.replay)
        return 0
    if arguments.child:
        run_cases(arguments.child)
        return 0
    out = arguments.json or Path("plugins_report.json")
    out.unlink(missing_ok=True)
    # A case that takes its process down costs itself, not those after it.
    for _ in range(len(CASES)):
        command = [sys.executable, "-m", "tests.gpu.plugins_report", "--child", str(out.resolve())]
        if subprocess.run(command, cwd=harness.ROOT, timeout=REPORT_SECONDS).returncode == 0:
            break
    cases = json.loads(out.read_text())["cases"]
    failed = {name: case["status"] for name, case in cases.items() if case["status"] in ("failed", "crashed")}
    print(f"{len(cases) - len(failed)} of {len(CASES)} cases passed or skipped; failed: {failed}")
    return 1 if failed or len(cases) < len(CASES) else 0


if __name__ == "__main__":
    sys.exit(main())
