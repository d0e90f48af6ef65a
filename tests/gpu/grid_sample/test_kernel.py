"""The kernel of ``plugins/grid_sample`` against NumPy and torch, without TensorRT."""

import pytest

from tests.gpu.grid_sample.kernel import grid_sample
from tests.gpu.kernel_testing import MARKS, torch
from tests.gpu.tolerances import FLOAT_TOLERANCE, HALF_TOLERANCE

pytestmark = MARKS


# grid_sample in nearest mode jumps: the share of positions that fall on the other side by rounding.
MAX_JUMPED = 1e-3


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize(
    ("mode", "deep"),
    [("bilinear", False), ("nearest", False), ("bicubic", False), ("bilinear", True), ("nearest", True)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_grid_sample(mode: str, deep: bool, padding: str, align_corners: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    spatial, out = ((6, 9, 13), (5, 20, 30)) if deep else ((9, 13), (40, 50))
    features = torch.randn((2, 19, *spatial), device="cuda").to(dtype)
    grid = ((torch.rand((2, *out, len(spatial)), device="cuda") - 0.5) * 5).to(dtype)
    settings = {"mode": mode, "padding_mode": padding, "align_corners": align_corners}
    found = grid_sample(features, grid, **settings)
    # In float32 on both sides: the same grid, rounded beforehand, in the same arithmetic.
    expected = torch.nn.functional.grid_sample(features.float(), grid.float(), **settings)
    tolerance = (HALF_TOLERANCE if dtype == torch.float16 else FLOAT_TOLERANCE) * features.abs().max().item()
    far = (found.float() - expected).abs() > tolerance * 2
    allowed = MAX_JUMPED if mode == "nearest" else 0
    assert far.float().mean().item() <= allowed
