"""A first convolution on blocks of pixels gives what it gave on pixels, float and quantized."""

import dataclasses

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from runtime.engine.blocks import kernel_of_blocks, read_images_in_blocks
from runtime.graphs.load import metadata_of
from runtime.metadata import KEY, ModelMetadata
from tests.runtime import fakes

# float32, sums in another order.
ATOL = 2e-5


def metadata(size: tuple | None, divisor: int = 32) -> ModelMetadata:
    return dataclasses.replace(fakes.metadata(), size=size, size_divisor=divisor)


def network(own: ModelMetadata | None, *, quantized: bool = False, **changes) -> onnx.ModelProto:
    """Images -> Conv 7 x 7 of stride 2; ``images`` is read by another node too."""
    rng = np.random.default_rng(0)
    shape = changes.pop("shape", (8, 3, 7, 7))
    attributes = {"kernel_shape": list(shape[2:]), "strides": [2, 2], "pads": [3] * 4, **changes}
    tensors = [
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), "weight"),
        numpy_helper.from_array(rng.standard_normal(shape[0]).astype(np.float32), "bias"),
    ]
    nodes, inputs = [], ["images", "weight"]
    if quantized:
        pairs = (
            ("images", np.float32(0.02), {}),
            ("weight", np.full(shape[0], 0.03, np.float32), {"axis": 0}),
        )
        for name, scale, options in pairs:
            zero = np.zeros(np.shape(scale), np.int8)
            tensors.append(numpy_helper.from_array(np.asarray(scale), f"{name}_s"))
            tensors.append(numpy_helper.from_array(zero, f"{name}_z"))
            pair = [f"{name}_s", f"{name}_z"]
            nodes += [
                helper.make_node("QuantizeLinear", [name, *pair], [f"{name}_q"], **options),
                helper.make_node("DequantizeLinear", [f"{name}_q", *pair], [f"{name}_d"], **options),
            ]
        inputs = ["images_d", "weight_d"]
    nodes += [
        helper.make_node("Conv", [*inputs, "bias"], ["maps"], name="conv", **attributes),
        helper.make_node("Shape", ["images"], ["shape"], name="shape"),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["B", shape[1], "H", "W"])
    outputs = [
        helper.make_tensor_value_info("maps", TensorProto.FLOAT, ["B", shape[0], "h", "w"]),
        helper.make_tensor_value_info("shape", TensorProto.INT64, [4]),
    ]
    graph = helper.make_graph(nodes, "graph", [images], outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=8)
    if own is not None:
        model.metadata_props.add(key=KEY, value=own.to_json())
    return model


def outputs_of(model: onnx.ModelProto, images: np.ndarray) -> list:
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})


def rewritten(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    read_images_in_blocks(copy)
    return copy


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("size", [(64, 96), (32, 32), (2, 4), (226, 130)])
def test_results_are_the_same(size: tuple, quantized: bool) -> None:
    model = network(metadata(None), quantized=quantized)
    found = rewritten(model)
    assert [node.op_type for node in found.graph.node][:2] == ["Pad", "SpaceToDepth"]
    images = np.random.default_rng(1).uniform(-2, 2, (2, 3, *size)).astype(np.float32)
    expected, actual = outputs_of(model, images), outputs_of(found, images)
    np.testing.assert_allclose(actual[0], expected[0], atol=ATOL * 10, rtol=ATOL)
    np.testing.assert_array_equal(actual[1], expected[1])
    if not quantized:
        weight, bias = (
            torch.from_numpy(numpy_helper.to_array(t).copy()) for t in model.graph.initializer[:2]
        )
        torch_maps = torch.nn.functional.conv2d(torch.from_numpy(images), weight, bias, stride=2, padding=3)
        np.testing.assert_allclose(actual[0], torch_maps.numpy(), atol=ATOL * 10, rtol=ATOL)


@pytest.mark.parametrize(
    "model",
    [
        network(metadata((64, 96))),
        network(metadata(None, divisor=1)),
        network(None),
        network(metadata(None), strides=[1, 1]),
        network(metadata(None), pads=[2, 3, 3, 3]),
        network(metadata(None), dilations=[2, 2]),
        network(metadata(None), shape=(8, 8, 7, 7)),
        network(metadata(None), shape=(8, 3, 5, 5), pads=[2] * 4),
    ],
    ids=["fixed size", "odd sizes", "not ours", "stride", "pads", "dilated", "channels", "kernel"],
)
def test_others_stay(model: onnx.ModelProto) -> None:
    assert rewritten(model) == model


def test_metadata_that_cannot_be_read_are_left_to_others() -> None:
    model = network(metadata(None))
    model.metadata_props[0].value = "{}"
    assert rewritten(model) == model


def test_every_product_is_there_once() -> None:
    weight = np.arange(1, 1 + 2 * 3 * 49, dtype=np.float32).reshape(2, 3, 7, 7)
    found = kernel_of_blocks(weight)
    assert found.shape == (2, 12, 4, 4)
    assert sorted(found[found != 0].tolist()) == sorted(weight.ravel().tolist())


def test_what_the_file_says_stays() -> None:
    own = metadata(None)
    assert metadata_of(rewritten(network(own))) == own
