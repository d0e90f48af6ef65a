"""The kernel of ``plugins/encode_masks`` against NumPy and torch, without TensorRT."""

import numpy as np
import pytest

from tests.gpu import numpy_oracles, oracles
from tests.gpu.encode_masks.kernel import encode_masks
from tests.gpu.fuzzing import SPECIAL
from tests.gpu.kernel_testing import MARKS, cuda, torch
from tests.gpu.tolerances import (
    NEAR_THRESHOLD,
)

pytestmark = MARKS


def random_target_boxes(rng: np.random.Generator, num_boxes: int, height: int, width: int) -> np.ndarray:
    """Boxes of all sizes in and around an image; half of them special."""
    centers = rng.uniform(-0.2, 1.2, (num_boxes, 2)) * (width, height)
    sides = np.exp(rng.uniform(np.log(0.02), np.log(1.5), (num_boxes, 2))) * (width, height)
    boxes = np.hstack([centers - sides / 2, centers + sides / 2])
    special = rng.integers(0, 20, num_boxes)
    boxes[special == 0] = (0, 0, width, height)
    boxes[special == 1] = (-5, -5, width + 5, height + 5)
    boxes[special == 2, 2] = boxes[special == 2, 0]  # no width
    boxes[special == 3, 3] = boxes[special == 3, 1]
    boxes[special == 4] = np.floor(boxes[special == 4]) + 0.5
    boxes[special == 5, 1::2] = (0, height)  # runs go on from column to column
    boxes[special == 6, 3] = boxes[special == 6, 1] - 1.5  # upside down
    boxes[special == 7, 2] = boxes[special == 7, 0] - 1.5
    values = rng.choice(SPECIAL, (num_boxes, 4))
    some = (special == 8)[:, None] & (rng.random((num_boxes, 4)) < 0.4) | (special == 9)[:, None]
    return np.where(some, values, boxes).astype(np.float32)


def smooth_probabilities(rng: np.random.Generator, shape: tuple) -> np.ndarray:
    y, x = np.meshgrid(np.linspace(0, 1, shape[2]), np.linspace(0, 1, shape[3]), indexing="ij")
    frequency, phase = rng.uniform(0, 12, (2, *shape[:2], 1, 1)), rng.uniform(0, 6, (2, *shape[:2], 1, 1))
    return 0.5 + 0.6 * np.sin(frequency[0] * y + phase[0]) * np.cos(frequency[1] * x + phase[1])


def random_probabilities(rng: np.random.Generator, shape: tuple) -> np.ndarray:
    kind = rng.integers(0, 4)
    if kind == 0:
        return rng.random(shape)
    if kind == 1:
        return np.ones(shape)
    if kind == 2:
        return rng.choice([0, 1, 0.5, np.nan, np.inf, -np.inf], shape, p=[0.3, 0.3, 0.3, 0.04, 0.03, 0.03])
    return smooth_probabilities(rng, shape)


def random_encode_case(rng: np.random.Generator) -> dict:
    batch, num_dets = int(rng.integers(1, 4)), 20
    sizes = np.stack(
        [rng.choice([1, 2, 5, 33, 300, 1080], batch), rng.choice([1, 7, 64, 300, 1920], batch)], 1
    )
    scales = rng.choice([1, 0.5, 1.3333334, 2.7], (batch, 2)).astype(np.float32)
    choices = [(28, 28), (14, 56), (1, 1), (2, 3), (100, 7), (70, 70), (1024, 2)]
    mask_size = choices[rng.integers(0, len(choices))]
    with np.errstate(all="ignore"):
        boxes = [random_target_boxes(rng, num_dets, *size) * np.tile(s, 2) for size, s in zip(sizes, scales)]
    scores = rng.random((batch, num_dets, 1))
    scores[rng.random(scores.shape) < 0.05] = np.nan
    return {
        "masks": random_probabilities(rng, (batch, num_dets, *mask_size)).astype(np.float32),
        "dets": np.concatenate([np.stack(boxes), scores], axis=2).astype(np.float32),
        "num_dets": rng.integers(-1, num_dets + 3, batch).astype(np.int32),
        "sizes": sizes.astype(np.int32),
        "scales": scales,
        "threshold": float(rng.choice([0.5, 0.3, 0, 1, -1])),
        "min_score": float(rng.choice([-np.inf, 0.3])),
    }


def encoded(case: dict, capacity: int) -> tuple:
    """Run the kernel; return the strings' bytes, offsets and lengths as NumPy arrays, and the bytes needed."""
    tensors = {name: cuda(case[name]) for name in ("masks", "dets", "num_dets")}
    settings = {name: case[name] for name in ("threshold", "min_score")}
    strings, offsets, lengths, used = encode_masks(
        **tensors, sizes=case["sizes"].tolist(), scales=case["scales"].tolist(), capacity=capacity, **settings
    )
    return strings.cpu().numpy(), offsets.cpu().numpy(), lengths.cpu().numpy(), used.item()


def check_encoded(case: dict, expected: list, capacity: int) -> None:
    strings, offsets, lengths, used = encoded(case, capacity)
    assert lengths.tolist() == [[len(string) for string in image] for image in expected]
    assert used == lengths.sum()
    missing = 0
    for string, offset in zip((string for image in expected for string in image), offsets.ravel().tolist()):
        if offset == -1:
            missing += len(string)
        else:
            assert strings[offset : offset + len(string)].tobytes() == string
    assert bool(missing) == (used > capacity)
    assert (offsets[lengths == 0] == 0).all()
    assert used - missing <= capacity


