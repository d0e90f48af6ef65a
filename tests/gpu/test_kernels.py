"""The CUDA kernels against NumPy and torch, without TensorRT."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA GPU", allow_module_level=True)

from plugins import kernels  # noqa: E402
from tests.gpu import fuzz_kernels, numpy_oracles, oracles, proposals  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not kernels.library_path().exists(), reason="libmaskrcnn_kernels.so is not built"),
]

# Relative to the largest feature: float32 sums of up to a few hundred terms.
FLOAT_TOLERANCE = 1e-5
# float16 results have 11 bits: half a unit in the last place is 5e-4.
HALF_TOLERANCE = 2e-3
# Closer to the threshold than this, two orders of the same float32 arithmetic may differ.
NEAR_THRESHOLD = 1e-5
# float32 against float64. Probabilities: the roundings of exp, of a sum and of a quotient.
PROBABILITY_TOLERANCE = 2e-6
# Boxes in px: two units of exp on half a side of 2000 px, of which the image shows a part.
BOX_TOLERANCE = {"rtol": 1e-6, "atol": 5e-4}
# grid_sample in nearest mode jumps: the share of positions that fall on the other side by rounding.
MAX_JUMPED = 1e-3


def cuda(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).cuda()


# ---------------------------------------------------------------------------------------------------- grouped_nms


def random_boxes(rng: np.random.Generator, num_boxes: int, *, extent: float, whole: bool) -> np.ndarray:
    boxes = rng.uniform(0, extent, (num_boxes, 4))
    boxes[:, 2:] = boxes[:, :2] + boxes[:, 2:] * 0.6
    boxes = np.round(boxes) if whole else boxes  # whole numbers: many exact IoUs, boxes without area
    if rng.random() < 0.2:
        boxes[num_boxes // 2 :] = boxes[: num_boxes - num_boxes // 2]
    if rng.random() < 0.1:
        boxes -= extent / 2
    return boxes.astype(np.float32)


def random_scores(rng: np.random.Generator, num_boxes: int) -> np.ndarray:
    scores = rng.random(num_boxes).astype(np.float32)
    if rng.random() < 0.5:
        scores = np.round(scores, 1) - np.float32(0.5)  # ties, and zero of either sign
    if rng.random() < 0.2:
        scores[rng.random(num_boxes) < 0.2] = np.nan
    return scores


def check_grouped_nms(boxes, scores, groups, **settings) -> None:
    indices, counts = kernels.grouped_nms(cuda(boxes), cuda(scores), cuda(groups), **settings)
    indices, counts = indices.cpu().numpy(), counts.cpu().numpy()
    for b in range(len(boxes)):
        own_groups = groups[b if len(groups) > 1 else 0]
        expected = oracles.grouped_nms_oracle(boxes[b], scores[b], own_groups, **settings)
        assert counts[b] == len(expected), settings
        padding = [-1] * (settings["max_output"] - len(expected))
        assert indices[b].tolist() == expected + padding, settings


@pytest.mark.parametrize("shift_groups", [True, False])
def test_grouped_nms_keeps_what_greedy_nms_keeps(shift_groups: bool) -> None:
    rng = np.random.default_rng(int(shift_groups))
    num_cases = 0
    while num_cases < 1000:
        batch, num_boxes = int(rng.integers(1, 9)), int(rng.choice([0, 1, 2, 31, 33, 60, 200, 600, 1100]))
        extent, whole = float(rng.choice([20, 60, 1300])), bool(rng.random() < 0.5)
        boxes = np.stack([random_boxes(rng, num_boxes, extent=extent, whole=whole) for _ in range(batch)])
        scores = np.stack([random_scores(rng, num_boxes) for _ in range(batch)])
        ids = [[0], range(5), range(80), [-7, 0, 3, 2**31 - 1]][int(rng.integers(0, 4))]
        groups = rng.choice(list(ids), (1 if rng.random() < 0.3 else batch, num_boxes)).astype(np.int32)
        if shift_groups and np.abs(groups).max(initial=0) > 100:
            groups %= 50
        check_grouped_nms(
            boxes.reshape(batch, num_boxes, 4),
            scores,
            groups,
            iou_threshold=float(rng.choice([0.0, 0.3, 0.5, 0.7, 1.0])),
            score_threshold=float(rng.choice([-np.inf, 0.0, 0.3, 2.0])),
            max_output=int(rng.choice([1, 7, 100, 1000])),
            shift_groups=shift_groups,
        )
        num_cases += batch


@pytest.mark.parametrize(
    ("num_boxes", "num_groups", "max_output"),
    [(4800, 5, 1000), (4800, 1, 4800), (5000, 5000, 100), (20000, 1, 300), (80000, 80, 100)],
)
def test_grouped_nms_of_many_candidates(num_boxes: int, num_groups: int, max_output: int) -> None:
    rng = np.random.default_rng(num_boxes)
    boxes = np.stack([random_boxes(rng, num_boxes, extent=1200, whole=False) for _ in range(2)])
    scores = rng.random((2, num_boxes)).astype(np.float32)
    groups = rng.integers(0, num_groups, (1, num_boxes)).astype(np.int32)
    settings = {"iou_threshold": 0.7, "score_threshold": -1.0, "shift_groups": True}
    check_grouped_nms(boxes, scores, groups, max_output=max_output, **settings)


UNIT, FAR, NAN, INF = [0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 60.0, 60.0], float("nan"), float("inf")


@pytest.mark.parametrize(
    ("boxes", "scores", "kept"),
    [
        ([], [], []),
        ([UNIT], [0.5], [0]),
        ([UNIT, UNIT], [0.5, 0.5], [0]),  # a tie: the lower index
        ([UNIT, UNIT], [0.4, 0.5], [1]),
        ([UNIT, FAR], [0.4, 0.5], [1, 0]),
        ([UNIT, [0, 0, 10, 5]], [0.9, 0.8], [0, 1]),  # IoU is exactly the threshold: kept
        ([UNIT, UNIT], [NAN, 0.1], [1]),
        ([UNIT, FAR], [NAN, NAN], []),
        ([UNIT, FAR], [-0.0, 0.0], [0, 1]),
        ([[5, 5, 5, 5], [5, 5, 5, 5]], [0.9, 0.8], [0, 1]),  # 0 / 0
        ([[NAN, 0, 10, 10], UNIT, UNIT], [0.9, 0.8, 0.7], [0, 1]),
        ([[-INF, -INF, INF, INF], UNIT], [0.9, 0.8], [0, 1]),
    ],
)
def test_grouped_nms_of_small_cases(boxes: list, scores: list, kept: list) -> None:
    boxes, scores = np.array(boxes, np.float32).reshape(1, -1, 4), np.array(scores, np.float32)[None]
    groups = np.zeros(scores.shape, np.int32)
    settings = {"iou_threshold": 0.5, "score_threshold": -1.0, "max_output": 4, "shift_groups": False}
    indices, count = kernels.grouped_nms(cuda(boxes), cuda(scores), cuda(groups), **settings)
    assert (indices[0].tolist(), count.tolist()) == (kept + [-1] * (4 - len(kept)), [len(kept)])


def test_grouped_nms_of_an_empty_batch() -> None:
    indices, count = kernels.grouped_nms(
        torch.empty((0, 3, 4), device="cuda"),
        torch.empty((0, 3), device="cuda"),
        torch.empty((1, 3), dtype=torch.int32, device="cuda"),
        iou_threshold=0.5,
        score_threshold=0.0,
        max_output=4,
    )
    assert (indices.shape, count.shape) == ((0, 4), (0,))


def test_grouped_nms_is_captured_in_a_graph() -> None:
    rng = np.random.default_rng(9)
    boxes = cuda(random_boxes(rng, 500, extent=100, whole=False)[None])
    scores, groups = (
        torch.rand((1, 500), device="cuda"),
        torch.zeros((1, 500), dtype=torch.int32, device="cuda"),
    )
    settings = {"iou_threshold": 0.5, "score_threshold": 0.2, "max_output": 100}
    kernels.grouped_nms(boxes, scores, groups, **settings)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = kernels.grouped_nms(boxes, scores, groups, **settings)
    for _ in range(3):
        scores.copy_(torch.rand((1, 500), device="cuda"))
        graph.replay()
        eager = kernels.grouped_nms(boxes, scores, groups, **settings)
        assert torch.equal(captured[0], eager[0])
        assert torch.equal(captured[1], eager[1])


# ------------------------------------------------------------------------------------------ multi_level_roi_align

SCALES = (1 / 4, 1 / 8, 1 / 16, 1 / 32)


def random_rois(rng: np.random.Generator, num_rois: int, batch: int, height: int, width: int) -> np.ndarray:
    """RoIs of all sizes, a third of them special: outside, without extent, huge, reversed, NaN, without an image."""
    rois = np.empty((num_rois, 5), np.float32)
    rois[:, 0] = rng.integers(0, batch, num_rois)
    centers = rng.uniform(0, 1, (num_rois, 2)) * (width, height)
    sides = np.exp(rng.uniform(np.log(4), np.log(1.2 * width), (num_rois, 2)))
    rois[:, 1:3], rois[:, 3:5] = centers - sides / 2, centers + sides / 2
    special = rng.integers(0, 24, num_rois)
    rois[special == 0, 1:] += 2 * width
    rois[special == 1, 1:] -= 3 * width
    rois[special == 2, 3] = rois[special == 2, 1]
    rois[special == 3, 1:] = 0
    rois[special == 4, 1:] *= 300
    rois[special == 5, 1:] = rois[special == 5][:, [3, 4, 1, 2]]
    rois[special == 6, rng.integers(0, 5)] = np.nan
    rois[special == 7, 0] = rng.choice([-1, batch, 1e9, -1e30, np.inf])
    return rois


def expected_rois(oracle, features, rois, output_size, ratio, aligned) -> torch.Tensor:
    levels = oracles.level_oracle(rois, len(features), 56.0)
    out = torch.zeros((len(rois), features[0].shape[1], *output_size), dtype=torch.float64, device="cuda")
    for level, (feature, scale) in enumerate(zip(features, SCALES)):
        own = np.flatnonzero(levels == level)
        if len(own):
            out[cuda(own)] = oracle(feature.double(), rois[own], output_size, scale, ratio, aligned)
    return out


def from_layout(out: torch.Tensor, layout: int, channels: int) -> torch.Tensor:
    if layout == kernels.NCHW:
        return out
    assert not out[..., channels:].any()  # the padding
    return out[..., :channels].permute(0, 3, 1, 2)


ROI_CASES = [
    # dtype, layout, output layout, output dtype, channels, output size, ratio, mode, aligned, number of RoIs
    (torch.float32, kernels.NCHW, kernels.NCHW, None, 8, (7, 7), 0, "avg", True, 3000),
    (torch.float32, kernels.NHWC, kernels.NCHW, None, 8, (7, 7), 0, "avg", True, 3000),
    (torch.float32, kernels.NHWC, kernels.NHWC, None, 12, (14, 14), 2, "avg", False, 1000),
    (torch.float32, kernels.NHWC8, kernels.NHWC8, None, 5, (7, 3), 0, "avg", False, 1000),
    (torch.float32, kernels.NHWC, kernels.NCHW, torch.float16, 5, (2, 9), 3, "avg", True, 1000),
    (torch.float16, kernels.NCHW, kernels.NCHW, None, 8, (7, 7), 0, "avg", True, 3000),
    (torch.float16, kernels.NHWC8, kernels.NCHW, None, 16, (7, 7), 0, "avg", True, 3000),
    (torch.float16, kernels.NHWC8, kernels.NHWC8, None, 13, (14, 14), 0, "avg", True, 1000),
    (torch.float16, kernels.NHWC8, kernels.NCHW, torch.float32, 300, (3, 3), 0, "avg", True, 300),
    (torch.float16, kernels.NCHW, kernels.NHWC8, torch.float32, 13, (7, 7), 2, "avg", True, 1000),
    (torch.float32, kernels.NCHW, kernels.NCHW, None, 3, (65, 2), 0, "avg", True, 200),  # beyond the tables
    (torch.float32, kernels.NCHW, kernels.NCHW, None, 8, (7, 7), 0, "max", True, 300),
    (torch.float16, kernels.NHWC8, kernels.NHWC8, None, 12, (5, 7), 2, "max", False, 300),
]


@pytest.mark.parametrize("case", ROI_CASES)
def test_multi_level_roi_align(case: tuple) -> None:
    dtype, layout, output_layout, output_dtype, channels, output_size, ratio, mode, aligned, num_rois = case
    rng = np.random.default_rng(4)
    batch, height, width = 2, 256, 320
    generator = torch.Generator("cuda").manual_seed(3)
    sizes = [(int(height * scale), int(width * scale)) for scale in SCALES]
    features = [
        torch.randn((batch, channels, *size), device="cuda", generator=generator).to(dtype) for size in sizes
    ]
    rois = random_rois(rng, num_rois, batch, height, width)
    out = kernels.multi_level_roi_align(
        [kernels.to_layout(feature, layout) for feature in features],
        cuda(rois),
        channels=channels,
        output_size=output_size,
        spatial_scales=SCALES,
        sampling_ratio=ratio,
        mode=mode,
        aligned=aligned,
        layout=layout,
        output_layout=output_layout,
        output_dtype=output_dtype,
    )
    oracle = oracles.average_oracle if mode == "avg" else oracles.maximum_oracle
    expected = expected_rois(oracle, features, rois, output_size, ratio, aligned)
    found = from_layout(out, output_layout, channels).double()
    half = torch.float16 in (dtype, output_dtype)
    scale = max(feature.abs().max().item() for feature in features)
    real = expected > -9999
    assert torch.equal(found > -9999, real)
    error = ((found - expected).abs() * real).max().item() / scale
    assert error <= (HALF_TOLERANCE if half else FLOAT_TOLERANCE), error


def test_roi_align_of_a_map_too_large_for_the_tables() -> None:
    feature = torch.randn((1, 4, 8, 3000), device="cuda")
    rois = np.array([[0, 0, 0, 3000, 8], [0, -50, 1, 5000, 6], [0, 10, 1, 300, 6]], np.float32)
    for layout in (kernels.NCHW, kernels.NHWC):
        found = kernels.multi_level_roi_align(
            [kernels.to_layout(feature, layout)],
            cuda(rois),
            channels=4,
            output_size=(7, 7),
            spatial_scales=(1.0,),
            layout=layout,
        )
        expected = oracles.average_oracle(feature.double(), rois, (7, 7), 1.0, 0, True)
        assert (found - expected).abs().max().item() <= FLOAT_TOLERANCE * feature.abs().max().item()


def test_roi_align_equals_torchvision() -> None:
    torchvision = pytest.importorskip("torchvision")
    feature = torch.randn((2, 16, 50, 60), device="cuda")
    rois = cuda(random_rois(np.random.default_rng(1), 500, 2, 50, 60))
    rois = rois[((rois[:, 0] >= 0) & (rois[:, 0] < 2) & rois.isfinite().all(1) & (rois.abs().amax(1) < 500))]
    found = kernels.multi_level_roi_align(
        [feature], rois, channels=16, output_size=(7, 7), spatial_scales=(1.0,)
    )
    expected = torchvision.ops.roi_align(feature, rois, (7, 7), 1.0, -1, True)
    assert (found - expected).abs().max().item() <= 10 * FLOAT_TOLERANCE  # torchvision sums in float32, too


def test_no_rois() -> None:
    out = kernels.multi_level_roi_align(
        [torch.zeros((1, 8, 4, 4), device="cuda")],
        torch.zeros((0, 5), device="cuda"),
        channels=8,
        output_size=(7, 7),
        spatial_scales=(1.0,),
    )
    assert out.shape == (0, 8, 7, 7)


# ---------------------------------------------------------------------------------------------------- paste_masks


def random_mask_boxes(rng: np.random.Generator, num_masks: int, height: int, width: int) -> np.ndarray:
    boxes = rng.uniform(-20, max(height, width), (num_masks, 4)).astype(np.float32)
    boxes[:, 2:] = boxes[:, :2] + np.exp(rng.uniform(-2, np.log(width), (num_masks, 2)))
    boxes[0] = (0, 0, width, height)
    boxes[1] = (-10, -10, 900, 900)
    boxes[2] = (20, 10, 20, 30)  # no width: mmdet reads the middle column everywhere in the region
    boxes[3] = (10.5, 10, 10.5, 30)  # no width, on a pixel's centre: 0 / 0
    boxes[4] = 0
    boxes[5] = (2000, 2000, 2200, 2200)
    boxes[6, 1] = np.nan
    boxes[7] = (-np.inf, 0, np.inf, 30)
    boxes[8] = (30, 30, 10, 10)
    boxes[9] = (-1e30, -1e30, 1e30, 1e30)
    return boxes


@pytest.mark.parametrize(
    ("size", "mask_size", "dtype", "output_dtype"),
    [
        ((200, 304), (28, 28), torch.float32, torch.uint8),
        ((200, 304), (28, 28), torch.float16, torch.uint8),
        ((101, 333), (28, 28), torch.float32, torch.uint8),  # a width of no multiple of 16
        ((101, 332), (14, 56), torch.float32, torch.float32),
        ((65, 2504), (28, 28), torch.float32, torch.float16),  # more than one tile of columns
        ((100, 96), (3, 700), torch.float32, torch.int8),  # fewer rows per tile
        ((40, 48), (2, 7000), torch.float32, torch.bool),  # mask rows beyond shared memory
        ((17, 16), (1, 1), torch.float32, torch.uint8),
    ],
)
def test_paste_masks(size: tuple, mask_size: tuple, dtype: torch.dtype, output_dtype: torch.dtype) -> None:
    rng = np.random.default_rng(6)
    num_masks = 300 if mask_size[1] < 100 else 30
    masks = cuda(rng.random((2, num_masks // 2, *mask_size)).astype(np.float32)).to(dtype)
    boxes = random_mask_boxes(rng, num_masks, *size)
    found = kernels.paste_masks(masks, cuda(boxes.reshape(2, -1, 4)), size, dtype=output_dtype)
    assert found.shape == (2, num_masks // 2, *size)
    probability = oracles.paste_oracle(masks.flatten(0, 1), cuda(boxes), *size)
    finite = cuda(np.isfinite(boxes).all(axis=1))[:, None, None]
    clear = ((probability - 0.5).abs() >= NEAR_THRESHOLD) & finite
    found = found.flatten(0, 1).float()
    assert torch.equal(found[clear.expand_as(found)], (probability >= 0.5).float()[clear.expand_as(found)])
    assert ((found == 0) | (found == 1)).all()
    assert not found[6].any()


def test_nan_in_a_mask_is_background() -> None:
    masks = torch.full((1, 1, 28, 28), float("nan"), device="cuda")
    found = kernels.paste_masks(masks, torch.tensor([[[2.0, 2.0, 30.0, 30.0]]], device="cuda"), (32, 32))
    assert not found.any()


@pytest.mark.parametrize("width", [32, 33])
def test_threshold_zero_fills_the_region_only(width: int) -> None:
    masks = torch.zeros((1, 1, 28, 28), device="cuda")
    found = kernels.paste_masks(
        masks, torch.tensor([[[5.5, 6.0, 20.0, 21.5]]], device="cuda"), (40, width), threshold=0.0
    )
    expected = torch.zeros((40, width), dtype=torch.uint8, device="cuda")
    expected[5:23, 4:21] = 1  # one pixel more than the box on every side, as mmdet
    assert torch.equal(found[0, 0], expected)


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
def test_no_masks(shape: tuple) -> None:
    found = kernels.paste_masks(
        torch.zeros((*shape, 28, 28), device="cuda"), torch.zeros((*shape, 4), device="cuda"), (32, 32)
    )
    assert found.shape == (*shape, 32, 32)


# ---------------------------------------------------------------------------------------------------- grid_sample


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
    found = kernels.grid_sample(features, grid, **settings)
    # In float32 on both sides: the same grid, rounded beforehand, in the same arithmetic.
    expected = torch.nn.functional.grid_sample(features.float(), grid.float(), **settings)
    tolerance = (HALF_TOLERANCE if dtype == torch.float16 else FLOAT_TOLERANCE) * features.abs().max().item()
    far = (found.float() - expected).abs() > tolerance * 2
    allowed = MAX_JUMPED if mode == "nearest" else 0
    assert far.float().mean().item() <= allowed


# ----------------------------------------------------------------------------------------------------- select_top


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
    values, indices = kernels.select_top(scores, k)
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
    values, indices = kernels.select_top(torch.empty((0, 9), device="cuda"), 4)
    assert (values.shape, indices.shape) == ((0, 4), (0, 4))


@pytest.mark.parametrize(("num_scores", "k"), [(9, 10), (9, 0), (5000, 4097), ((1 << 24) + 1, 1)])
def test_select_top_refuses_shapes(num_scores: int, k: int) -> None:
    with pytest.raises(RuntimeError, match="select_top: invalid argument"):
        kernels.select_top(torch.zeros((1, num_scores), device="cuda"), k)


def test_select_top_is_captured_in_a_graph() -> None:
    scores = torch.rand((2, 45600), device="cuda")
    kernels.select_top(scores, 1000)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        values, indices = kernels.select_top(scores, 1000)
    for _ in range(3):
        scores.copy_(torch.rand((2, 45600), device="cuda"))
        graph.replay()
        expected = numpy_oracles.select_top(scores.cpu().numpy(), 1000)
        np.testing.assert_array_equal(indices.cpu().numpy(), expected)
        assert torch.equal(values, scores.gather(1, indices.long()))


# ----------------------------------------------------------------------------------------------- decode_proposals

STORAGES = [
    (torch.float32, kernels.NCHW),
    (torch.float32, kernels.NHWC),
    (torch.float32, kernels.NHWC8),
    (torch.float16, kernels.NCHW),
    (torch.float16, kernels.NHWC8),
]


def decode_proposals(case: dict, dtype: torch.dtype, layout: int, **settings) -> tuple:
    maps = {
        kind: [kernels.to_layout(cuda(level).to(dtype), layout) for level in case[kind]]
        for kind in ("logits", "deltas")
    }
    others = {name: cuda(case[name]) for name in ("priors", "image_sizes")}
    return kernels.decode_proposals(**maps, **others, layout=layout, **settings)


def check_decode_proposals(
    case: dict,
    *,
    num_anchors: int,
    dtype: torch.dtype = torch.float32,
    layout: int = kernels.NCHW,
    **settings,
) -> None:
    settings = {"max_ratio": proposals.MAX_RATIO, **settings}
    boxes, scores = decode_proposals(case, dtype, layout, num_anchors=num_anchors, **settings)
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


@pytest.mark.parametrize("min_size", [-1.0, 0.0])
def test_decode_proposals_of_nan_deltas(min_size: float) -> None:
    rng = np.random.default_rng(8)
    case = proposals.proposals_case(rng, [(40, 61)], num_anchors=3)
    for value in (np.nan, np.inf, -np.inf):
        case["deltas"][0][rng.random(case["deltas"][0].shape) < 0.1] = value
    check_decode_proposals(case, num_anchors=3, top=[3000], min_size=min_size)


@pytest.mark.parametrize(("dtype", "layout"), [(torch.float32, kernels.NCHW), (torch.float16, kernels.NHWC8)])
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
    boxes, scores = kernels.decode_proposals(
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
    boxes, scores = decode_proposals(case, torch.float32, kernels.NCHW, num_anchors=3, top=[7], max_ratio=4.0)
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
        kernels.decode_proposals(
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
    kernels.decode_proposals(*arguments, **settings)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = kernels.decode_proposals(*arguments, **settings)
    for _ in range(3):
        for level in logits:
            level.copy_(torch.randn_like(level))
        graph.replay()
        eager = kernels.decode_proposals(*arguments, **settings)
        assert torch.equal(captured[0], eager[0])
        assert torch.equal(captured[1], eager[1])


# ---------------------------------------------------------------------------------------------- decode_detections

RCNN_DECODING = {"max_ratio": 4.135166556742356, "stds": (0.1, 0.1, 0.2, 0.2)}


def detection_inputs(
    batch: int,
    num_proposals: int,
    num_classes: int,
    *,
    agnostic: bool = False,
    dtypes: tuple = (np.float32, np.float32),
) -> dict:
    """Arrays by the names of the kernel's arguments: images of different sizes, any count."""
    rng = np.random.default_rng(num_classes + num_proposals)
    corners = rng.uniform(-20, 1000, (batch, num_proposals, 2))
    sides = np.exp(rng.uniform(0, 6, corners.shape))
    num_deltas = 4 if agnostic else 4 * num_classes
    return {
        "logits": rng.normal(0, 4, (batch, num_proposals, num_classes + 1)).astype(dtypes[0]),
        "deltas": rng.normal(0, 1.5, (batch, num_proposals, num_deltas)).astype(dtypes[1]),
        "proposals": np.concatenate([corners, corners + sides], axis=2).astype(np.float32),
        "count": rng.integers(-1, num_proposals + 2, batch).astype(np.int32),
        "image_sizes": rng.uniform(100, 1300, (batch, 2)).astype(np.float32),
    }


