"""``benchmarks.grafts`` says when something could not be measured."""

import json
from pathlib import Path

import pytest

from benchmarks import grafts


def test_a_variant_that_fails_is_written_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "scrfd.onnx").write_bytes(b"no model")
    out = tmp_path / "rows.json"
    options = ["--runtimes", "onnxruntime", "--precisions", "fp32", "--heads", "scrfd", "--output", str(out)]
    assert grafts.main(["measure", str(tmp_path), str(tmp_path), *options]) == 1
    (row,) = json.loads(out.read_text())
    assert (row["runtime"], row["precision"]) == ("onnxruntime", "fp32")
    assert row["error"]
    assert row["error"] in capsys.readouterr().err
