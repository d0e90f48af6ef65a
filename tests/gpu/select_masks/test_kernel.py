"""The kernel of ``plugins/select_masks`` against NumPy and torch, without TensorRT."""

import numpy as np
import pytest

from tests.gpu import numpy_oracles
from tests.gpu.kernel_library import NCHW, NHWC, NHWC8, to_layout
from tests.gpu.kernel_testing import MARKS, cuda, torch
from tests.gpu.select_masks.kernel import select_masks
from tests.gpu.tolerances import (
    PROBABILITY_TOLERANCE,
)

pytestmark = MARKS


def check_select_masks(logits: torch.Tensor, labels: np.ndarray, layout: int) -> None:
    stored = to_layout(logits, layout)
    found = select_masks(stored, cuda(labels), channels=logits.shape[1], layout=layout)
    expected = numpy_oracles.select_masks(logits.cpu().numpy(), labels)
    np.testing.assert_allclose(found.cpu().numpy(), expected, rtol=0, atol=PROBABILITY_TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("layout", [NCHW, NHWC, NHWC8])
@pytest.mark.parametrize(
    ("batch", "num_masks", "channels", "size"),
    [
        (1, 100, 80, (28, 28)),
        (2, 5, 1203, (28, 28)),
        (3, 7, 1, (28, 28)),
        *((2, 3, channels, (14, 14)) for channels in (7, 8, 9)),
        (2, 3, 5, (1, 1)),
        (2, 3, 5, (7, 7)),  # not divisible by 4
        (2, 3, 5, (2, 2)),
        (1, 2, 3, (112, 100)),  # more than a block's pixels
        (1, 2, 3, (33, 35)),  # likewise, one by one
    ],
)
def test_select_masks(
    batch: int, num_masks: int, channels: int, size: tuple, layout: int, dtype: torch.dtype
) -> None:
    rng = np.random.default_rng(channels)
    labels = rng.integers(-1, channels, (batch, num_masks)).astype(np.int32)
    labels.ravel()[[0, 1]] = channels - 1, -1
    logits = rng.normal(0, 4, (batch * num_masks, channels, *size)).astype(np.float32)
    check_select_masks(cuda(logits).to(dtype), labels, layout)


def test_select_masks_of_a_batch_of_eight() -> None:
    """The real size, and offsets beyond those of one image."""
    labels = np.random.default_rng(0).integers(0, 80, (8, 100)).astype(np.int32)
    logits = torch.randn((800, 80, 28, 28), device="cuda").half() * 4
    check_select_masks(logits, labels, NHWC8)


@pytest.mark.parametrize("layout", [NCHW, NHWC8])
def test_select_masks_past_32_bits(layout: int) -> None:
    """2^31 elements and more: only the last masks are compared."""
    channels, num_masks = 2048, 1400
    try:
        logits = torch.zeros((num_masks, 784 * channels), dtype=torch.float16, device="cuda")
    except torch.cuda.OutOfMemoryError:
        pytest.skip("needs 5 GB of GPU memory")
    assert logits.numel() > 2**31
    last = torch.randn((1, channels, 28, 28), device="cuda").half()
    logits[-1] = to_layout(last, layout).ravel()
    shape = (num_masks, channels, 28, 28) if layout == NCHW else (num_masks, 28, 28, channels)
    labels = torch.full((1, num_masks), channels - 1, dtype=torch.int32, device="cuda")
    found = select_masks(logits.view(shape), labels, channels=channels, layout=layout)
    assert (found[0, :-1] == 0.5).all()
    expected = numpy_oracles.select_masks(last.cpu().numpy(), np.array([[channels - 1]]))
    np.testing.assert_allclose(found[0, -1].cpu().numpy(), expected[0, 0], rtol=0, atol=PROBABILITY_TOLERANCE)


@pytest.mark.parametrize("layout", [NCHW, NHWC, NHWC8])
@pytest.mark.parametrize("channels", [1, 3])
def test_labels_from_anywhere(channels: int, layout: int) -> None:
    labels = np.array([[-(2**31), -2, -1, 0, 1, 2, 3, 79, 2**31 - 1]], np.int32)
    check_select_masks(torch.randn((9, channels, 28, 28), device="cuda"), labels, layout)


def test_masks_of_extreme_logits() -> None:
    values = [0.0, 88.0, -88.0, 104.0, -104.0, 3e38, -3e38, np.inf, -np.inf, np.nan, 1e-45, -0.0]
    logits = torch.tensor(values, device="cuda").view(1, 1, 3, 4)
    check_select_masks(logits, np.zeros((1, 1), np.int32), NCHW)
    check_select_masks(logits, np.full((1, 1), -1, np.int32), NCHW)


def test_mask_logits_at_any_address() -> None:
    """They begin in the middle of 16 bytes, and a mask of 49 pixels ends there."""
    logits = torch.randn((1 + 2 * 3 * 49), device="cuda")[1:].view(2, 3, 7, 7)
    check_select_masks(logits, np.array([[2, 0]], np.int32), NCHW)


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
def test_no_masks_to_select(shape: tuple) -> None:
    labels = torch.zeros(shape, dtype=torch.int32, device="cuda")
    found = select_masks(torch.zeros((0, 3, 28, 28), device="cuda"), labels, channels=3)
    assert found.shape == (*shape, 28, 28)


def test_select_masks_refuses_no_channels() -> None:
    with pytest.raises(RuntimeError, match="select_masks: invalid argument"):
        select_masks(
            torch.zeros((1, 0, 2, 2), device="cuda"),
            torch.zeros((1, 1), dtype=torch.int32, device="cuda"),
            channels=0,
        )


def test_select_masks_is_captured_in_a_graph() -> None:
    logits = torch.randn((200, 28, 28, 80), device="cuda").half()
    labels = torch.zeros((2, 100), dtype=torch.int32, device="cuda")
    settings = {"channels": 80, "layout": NHWC8}
    select_masks(logits, labels, **settings)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = select_masks(logits, labels, **settings)
    for _ in range(3):
        logits.normal_()
        labels.random_(-1, 80)
        graph.replay()
        assert torch.equal(captured, select_masks(logits, labels, **settings))
