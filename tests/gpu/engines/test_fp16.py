"""Engines in FP16 with the default plan."""

from pathlib import Path

import numpy as np
import pytest

from runtime.backends import backend_name
from runtime.detector import Detector
from runtime.engine.sidecar import Sidecar
from runtime.host.preprocess import prepare
from runtime.image_files import find_images
from runtime.images import read_image
from tests.gpu.engines import harness

pytestmark = [pytest.mark.gpu, pytest.mark.tensorrt]


WITHOUT_ONNXRUNTIME = """
import sys
sys.modules["onnxruntime"] = None  # importing it fails
from runtime.infer import main
sys.exit(main())
"""


def test_fp16_runs_the_dense_layers_in_fp16(fp16: Path) -> None:
    figures = Sidecar.load(fp16).build
    assert figures["dense_flops_share"]["fp16"] >= 0.95, figures
    assert figures["layers_kept_fp32"] > 0


def test_fp16_finds_what_onnxruntime_finds(half_detector: Detector, oracle: Detector, images: list) -> None:
    expected, found = oracle(images[:6]), half_detector(images[:6])
    assert (
        harness.half_disagreement(harness.arrays_of(expected), harness.arrays_of(found)) <= harness.HALF_SHARE
    )


def test_fp16_has_no_nan(half_detector: Detector, images: list) -> None:
    batch = prepare(images[: harness.LARGEST_BATCH], half_detector.metadata)
    outputs = half_detector.backend.run(batch.images, batch.image_sizes)
    assert [name for name, array in outputs.items() if not np.isfinite(array).all()] == []


def test_engines_of_two_precisions_side_by_side(
    detector: Detector, half_detector: Detector, images: list
) -> None:
    results = []
    for image in images[:3]:
        half_detector([image])
        results.append(detector([image])[0])
    assert harness.violations(detector(images[:3]), results, harness.SAME) == []


@pytest.mark.parametrize("backend", ["tensorrt", "auto"])
def test_infer_finds_what_onnxruntime_finds(
    backend: str, model: Path, fp16: Path, oracle: Detector, tmp_path: Path
) -> None:
    # `auto` has to choose TensorRT: it has no onnxruntime.
    start = ("-m", "runtime.infer") if backend == "tensorrt" else ("-c", WITHOUT_ONNXRUNTIME)
    options = ("--batch", 2, "--rebuild", "never", "--no-overlays", "--out", tmp_path)
    done = harness.run_command(*start, harness.EXAMPLES, "--model", model, "--backend", backend, *options)
    assert done.returncode == 0, done.stderr[-1000:]
    paths = find_images([str(harness.EXAMPLES)])
    expected = [oracle([read_image(path)])[0] for path in paths]
    assert (
        harness.half_disagreement(harness.arrays_of(expected), harness.arrays_from_results(tmp_path))
        <= harness.HALF_SHARE
    )


def test_auto_is_tensorrt_here(model: Path) -> None:
    assert backend_name(model, "auto") == "tensorrt"
    assert backend_name(model, "auto", "cpu") == "onnxruntime"