def test_encode_masks_gives_the_references_strings() -> None:
    reference = pytest.importorskip("plugins._reference", reason="the CPU reference is not built")
    for seed in range(300):
        rng = np.random.default_rng(seed)
        case = random_encode_case(rng)
        expected = reference.encode_masks(**case)
        needed = sum(len(string) for image in expected for string in image)
        check_encoded(case, expected, needed)
        check_encoded(case, expected, int(needed * rng.random()))


def test_encode_masks_decodes_to_what_grid_sample_pastes() -> None:
    rng = np.random.default_rng(8)
    size = (270, 480)
    masks = np.where(
        rng.random((1, 200, 1, 1)) < 0.3,
        rng.random((1, 200, 28, 28)),
        smooth_probabilities(rng, (1, 200, 28, 28)),
    ).astype(np.float32)
    boxes = random_target_boxes(rng, 200, *size)
    boxes = boxes[np.isfinite(boxes).all(axis=1) & (np.abs(boxes).max(axis=1) < 1e4)]
    masks = np.ascontiguousarray(masks[:, : len(boxes)])
    case = {
        "masks": masks,
        "dets": np.hstack([boxes, np.ones((len(boxes), 1), np.float32)])[None],
        "num_dets": np.array([len(boxes)], np.int32),
        "sizes": np.array([size]),
        "scales": np.ones((1, 2)),
        "threshold": 0.5,
        "min_score": 0.0,
    }
    strings, offsets, lengths, _ = encoded(case, 1 << 20)
    probability = oracles.paste_oracle(cuda(masks[0]), cuda(boxes), *size).cpu().numpy()
    for expected, offset, length in zip(probability, offsets[0], lengths[0]):
        found = numpy_oracles.image_of_counts(strings[offset : offset + length].tobytes(), *size)
        clear = ~(np.abs(expected - 0.5) < NEAR_THRESHOLD)
        np.testing.assert_array_equal(found[clear], (expected >= 0.5)[clear])


def large_encode_case(size: tuple[int, int], mask_size: tuple[int, int], *, batch: int = 1) -> dict:
    rng = np.random.default_rng(3)
    dets = np.array([[0, 0, size[1], size[0], 1], [0.3, 0.2, size[1] - 7.5, size[0] / 2, 1]], np.float32)
    return {
        "masks": rng.random((batch, 2, *mask_size)).astype(np.float32),
        "dets": np.tile(dets, (batch, 1, 1)),
        "num_dets": np.full(batch, 2, np.int32),
        "sizes": np.full((batch, 2), size, np.int32),
        "scales": np.ones((batch, 2), np.float32),
        "threshold": 0.5,
        "min_score": 0.0,
    }


@pytest.mark.parametrize(
    ("size", "mask_size", "batch"),
    [
        ((4000, 6000), (28, 28), 1),  # strings that do not fit into shared memory
        ((1000, 1500), (1024, 1024), 1),  # nor does the mask; columns of hundreds of runs
        ((1, 70000), (28, 28), 1),
        ((70000, 3), (28, 28), 1),
        ((60, 50), (28, 28), 300),  # more images than a launch takes
    ],
)
def test_encode_masks_of_large_inputs(size: tuple, mask_size: tuple, batch: int) -> None:
    reference = pytest.importorskip("plugins._reference", reason="the CPU reference is not built")
    case = large_encode_case(size, mask_size, batch=batch)
    expected = reference.encode_masks(**case)
    check_encoded(case, expected, sum(len(string) for image in expected for string in image))


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
def test_no_masks_to_encode(shape: tuple) -> None:
    strings, offsets, lengths, used = encode_masks(
        torch.zeros((*shape, 28, 28), device="cuda"),
        torch.zeros((*shape, 5), device="cuda"),
        torch.zeros(shape[:1], dtype=torch.int32, device="cuda"),
        sizes=[(40, 30)] * shape[0],
        scales=[(1, 1)] * shape[0],
        capacity=0,
    )
    assert (strings.shape, offsets.shape, lengths.shape, used.item()) == ((0,), shape, shape, 0)


@pytest.mark.parametrize(
    ("size", "mask_size"), [((-1, 5), (28, 28)), ((50000, 50000), (28, 28)), ((40, 30), (1025, 1))]
)
def test_encode_masks_refuses_sizes(size: tuple, mask_size: tuple) -> None:
    with pytest.raises(RuntimeError, match="encode_masks: invalid argument"):
        encode_masks(
            torch.zeros((1, 1, *mask_size), device="cuda"),
            torch.zeros((1, 1, 5), device="cuda"),
            torch.ones((1,), dtype=torch.int32, device="cuda"),
            sizes=[size],
            scales=[(1, 1)],
            capacity=100,
        )


def test_encode_masks_is_captured_in_a_graph() -> None:
    case = large_encode_case((200, 300), (28, 28), batch=2)
    tensors = {name: cuda(case[name]) for name in ("masks", "dets", "num_dets")}
    sizes, scales = case["sizes"].tolist(), case["scales"].tolist()

    def call() -> tuple:
        return encode_masks(**tensors, sizes=sizes, scales=scales, capacity=1 << 16)

    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    for _ in range(3):
        tensors["masks"].copy_(torch.rand(case["masks"].shape, device="cuda"))
        graph.replay()
        eager = call()
        assert torch.equal(captured[2], eager[2])
        assert torch.equal(captured[3], eager[3])
        for (found, start), (expected, begin), length in zip(
            ((captured[0], i) for i in captured[1].ravel().tolist()),
            ((eager[0], i) for i in eager[1].ravel().tolist()),
            eager[2].ravel().tolist(),
        ):
            assert torch.equal(found[start : start + length], expected[begin : begin + length])
