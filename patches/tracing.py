"""Which shapes a trace keeps as numbers and which as tensors.

The batch size always stays a tensor. Height and width are numbers unless the export asks for ``dynamic_size``:
constants fold, and TensorRT computes no shapes at run time.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Union

import torch
from torch import Tensor

Size = Union[int, Tensor]

_dynamic_size: ContextVar[bool] = ContextVar("dynamic_size", default=False)


@contextmanager
def dynamic_size(enabled: bool) -> Iterator[None]:
    """Trace height and width as tensors inside the block, if enabled."""
    token = _dynamic_size.set(enabled)
    try:
        yield
    finally:
        _dynamic_size.reset(token)


def is_dynamic_size() -> bool:
    """Return whether this is a trace in which height and width stay tensors."""
    return torch.jit.is_tracing() and _dynamic_size.get()


def constant(size: Size) -> int:
    """Return a traced size as a plain int, which the trace then holds as a constant."""
    with warnings.catch_warnings():
        # The tracer warns of just what this function is for.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        return int(size)


def spatial_size(tensor: Tensor) -> tuple[Size, Size]:
    """Return the last two dimensions, as ints unless the trace keeps them dynamic."""
    height, width = tensor.shape[-2:]
    if is_dynamic_size():
        return height, width
    return constant(height), constant(width)
