"""The default plan. What belongs into it is written down here by hand, or follows from PyTorch's module names."""

from collections import Counter
from math import prod

import numpy as np
import onnx
import onnx.inliner
import pytest
import torch

from runtime.graphs.load import name_nodes
from runtime.graphs.operators import DOMAIN
from runtime.precision import check_plan, default_plan
from tests.runtime.precision.graphs import made_tensors, model, random, run, with_outputs


def groups_of(proto: onnx.ModelProto) -> dict[str, set[str]]:
    plan = default_plan(proto)
    check_plan(plan, proto)
    assert all(group.reason and group.nodes for group in plan.groups)
    return {group.name: set(group.nodes) for group in plan.groups}


# Two stages in the operators that mmcv 1.x exports: backbone, RPN head, NMS, RoIAlign, box head, NMS, mask head,
# pasting with grid_sampler.
OLD_WEIGHTS = {
    "w0": random(4, 3, 3, 3),
    "w1": random(4, 4, 1, 1),
    "w_score": random(1, 4, 1, 1),
    "w_delta": random(4, 4, 1, 1),
    "w_box": random(16, 8),
    "w_class": random(8, 3),
    "w_reg": random(8, 4),
    "w_mask": random(2, 4, 1, 1),
    "anchors": random(1, 64, 4),
    "scales": np.array([1, 1, 2, 2], np.float32),
    "half": np.array(0.5, np.float32),
    "zero_column": np.zeros((8, 1), np.float32),
    "thr": np.array([0.5], np.float32),
    "ten": np.array([10], np.int64),
    "flat4": np.array([1, -1, 4], np.int64),
    "flat1": np.array([1, 1, -1], np.int64),
    "two": np.array(2, np.int64),
    "pick": np.array([0, 1, 2, 3, 4, 5, 6, 7], np.int64),
    "axis0": np.array([0], np.int64),
    "axis1": np.array([1], np.int64),
}
OLD_BODY = """
    c0 = Conv<pads = [1, 1, 1, 1], strides = [4, 4]>(images, w0)
    r0 = Relu(c0)
    p0 = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r0)
    up = Resize<mode = "nearest">(p0, , scales)
    c1 = Conv(up, w1)
    sum = Add(c1, r0)
    fpn = Conv(sum, w1)
    score = Conv(fpn, w_score)
    delta = Conv(fpn, w_delta)
    delta_t = Transpose<perm = [0, 2, 3, 1]>(delta)
    delta_f = Reshape(delta_t, flat4)
    score_f = Reshape(score, flat1)
    prob = Sigmoid(score_f)
    moved = Mul(delta_f, half)
    grown = Exp(moved)
    boxes = Add(anchors, grown)
    kept = NonMaxSuppression(boxes, prob, ten, thr, thr)
    index = Gather<axis = 1>(kept, two)
    boxes_flat = Squeeze(boxes, axis0)
    proposals_any = Gather<axis = 0>(boxes_flat, index)
    proposals = Gather<axis = 0>(boxes_flat, pick)
    rois = Concat<axis = 1>(zero_column, proposals_any)
    features = mmcv.MMCVRoiAlign<output_height = 2, output_width = 2>(fpn, rois)
    flat = Flatten(features)
    fc = Gemm(flat, w_box)
    act = Relu(fc)
    logits = MatMul(act, w_class)
    reg = MatMul(act, w_reg)
    class_prob = Softmax(logits)
    refined = Add(proposals_any, reg)
    refined_b = Unsqueeze(refined, axis0)
    prob_t = Transpose(class_prob)
    prob_b = Unsqueeze(prob_t, axis0)
    kept_2 = NonMaxSuppression(refined_b, prob_b, ten, thr, thr)
    index_2 = Gather<axis = 1>(kept_2, two)
    dets = Gather<axis = 0>(refined, index_2)
    mask_rois = Concat<axis = 1>(zero_column, dets)
    mask_features = mmcv.MMCVRoiAlign<output_height = 2, output_width = 2>(fpn, mask_rois)
    mask_logits = Conv(mask_features, w_mask)
    mask_prob = Sigmoid(mask_logits)
    grid = Mul(paste_grid, half)
    masks = mmcv.grid_sampler(mask_prob, grid)
"""


def old_form() -> onnx.ModelProto:
    return model(
        "(float[1, 3, 32, 32] images, float[8, 5, 5, 2] paste_grid) => (float[n, 4] dets, float[n, 2, 5, 5] masks)",
        OLD_BODY,
        OLD_WEIGHTS,
        domains=("mmcv",),
    )


