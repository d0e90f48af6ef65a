"""The embedded model in INT8, once for all tests of quantization."""

from pathlib import Path

import onnx
import pytest

from examples import IMAGES_DIR
from examples.shapes import write_coco
from export import quantize_model
from export.quantization.api import QuantizeOptions, QuantizeResult
from runtime.image_files import find_images

SIZES = ((448, 640), (640, 448), (512, 512))


@pytest.fixture(scope="session")
def images() -> list[Path]:
    """Two embedded images of different size, with many objects and with few."""
    return [IMAGES_DIR / "landscape.jpg", IMAGES_DIR / "square.jpg"]


@pytest.fixture(scope="session")
def calibration_images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Renders that no test evaluates on."""
    folder = tmp_path_factory.mktemp("calibration")
    write_coco(folder, num=12, seed=4001, sizes=SIZES)
    return find_images([str(folder)])


@pytest.fixture(scope="session", params=["int8", "uint8"])
def quantized(
    request: pytest.FixtureRequest,
    embedded_path: Path,
    calibration_images: list[Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> QuantizeResult:
    """With both kinds of activations; ``result.record.activations`` says which."""
    return _quantized(request.param, embedded_path, calibration_images, tmp_path_factory)


@pytest.fixture(scope="session")
def int8(
    embedded_path: Path, calibration_images: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> onnx.ModelProto:
    """The default."""
    return onnx.load(_quantized("int8", embedded_path, calibration_images, tmp_path_factory).path)


@pytest.fixture(scope="session")
def uint8(
    embedded_path: Path, calibration_images: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> onnx.ModelProto:
    """For onnxruntime on a CPU."""
    return onnx.load(_quantized("uint8", embedded_path, calibration_images, tmp_path_factory).path)


def _quantized(
    activations: str, model: Path, images: list[Path], factory: pytest.TempPathFactory
) -> QuantizeResult:
    cache = images[0].parent / f"{activations}.json"  # the ranges are found once
    return quantize_model(
        model,
        factory.mktemp("quantized") / f"m.{activations}.onnx",
        images,
        options=QuantizeOptions(activations=activations, cache=cache),
        threads=1,
    )
