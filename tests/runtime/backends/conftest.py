"""Backends that run an ONNX on the CPU."""

from functools import partial
from typing import Callable

import pytest

from runtime.backends import load_backend
from runtime.runner import Backend


@pytest.fixture(params=["onnxruntime", "openvino"])
def cpu_backend(request: pytest.FixtureRequest) -> str:
    """The name of each; those that are not installed are skipped."""
    pytest.importorskip(request.param, reason=f"{request.param} is not installed")
    return request.param


@pytest.fixture
def opened(cpu_backend: str) -> Callable[..., Backend]:
    """What opens a model with it."""
    return partial(load_backend, backend=cpu_backend)
