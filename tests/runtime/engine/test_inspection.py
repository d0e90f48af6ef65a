"""What is in an engine, against FLOPs that were counted by hand and by PyTorch."""

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper, parser
from torch.utils.flop_counter import FlopCounterMode

from export.model import model_from_config
from runtime.engine.inspection import (
    Layer,
    asked_precisions,
    count_by_precision,
    dense_flops,
    dense_share,
    layers_from,
    node_precisions,
    slower_shares,
)
from runtime.engine.lowering import engine_model
from tests.models import tiny_config
from tests.runtime.engine import fakes
from tests.runtime.engine.conftest import PLUGIN_OPS

HALF = "Channel major FP16 format where channel % 8 == 0"
SINGLE = "Row major linear FP32"
INT8 = "Thirty-two wide channel vectorized row major Int8 format"
INT32 = "Row major linear INT32"


def _entry(name: str, kind: str, formats: str, outputs: str = "") -> dict:
    tensor = {"Name": "x", "Dimensions": [1, 3, 8, 8], "Format/Datatype": formats}
    result = {**tensor, "Format/Datatype": outputs or formats}
    return {"Name": name, "LayerType": kind, "Inputs": [tensor] * bool(formats), "Outputs": [result]}


INFORMATION = json.dumps(
    {
        "Layers": [
            _entry("Reformatting CopyNode for Input Tensor 0", "Reformat", SINGLE, HALF),
            _entry("/a/Conv + /a/Relu", "CaskConvolution", HALF),
            _entry("/b/Conv || /c/Conv", "CaskConvolution", HALF, SINGLE),
            _entry("/d/Conv", "CaskConvolution", SINGLE),
            _entry("/e/Gemm", "CaskGemm", INT8, HALF),
            _entry("/TopK", "TopK", INT32),
            _entry("/anchors", "PointWiseV2", "", SINGLE),
        ],
        "Bindings": ["images"],
    }
)


def test_the_slowest_profile_counts_and_what_moves_does_not() -> None:
    layers = [
        Layer("/a/Conv + /a/Relu", "CaskConvolution", "int8"),
        Layer("/x/Relu + /a/Conv [profile 1]", "CaskConvolution", "fp16"),
        Layer("Reformatting CopyNode for Input Tensor 0 to /b/Relu + /b/Conv", "Reformat", "fp32"),
        Layer("/b/Conv", "CaskConvolution", "int8"),
        Layer("/b/Conv [profile 1]", "CaskConvolution", "int8"),
        Layer("{ForeignNode[/c/MatMul.../d/Add]}", "Myelin", "other"),
    ]
    assert node_precisions(layers, ["/a/Conv", "/b/Conv", "/c/MatMul"]) == {
        "/a/Conv": "fp16",
        "/b/Conv": "int8",
        "/c/MatMul": "other",
    }


def test_what_is_slower_than_asked() -> None:
    asked = {"/a": "int8", "/b": "int8", "/c": "fp16", "/d": "fp16", "/e": "int8"}
    found = {"/a": "fp16", "/b": "int8", "/c": "int8", "/d": "fp32", "/e": "other"}
    flops = {"/a": 1.0, "/b": 4.0, "/c": 2.0, "/d": 2.0, "/e": 1.0, "/not asked": 100.0}
    assert slower_shares(found, asked, flops) == {"/d": 0.2, "/a": 0.1}
    assert slower_shares(found, {}, flops) == {}


def test_what_a_model_is_asked_for() -> None:
    model = parser.parse_model(
        """
        <ir_version: 8, opset_import: ["" : 16]>
        g (float[1, 2, 4, 4] x, float[2, 2, 1, 1] w, float s, int8 z) => (float[1, 2, 4, 4] y)
        {
            xq = QuantizeLinear (x, s, z)
            xd = DequantizeLinear (xq, s, z)
            wq = QuantizeLinear (w, s, z)
            wd = DequantizeLinear (wq, s, z)
            a = Conv (xd, wd)
            b = Conv (a, wd)
            c = Conv (b, w)
            y = Relu (c)
        }
        """
    )
    for node in model.graph.node:
        node.name = f"/{node.output[0]}"
    assert asked_precisions(model, "int8", ()) == {"/a": "int8", "/b": "fp16", "/c": "fp16"}
    assert asked_precisions(model, "fp16", {"/b"}) == {"/a": "fp16", "/c": "fp16"}
    assert asked_precisions(model, "tf32", ()) == {}


def test_layers_have_names_kinds_and_precision() -> None:
    layers = layers_from(INFORMATION)
    assert [(layer.kind, layer.precision) for layer in layers] == [
        ("Reformat", "fp32"),
        ("CaskConvolution", "fp16"),
        ("CaskConvolution", "fp16"),
        ("CaskConvolution", "fp32"),
        ("CaskGemm", "int8"),
        ("TopK", "other"),
        ("PointWiseV2", "fp32"),
    ]
    assert layers[1].nodes == ("/a/Conv", "/a/Relu")
    assert layers[2].nodes == ("/b/Conv", "/c/Conv")


def test_layers_that_only_move_data_are_not_counted() -> None:
    assert count_by_precision(layers_from(INFORMATION)) == {"fp16": 2, "fp32": 2, "int8": 1, "other": 1}


