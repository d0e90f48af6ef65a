"""Engines on a real GPU: how the tests build, run, compare and spoil them. Without TensorRT, importing it skips.

Where TensorRT is there may be no PyTorch, so leave out the conftest that imports it:

    pytest -m tensorrt --confcutdir=tests/gpu tests/gpu/engines -v

| variable | |
| --- | --- |
| ``MASKRCNN_TEST_MODEL`` | an ONNX of ``export.maskrcnn``, fixed size (default: ``out/maskrcnn.onnx``) |
| ``MASKRCNN_PLUGINS`` | the plugin library (default: where ``make plugins`` puts it) |
| ``MASKRCNN_TACTIC_SOURCES`` | as ``--tactic-sources`` of ``runtime.build``: ``none`` without cuBLAS and cuDNN |
| ``MASKRCNN_TIMING_CACHE`` | file of kernel timings that outlives the run (default: a temporary one) |

Builds take most of the time. The engines of ``conftest.py`` are made when a test first needs them, once per run.
"""

import importlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Callable, Optional

import numpy as np
import pytest

try:
    import onnx
    import onnxruntime
    import tensorrt  # noqa: F401
    from onnx import TensorProto, helper, numpy_helper
except (ImportError, OSError) as error:
    pytest.skip(f"TensorRT, onnx or onnxruntime is not installed: {error}", allow_module_level=True)

from runtime import build
from runtime.coco_writer import IMAGES, RESULTS
from runtime.comparison.detections import arrays_from_detections
from runtime.comparison.difference import DetectionArrays, Tolerance, compare_image
from runtime.detections import Detections
from runtime.engine.config import EngineConfig
from runtime.engine.files import EngineRequest, Machine
from runtime.engine.session import EngineSession
from runtime.engine.sidecar import sidecar_path

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples" / "images"
MODEL_VARIABLE = "MASKRCNN_TEST_MODEL"
TIMING_CACHE_VARIABLE = "MASKRCNN_TIMING_CACHE"
TACTIC_SOURCES = os.environ.get("MASKRCNN_TACTIC_SOURCES")
LARGEST_BATCH = 8
COMMAND_SECONDS = 900
# The same kernels in another batch: nothing but the order of sums may differ.
SAME = Tolerance(box_px=1e-3, score=1e-5)
# FP16 keeps 11 bits; a detection near a threshold may be on the other side of it.
HALF = Tolerance(box_px=1.0, score=0.05, mask=0.01)
HALF_MIN_SCORE, HALF_MARGIN, HALF_SHARE = 0.3, 0.05, 0.05
# Of the small networks in FP32: sums in another order.
CLOSE, CLOSE_PX = 5e-4, 1e-3
# What the driver itself may keep between two measurements; an engine and its buffers are many times that.
MEMORY_SLACK_BYTES = 8 << 20


def built(model: Path, engine: Path, timing_cache: Path, *options: str) -> Path:
    """Build with ``runtime.build``, which also writes what is in the engine to the sidecar."""
    log = io.StringIO()
    with redirect_stderr(log):
        status = build.main(build_arguments(model, engine, timing_cache, *options))
    assert status == 0, log.getvalue()[-2000:]
    return engine


def build_arguments(model: Path, engine: Path, timing_cache: Path, *options: str) -> list:
    sources = () if TACTIC_SOURCES is None else ("--tactic-sources", TACTIC_SOURCES)
    arguments = (model, "-o", engine, "--timing-cache", timing_cache, *sources, *options)
    return [str(argument) for argument in arguments]


def tactic_sources() -> Optional[tuple]:
    if TACTIC_SOURCES is None:
        return None
    return () if TACTIC_SOURCES == "none" else tuple(TACTIC_SOURCES.split(","))


def small_model(seed: int = 0) -> onnx.ModelProto:
    weights = np.random.default_rng(seed).standard_normal((4, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["data", "weights"], ["sums"], name="conv", pads=[1] * 4),
        helper.make_node("Relu", ["sums"], ["out"], name="relu"),
    ]
    data = helper.make_tensor_value_info("data", TensorProto.FLOAT, ["batch", 3, 16, 16])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", 4, 16, 16])
    graph = helper.make_graph(nodes, "small", [data], [out], [numpy_helper.from_array(weights, "weights")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def small_request(place: Path, timing_cache: Path) -> EngineRequest:
    config = EngineConfig(precision="fp32", tactic_sources=tactic_sources())
    return EngineRequest(place / "small.onnx", place / "small.engine", config, timing_cache=timing_cache)


def check_small(place: Path, machine: Machine) -> None:
    """Run the engine, and the ONNX beside it in onnxruntime."""
    feeds = {"data": np.random.default_rng(1).standard_normal((3, 3, 16, 16)).astype(np.float32)}
    with open_session(place / "small.engine", machine) as session:
        found = session.run(feeds)["out"]
    np.testing.assert_allclose(found, run_onnx(onnx.load(place / "small.onnx"), feeds)["out"], atol=CLOSE)


def open_session(engine: Path, machine: Machine) -> EngineSession:
    return EngineSession(engine.read_bytes(), library=machine.library, cuda=machine.cuda)


def run_onnx(model: onnx.ModelProto, feeds: dict) -> dict:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    data = model.SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, feeds)))


