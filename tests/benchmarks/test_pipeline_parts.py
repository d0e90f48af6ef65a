"""``benchmarks.pipeline_parts`` with the embedded model on the CPU."""

import json
from pathlib import Path

import pytest

from benchmarks import pipeline_parts
from examples import IMAGES_DIR

pytest.importorskip("openvino")


def test_every_part_has_a_rate(embedded_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "parts.json"
    arguments = [
        str(embedded_path),
        str(IMAGES_DIR),
        "--backend",
        "openvino",
        "--batch",
        "2",
        "--output",
        str(out),
    ]
    assert pipeline_parts.main([*arguments, "--streams", "1", "--threads", "2", "1", "--seconds", "0.5"]) == 0
    found = json.loads(out.read_text())
    assert (found["batch"], found["images"]) == (2, len(list(IMAGES_DIR.glob("*.jpg"))))
    parts = [(row["part"], row.get("streams"), row.get("threads")) for row in found["rows"]]
    whole = "files to run lengths"
    assert parts == [
        ("files to pixels", None, 2),
        ("files to pixels", None, 1),
        (whole, 1, 2),
        (whole, 1, 1),
        ("staged to run lengths", 1, None),
    ]
    assert all(row["images_per_s"] > 0 for row in found["rows"])
    assert all(row["ms_per_image"]["engine"] > 0 for row in found["rows"] if row["part"] == whole)
