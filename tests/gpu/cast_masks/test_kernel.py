"""The CUDA kernel cast_masks against NumPy's own cast.

Needs a GPU and ``plugins/libmaskrcnn_kernel.so``: ``pytest -m gpu tests/gpu/cast_masks``.
"""

import numpy as np
import pytest

from tests.gpu.cast_masks import kernel
from tests.gpu.kernel_testing import MARKS, torch

pytestmark = MARKS


def cast_by_numpy(values: np.ndarray) -> np.ndarray:
    return np.clip(np.nan_to_num(values, nan=0.0, posinf=255.0, neginf=0.0), 0, 255).astype(np.uint8)


def cast_by_kernel(values: "torch.Tensor") -> np.ndarray:
    # What the kernel does not write shows: its output comes from this block of torch's memory pool.
    torch.full(values.shape, 77, dtype=torch.uint8, device="cuda")
    return kernel.cast_masks(values).cpu().numpy()


def any_floats(num: int) -> np.ndarray:
    """Half of them any bits, NaN and infinities among them, the others around what a uint8 holds."""
    rng = np.random.default_rng(num)
    bits = rng.integers(0, 1 << 32, num, np.uint32).view(np.float32)
    return np.where(rng.random(num) < 0.5, bits, rng.uniform(-3, 259, num).astype(np.float32))


@pytest.mark.parametrize("num", [0, 1, 2, 3, 4, 5, 7, 8, 1023, 1024, 1025, 1027, 1_000_003])
def test_any_number_of_values(num: int) -> None:
    values = any_floats(num)
    np.testing.assert_array_equal(cast_by_kernel(torch.from_numpy(values).cuda()), cast_by_numpy(values))


@pytest.mark.parametrize("skipped", range(1, 4))
def test_values_at_any_address(skipped: int) -> None:
    """Past a multiple of 16 bytes: one by one."""
    values = any_floats(4099)
    found = cast_by_kernel(torch.from_numpy(values).cuda()[skipped:])
    np.testing.assert_array_equal(found, cast_by_numpy(values[skipped:]))


def test_masks_of_a_batch() -> None:
    masks = torch.rand((2, 100, 800, 1216), device="cuda") < 0.1
    found = kernel.cast_masks(masks.float())
    assert found.shape == masks.shape
    assert torch.equal(found, masks.to(torch.uint8))


def test_more_values_than_32_bits_count() -> None:
    num = (1 << 32) + 5
    if torch.cuda.mem_get_info()[0] < 6 * num:
        pytest.skip("too little memory")
    values = torch.zeros(num, device="cuda")
    places = [0, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, num - 1]
    values[places] = torch.arange(1.0, 7.0, device="cuda")
    found = kernel.cast_masks(values)
    assert found[places].tolist() == [1, 2, 3, 4, 5, 6]
    assert int(torch.count_nonzero(found)) == 6


def test_capture_in_a_graph_casts_again() -> None:
    values = torch.zeros(1000, device="cuda")
    kernel.cast_masks(values)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = kernel.cast_masks(values)
    for seed in range(3):
        new = any_floats(1000 + seed)[:1000]
        values.copy_(torch.from_numpy(new))
        graph.replay()
        np.testing.assert_array_equal(output.cpu().numpy(), cast_by_numpy(new))


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(ValueError, match="values: expected a contiguous CUDA tensor"):
        kernel.cast_masks(torch.zeros(4, dtype=torch.float16, device="cuda"))
