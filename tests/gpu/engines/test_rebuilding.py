"""Engines that are built again and again: by two processes, on first use, without a plugin."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.compare import main as compare_main
from runtime.comparison.difference import Tolerance
from runtime.detector import Detector
from runtime.engine.config import EngineConfig
from runtime.engine.files import EngineRequest, Machine, check_engine, ensure_engine
from runtime.host.postprocess import detections_from_outputs
from runtime.host.preprocess import prepare
from tests.gpu.engines import harness

pytestmark = [pytest.mark.gpu, pytest.mark.tensorrt]


# What a library of an earlier release does not have.
FUSED = {"DecodeDetections", "DecodeProposals", "SelectMasks"}


def test_two_processes_build_one_engine(
    model: Path,
    fp32: Path,
    machine: Machine,
    timing_cache: Path,
    oracle: Detector,
    images: list,
    tmp_path: Path,
) -> None:
    """Both find a truncated engine; one builds, the other waits and takes what it harness.built."""
    engine = harness.copy_engine(model, fp32, tmp_path)
    harness.truncate(tmp_path, "maskrcnn")
    arguments = harness.build_arguments(
        tmp_path / "maskrcnn.onnx", engine, timing_cache, "--precision", "fp32"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "runtime.build", *arguments],
            cwd=harness.ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        logs = [process.communicate(timeout=harness.COMMAND_SECONDS)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], logs[0][-1000:] + logs[1][-1000:]
    lines = [line for log in logs for line in log.splitlines() if line.startswith("building")]
    assert len(lines) == 1
    assert "truncated" in lines[0]
    check_engine(engine, machine)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "maskrcnn.engine",
        "maskrcnn.engine.json",
        "maskrcnn.engine.lock",
        "maskrcnn.onnx",
    ]
    with Detector(engine) as opened:
        assert harness.violations(oracle(images[:1]), opened(images[:1]), Tolerance()) == []


def test_an_onnx_gets_its_engine_on_first_use(
    model: Path, oracle: Detector, images: list, tmp_path: Path
) -> None:
    copy = Path(shutil.copy(model, tmp_path / "maskrcnn.onnx"))
    config = EngineConfig(batch=(1, 1, 2), precision="fp32", tactic_sources=harness.tactic_sources())
    notes: list = []
    with Detector(copy, "tensorrt", config=config, notify=notes.append) as opened:
        assert harness.violations(oracle(images[:2]), opened(images[:2]), Tolerance()) == []
    assert len(notes) == 1
    assert "there is none yet" in notes[0]
    with Detector(copy, "tensorrt", rebuild="never", notify=notes.append) as opened:
        opened(images[:1])
    assert len(notes) == 1


def test_layers_part_nowhere_before_nms(
    model: Path, fp32: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    report = tmp_path / "layers.json"
    image = harness.EXAMPLES / "single.jpg"
    options = ("--layers", "--backend-a", "onnxruntime", "--images", str(image), "--json", str(report))
    status = compare_main([str(model), str(fp32), *options])
    assert status in (0, 1), "".join(capsys.readouterr())[-2000:]
    content = json.loads(report.read_text())
    before_nms = [error for error in content["measured"] if not error["ordered_by"]]
    assert before_nms
    # NaN and infinity are null.
    differing = [
        e["name"] for e in before_nms if e["relative"] is None or e["relative"] > content["tolerance"]
    ]
    assert differing == []
    assert content["first"] is None or content["first"]["ordered_by"]


# The last two: minutes.
@pytest.mark.xfail(
    reason="8.5.3.1 fuses the body of DecodeProposals (FP16) or DecodeDetections (FP32) into one node of its compiler, "
    "and has no implementation of it"
)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_library_without_the_fused_operators_builds_their_bodies(
    precision: str, model: Path, machine: Machine, timing_cache: Path, oracle: Detector, images: list
) -> None:
    """As with a library of an earlier release: the three become TensorRT's own layers."""
    older = dataclasses.replace(machine.plugins, ops=machine.plugins.ops - FUSED)
    config = EngineConfig(batch=(1, 1, 2), precision=precision, tactic_sources=harness.tactic_sources())
    engine = model.with_name(f"unfused_{precision}.engine")
    request = EngineRequest(model, engine, config, timing_cache=timing_cache)
    ensure_engine(request, Machine(machine.library, machine.cuda, older))
    found = []
    with harness.open_session(engine, machine) as session:
        for several in (images[:1], images[1:3]):
            batch = prepare(several, oracle.metadata)
            outputs = session.run({"images": batch.images, "image_sizes": batch.image_sizes})
            found.extend(detections_from_outputs(outputs, batch, oracle.metadata))
    expected = oracle(images[:3])
    if precision == "fp32":
        assert harness.violations(expected, found, Tolerance()) == []
    else:
        assert (
            harness.half_disagreement(harness.arrays_of(expected), harness.arrays_of(found))
            <= harness.HALF_SHARE
        )


# The shapes inside depend on the data.
@pytest.mark.xfail(
    reason="8.5.3.1 takes the numbers of RoIs on each level, which only the data knows, for half of all RoIs, and "
    "refuses MultiLevelRoiAlign's body for it"
)
def test_without_the_plugin_library_fp32_equals_onnxruntime(
    model: Path, machine: Machine, timing_cache: Path, oracle: Detector, images: list
) -> None:
    config = EngineConfig(batch=(1, 1, 2), precision="fp32", tactic_sources=harness.tactic_sources())
    engine = model.with_name("inlined.engine")
    bare = Machine(machine.library, machine.cuda, plugins=None)
    ensure_engine(EngineRequest(model, engine, config, timing_cache=timing_cache), bare)
    with harness.open_session(engine, machine) as session:
        for several in (images[:1], images[1:3]):
            batch = prepare(several, oracle.metadata)
            outputs = session.run({"images": batch.images, "image_sizes": batch.image_sizes})
            found = detections_from_outputs(outputs, batch, oracle.metadata)
            assert harness.violations(oracle(several), found, Tolerance()) == []