def check_decode_detections(arrays: dict, **settings: object) -> None:
    settings = {**RCNN_DECODING, **settings}
    boxes, scores = kernels.decode_detections(**{k: cuda(v) for k, v in arrays.items()}, **settings)
    expected_boxes, expected_scores = numpy_oracles.decode_detections(**arrays, **settings)
    np.testing.assert_allclose(scores.cpu().numpy(), expected_scores, rtol=0, atol=PROBABILITY_TOLERANCE)
    # Exactly: what NMS takes for no candidate.
    np.testing.assert_array_equal(scores.cpu().numpy() == -1, expected_scores == -1)
    np.testing.assert_allclose(boxes.cpu().numpy(), expected_boxes, **BOX_TOLERANCE)


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize(
    ("batch", "num_proposals", "num_classes"),
    [
        (1, 1000, 80),
        (8, 1000, 80),
        (2, 1000, 1203),  # LVIS
        (3, 1000, 1),
        *((2, 33, classes) for classes in (2, 30, 31, 32, 33, 127, 128, 129, 160)),  # around lanes and loads
        *((2, proposals, 5) for proposals in (1, 3, 4, 5)),  # around the proposals of a block
    ],
)
def test_decode_detections(batch: int, num_proposals: int, num_classes: int, agnostic: bool) -> None:
    check_decode_detections(detection_inputs(batch, num_proposals, num_classes, agnostic=agnostic))


