"""``benchmarks.serve_pipeline``: clients in processes, one rate."""

import json
from pathlib import Path

import pytest

from benchmarks import serve_pipeline
from examples import IMAGES_DIR

pytest.importorskip("uvicorn")


def test_parts_that_overlap_make_one_window() -> None:
    assert serve_pipeline.in_all([(10.0, 14.0), (12.5, 16.5)]) == 6.5


def test_every_answer_counts_once(embedded_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "serve.json"
    arguments = [str(embedded_path), str(IMAGES_DIR), "--batch", "2", "--seconds", "1", "--output", str(out)]
    assert serve_pipeline.main([*arguments, "--processes", "2", "--connections", "2"]) == 0
    found = json.loads(out.read_text())
    assert found["answers"].keys() == {"200"}
    # Every client had its last answer after the second.
    assert 0 < found["http_per_s"] < found["answers"]["200"]
    assert found["share"] == found["http_per_s"] / found["pipeline_per_s"]
    assert 1 <= found["mean_batch"] <= 2
