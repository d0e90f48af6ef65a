"""The kernel of ``plugins/decode_proposals`` against NumPy and torch, without TensorRT."""

import numpy as np
import pytest

from tests.gpu import numpy_oracles
from tests.gpu.decode_proposals import inputs as proposals
from tests.gpu.decode_proposals.kernel import decode_proposals
from tests.gpu.kernel_library import NCHW, NHWC, NHWC8, to_layout
from tests.gpu.kernel_testing import MARKS, cuda, torch
from tests.gpu.tolerances import (
    BOX_TOLERANCE,
)

pytestmark = MARKS


STORAGES = [
    (torch.float32, NCHW),
    (torch.float32, NHWC),
    (torch.float32, NHWC8),
    (torch.float16, NCHW),
    (torch.float16, NHWC8),
]


def decoded(case: dict, dtype: torch.dtype, layout: int, **settings) -> tuple:
    maps = {
        kind: [to_layout(cuda(level).to(dtype), layout) for level in case[kind]]
        for kind in ("logits", "deltas")
    }
    others = {name: cuda(case[name]) for name in ("priors", "image_sizes")}
    return decode_proposals(**maps, **others, layout=layout, **settings)


def check_decode_proposals(
    case: dict,
    *,
    num_anchors: int,
    dtype: torch.dtype = torch.float32,
    layout: int = NCHW,
    **settings,
) -> None:
    settings = {"max_ratio": proposals.MAX_RATIO, **settings}
    boxes, scores = decoded(case, dtype, layout, num_anchors=num_anchors, **settings)
    expected_boxes, expected_scores = numpy_oracles.decode_proposals(**case, **settings)
    # Both are float32: exp may round the other way, then a sum and a quotient.
    np.testing.assert_allclose(scores.cpu().numpy(), expected_scores, rtol=5e-7, atol=1e-44)
    np.testing.assert_array_equal(scores.cpu().numpy() == -1, expected_scores == -1)
    np.testing.assert_allclose(boxes.cpu().numpy(), expected_boxes, **BOX_TOLERANCE)


@pytest.mark.parametrize("kind", proposals.KINDS)
@pytest.mark.parametrize(("dtype", "layout"), STORAGES)
@pytest.mark.parametrize("batch", [1, 8])
def test_decode_proposals_of_resnet_50(batch: int, dtype: torch.dtype, layout: int, kind: str) -> None:
    rng = np.random.default_rng(batch)
    case = proposals.proposals_case(rng, proposals.RESNET_50_SIZES, num_anchors=3, batch=batch, kind=kind)
    check_decode_proposals(case, num_anchors=3, top=proposals.RESNET_50_TOP, dtype=dtype, layout=layout)


@pytest.mark.parametrize("kind", ["rpn", "saturated", "equal", "special"])
@pytest.mark.parametrize(("dtype", "layout"), STORAGES)
@pytest.mark.parametrize(
    ("sizes", "num_anchors", "top"),
    [
        ([(1, 1)], 1, [1]),
        ([(1, 1)], 1, [4096]),
        ([(5, 7)], 3, [33]),
        ([(20, 31), (10, 16), (5, 8), (3, 4), (2, 2)], 3, [1000] * 5),  # fewer anchors than rows
        ([(1, 3)] * 8, 9, [1, 2, 3, 4, 5, 6, 7, 40]),
        ([(32, 32), (32, 33)], 1, [1024, 1024]),  # around a block of scores
        ([(64, 128), (1, 2731), (7, 1313)], 3, [1000, 8, 4096]),
        ([(64, 128), (3, 2731), (7, 1313)], 1, [1000] * 3),  # a chunk; one score more; a last chunk of k - 1
        ([(17, 241), (64, 64), (3, 5)], 1, [4096] * 3),
        ([(3, 4), (163, 409), (5, 5), (200, 304)], 3, [1, 4096, 100, 1000]),  # chunks of different sizes
        ([(40, 50)], 64, [1000]),
    ],
)
def test_decode_proposals(
    sizes: list, num_anchors: int, top: list, dtype: torch.dtype, layout: int, kind: str
) -> None:
    rng = np.random.default_rng(num_anchors)
    case = proposals.proposals_case(rng, sizes, num_anchors=num_anchors, batch=3, kind=kind)
    check_decode_proposals(case, num_anchors=num_anchors, top=top, dtype=dtype, layout=layout)