@pytest.mark.parametrize(
    "dtypes", [(a, b) for a in (np.float32, np.float16) for b in (np.float32, np.float16)]
)
@pytest.mark.parametrize("agnostic", [False, True])
def test_decode_detections_of_half_inputs(dtypes: tuple, agnostic: bool) -> None:
    """The oracle has the rounded inputs: arithmetic is float32 all the same."""
    check_decode_detections(detection_inputs(2, 1000, 80, agnostic=agnostic, dtypes=dtypes))


@pytest.mark.parametrize(
    "settings",
    [{"clip": False}, {"means": (0.1, -0.2, 0.3, -0.4)}, {"stds": (1, 1, 1, 1)}, {"max_ratio": 0.1}],
)
def test_decode_detections_settings(settings: dict) -> None:
    check_decode_detections(detection_inputs(2, 100, 7), **settings)


def test_decode_detections_equals_the_reference() -> None:
    reference = pytest.importorskip("plugins._reference", reason="the CPU reference is not built")
    arrays = detection_inputs(2, 1000, 80)
    boxes, scores = kernels.decode_detections(**{k: cuda(v) for k, v in arrays.items()}, **RCNN_DECODING)
    expected_boxes, expected_scores = reference.decode_detections(**arrays, **RCNN_DECODING)
    np.testing.assert_allclose(scores.cpu().numpy(), expected_scores, rtol=0, atol=PROBABILITY_TOLERANCE)
    np.testing.assert_allclose(boxes.cpu().numpy(), expected_boxes, **BOX_TOLERANCE)


