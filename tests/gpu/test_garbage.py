"""What the kernels make of inputs that no network has."""

import pytest

from tests.gpu import fuzz_kernels
from tests.gpu.grouped_nms.kernel import grouped_nms
from tests.gpu.kernel_testing import MARKS, torch
from tests.gpu.paste_masks.kernel import paste_masks

pytestmark = MARKS


@pytest.mark.parametrize("op", sorted(fuzz_kernels.OPS))
def test_garbage_ends(op: str) -> None:
    """NaN, Inf, huge boxes and any index in every input: the kernels return, and leave the device usable."""
    fuzz_kernels.run(op, num_rounds=10)
    torch.cuda.synchronize()
    assert torch.ones(3, device="cuda").sum().item() == 3


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(
        ValueError, match="boxes: expected a contiguous CUDA tensor .* found contiguous torch.float64"
    ):
        paste_masks(
            torch.zeros((1, 1, 2, 2), device="cuda"),
            torch.zeros((1, 1, 4), dtype=torch.float64, device="cuda"),
            (4, 4),
        )
    with pytest.raises(RuntimeError, match="grouped_nms: invalid argument"):
        grouped_nms(
            torch.zeros((3, 2, 4), device="cuda"),
            torch.zeros((3, 2), device="cuda"),
            torch.zeros((2, 2), dtype=torch.int32, device="cuda"),
            iou_threshold=0.5,
            score_threshold=0.0,
            max_output=4,
        )