def test_a_graph_of_mmcv_1() -> None:
    assert groups_of(old_form()) == {
        "proposal scores": {"prob"},
        "proposal decoding and NMS": {"moved", "grown", "boxes", "kept", "boxes_flat", "proposals"},
        "RoI coordinates": {"proposals_any", "rois", "dets", "mask_rois"},
        "box scores": {"class_prob", "prob_t", "prob_b"},
        "box decoding and NMS": {"refined", "refined_b", "kept_2"},
        "mask probabilities": {"mask_prob"},
        "pasting": {"grid", "masks"},
    }


# The graph around the modules: what mmdet's heads do with raw logits and deltas moves values and no more.
MODULES = (
    "backbone",
    "neck",
    "rpn_head",
    "bbox_roi_extractor",
    "bbox_head",
    "mask_roi_extractor",
    "mask_head",
)
MOVED_LOGITS = {"Reshape": 2}  # Class logits and box deltas, by image.


def test_mask_rcnn_by_its_modules(tiny: onnx.ModelProto) -> None:
    """Modules are dense, what stands between them is geometry: float by onnxruntime's own types."""
    tensors = made_tensors(tiny)
    image_sizes = np.array([[128, 190]], np.float32)
    values = run(with_outputs(tiny, tensors), images=random(1, 3, 128, 192), image_sizes=image_sizes)
    is_float = {name for name, value in values.items() if value.dtype == np.float32}
    plan = default_plan(tiny).nodes
    left_out = Counter()
    for node in tiny.graph.node:
        floats = is_float.intersection((*node.input, *node.output))
        if node.name.split("/")[1:2] and node.name.split("/")[1] in MODULES:
            assert node.name not in plan
        elif node.op_type in ("Constant", "Shape") or not floats:
            assert node.name not in plan, node.name
        elif node.name not in plan:
            left_out[node.op_type] += 1
    assert left_out == MOVED_LOGITS


def test_mask_rcnn_in_groups(tiny: onnx.ModelProto) -> None:
    op_types = {node.name: node.op_type for node in tiny.graph.node}
    found = {name: Counter(op_types[n] for n in nodes) for name, nodes in groups_of(tiny).items()}
    assert list(found) == [
        "proposal decoding and NMS",
        "RoI coordinates",
        "box decoding and NMS",
        "mask probabilities",
    ]
    assert found["proposal decoding and NMS"] >= Counter(DecodeProposals=1, GroupedNMS=1)
    assert found["RoI coordinates"] >= Counter(GatherElements=2, Concat=2)
    assert found["box decoding and NMS"] >= Counter(DecodeDetections=1, GroupedNMS=1)
    assert found["mask probabilities"] == Counter(SelectMasks=1)


def test_mask_rcnn_step_by_step(tiny: onnx.ModelProto) -> None:
    """As files have it that other exporters wrote, and models for which the fused operators are not made."""
    proto = onnx.inliner.inline_selected_functions(
        tiny, [("maskrcnn", op) for op in ("DecodeProposals", "DecodeDetections", "SelectMasks")]
    )
    for index, node in enumerate(proto.graph.node):
        node.name = node.name if node.name in {n.name for n in tiny.graph.node} else f"inlined_{index}"
    op_types = {node.name: node.op_type for node in proto.graph.node}
    found = {name: Counter(op_types[n] for n in nodes) for name, nodes in groups_of(proto).items()}
    assert set(found) >= {
        "proposal scores",
        "proposal decoding and NMS",
        "RoI coordinates",
        "box scores",
        "box decoding and NMS",
        "mask probabilities",
    }
    assert found["proposal scores"] >= Counter(Sigmoid=5)
    assert found["proposal decoding and NMS"] >= Counter(Exp=1, Clip=1, Min=1, GroupedNMS=1)
    assert found["box scores"] >= Counter(Softmax=1)
    assert found["box decoding and NMS"] >= Counter(Exp=1, Clip=1, Min=1, GroupedNMS=1)
    assert found["mask probabilities"] >= Counter(Sigmoid=1, Reshape=1, Where=1)


def test_dynamic_size_and_pasted_masks(tiny_dynamic: onnx.ModelProto) -> None:
    op_types = {node.name: node.op_type for node in tiny_dynamic.graph.node}
    found = groups_of(tiny_dynamic)
    assert {op_types[node] for node in found["pasting"]} == {"PasteMasks"}
    assert "shapes and anchors" not in found  # DecodeProposals moves the anchors


