"""Fixtures that several packages' tests share."""

import os
import signal
import threading
from pathlib import Path

import onnx
import pytest
import torch
from hypothesis import settings

import patches  # noqa: F401  (makes mmcv.ops and mmdet importable, in whatever order a test imports them)
from examples import CHECKPOINT_PATH, CONFIG_PATH
from export.graph import GraphOptions, onnx_from_model, simplified, with_metadata
from export.metadata import metadata_from_model
from export.model import load_model

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores; two that use all of them each take longer than one after the other.
    torch.set_num_threads(1)

# Ignored where a shell started the tests in the background or under nohup; commands keep that, and so would those here.
_HANDLERS = {"SIGINT": signal.default_int_handler, "SIGTERM": signal.SIG_DFL, "SIGHUP": signal.SIG_DFL}
if threading.current_thread() is threading.main_thread():
    for name, handler in _HANDLERS.items():
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is signal.SIG_IGN:
            signal.signal(getattr(signal, name), handler)

# The same examples in every run. `pytest --hypothesis-profile=thorough` looks for new ones, for minutes.
settings.register_profile("suite", max_examples=40, derandomize=True, deadline=None)
settings.register_profile("thorough", max_examples=1000, deadline=None)
settings.load_profile("suite")

DATA_VARIABLE = "MASKRCNN_TEST_DATA"
# The embedded model as it was exported elsewhere, for machines whose mmcv has no operators.
EMBEDDED_VARIABLE = "MASKRCNN_TEST_EMBEDDED"
# Those that take longest begin first, so that no worker is left with one of them at the end.
LONGEST = ("export/test_trained.py", "fuzz/test_fuzz.py", "export/test_layers.py", "fuzz/test_processes.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest modules first; the rest keep their order."""
    order = {Path(__file__).parent / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder with the trained R50-FPN and its evaluation set; tests that need it skip without it."""
    value = os.environ.get(DATA_VARIABLE)
    if not value:
        pytest.skip(
            f"{DATA_VARIABLE} is not set: it names a folder with checkpoints/ and datasets/shapes_val/"
        )
    root = Path(value)
    for needed in ("checkpoints/mask-rcnn_r50_fpn_shapes.pth", "datasets/shapes_val/annotations.json"):
        if not (root / needed).is_file():
            pytest.skip(f"{DATA_VARIABLE}={value}: no {needed} there")
    return root


@pytest.fixture(scope="session")
def embedded() -> onnx.ModelProto:
    """The embedded trained model, with metadata."""
    exported = os.environ.get(EMBEDDED_VARIABLE)
    if exported:
        return onnx.load(exported)
    loaded = load_model(str(CONFIG_PATH), CHECKPOINT_PATH)
    metadata = metadata_from_model(loaded, size=(448, 640))
    return with_metadata(simplified(onnx_from_model(loaded.model, GraphOptions(metadata.size))), metadata)


@pytest.fixture(scope="session")
def embedded_path(embedded: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model in a file."""
    path = tmp_path_factory.mktemp("embedded") / "embedded.onnx"
    onnx.save(embedded, path)
    return path
