"""The plugin library inside TensorRT: built, run, stored, read back, refused.

    pytest -m tensorrt tests/gpu/test_plugins.py

Without pytest: ``python -m tests.gpu.plugins_report``.
"""

import pytest

try:
    from tests.gpu import trt_harness as harness
    from tests.gpu.plugin_cases import CASES
except ImportError as error:
    pytest.skip(f"TensorRT, or cuda-python, is not installed: {error}", allow_module_level=True)


@pytest.fixture(scope="module", autouse=True)
def library() -> None:
    path = harness.library_path()
    if not path.is_file():
        pytest.skip(f"no {path}: run `make plugins`, or name the library in {harness.LIBRARY_VARIABLE}")
    harness.load_library()


@pytest.mark.gpu
@pytest.mark.tensorrt
@pytest.mark.parametrize("name", CASES)
def test_plugins(name: str) -> None:
    outcome = CASES[name]()
    if "skipped" in outcome:
        pytest.skip(outcome["skipped"])
