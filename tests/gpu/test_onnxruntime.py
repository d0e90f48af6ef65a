"""onnxruntime's CUDA provider against its CPU provider, on the embedded model: ``pytest -m gpu``."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from examples import IMAGES_DIR
from runtime.backends.onnxruntime import OnnxRuntimeBackend
from runtime.comparison.detections import arrays_from_detections
from runtime.comparison.difference import Difference, Tolerance, compare_image
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.graphs.cuda_provider import CUDA, loaded_libraries, preload, with_options
from runtime.graphs.load import load_onnx, save_model
from runtime.host.preprocess import Batch, prepare
from runtime.images import read_image
from runtime.precision.geometry import default_plan
from runtime.precision.typed import fp16_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        CUDA not in onnxruntime.get_available_providers(), reason="onnxruntime here has no CUDA provider"
    ),
]
# float32 sums in another order, and cuDNN's own algorithms.
FP32 = Tolerance(box_px=0.05, score=1e-3)
# Detections that are found again by a network whose products have 11 bits.
SHARE_OF_HALF = 0.97


@pytest.fixture(scope="module")
def images(embedded_path: Path) -> list[np.ndarray]:
    """Two images that fit into the model, with many objects and with few."""
    del embedded_path
    return [read_image(IMAGES_DIR / name) for name in ("landscape.jpg", "square.jpg")]


@pytest.fixture(scope="module")
def half_path(embedded_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("half") / "typed.onnx"
    model = load_onnx(embedded_path)
    save_model(fp16_model(model, default_plan(model)), path)
    return path


def _difference(expected: Detections, found: Detections) -> Difference:
    return compare_image(arrays_from_detections(expected), arrays_from_detections(found))


def _found(path: Path, images: list[np.ndarray], **options: str) -> list[Detections]:
    with Detector(path, "onnxruntime", **options) as detector:
        return detector(images)


@pytest.mark.parametrize("batch", [1, 2])
def test_fp32_equals_the_cpu(batch: int, embedded_path: Path, images: list[np.ndarray]) -> None:
    expected = _found(embedded_path, images[:batch])
    found = _found(embedded_path, images[:batch], device="cuda", precision="fp32")
    assert sum(len(detections) for detections in expected) > 0
    for one, other in zip(expected, found):
        assert _difference(one, other).violations(FP32) == []


def test_half_finds_what_the_cpu_finds(half_path: Path, embedded_path: Path, images: list) -> None:
    expected = _found(embedded_path, images)
    found = _found(half_path, images, device="cuda")
    matched = sum(_difference(one, other).matched for one, other in zip(expected, found))
    assert matched >= SHARE_OF_HALF * sum(map(len, expected)) > 0


def test_results_of_earlier_runs_stay(embedded_path: Path, images: list[np.ndarray]) -> None:
    backend = OnnxRuntimeBackend(embedded_path, device="cuda")
    batches = [prepare([image], backend.metadata) for image in images]
    first = [backend.run(b.images, b.image_sizes) for b in batches]
    copies = [{name: array.copy() for name, array in outputs.items()} for outputs in first]
    for _ in range(3):
        for b in batches:
            backend.run(b.images, b.image_sizes)
    for outputs, copy in zip(first, copies):
        for name, array in outputs.items():
            np.testing.assert_array_equal(array, copy[name])


def test_the_libraries_are_there_without_pytorch() -> None:
    assert preload(onnxruntime) == ()
    names = {Path(file).name.partition(".")[0] for file in loaded_libraries()}
    assert {"libcudart", "libcublas", "libcublasLt", "libcudnn"} <= names


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_no_result_of_the_gpu_goes_to_the_cpu_and_back(
    precision: str, embedded_path: Path, half_path: Path, images: list[np.ndarray], tmp_path: Path
) -> None:
    """Nodes on the CPU compute shapes, from shapes."""
    path = {"fp32": embedded_path, "fp16": half_path}[precision]
    batch = prepare(images, OnnxRuntimeBackend(embedded_path).metadata)
    operators = [(e["args"]["op_name"], e["args"]["provider"]) for e in _profile(path, batch, tmp_path)]
    assert len(operators) > 100
    assert [op for op, _ in operators if op == "MemcpyToHost"] == []
    on_cpu = {op for op, provider in operators if provider == "CPUExecutionProvider"}
    assert on_cpu <= {
        "Add",
        "Concat",
        "Gather",
        "Slice",
        "Squeeze",
        "Sub",
        "Mul",
        "Range",
        "Cast",
        "Unsqueeze",
    }


def _profile(path: Path, batch: Batch, folder: Path) -> list[dict]:
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
    providers = with_options([CUDA, "CPUExecutionProvider"], None)
    session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    session.run(None, {"images": batch.images, "image_sizes": batch.image_sizes})
    events = json.loads(Path(session.end_profiling()).read_text())
    return [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