@pytest.mark.parametrize("num_classes", [2, 80, 200])
@pytest.mark.parametrize(
    ("values", "nan"),
    [
        ((500, 499, -500), False),  # exp overflows
        ((3e38, -3e38, 0), False),
        ((-INF, 0, 0), False),
        ((0, NAN, 0), True),
        ((0, 0, NAN), True),  # the background's counts, too
        ((NAN, NAN, NAN), True),
        ((INF, 0, 0), True),
        ((-INF, -INF, -INF), True),
    ],
)
def test_decode_detections_of_extreme_logits(values: tuple, nan: bool, num_classes: int) -> None:
    arrays = detection_inputs(1, 9, num_classes)
    arrays["count"][:] = 9
    logits = arrays["logits"]
    logits[0, 4] = values[1]
    logits[0, 4, 0], logits[0, 4, -1] = values[0], values[2]
    check_decode_detections(arrays)
    scores = kernels.decode_detections(**{k: cuda(v) for k, v in arrays.items()}, **RCNN_DECODING)[1]
    bad = scores.isnan().view(9, num_classes)
    assert bad[4].all() == nan
    assert bad.sum().item() == nan * num_classes


@pytest.mark.parametrize("count", [-(2**31), -1, 0, 1, 999, 1000, 1001, 2**31 - 1])
def test_decode_detections_past_the_count(count: int) -> None:
    arrays = {**detection_inputs(1, 1000, 80), "count": np.array([count], np.int32)}
    arrays["logits"][0, min(max(count, 0), 1000) :] = np.nan  # not real: not read
    check_decode_detections(arrays)


