"""The kernel of ``plugins/select_top`` against NumPy and torch, without TensorRT."""

import numpy as np
import pytest

from tests.gpu import numpy_oracles
from tests.gpu.kernel_testing import MARKS, cuda, torch
from tests.gpu.select_top.kernel import select_top

pytestmark = MARKS


def select_top_scores(rng: np.random.Generator, kind: str, shape: tuple[int, int]) -> np.ndarray:
    scores = {
        "uniform": lambda: rng.random(shape),
        "rounded": lambda: np.round(rng.random(shape), 1) - 0.5,  # zero of either sign
        "saturated": lambda: 1 / (1 + np.exp(-rng.normal(15, 5, shape).astype(np.float32))),
        "rpn": lambda: 1 / (1 + np.exp(-rng.normal(-8, 3, shape).astype(np.float32))),
        "equal": lambda: np.full(shape, 0.5),
        "nearly equal": lambda: np.where(rng.random(shape) < 0.001, 0.25, 0.5),
        "any bits": lambda: rng.integers(0, 2**32, shape, dtype=np.uint32).view(np.float32),
        "denormals": lambda: rng.integers(0, 50, shape, dtype=np.uint32).view(np.float32),
        "mostly NaN": lambda: np.where(rng.random(shape) < 0.001, rng.random(shape), np.nan),
        "infinite": lambda: rng.choice([-np.inf, np.inf, np.nan, 0.0, -0.0], shape),
        "downwards": lambda: -np.arange(shape[0] * shape[1], dtype=np.float32).reshape(shape),
    }[kind]()
    return np.ascontiguousarray(scores, np.float32)


SELECT_TOP_KINDS = (
    "uniform",
    "rounded",
    "saturated",
    "rpn",
    "equal",
    "nearly equal",
    "any bits",
    "denormals",
    "mostly NaN",
    "infinite",
    "downwards",
)


def check_select_top(scores: torch.Tensor, k: int) -> None:
    host = scores.cpu().numpy()
    expected = numpy_oracles.select_top(host, k)
    values, indices = select_top(scores, k)
    np.testing.assert_array_equal(indices.cpu().numpy(), expected)
    best = np.take_along_axis(host, expected, axis=1)
    np.testing.assert_array_equal(values.cpu().numpy().view(np.uint32), best.view(np.uint32))


@pytest.mark.parametrize("kind", SELECT_TOP_KINDS)
@pytest.mark.parametrize(
    ("batch", "num_scores", "k"),
    [
        *((batch, n, 1000) for batch in (1, 8) for n in (182400, 45600, 11400, 2850)),  # RPN's levels
        (1, 1, 1),
        (3, 33, 32),
        (3, 1000, 1000),
        (2, 1001, 1000),
        (2, 8193, 1000),  # a chunk of one score
        (2, 9191, 1000),  # a last chunk of k - 1
        (2, 100003, 1),
        (2, 4096, 4096),
        (2, 4097, 4096),
        (3, 200001, 4096),  # chunks of more than the smallest size
    ],
)
def test_select_top(batch: int, num_scores: int, k: int, kind: str) -> None:
    rng = np.random.default_rng(num_scores + k)
    check_select_top(cuda(select_top_scores(rng, kind, (batch, num_scores))), k)


def test_select_top_of_random_shapes() -> None:
    rng = np.random.default_rng(5)
    for _ in range(200):
        k = int(rng.choice([1, 2, 31, 64, 100, 1000, 2000, 4096]))
        shape = (int(rng.integers(1, 5)), k + int(rng.choice([0, 1, 5, 100, 10000, 50000])))
        check_select_top(cuda(select_top_scores(rng, str(rng.choice(SELECT_TOP_KINDS)), shape)), k)


@pytest.mark.parametrize(("num_scores", "k"), [(1 << 24, 1000), (1 << 24, 4096), ((1 << 24) - 1, 1)])
def test_select_top_of_the_longest_rows(num_scores: int, k: int) -> None:
    rng = np.random.default_rng(k)
    check_select_top(cuda(select_top_scores(rng, "saturated", (1, num_scores))), k)


def test_select_top_of_more_rows_than_a_grid_has() -> None:
    rng = np.random.default_rng(0)
    check_select_top(cuda(select_top_scores(rng, "rounded", (70000, 5))), 3)
    # A slice that starts in the middle of 16 bytes.
    check_select_top(
        cuda(select_top_scores(rng, "rounded", (9, 8200)).ravel())[3 : 3 + 8 * 8200].view(8, 8200), 7
    )


def test_select_top_of_an_empty_batch() -> None:
    values, indices = select_top(torch.empty((0, 9), device="cuda"), 4)
    assert (values.shape, indices.shape) == ((0, 4), (0, 4))


@pytest.mark.parametrize(("num_scores", "k"), [(9, 10), (9, 0), (5000, 4097), ((1 << 24) + 1, 1)])
def test_select_top_refuses_shapes(num_scores: int, k: int) -> None:
    with pytest.raises(RuntimeError, match="select_top: invalid argument"):
        select_top(torch.zeros((1, num_scores), device="cuda"), k)


def test_select_top_is_captured_in_a_graph() -> None:
    scores = torch.rand((2, 45600), device="cuda")
    select_top(scores, 1000)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        values, indices = select_top(scores, 1000)
    for _ in range(3):
        scores.copy_(torch.rand((2, 45600), device="cuda"))
        graph.replay()
        expected = numpy_oracles.select_top(scores.cpu().numpy(), 1000)
        np.testing.assert_array_equal(indices.cpu().numpy(), expected)
        assert torch.equal(values, scores.gather(1, indices.long()))
