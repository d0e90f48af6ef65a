"""The CPU's benchmark: each case in a process of its own, and what cannot run is named with its reason."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import pytest

from benchmarks import cpu_case, cpu_latency, readme
from benchmarks.cpu_case import Case
from tests.runtime import fakes
from tests.runtime.processes import SECONDS


@pytest.fixture
def case(tmp_path: Path) -> Case:
    image = tmp_path / "a.png"
    cv2.imwrite(str(image), fakes.random_image(64, 96))
    model = fakes.save(tmp_path / "m.onnx")
    return Case(
        model="fake",
        runtime="onnxruntime FP32",
        backend="onnxruntime",
        file=str(model),
        metadata=fakes.metadata().to_json(),
        config=None,
        checkpoint=None,
        images=(str(image),),
        batch=2,
        threads=1,
        repetitions=3,
        options={},
    )


def test_a_case_is_measured_in_a_process_of_its_own(case: Case) -> None:
    outcome = cpu_latency._run(case)
    assert len(outcome["whole"]) == len(outcome["network"]) == 3
    assert all(0 < network < whole for network, whole in zip(outcome["network"], outcome["whole"]))
    assert outcome["detections"] == 3 * 2 * fakes.NUM_DETS
    row = cpu_latency._row(case, [outcome, outcome])
    assert (row["repetitions"], row["peak_mib"]) == (6, outcome["peak_mib"])


def test_the_peak_is_the_programs_own(case: Case) -> None:
    """Not that of a larger one which started it."""
    program = (
        "import numpy, subprocess, sys\nkept = numpy.ones(100_000_000)\n"
        "print(subprocess.run([sys.executable, '-m', 'benchmarks.cpu_case', sys.argv[1]], stdout=-1).stdout.decode())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(asdict(case))],
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    outcome = json.loads(done.stdout.strip().splitlines()[-1])
    assert 30 < outcome["peak_mib"] < 700  # of 800 that are kept


def test_what_does_not_run_says_why(case: Case) -> None:
    assert cpu_latency._run(replace(case, options={"sped": 1})).startswith(
        "ValueError: sped: expected an option of"
    )


def test_every_variant_is_a_case_or_says_what_it_lacks(tmp_path: Path) -> None:
    args = cpu_latency._parser().parse_args(["--batch", "1", "4"])
    model = cpu_latency.Model(
        "fake", "c.py", "c.pth", (64, 96), ("a.png",), {"fixed": fakes.save(tmp_path / "m.onnx")}
    )
    cases = list(cpu_latency._cases([model], args))
    assert len(cases) == len(cpu_latency.VARIANTS) + sum(v.batches is None for v in cpu_latency.VARIANTS)
    without = {case.runtime for case, variant in cases if not case.file}
    assert without == {v.runtime for v in cpu_latency.VARIANTS if v.file != "fixed"}
    args.only = ["OpenVINO INT8"]
    rows, skipped = cpu_latency._measured([model], args, cpu_latency.Console(quiet=True))
    assert rows == []
    assert [row["reason"] for row in skipped] == ["no int8 file: name one with --quantized"] * 2


def test_the_processor_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 avx512_vnni\n\n"
    (tmp_path / "cpuinfo").write_text(lines * 2)
    monkeypatch.setattr(cpu_case, "CPUINFO", tmp_path / "cpuinfo")
    assert cpu_case.processor() == {"cpu": "Some CPU", "cores": 2, "flags": ["avx2", "avx512_vnni"]}


def test_the_table_has_a_row_per_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def row(runtime: str, batch: int, seconds: float) -> dict:
        return {
            "model": "r50",
            "runtime": runtime,
            "batch": batch,
            "seconds_per_image": {"median": seconds},
            "peak_mib": 100 * batch,
        }

    rows = [row("onnxruntime FP32", 1, 1.0), row("onnxruntime FP32", 4, 1.2), row("OpenVINO INT8", 1, 0.25)]
    data = {"models": {"r50": {"config": "c", "size": [8, 9]}}, "rows": rows}
    lines = readme._cpu_table(data, "r50").splitlines()
    assert lines[0] == "| c, 8×9 | batch 1 | batch 4 | onnxruntime FP32's speed | peak |"
    assert lines[2:] == [
        "| onnxruntime FP32 | 1.00 s | 1.20 s | 1.00× | 100 MiB |",
        "| OpenVINO INT8 | 0.25 s |  | 4.00× | 100 MiB |",
    ]
