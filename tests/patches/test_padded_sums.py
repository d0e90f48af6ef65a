"""Averages over padded maps: exported, they are as exact as PyTorch's."""

import io

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from export.graph import simplified
from patches import adaptive_avg_pool, applied, group_norm
from tests.models import structured_images

# Relative to the result's spread. A single float32 sum over the map gives 5e-5 to 8e-4; PyTorch's own error is 6e-7.
TOLERANCE = 1e-5


def padded_maps() -> Tensor:
    """Return (2, 8, 160, 240) float32: one full map, and one of which two thirds are one constant per channel."""
    generator = torch.Generator().manual_seed(0)
    maps = structured_images(2, (160, 240), seed=0).repeat(1, 3, 1, 1)[:, :8]
    maps = (
        maps
        + torch.randn(2, 8, 1, 1, generator=generator)
        + 0.1 * torch.randn(maps.shape, generator=generator)
    )
    maps[1, :, :, 80:] = torch.randn(8, 1, 1, generator=generator)
    return maps


def exported(module: nn.Module, maps: Tensor, patches: tuple) -> np.ndarray:
    buffer = io.BytesIO()
    with applied(patches), torch.no_grad():
        torch.onnx.export(
            module,
            (maps[:1],),
            buffer,
            dynamo=False,
            opset_version=16,
            dynamic_axes={"x": {0: "b"}},
            input_names=["x"],
        )
    graph = simplified(onnx.load_from_string(buffer.getvalue()))
    return onnxruntime.InferenceSession(graph.SerializeToString()).run(None, {"x": maps.numpy()})[0]


@pytest.mark.parametrize(
    ("module", "patches"),
    [
        (nn.GroupNorm(2, 8), group_norm.PATCHES),
        (nn.GroupNorm(4, 8, affine=False), group_norm.PATCHES),
        (nn.AdaptiveAvgPool2d(1), adaptive_avg_pool.PATCHES),
    ],
)
def test_close_to_float64(module, patches):
    maps = padded_maps()
    if getattr(module, "affine", False):
        torch.manual_seed(0)
        nn.init.normal_(module.weight)
        nn.init.normal_(module.bias)
    module.requires_grad_(False).eval()
    expected = module.double()(maps.double()).numpy()
    found = exported(module.float(), maps, patches)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < TOLERANCE * expected.std()


def test_pool_to_more_than_one_value_is_pytorchs():
    maps = padded_maps()
    with applied(adaptive_avg_pool.PATCHES):
        assert torch.equal(
            nn.AdaptiveAvgPool2d((2, 3))(maps), nn.functional.adaptive_avg_pool2d(maps, (2, 3))
        )


def test_eager_group_norm_is_pytorchs():
    maps, module = padded_maps(), nn.GroupNorm(2, 8)
    expected = module(maps)
    with applied(group_norm.PATCHES):
        assert torch.equal(module(maps), expected)