@pytest.mark.parametrize(
    ("entry", "precision"),
    [
        ({"Inputs": [{"Name": "x", "Format/Datatype": "Half"}]}, "fp16"),
        ({"Inputs": [{"Name": "x", "Format/Datatype": "N/A due to dynamic shapes"}]}, "other"),
        # What a kernel takes and stores says less than what it multiplies.
        ({"Weights": {"Type": "Half", "Count": 9408}, "Inputs": [{"Format/Datatype": SINGLE}]}, "fp16"),
        ({"Weights": {"Type": "Float", "Count": 9408}, "Inputs": [{"Format/Datatype": HALF}]}, "fp32"),
        (
            {
                "TacticName": "sm80_xmma_gemm_f16f16_f16f32_f32_tn_n_tilesize128x128x32",
                "Inputs": [{"Format/Datatype": SINGLE}],
            },
            "fp16",
        ),
        (
            {
                "TacticName": "sm80_xmma_fprop_implicit_gemm_f32f32_tf32f32_f32_nhwckrsc_nhwc",
                "Inputs": [{"Format/Datatype": HALF}],
            },
            "fp32",
        ),
        ({"TacticName": "", "Inputs": [], "Outputs": [{"Format/Datatype": INT8}]}, "int8"),
    ],
)
def test_the_precision_is_the_arithmetics(entry: dict, precision: str) -> None:
    layer = {"Name": "/a", "LayerType": "gemm", "Inputs": [], "Outputs": [], **entry}
    assert layers_from(json.dumps({"Layers": [layer]})) == [Layer("/a", "gemm", precision)]


@pytest.mark.parametrize(
    "text",
    [
        '{"Layers": ["/a/Conv", "/b/Conv"], "Bindings": ["images"]}',
        '{"Layers": [{"Name": "/a"}]}',
        '{"Bindings": []}',
        "[]",
        "Layer 0: /a/Conv",
    ],
)
def test_information_without_details_is_refused(text: str) -> None:
    message = (
        r"engine: expected detailed layer information, found .*; build it with `python -m runtime.build`"
    )
    with pytest.raises(ValueError, match=message):
        layers_from(text)


def test_the_share_is_of_flops_and_not_of_layers() -> None:
    layers = layers_from(INFORMATION)
    flops = {"/a/Conv": 70.0, "/b/Conv": 10.0, "/c/Conv": 5.0, "/d/Conv": 5.0, "/e/Gemm": 6.0, "/hidden": 4.0}
    assert dense_share(layers, flops) == pytest.approx(0.85)
    assert dense_share(layers, flops, "fp32") == pytest.approx(0.05)
    assert dense_share(layers, flops, "int8") == pytest.approx(0.06)
    assert dense_share(layers, {}) == 0.0


NET = """<ir_version: 8, opset_import: ["": 17]>
net (float[batch, 4, height, 10] x) => (float[batch, 7] y, float[batch, 5, 20, m] up, float[batch, 12, 12] free) {
    conv = Conv<pads = [1, 1, 1, 1], strides = [2, 2], group = 2>(x, w)
    up = ConvTranspose<strides = [2, 2]>(x, wt)
    flat = Flatten(conv)
    half = Gemm<transB = 1>(flat, fc, bias)
    y = MatMul(half, mat)
    column = Reshape(half, shape)
    row = Transpose<perm = [0, 2, 1]>(column)
    free = MatMul(column, row)
}"""


def _net() -> onnx.ModelProto:
    model = parser.parse_model(NET)
    weights = {"w": (6, 2, 3, 3), "wt": (4, 5, 2, 2), "fc": (12, 150), "bias": (12,), "mat": (12, 7)}
    model.graph.initializer.extend(
        numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in weights.items()
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 12, 1]), "shape"))
    for node in model.graph.node:
        node.name = f"/{node.output[0]}"
    return model


def test_flops_by_hand() -> None:
    assert dense_flops(_net(), {"height": 10}) == {
        "/conv": 2.0 * 5 * 5 * 6 * (2 * 3 * 3),  # 5x5 places, 6 channels, each from 2 of the 4 channels
        "/up": 2.0 * 10 * 10 * 4 * (5 * 2 * 2),  # every input value into 5 channels of 2x2
        "/half": 2.0 * 150 * 12,
        "/y": 2.0 * 12 * 7,
        # /free multiplies activations: no weights.
    }


def test_nodes_of_unknown_size_are_left_out() -> None:
    assert set(dense_flops(_net())) == {"/half", "/y"}  # height is free


def test_flops_are_pytorchs_for_a_resnet_convolution() -> None:
    conv = torch.nn.Conv2d(64, 128, 3, stride=2, padding=1, bias=False)
    with FlopCounterMode(display=False) as counter:
        conv(torch.zeros(1, 64, 200, 304))
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="/conv", pads=[1] * 4, strides=[2, 2])
    graph = helper.make_graph(
        [node],
        "conv",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64, "height", "width"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(conv.weight.detach().numpy(), "w")],
    )
    assert dense_flops(helper.make_model(graph), {"height": 200, "width": 304}) == {
        "/conv": float(counter.get_total_flops())
    }


def test_flops_are_pytorchs_for_backbone_and_rpn(exported: onnx.ModelProto) -> None:
    model = model_from_config(tiny_config())
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.rpn_head(model.extract_feat(torch.zeros(1, 3, 128, 192)))
    counted = dense_flops(engine_model(exported, PLUGIN_OPS, fakes.library().tensorrt))
    found = sum(
        flops for node, flops in counted.items() if node.split("/")[1] in ("backbone", "neck", "rpn_head")
    )
    assert found == counter.get_total_flops()


def test_flops_of_the_heads_are_for_one_image(exported: onnx.ModelProto) -> None:
    """100 proposals and 100 detections an image."""
    model = model_from_config(tiny_config())
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.roi_head.bbox_head(torch.zeros(100, 16, 7, 7))
        model.roi_head.mask_head(torch.zeros(100, 16, 14, 14))
    counted = dense_flops(exported)
    found = sum(
        f for node, f in counted.items() if node.split("/")[1] not in ("backbone", "neck", "rpn_head")
    )
    assert found == counter.get_total_flops()
