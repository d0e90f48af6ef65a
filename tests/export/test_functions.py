"""The operators' function bodies in onnxruntime, against NumPy and torch."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.ops import batched_nms
from onnx import TensorProto, helper

from export.functions import DOMAIN, functions_for
from patches.operators import MAX_TOP

OPSETS = (16, 17, 18, 19, 20)

FUSED = (("DecodeProposals", 6), ("DecodeDetections", 5), ("SelectMasks", 2))

# Sums of bilinear weights in another order.
ROI_RTOL = 1e-4
ROI_ATOL = 1e-5
# A pixel whose probability is this close to the threshold may fall on either side.
NEAR_THRESHOLD = 1e-5


def session_for(
    node: onnx.NodeProto, inputs: dict, outputs: dict, opset: int = 16
) -> onnxruntime.InferenceSession:
    """Return a session for a graph of this one node."""
    values = [[helper.make_tensor_value_info(k, *v) for k, v in each.items()] for each in (inputs, outputs)]
    graph = helper.make_graph([node], "test", *values)
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1)],
        functions=functions_for(graph.node, opset),
        ir_version=8,
    )
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def nms_session(iou: float, score: float, max_output: int, opset: int = 16) -> onnxruntime.InferenceSession:
    node = helper.make_node(
        "GroupedNMS",
        ["boxes", "scores", "groups"],
        ["indices", "count"],
        domain=DOMAIN,
        iou_threshold=iou,
        score_threshold=score,
        max_output=max_output,
    )
    return session_for(
        node,
        {
            "boxes": (TensorProto.FLOAT, ["B", "M", 4]),
            "scores": (TensorProto.FLOAT, ["B", "M"]),
            "groups": (TensorProto.INT32, ["G", "M"]),
        },
        {"indices": (TensorProto.INT32, ["B", max_output]), "count": (TensorProto.INT32, ["B"])},
        opset,
    )


def greedy(boxes, scores, groups, iou_thr, score_thr, max_output) -> list[int]:
    """Plain greedy NMS of one image in float32, group ids compared."""
    order = [i for i in np.argsort(-scores, kind="stable") if scores[i] > np.float32(score_thr)]
    kept: list[int] = []
    for i in order:
        if not any(groups[i] == groups[j] and iou(boxes[i], boxes[j]) > np.float32(iou_thr) for j in kept):
            kept.append(int(i))
    return kept[:max_output]


def iou(a: np.ndarray, b: np.ndarray) -> np.float32:
    size = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), np.float32(0))
    inter = size[0] * size[1]
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    return inter / union if union > 0 else np.float32(0)


@pytest.fixture(scope="module")
def nms() -> onnxruntime.InferenceSession:
    return nms_session(0.5, 0.1, 6)


@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 14), st.booleans())
@settings(max_examples=300, deadline=None)
def test_grouped_nms_is_greedy_nms_per_group(nms, seed, batch, num, shared_groups):
    """Coordinates are integers, so that mmcv's shift of the groups rounds nothing; scores are full of ties."""
    rng = np.random.default_rng(seed)
    boxes = rng.integers(0, 30, (batch, num, 4)).astype(np.float32)
    boxes[..., 2:] = boxes[..., :2] + rng.integers(1, 20, (batch, num, 2))
    scores = rng.integers(0, 6, (batch, num)).astype(np.float32) / 5
    scores[rng.random((batch, num)) < 0.1] = np.nan
    groups = rng.integers(0, 3, (1 if shared_groups else batch, num)).astype(np.int32)
    indices, count = nms.run(None, {"boxes": boxes, "scores": scores, "groups": groups})
    for b in range(batch):
        expected = greedy(boxes[b], scores[b], np.broadcast_to(groups, (batch, num))[b], 0.5, 0.1, 6)
        assert count[b] == len(expected)
        assert indices[b].tolist() == expected + [-1] * (6 - len(expected))