def test_anchors_that_the_graph_computes(tiny_dynamic: onnx.ModelProto) -> None:
    """As where a head's anchors are others than ``DecodeProposals`` moves: here by its body."""
    proto = onnx.inliner.inline_selected_functions(tiny_dynamic, [(DOMAIN, "DecodeProposals")])
    name_nodes(proto)
    op_types = {node.name: node.op_type for node in proto.graph.node}
    anchors = Counter(op_types[node] for node in groups_of(proto)["shapes and anchors"])
    assert anchors >= Counter(Add=15, Mul=10, Reshape=5)  # 5 levels: x and y, and the anchors moved by both
    assert "Conv" not in anchors


def flops_by_node(proto: onnx.ModelProto, **feeds: np.ndarray) -> dict[str, float]:
    """Return multiply-adds of each layer with weights, from the shapes of a run."""
    values = run(with_outputs(proto, made_tensors(proto)), **feeds)
    weights = {t.name: tuple(t.dims) for t in proto.graph.initializer}
    flops = {}
    for node in proto.graph.node:
        if node.op_type == "Conv":
            flops[node.name] = prod(values[node.output[0]].shape) * prod(weights[node.input[1]][1:])
        elif node.op_type == "ConvTranspose":
            flops[node.name] = prod(values[node.input[0]].shape) * prod(weights[node.input[1]][1:])
        elif node.op_type in ("Gemm", "MatMul"):
            flops[node.name] = prod(values[node.output[0]].shape) * values[node.input[0]].shape[-1]
    return flops


@pytest.mark.parametrize("which", ["tiny", "tiny_dynamic", "embedded"])
def test_no_layer_with_weights_is_geometry(which: str, request: pytest.FixtureRequest) -> None:
    proto = request.getfixturevalue(which)
    size = (448, 640) if which == "embedded" else (128, 192)
    flops = flops_by_node(proto, images=random(1, 3, *size), image_sizes=np.array([size], np.float32))
    assert len(flops) >= 40
    outside = sum(value for name, value in flops.items() if name not in default_plan(proto).nodes)
    assert outside >= 0.999 * sum(flops.values())


def test_inlined_operators(tiny_dynamic: onnx.ModelProto) -> None:
    """Where there is no plugin the bodies are in the graph: geometry, up to RoIAlign, which has one type for all."""
    inlined = onnx.inliner.inline_local_functions(tiny_dynamic)
    op_types = {node.name: node.op_type for node in inlined.graph.node}
    before, found = groups_of(tiny_dynamic), groups_of(inlined)
    functions = {n.name for n in tiny_dynamic.graph.node if n.domain == "maskrcnn"}
    assert set().union(*before.values()) - functions <= set().union(*found.values())
    assert Counter(op_types[n] for n in found["feature sampling"]) == Counter(RoiAlign=8)
    assert Counter(op_types[n] for n in found["pasting"]) >= Counter(MatMul=2, Relu=2, Floor=2)
    assert Counter(op_types[n] for n in found["RoI coordinates"]) >= Counter(Sqrt=2, GreaterOrEqual=6)
    assert "NonMaxSuppression" in {op_types[n] for n in found["proposal decoding and NMS"]}


def test_the_plan_needs_no_bodies_and_no_shapes(tiny: onnx.ModelProto) -> None:
    """TensorRT's builder drops the bodies of the operators that plugins provide."""
    bare = onnx.ModelProto()
    bare.CopyFrom(tiny)
    del bare.functions[:]
    del bare.graph.value_info[:]
    assert default_plan(bare) == default_plan(tiny)