def test_decode_proposals_of_random_shapes() -> None:
    rng = np.random.default_rng(6)
    for _ in range(100):
        num_levels, num_anchors = int(rng.integers(1, 9)), int(rng.choice([1, 2, 3, 8, 15]))
        sizes = [tuple(rng.integers(1, rng.choice([3, 20, 150]), 2).tolist()) for _ in range(num_levels)]
        batch, kind = int(rng.integers(1, 5)), str(rng.choice(proposals.KINDS))
        dtype, layout = STORAGES[rng.integers(0, len(STORAGES))]
        case = proposals.proposals_case(rng, sizes, num_anchors=num_anchors, batch=batch, kind=kind)
        top = rng.choice([1, 2, 31, 100, 1000, 2000, 4096], num_levels).tolist()
        check_decode_proposals(case, num_anchors=num_anchors, top=top, dtype=dtype, layout=layout)


@pytest.mark.parametrize(
    "settings",
    [
        {"clip": False},
        {"min_size": 0.0},
        {"min_size": 16.0},
        {"min_size": 100.0, "clip": False},
        {"means": (0.1, -0.2, 0.05, -0.3), "stds": (0.1, 0.1, 0.2, 0.2)},
        {"stds": (1, 1, 9, 9), "max_ratio": 1.0},
    ],
)
def test_decode_proposals_settings(settings: dict) -> None:
    rng = np.random.default_rng(7)
    case = proposals.proposals_case(rng, [(40, 61), (20, 31)], num_anchors=3)
    check_decode_proposals(case, num_anchors=3, top=[1000, 500], **settings)


@pytest.mark.parametrize(("dtype", "layout"), STORAGES)
@pytest.mark.parametrize("num_anchors", [1, 3, 15])
def test_decode_proposals_of_base_anchors_and_strides(
    num_anchors: int, dtype: torch.dtype, layout: int
) -> None:
    rng = np.random.default_rng(num_anchors)
    sizes, strides = [(50, 76), (25, 38), (1, 7), (13, 1)], [4.0, 8.0, 7.5, 0.1, 64.0, 64.0, 1.0, 3.0]
    case = proposals.proposals_case(rng, sizes, num_anchors=num_anchors, batch=3)
    base = case["priors"][: len(sizes) * num_anchors]
    settings = {"max_ratio": proposals.MAX_RATIO, "top": [1000, 700, 40, 30]}
    found = decoded(
        {**case, "priors": base}, dtype, layout, num_anchors=num_anchors, strides=strides, **settings
    )
    priors = proposals.moved_priors(base.reshape(len(sizes), -1, 4), sizes, strides)
    boxes, scores = numpy_oracles.decode_proposals(**{**case, "priors": priors}, **settings)
    np.testing.assert_allclose(found[1].cpu().numpy(), scores, rtol=5e-7, atol=1e-44)
    np.testing.assert_allclose(found[0].cpu().numpy(), boxes, **BOX_TOLERANCE)


def test_decode_proposals_refuses_one_stride() -> None:
    with pytest.raises(RuntimeError, match="decode_proposals: invalid argument"):
        decode_proposals(
            [torch.zeros((1, 1, 2, 2), device="cuda")],
            [torch.zeros((1, 4, 2, 2), device="cuda")],
            torch.zeros((1, 4), device="cuda"),
            torch.ones((1, 2), device="cuda"),
            top=[3],
            num_anchors=1,
            max_ratio=4.0,
            strides=[4.0, 0.0],
        )


@pytest.mark.parametrize("min_size", [-1.0, 0.0])
def test_decode_proposals_of_nan_deltas(min_size: float) -> None:
    rng = np.random.default_rng(8)
    case = proposals.proposals_case(rng, [(40, 61)], num_anchors=3)
    for value in (np.nan, np.inf, -np.inf):
        case["deltas"][0][rng.random(case["deltas"][0].shape) < 0.1] = value
    check_decode_proposals(case, num_anchors=3, top=[3000], min_size=min_size)