def test_decode_detections_of_more_images_than_a_grid_has() -> None:
    check_decode_detections(detection_inputs(70000, 2, 3))


@pytest.mark.parametrize(("batch", "num_proposals"), [(0, 5), (2, 0)])
def test_decode_detections_of_nothing(batch: int, num_proposals: int) -> None:
    arrays = detection_inputs(batch, num_proposals, 3)
    boxes, scores = kernels.decode_detections(**{k: cuda(v) for k, v in arrays.items()}, **RCNN_DECODING)
    assert (boxes.shape, scores.shape) == ((batch, num_proposals * 3, 4), (batch, num_proposals * 3))


def test_decode_detections_refuses_arguments() -> None:
    tensors = {k: cuda(v) for k, v in detection_inputs(1, 4, 2).items()}
    with pytest.raises(RuntimeError, match="decode_detections: invalid argument"):  # the background alone
        kernels.decode_detections(
            **{**tensors, "logits": tensors["logits"][..., :1].contiguous()}, **RCNN_DECODING
        )
    misaligned = torch.zeros(4 * 4 + 1, device="cuda")[1:].view(1, 4, 4)
    with pytest.raises(RuntimeError, match="decode_detections: invalid argument"):
        kernels.decode_detections(**{**tensors, "proposals": misaligned}, **RCNN_DECODING)


