"""TensorRT and a GPU that are stand-ins, and a real exported graph, tiny, once for all tests of the engines."""

from pathlib import Path

import onnx
import pytest
import torch

from runtime.engine.library import Library
from tests.export.test_graph import export
from tests.models import tiny_model
from tests.runtime.engine import fakes
from tests.runtime.engine.fake_cuda import Device

PLUGIN_OPS = (
    "DecodeDetections",
    "DecodeProposals",
    "GroupedNMS",
    "MultiLevelRoiAlign",
    "PasteMasks",
    "SelectMasks",
    "SelectTop",
)


@pytest.fixture
def library() -> Library:
    return fakes.library()


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    """Mask R-CNN at 128x192 with full masks: nodes of the domain maskrcnn, bodies in functions."""
    folder: Path = tmp_path_factory.mktemp("exported")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a model is faster so
    try:
        return export(tiny_model(), folder / "m.onnx", masks="full")
    finally:
        torch.set_num_threads(threads)
