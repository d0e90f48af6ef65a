"""Engines side by side, with TensorRT and a device that are stand-ins."""

import json
from pathlib import Path

import pytest

from benchmarks import engines
from benchmarks.latency.cases import Options
from tests.runtime import fakes
from tests.runtime.engine import fakes as engine_fakes
from tests.runtime.engine.fake_cuda import Device


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SUSTAINED_SECONDS", "WARM_SECONDS", "THROUGHPUT_SECONDS", "PAUSE_SECONDS"):
        monkeypatch.setattr(engines, name, 0.01)
    monkeypatch.setattr(engines, "MAX_BATCH", 2)
    monkeypatch.setattr(engines, "BATCHES", (1, 2))


def run(options: Options, *more: object) -> tuple[int, dict]:
    out = options.folder / "engines.json"
    options.folder.mkdir(exist_ok=True)
    arguments = ["--dataset", options.dataset, "--folder", options.folder, "--out", out, "--repeat", 2]
    status = engines.main([str(a) for a in (options.model, *arguments, *more)])
    return status, json.loads(out.read_text())["variants"]


def test_every_variant_is_measured_and_kept(
    options: Options, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = engine_fakes.install(monkeypatch, "8.5.3.1", Device("NVIDIA H200", (9, 0)))
    other = fakes.save(tmp_path / "any.onnx")
    status, found = run(options, "--variants", "fp16", "fp16_any_size", "--any-size", other)
    assert status == 0
    assert set(found) == {"fp16", "fp16_any_size"}
    for figures in found.values():
        assert set(figures["alone_ms"]) == {"1", "2"}
        for launches in figures["alone_ms"].values():
            assert launches["rested"]["n"] == engines.PAUSES
            assert launches["sustained"]["median"] > 0
            assert launches["cuda_graph_failure"] == ""
        for name in ("images_per_s", "images_per_s_2_streams"):
            assert figures[name]["images_per_s"] > 0
            assert figures[name]["detections"] > 0
    assert found["fp16"]["average_precision"]["box"]["AP"] == pytest.approx(1.0)
    assert found["fp16"]["batches"]["2"]["identical_to_2"]
    # What is there is not built again; what failed is.
    builds = len(trt.created.builds)
    status, again = run(options, "--variants", "fp16", "int8")
    assert status == 1
    assert again["fp16"] == found["fp16"]
    assert "no --int8" in again["int8"]["error"]
    assert len(trt.created.builds) == builds