@pytest.mark.parametrize("seed", range(20))
def test_grouped_nms_rounds_as_mmcv_does(seed):
    """mmcv shifts group 79 by 79 * (largest coordinate + 1), which costs a box a hundredth of a pixel.

    No box touches zero, all are candidates, and each overlaps another by about the threshold: two boxes of one size,
    a third of it apart.
    """
    rng = np.random.default_rng(seed)
    size = rng.uniform(9, 11, (200, 2))
    corner = np.stack([900 + 30 * (np.arange(200) % 20), 900 + 30 * (np.arange(200) // 20)], 1) + rng.random(
        (200, 2)
    )
    moved = corner + np.stack([size[:, 0] / 3 * rng.uniform(0.9995, 1.0005, 200), np.zeros(200)], 1)
    boxes = np.concatenate([np.concatenate([c, c + size], 1) for c in (corner, moved)]).astype(np.float32)[
        None
    ]
    scores = rng.permutation(400).astype(np.float32)[None] / 400 + 1
    groups = np.tile(rng.integers(70, 80, 200), 2).astype(np.int32)[None]
    tensors = [torch.from_numpy(values[0]) for values in (boxes, scores, groups)]
    _, expected = batched_nms(*tensors, {"type": "nms", "iou_threshold": 0.5})
    found, count = nms_session(0.5, 0.0, 400).run(None, {"boxes": boxes, "scores": scores, "groups": groups})
    assert found[0, : count[0]].tolist() == expected.tolist()


NMS_CASES = {
    "identical boxes of two groups both stay": ([[0, 0, 9, 9], [0, 0, 9, 9]], [0.9, 0.8], [0, 1], [0, 1]),
    "identical boxes of one group": ([[0, 0, 9, 9], [0, 0, 9, 9]], [0.8, 0.9], [0, 0], [1]),
    "a tie goes to the lower index": ([[0, 0, 9, 9], [0, 0, 9, 9]], [0.9, 0.9], [0, 0], [0]),
    "an overlap of just the threshold stays": ([[0, 0, 2, 2], [0, 0, 2, 1]], [0.9, 0.8], [0, 0], [0, 1]),
    "a score of just the threshold is none": ([[0, 0, 9, 9], [20, 0, 29, 9]], [0.1, 0.2], [0, 0], [1]),
    "empty boxes suppress nothing": ([[5, 5, 5, 5], [5, 5, 5, 5]], [0.9, 0.8], [0, 0], [0, 1]),
    "negative coordinates": ([[-50, -50, -40, -40], [-61, -50, -51, -40]], [0.9, 0.8], [1, 0], [0, 1]),
    "nothing above the threshold": ([[0, 0, 9, 9], [0, 0, 9, 9]], [0.0, -1.0], [0, 0], []),
}


@pytest.mark.parametrize("case", NMS_CASES)
def test_grouped_nms_cases(nms, case):
    boxes, scores, groups, expected = NMS_CASES[case]
    indices, count = nms.run(
        None,
        {
            "boxes": np.float32([boxes]),
            "scores": np.float32([scores]),
            "groups": np.int32([groups]),
        },
    )
    assert indices[0].tolist() == expected + [-1] * (6 - len(expected))
    assert count.tolist() == [len(expected)]


@pytest.mark.parametrize("opset", OPSETS)
def test_every_body_is_valid_at_every_opset(opset):
    session = nms_session(0.5, 0.0, 3, opset)
    feed = {"boxes": np.zeros((2, 4, 4), np.float32), "scores": np.ones((2, 4), np.float32)}
    indices, _ = session.run(None, {**feed, "groups": np.zeros((1, 4), np.int32)})
    assert indices.tolist() == [[0, 1, 2]] * 2
    align_session(num_levels=2, opset=opset)
    paste_session(opset=opset)
    values, indices = top_session(2, opset).run(None, {"scores": np.float32([[1, 3, 2], [5, 4, 5]])})
    assert (values.tolist(), indices.tolist()) == ([[3, 2], [5, 5]], [[1, 2], [0, 2]])


def top_session(k: int, opset: int = 16) -> onnxruntime.InferenceSession:
    node = helper.make_node("SelectTop", ["scores"], ["values", "indices"], domain=DOMAIN, k=k)
    return session_for(
        node,
        {"scores": (TensorProto.FLOAT, ["B", "N"])},
        {"values": (TensorProto.FLOAT, ["B", k]), "indices": (TensorProto.INT32, ["B", k])},
        opset,
    )


@pytest.fixture(scope="module")
def top() -> dict[int, onnxruntime.InferenceSession]:
    return {k: top_session(k) for k in (1, 3, 40, 1000)}


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 3),
    st.sampled_from([1, 3, 40, 1000]),
    st.sampled_from([0, 1, 9, 3000]),
)
@settings(max_examples=200, deadline=None)
def test_select_top_is_a_stable_sort(top, seed, batch, k, more):
    """Few different scores, as of a sigmoid that saturates, the infinities among them; k of k scores is a sort."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(-3, 4, (batch, k + more)).astype(np.float32) / 7
    scores[rng.random(scores.shape) < 0.2] = 1
    scores[rng.random(scores.shape) < 0.05] = np.inf
    scores[rng.random(scores.shape) < 0.05] = -np.inf
    values, indices = top[k].run(None, {"scores": scores})
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    assert indices.dtype == np.int32
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_array_equal(values, np.take_along_axis(scores, expected, axis=1))


def test_select_top_of_no_images():
    values, indices = top_session(3).run(None, {"scores": np.zeros((0, 7), np.float32)})
    assert values.shape == indices.shape == (0, 3)


def test_the_largest_k_is_the_plugins():
    source = (Path(__file__).parents[2] / "plugins/select_top/select_top_kernel.h").read_text()
    assert f"kSelectTopMaxK = {MAX_TOP};" in source


def align_session(
    num_levels: int, *, aligned: bool = True, ratio: int = 0, opset: int = 16
) -> onnxruntime.InferenceSession:
    features = [f"feature_{i}" for i in range(num_levels)]
    node = helper.make_node(
        "MultiLevelRoiAlign",
        ["rois", *features],
        ["output"],
        domain=DOMAIN,
        output_height=3,
        output_width=2,
        spatial_scales=[1.0 / 4 / 2**i for i in range(num_levels)],
        finest_scale=56.0,
        sampling_ratio=ratio,
        mode="avg",
        coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
    )
    inputs = {"rois": (TensorProto.FLOAT, ["R", 5])}
    inputs |= {name: (TensorProto.FLOAT, ["B", "C", f"H{i}", f"W{i}"]) for i, name in enumerate(features)}
    return session_for(node, inputs, {"output": (TensorProto.FLOAT, ["R", "C", 3, 2])}, opset)


def axis_weights(positions: np.ndarray, size: int) -> np.ndarray:
    """Bilinear weights (positions, size) as RoIAlign samples: nothing beyond a pixel outside, clamped within."""
    clamped = np.clip(positions, 0, size - 1)
    low = np.floor(clamped).astype(int)
    fraction = clamped - low
    weights = np.zeros((len(positions), size))
    weights[np.arange(len(positions)), low] += 1 - fraction
    weights[np.arange(len(positions)), np.minimum(low + 1, size - 1)] += fraction
    weights[(positions < -1) | (positions > size)] = 0
    return weights


def roi_align_oracle(
    feature: np.ndarray, roi: np.ndarray, scale: float, aligned: bool, ratio: int
) -> np.ndarray:
    """RoIAlign of one RoI into 3 x 2 bins in float64, from its definition (He et al. 2017; aligned: detectron2)."""
    image = feature[int(roi[0])].astype(np.float64)
    means = []
    for low, high, num_bins, size in ((2, 4, 3, image.shape[1]), (1, 3, 2, image.shape[2])):
        start, end = (float(roi[k]) * scale - (0.5 if aligned else 0.0) for k in (low, high))
        extent = end - start if aligned else max(end - start, 1.0)
        num = ratio or int(np.ceil(extent / num_bins))
        positions = start + (np.arange(num_bins * num) + 0.5) * extent / num_bins / max(num, 1)
        weights = axis_weights(positions, size).reshape(num_bins, num, size)
        means.append(weights.sum(1) / max(num, 1))
    return np.einsum("iy,cyx,jx->cij", means[0], image, means[1])


def level_oracle(roi: np.ndarray, num_levels: int) -> int:
    """mmdet's ``map_roi_levels``, in torch."""
    box = torch.from_numpy(roi[1:])
    scale = torch.sqrt((box[2] - box[0]) * (box[3] - box[1]))
    return int(torch.floor(torch.log2(scale / 56 + 1e-6)).clamp(0, num_levels - 1))


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("num_levels", [1, 4])
def test_multi_level_roi_align(aligned, ratio, num_levels):
    rng = np.random.default_rng(3)
    features = [
        rng.standard_normal((2, 3, 64 // 2**i, 80 // 2**i)).astype(np.float32) for i in range(num_levels)
    ]
    corners = rng.uniform(-40, 300, (60, 2))
    sizes = rng.choice([0, 3, 20, 111.99, 112, 130, 224, 447, 448, 500], (60, 2)) * rng.uniform(
        0.9, 1.1, (60, 1)
    )
    rois = np.concatenate([rng.integers(0, 2, (60, 1)), corners, corners + sizes], 1).astype(np.float32)
    boundary = np.float32([[1, 0, 0, s, s] for s in (0, 111.9999, 112, 223.9999, 224, 448, 449, 2000)])
    rois = np.concatenate([rois, boundary])
    session = align_session(num_levels, aligned=aligned, ratio=ratio)
    feed = {f"feature_{i}": f for i, f in enumerate(features)}
    (found,) = session.run(None, {"rois": rois, **feed})
    levels = [level_oracle(roi, num_levels) for roi in rois]
    assert len(set(levels)) == num_levels
    expected = [
        roi_align_oracle(features[k], roi, 1 / 4 / 2**k, aligned, ratio) for k, roi in zip(levels, rois)
    ]
    np.testing.assert_allclose(found, np.stack(expected), rtol=ROI_RTOL, atol=ROI_ATOL)


def test_multi_level_roi_align_without_rois():
    feed = {f"feature_{i}": np.ones((1, 2, 8, 8), np.float32) for i in range(4)}
    (found,) = align_session(4).run(None, {"rois": np.zeros((0, 5), np.float32), **feed})
    assert found.shape == (0, 2, 3, 2)


def paste_session(opset: int = 16) -> onnxruntime.InferenceSession:
    node = helper.make_node(
        "PasteMasks", ["masks", "boxes", "canvas"], ["output"], domain=DOMAIN, threshold=0.5
    )
    return session_for(
        node,
        {
            "masks": (TensorProto.FLOAT, ["B", "K", "h", "w"]),
            "boxes": (TensorProto.FLOAT, ["B", "K", 4]),
            "canvas": (TensorProto.FLOAT, ["B", 3, "H", "W"]),
        },
        {"output": (TensorProto.UINT8, ["B", "K", "H", "W"])},
        opset,
    )


def paste_oracle(mask: np.ndarray, box: np.ndarray, height: int, width: int) -> np.ndarray:
    """mmdet's definition through torch's grid_sample: probabilities on the canvas, zero outside the region."""
    x1, y1, x2, y2 = torch.from_numpy(box)
    y = (torch.arange(height) + 0.5 - y1) / (y2 - y1) * 2 - 1
    x = (torch.arange(width) + 0.5 - x1) / (x2 - x1) * 2 - 1
    y[torch.isinf(y)], x[torch.isinf(x)] = 0, 0
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)[None]
    image = torch.nn.functional.grid_sample(torch.from_numpy(mask)[None, None], grid, align_corners=False)
    image = image[0, 0].numpy()
    rows, cols = np.arange(height), np.arange(width)
    inside_y = (rows >= np.floor(box[1]) - 1) & (rows < np.ceil(box[3]) + 1)
    inside_x = (cols >= np.floor(box[0]) - 1) & (cols < np.ceil(box[2]) + 1)
    return np.where(inside_y[:, None] & inside_x[None, :], image, 0)


def test_paste_masks():
    rng = np.random.default_rng(5)
    height, width = 50, 70
    boxes = rng.uniform(0, 40, (2, 12, 4)).astype(np.float32)
    boxes[..., 2:] = boxes[..., :2] + rng.uniform(0.2, 40, (2, 12, 2)).astype(np.float32)
    boxes[0, 0] = (0, 0, width, height)
    boxes[0, 1] = (-10, -10, 90, 90)
    boxes[0, 2] = (20, 10, 20, 30)  # no width: mmdet reads the middle column everywhere in the region
    boxes[0, 3] = (10.5, 10, 10.5, 30)  # no width, on a pixel's centre: 0 / 0
    boxes[0, 4] = 0
    boxes[0, 5] = (200, 200, 220, 220)
    masks = rng.random((2, 12, 28, 28)).astype(np.float32)
    canvas = np.zeros((2, 3, height, width), np.float32)
    (found,) = paste_session().run(None, {"masks": masks, "boxes": boxes, "canvas": canvas})
    assert found.dtype == np.uint8
    for b in range(2):
        for k in range(12):
            probability = paste_oracle(masks[b, k], boxes[b, k], height, width)
            clear = ~(np.abs(probability - 0.5) < NEAR_THRESHOLD)
            np.testing.assert_array_equal(found[b, k][clear], (probability >= 0.5)[clear], err_msg=f"{b} {k}")


def test_two_numbers_of_feature_maps_are_refused():
    nodes = [
        helper.make_node("MultiLevelRoiAlign", ["r", *"abcd"[:n]], [f"o{n}"], domain=DOMAIN) for n in (2, 4)
    ]
    with pytest.raises(
        ValueError, match="expected the same number of feature maps in every node, found 2 and 4"
    ):
        functions_for(nodes, 16)


def test_an_unknown_operator_is_refused():
    with pytest.raises(ValueError, match="found SoftNMS"):
        functions_for([helper.make_node("SoftNMS", ["a"], ["b"], domain=DOMAIN)], 16)


@pytest.mark.parametrize("opset", OPSETS)
def test_the_nodes_of_a_body_have_names_of_their_own(opset):
    """onnxruntime before 1.20 refuses a model in which two nodes that it fuses have none."""
    ops = (("GroupedNMS", 3), ("MultiLevelRoiAlign", 5), ("SelectTop", 1), ("PasteMasks", 3), *FUSED)
    nodes = [helper.make_node(op, [f"i{k}" for k in range(num)], ["o"], domain=DOMAIN) for op, num in ops]
    for function in functions_for(nodes, opset):
        names = [node.name for node in function.node]
        assert all(names)
        assert len(set(names)) == len(names)