def test_decode_detections_is_captured_in_a_graph() -> None:
    tensors = {k: cuda(v) for k, v in detection_inputs(2, 1000, 80).items()}
    kernels.decode_detections(**tensors, **RCNN_DECODING)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        boxes, scores = kernels.decode_detections(**tensors, **RCNN_DECODING)
    for count in (1000, 3, 0):
        tensors["logits"].normal_(0, 3)
        tensors["deltas"].normal_()
        tensors["count"].fill_(count)
        graph.replay()
        expected = kernels.decode_detections(**tensors, **RCNN_DECODING)
        assert torch.equal(boxes, expected[0])
        assert torch.equal(scores, expected[1])


# --------------------------------------------------------------------------------------------------- select_masks


def check_select_masks(logits: torch.Tensor, labels: np.ndarray, layout: int) -> None:
    stored = kernels.to_layout(logits, layout)
    found = kernels.select_masks(stored, cuda(labels), channels=logits.shape[1], layout=layout)
    expected = numpy_oracles.select_masks(logits.cpu().numpy(), labels)
    np.testing.assert_allclose(found.cpu().numpy(), expected, rtol=0, atol=PROBABILITY_TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("layout", [kernels.NCHW, kernels.NHWC, kernels.NHWC8])
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
    check_select_masks(logits, labels, kernels.NHWC8)


@pytest.mark.parametrize("layout", [kernels.NCHW, kernels.NHWC8])
def test_select_masks_past_32_bits(layout: int) -> None:
    """2^31 elements and more: only the last masks are compared."""
    channels, num_masks = 2048, 1400
    try:
        logits = torch.zeros((num_masks, 784 * channels), dtype=torch.float16, device="cuda")
    except torch.cuda.OutOfMemoryError:
        pytest.skip("needs 5 GB of GPU memory")
    assert logits.numel() > 2**31
    last = torch.randn((1, channels, 28, 28), device="cuda").half()
    logits[-1] = kernels.to_layout(last, layout).ravel()
    shape = (num_masks, channels, 28, 28) if layout == kernels.NCHW else (num_masks, 28, 28, channels)
    labels = torch.full((1, num_masks), channels - 1, dtype=torch.int32, device="cuda")
    found = kernels.select_masks(logits.view(shape), labels, channels=channels, layout=layout)
    assert (found[0, :-1] == 0.5).all()
    expected = numpy_oracles.select_masks(last.cpu().numpy(), np.array([[channels - 1]]))
    np.testing.assert_allclose(found[0, -1].cpu().numpy(), expected[0, 0], rtol=0, atol=PROBABILITY_TOLERANCE)


@pytest.mark.parametrize("layout", [kernels.NCHW, kernels.NHWC, kernels.NHWC8])
@pytest.mark.parametrize("channels", [1, 3])
def test_labels_from_anywhere(channels: int, layout: int) -> None:
    labels = np.array([[-(2**31), -2, -1, 0, 1, 2, 3, 79, 2**31 - 1]], np.int32)
    check_select_masks(torch.randn((9, channels, 28, 28), device="cuda"), labels, layout)


def test_masks_of_extreme_logits() -> None:
    values = [0.0, 88.0, -88.0, 104.0, -104.0, 3e38, -3e38, INF, -INF, NAN, 1e-45, -0.0]
    logits = torch.tensor(values, device="cuda").view(1, 1, 3, 4)
    check_select_masks(logits, np.zeros((1, 1), np.int32), kernels.NCHW)
    check_select_masks(logits, np.full((1, 1), -1, np.int32), kernels.NCHW)


def test_mask_logits_at_any_address() -> None:
    """They begin in the middle of 16 bytes, and a mask of 49 pixels ends there."""
    logits = torch.randn((1 + 2 * 3 * 49), device="cuda")[1:].view(2, 3, 7, 7)
    check_select_masks(logits, np.array([[2, 0]], np.int32), kernels.NCHW)


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
def test_no_masks_to_select(shape: tuple) -> None:
    labels = torch.zeros(shape, dtype=torch.int32, device="cuda")
    found = kernels.select_masks(torch.zeros((0, 3, 28, 28), device="cuda"), labels, channels=3)
    assert found.shape == (*shape, 28, 28)


def test_select_masks_refuses_no_channels() -> None:
    with pytest.raises(RuntimeError, match="select_masks: invalid argument"):
        kernels.select_masks(
            torch.zeros((1, 0, 2, 2), device="cuda"),
            torch.zeros((1, 1), dtype=torch.int32, device="cuda"),
            channels=0,
        )


def test_select_masks_is_captured_in_a_graph() -> None:
    logits = torch.randn((200, 28, 28, 80), device="cuda").half()
    labels = torch.zeros((2, 100), dtype=torch.int32, device="cuda")
    settings = {"channels": 80, "layout": kernels.NHWC8}
    kernels.select_masks(logits, labels, **settings)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = kernels.select_masks(logits, labels, **settings)
    for _ in range(3):
        logits.normal_()
        labels.random_(-1, 80)
        graph.replay()
        assert torch.equal(captured, kernels.select_masks(logits, labels, **settings))


# --------------------------------------------------------------------------------------------------- encode_masks


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
    values = rng.choice(fuzz_kernels.SPECIAL, (num_boxes, 4))
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
    strings, offsets, lengths, used = kernels.encode_masks(
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
    strings, offsets, lengths, used = kernels.encode_masks(
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
        kernels.encode_masks(
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
        return kernels.encode_masks(**tensors, sizes=sizes, scales=scales, capacity=1 << 16)

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


# --------------------------------------------------------------------------------------------------------- garbage


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
        kernels.paste_masks(
            torch.zeros((1, 1, 2, 2), device="cuda"),
            torch.zeros((1, 1, 4), dtype=torch.float64, device="cuda"),
            (4, 4),
        )
    with pytest.raises(RuntimeError, match="grouped_nms: invalid argument"):
        kernels.grouped_nms(
            torch.zeros((3, 2, 4), device="cuda"),
            torch.zeros((3, 2), device="cuda"),
            torch.zeros((2, 2), dtype=torch.int32, device="cuda"),
            iou_threshold=0.5,
            score_threshold=0.0,
            max_output=4,
        )
