"""``runtime.compare --layers``: from files to the two sides, and what is printed."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from runtime.backends.onnxruntime import layer_runner
from runtime.compare import main as compare_main
from runtime.comparison.layer_table import LayerOptions, compare_files, summary
from runtime.engine.config import EngineConfig
from runtime.engine.sidecar import Provenance, Sidecar
from runtime.files import sha256_of
from tests.runtime import fakes
from tests.runtime.comparison.test_sources import changed_model


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    path.write_bytes(cv2.imencode(".png", fakes.random_image(64, 96))[1].tobytes())
    return path


@pytest.fixture
def changed(tmp_path: Path) -> Path:
    """The fake with another box; the first node that reads it makes the tensor ``boxes``."""
    path = changed_model(tmp_path / "changed.onnx", "unit_boxes", (0, 1, 2), 0.5)
    model = onnx.load(str(path))
    for node in model.graph.node:
        node.name = node.output[0]  # a precision plan consists of names
    onnx.save(model, str(path))
    return path


def _run(*arguments: object) -> int:
    return compare_main([str(a) for a in (*arguments, "--layers")])


def test_two_models(
    fake_model: Path, changed: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    report = tmp_path / "report.json"
    assert _run(fake_model, fake_model, "--images", image) == 0
    assert "no tensor differs by more than 0.001 of its largest value" in capsys.readouterr().out
    assert _run(fake_model, changed, "--images", image, "--threads", 1, "--json", report) == 1
    printed = capsys.readouterr()
    assert printed.err == ""
    assert (
        "first tensor beyond 0.001: boxes, made by node boxes (Mul): relative error 0.5, worst at [0, 1, 2] of "
        "1x4x4: expected 96, found 48" in printed.out
    )
    content = json.loads(report.read_text())
    assert content["expected"] == str(fake_model)
    assert (content["first"]["name"], content["first"]["index"]) == ("boxes", [0, 1, 2])
    assert {"name", "relative", "share", "position"} <= set(content["measured"][0])
    assert content["num_marked"] <= 8
    assert _run(fake_model, changed, "--images", image, "--layer-tolerance", 0.6, "--layer-chunk", 1) == 0


def _engine(path: Path, model: Path, **changes: object) -> Path:
    """Write what lies on disk of an engine that was built from a model."""
    path.write_bytes(b"an engine")
    provenance = Provenance(sha256_of(model), None, "TensorRT 8.5.3.1", "a GPU", "9.0")
    facts = {
        "engine_sha256": sha256_of(path),
        "onnx": model.name,
        "provenance": provenance,
        "config": EngineConfig(batch=(1, 1, 4), precision="fp32"),
        "plan_sha256": None,
        "metadata": fakes.metadata(),
        "build": {"seconds": 1.5, "bytes": 1000},
    }
    Sidecar(**{**facts, **changes}).save(path)
    return path


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list:
    """Have onnxruntime run what TensorRT would; returns the settings that were asked for."""
    settings = []

    def runner(config: EngineConfig, *, plan: object = None) -> object:
        settings.append((config, plan))
        return layer_runner(threads=1)

    monkeypatch.setattr("runtime.backends.tensorrt.layer_runner", runner)
    return settings


def test_an_engine_is_built_again_from_its_onnx_as_it_was(
    built: list, fake_model: Path, changed: Path, image: Path, tmp_path: Path
) -> None:
    """The ONNX lies beside the engine, or is the other model."""
    engine = _engine(tmp_path / "m.engine", changed)
    report = compare_files(fake_model, engine, [image], LayerOptions())
    assert report.first.name == "boxes"
    assert built == [(EngineConfig(batch=(1, 1, 4), precision="fp32"), None)]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    moved = _engine(elsewhere / "m.engine", changed)
    assert compare_files(moved, changed, [image], LayerOptions()).first is None


def test_an_engine_of_another_onnx_is_refused(
    built: list, fake_model: Path, changed: Path, image: Path, tmp_path: Path
) -> None:
    engine = _engine(tmp_path / "m.engine", changed)
    onnx.save(onnx.load(str(fake_model)), str(changed))
    with pytest.raises(
        ValueError, match=r"m\.engine: expected the ONNX that it was built from .*found .*changed"
    ) as e:
        compare_files(fake_model, engine, [image], LayerOptions())
    assert str(fake_model) in str(e.value)
    assert built == []


def test_the_plan_is_the_engines(
    built: list, fake_model: Path, changed: Path, image: Path, tmp_path: Path
) -> None:
    """FP16 with a plan that is no longer there is refused; without one it needs none."""
    fp16 = EngineConfig(batch=(1, 1, 1), precision="fp16")
    engine = _engine(tmp_path / "m.engine", changed, config=fp16)
    assert compare_files(fake_model, engine, [image], LayerOptions()).first.name == "boxes"
    assert built == [(fp16, None)]
    _engine(engine, changed, config=fp16, plan_sha256="0" * 64)
    with pytest.raises(
        ValueError, match=r"precision plan: expected the one that the engine was built with \(SHA-256 0000"
    ):
        compare_files(fake_model, engine, [image], LayerOptions())


def test_an_onnx_on_tensorrt(built: list, fake_model: Path, changed: Path, image: Path) -> None:
    options = LayerOptions(backends=("onnxruntime", "tensorrt"))
    assert compare_files(fake_model, changed, [image, image], options).first.name == "boxes"
    ((config, plan),) = built
    assert (config.batch, config.precision) == ((1, 2, 2), "fp16")
    assert plan is not None


def test_a_model_without_metadata_is_refused(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model = fakes.save(tmp_path / "bare.onnx", with_metadata=False)
    assert _run(model, model, "--images", image) == 2
    assert "bare.onnx: expected the metadata that says how images are prepared" in capsys.readouterr().err
    (tmp_path / "text.onnx").write_text("no model")
    assert _run(model, tmp_path / "text.onnx", "--images", image) == 2
    assert "text.onnx: expected an ONNX file" in capsys.readouterr().err


def test_the_summary_warns_of_what_proves_little(fake_model: Path, changed: Path, image: Path) -> None:
    report = compare_files(fake_model, changed, [image], LayerOptions())
    after = replace(report.first, ordered_by="/TopK", share=0.25)
    lines = "\n".join(summary(replace(report, first=after, order_problem="no", unmeasured={"x": "y"}), 1e-3))
    assert "it comes after /TopK, where the order of rows depends on the data" in lines
    assert "25.0% of the values" in lines
    assert "the order of the first cannot be given to both: no" in lines
    assert "x cannot be an output: y" in lines
    other = replace(report.first, found_shape=(1, 3, 4))
    lines = "\n".join(summary(replace(report, first=other, same_order=("a", "b")), 1e-3))
    assert "boxes, made by node boxes (Mul): expected shape 1x4x4, found 1x3x4" in lines
    assert "both got the order of the first (2 tensors)" in lines
    assert np.isfinite(report.first.relative)