@pytest.mark.parametrize(("dtype", "layout"), [(torch.float32, NCHW), (torch.float16, NHWC8)])
@pytest.mark.parametrize("top", [1000, 4096])
def test_decode_proposals_of_the_largest_level(top: int, dtype: torch.dtype, layout: int) -> None:
    rng = np.random.default_rng(top)
    case = proposals.proposals_case(rng, [(4096, 2048), (3, 3)], num_anchors=2, batch=1, kind="saturated")
    check_decode_proposals(case, num_anchors=2, top=[top, 5], dtype=dtype, layout=layout)


def test_decode_proposals_of_more_images_than_a_grid_has() -> None:
    rng = np.random.default_rng(0)
    case = proposals.proposals_case(rng, [(1, 2), (1, 1)], num_anchors=2, batch=70000)
    check_decode_proposals(case, num_anchors=2, top=[3, 3])


def test_decode_proposals_of_offsets_of_more_than_32_bits() -> None:
    batch, size = 300, (2048, 2048)
    last = proposals.proposals_case(np.random.default_rng(1), [size], num_anchors=1, batch=1)
    maps = {}
    for kind, channels in (("logits", 1), ("deltas", 4)):
        maps[kind] = [torch.zeros((batch, channels, *size), dtype=torch.float16, device="cuda")]
        maps[kind][0][-1:] = cuda(last[kind][0])
    settings = {"top": [100], "max_ratio": proposals.MAX_RATIO, "clip": False}
    boxes, scores = decode_proposals(
        **maps,
        priors=cuda(last["priors"]),
        image_sizes=cuda(np.repeat(last["image_sizes"], batch, axis=0)),
        num_anchors=1,
        **settings,
    )
    expected_boxes, expected_scores = numpy_oracles.decode_proposals(**last, **settings)
    np.testing.assert_allclose(boxes[-1:].cpu().numpy(), expected_boxes, **BOX_TOLERANCE)
    np.testing.assert_allclose(scores[-1:].cpu().numpy(), expected_scores, rtol=5e-7)
    # The other images' logits and deltas are 0.
    assert (scores[:-1] == 0.5).all()
    first = np.broadcast_to(last["priors"][:100], (batch - 1, 100, 4))
    np.testing.assert_allclose(boxes[:-1].cpu().numpy(), first, **BOX_TOLERANCE)


def test_decode_proposals_of_an_empty_batch() -> None:
    case = proposals.proposals_case(np.random.default_rng(0), [(2, 3)], num_anchors=3, batch=0)
    boxes, scores = decoded(case, torch.float32, NCHW, num_anchors=3, top=[7], max_ratio=4.0)
    assert (boxes.shape, scores.shape) == ((0, 7, 4), (0, 7))


@pytest.mark.parametrize(
    ("size", "changes"),
    [
        ((4, 5), {"top": [0]}),
        ((4, 5), {"top": [4097]}),
        ((4, 5), {"num_anchors": 0}),
        ((0, 5), {}),
        ((2049, 8192), {"num_anchors": 1}),
    ],
)
def test_decode_proposals_refuses_shapes(size: tuple, changes: dict) -> None:
    settings = {"top": [3], "num_anchors": 1, "max_ratio": 4.0, **changes}
    with pytest.raises(RuntimeError, match="decode_proposals: invalid argument"):
        decode_proposals(
            [torch.zeros((1, 1, *size), device="cuda")],
            [torch.zeros((1, 4, *size), device="cuda")],
            torch.zeros((size[0] * size[1], 4), device="cuda"),
            torch.ones((1, 2), device="cuda"),
            **settings,
        )


def test_decode_proposals_is_captured_in_a_graph() -> None:
    rng = np.random.default_rng(9)
    sizes, top = [(100, 152), (50, 76), (13, 19)], [1000, 1000, 741]
    logits, deltas = (
        [torch.randn((2, channels, *size), device="cuda") for size in sizes] for channels in (3, 12)
    )
    case = proposals.proposals_case(rng, sizes, num_anchors=3)
    arguments = (logits, deltas, cuda(case["priors"]), cuda(case["image_sizes"]))
    settings = {"num_anchors": 3, "top": top, "max_ratio": 4.0}
    decode_proposals(*arguments, **settings)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = decode_proposals(*arguments, **settings)
    for _ in range(3):
        for level in logits:
            level.copy_(torch.randn_like(level))
        graph.replay()
        eager = decode_proposals(*arguments, **settings)
        assert torch.equal(captured[0], eager[0])
        assert torch.equal(captured[1], eager[1])
