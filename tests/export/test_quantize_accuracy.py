"""INT8 keeps the average precision, on renders that ranges were not found on."""

from pathlib import Path

import pytest

from examples.shapes import write_coco
from export.quantization.api import QuantizeResult
from runtime import evaluate

NUM_RENDERS, SEED, SIZES = 16, 50001, ((448, 640),)
# On so few images; of 200, `benchmarks/results/cpu_accuracy.json` has the figures.
MAX_DROP = 0.01


@pytest.fixture(scope="module")
def renders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("renders")
    write_coco(folder, num=NUM_RENDERS, seed=SEED, sizes=SIZES)
    return folder


@pytest.fixture(scope="module")
def before(embedded_path: Path, renders: Path) -> dict:
    """Of the float model."""
    found = evaluate(embedded_path, renders / "annotations.json", renders, threads=1, backend="onnxruntime")
    assert min(found.average_precision[kind]["AP"] for kind in ("box", "mask")) > 0.7
    return found.average_precision


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_average_precision(backend: str, quantized: QuantizeResult, before: dict, renders: Path) -> None:
    pytest.importorskip(backend, reason=f"{backend} is not installed")
    if backend == "onnxruntime" and quantized.record.activations == "int8":
        pytest.skip("onnxruntime runs it in float32")
    found = evaluate(quantized.path, renders / "annotations.json", renders, threads=1, backend=backend)
    for kind in ("box", "mask"):
        assert found.average_precision[kind]["AP"] > before[kind]["AP"] - MAX_DROP, (kind, before, found)