class Transformer(torch.nn.Module):
    """A convolution, a layer norm, self-attention and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = torch.nn.Conv2d(3, 8, 4, 4)
        self.norm = torch.nn.LayerNorm(8)
        self.qkv = torch.nn.Linear(8, 24)
        self.out = torch.nn.Linear(8, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.norm(self.patch(images).flatten(2).transpose(1, 2))
        q, k, v = self.qkv(tokens).chunk(3, dim=-1)
        attention = (q @ k.transpose(1, 2) / 8**0.5).softmax(-1)
        return self.out(attention @ v).sigmoid()


def test_attention_is_dense_and_statistics_are_not(tmp_path) -> None:
    path = tmp_path / "t.onnx"
    torch.onnx.export(
        Transformer().eval(), (torch.zeros(1, 3, 16, 16),), str(path), dynamo=False, opset_version=16
    )
    proto = onnx.load(path)
    op_types = {node.name: node.op_type for node in proto.graph.node}
    found = {
        name: [op_types[n] for n in proto_order(proto, nodes)] for name, nodes in groups_of(proto).items()
    }
    assert found == {
        "normalisation statistics": ["Pow", "ReduceMean", "Add", "Sqrt", "Div"],
        "box scores": ["Sigmoid"],
    }


def proto_order(proto: onnx.ModelProto, nodes: set[str]) -> list[str]:
    return [node.name for node in proto.graph.node if node.name in nodes]


def test_one_stage_has_no_proposals() -> None:
    proto = model(
        "(float[1, 3, 8, 8] images) => (float[1, 12, 4] boxes, float[1, 12, 4] scores)",
        """
        feature = Conv(images, w)
        rows = Reshape(feature, shape)
        scores = Sigmoid(rows)
        grown = Exp(rows)
        boxes = Add(grown, anchors)
        """,
        {"w": random(12, 3, 5, 5), "shape": np.array([1, -1, 4], np.int64), "anchors": random(1, 48, 4)},
    )
    assert groups_of(proto) == {"box scores": {"scores"}, "box decoding and NMS": {"grown", "boxes"}}


def test_standard_roi_align_samples_in_fp32() -> None:
    proto = model(
        "(float[1, 3, 8, 8] images, float[n, 4] rois, int64[n] batch) => (float[n, 2] out)",
        """
        feature = Conv(images, w)
        twice = Mul(rois, two)
        sampled = RoiAlign<output_height = 2, output_width = 2>(feature, twice, batch)
        flat = Flatten(sampled)
        out = Gemm(flat, fc)
        """,
        {"w": random(4, 3, 1, 1), "two": np.array(2, np.float32), "fc": random(16, 2)},
    )
    assert groups_of(proto) == {
        "feature sampling": {"sampled"},
        "proposal decoding and NMS": {"twice"},
    }


def test_scale_factors_are_not_on_the_way_of_activations() -> None:
    """And constants belong to their readers: a transposed weight to its layer, an anchor to the boxes."""
    proto = model(
        "(float[1, 3, H, W] images) => (float[1, 4, h, w] out, float[a, b] anchors)",
        """
        size = Shape<start = 2>(images)
        size_f = Cast<to = 1>(size)
        target = Floor(size_f)
        ratio = Div(target, size_f)
        scales = Concat<axis = 0>(ones, ratio)
        resized = Resize(images, , scales)
        w_t = Transpose<perm = [3, 2, 1, 0]>(w)
        out = Conv(resized, w_t)
        anchors = Mul(base, base)
        """,
        {
            "ones": np.ones(2, np.float32),
            "w": random(1, 1, 3, 4),
            "base": random(3, 4),
        },
    )
    assert groups_of(proto) == {"shapes and anchors": {"size_f", "target", "ratio", "scales", "anchors"}}


def test_what_a_subgraph_reads_counts() -> None:
    proto = model(
        "(float[1, 3, 8, 8] images, bool flag) => (float[1, 4, 8, 8] out)",
        """
        feature = Conv(images, w)
        boxes = Exp(feature)
        out = If(flag)<
            then_branch = t () => (float[1, 4, 8, 8] a) { a = Neg(boxes) },
            else_branch = e () => (float[1, 4, 8, 8] b) { b = Identity(feature) }>
        """,
        {"w": random(4, 3, 1, 1)},
    )
    assert groups_of(proto) == {"box decoding and NMS": {"boxes", "out"}}


@pytest.mark.parametrize(("name", "shown"), [("", "''"), ("feature", "'feature'")])
def test_geometry_without_names_is_refused(name: str, shown: str) -> None:
    proto = model(
        "(float[1, 3, 8, 8] images) => (float[1, 4, 8, 8] out)",
        "feature = Conv(images, w)\nout = Exp(feature)",
        {"w": random(4, 3, 1, 1)},
    )
    proto.graph.node[1].name = name
    message = (
        f"expected nodes with names of their own, .* 1 without: Exp that makes 'out' is called {shown}; give"
    )
    with pytest.raises(ValueError, match=message):
        default_plan(proto)


def test_layers_without_names_are_none_of_its_business() -> None:
    proto = model(
        "(float[1, 3, 8, 8] images) => (float[1, 4, 8, 8] out)",
        "feature = Conv(images, w)\nout = Exp(feature)",
        {"w": random(4, 3, 1, 1)},
    )
    proto.graph.node[0].name = ""
    assert groups_of(proto) == {"box decoding and NMS": {"out"}}