def run_command(*arguments: object) -> subprocess.CompletedProcess:
    """Run a new Python in the project's folder."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        timeout=COMMAND_SECONDS,
    )


def free_device_bytes() -> int:
    try:
        cudart = importlib.import_module("cuda.bindings.runtime")
    except ImportError:
        cudart = pytest.importorskip("cuda.cudart")
    status, free, _ = cudart.cudaMemGetInfo()
    assert int(status) == 0
    return int(free)


def violations(expected: Sequence[Detections], found: Sequence[Detections], tolerance: Tolerance) -> list:
    """Return in words what differs, image by image."""
    assert len(expected) == len(found)
    assert any(len(detections) for detections in expected)
    return [
        f"image {index}: {words}"
        for index, pair in enumerate(zip(expected, found))
        for words in compare_image(*map(arrays_from_detections, pair)).violations(tolerance)
    ]


def half_disagreement(expected: Sequence[DetectionArrays], found: Sequence[DetectionArrays]) -> float:
    """Return the share of detections, sure on one side, without a close counterpart on the other.

    The counterpart may be a little less sure. NMS may keep a neighbouring box where scores are almost equal.
    """
    assert len(expected) == len(found)
    total = disagreeing = 0
    for a, b in zip(expected, found):
        for sure, others in ((a, b), (b, a)):
            # Of the others, the sure ones are looked at in the other direction.
            others = at_least(others, HALF_MIN_SCORE - HALF_MARGIN)
            difference = compare_image(at_least(sure, HALF_MIN_SCORE), others)
            total += difference.expected
            disagreeing += len(difference.missing) + int((difference.boxes_px > HALF.box_px).sum())
    assert total > 0
    return disagreeing / total


def at_least(arrays: DetectionArrays, score: float) -> DetectionArrays:
    keep = np.flatnonzero(arrays.scores >= score)
    masks = None if arrays.masks is None else [arrays.masks[i] for i in keep]
    return DetectionArrays(arrays.boxes[keep], arrays.scores[keep], arrays.labels[keep], masks)


def arrays_of(detections: Sequence[Detections]) -> list:
    return [arrays_from_detections(item) for item in detections]


def arrays_from_results(place: Path) -> list:
    """Return what ``runtime.infer`` wrote, in the order of its images."""
    from pycocotools import mask

    results = json.loads((place / RESULTS).read_text())
    arrays = []
    for image in json.loads((place / IMAGES).read_text())["images"]:
        own = [result for result in results if result["image_id"] == image["id"]]
        corners = np.array([result["bbox"] for result in own], np.float32).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        scores = np.array([result["score"] for result in own], np.float32)
        labels = np.array([result["category_id"] - 1 for result in own], np.int32)
        masks = [mask.decode(result["segmentation"]) for result in own]
        arrays.append(DetectionArrays(corners, scores, labels, masks))
    return arrays


def truncate(place: Path, name: str) -> None:
    engine = place / f"{name}.engine"
    engine.write_bytes(engine.read_bytes()[: engine.stat().st_size // 2])


def change_onnx(place: Path, name: str) -> None:
    path = place / f"{name}.onnx"
    changed = onnx.load(path)
    for tensor in changed.graph.initializer:
        if tensor.name == "weights":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 2, "weights"))
    changed.doc_string = "changed"
    onnx.save(changed, path)


def edit_sidecar(field: str, value: str) -> Callable[[Path, str], None]:
    def edit(place: Path, name: str) -> None:
        path = sidecar_path(place / f"{name}.engine")
        content = json.loads(path.read_text())
        content["provenance"][field] = value
        path.write_text(json.dumps(content))

    return edit


def remove_sidecar(place: Path, name: str) -> None:
    sidecar_path(place / f"{name}.engine").unlink()


# What happened to the files, and what the message names.
STALE = {
    "truncated": (truncate, r"engine file: expected \d+ bytes .* found \d+ bytes .*: truncated"),
    "other ONNX": (change_onnx, r"ONNX \(SHA-256\): expected \w+, found \w+"),
    "other GPU": (edit_sidecar("gpu", "NVIDIA A100-PCIE-40GB"), "GPU: expected .*, found NVIDIA A100"),
    "other compute capability": (
        edit_sidecar("compute_capability", "8.0"),
        r"compute capability: expected .*, found 8\.0",
    ),
    "other TensorRT": (edit_sidecar("tensorrt", "TensorRT 8.4.1.5"), r"TensorRT: expected .*8\.4\.1\.5"),
    "no sidecar": (remove_sidecar, r"expected \w+\.engine\.json beside it"),
}


def copy_engine(model: Path, engine: Path, place: Path) -> Path:
    """Copy the model, its engine and the sidecar, the two as ``maskrcnn.engine``."""
    copy = place / "maskrcnn.engine"
    shutil.copy(model, place / "maskrcnn.onnx")
    shutil.copy(engine, copy)
    shutil.copy(sidecar_path(engine), sidecar_path(copy))
    return copy
