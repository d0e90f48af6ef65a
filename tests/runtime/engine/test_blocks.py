"""A first convolution on blocks of pixels gives what it gave on pixels, float and quantized."""

import dataclasses

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from plugins import _reference
from runtime.engine.blocks import OPERATOR, in_standard_operators, kernel_of_blocks, read_images_in_blocks
from runtime.engine.inspection import dense_flops
from runtime.engine.lowering import engine_model
from runtime.graphs.load import metadata_of
from runtime.graphs.operators import DOMAIN
from runtime.graphs.view import element_types
from runtime.metadata import KEY, ModelMetadata
from runtime.precision import default_plan
from runtime.precision.typed import fp16_model
from tests.runtime import fakes
from tests.runtime.engine import fakes as fakes_of_engines

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


def rewritten(model: onnx.ModelProto, *plugin_ops: str) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    read_images_in_blocks(copy, plugin_ops)
    return copy


def outputs_with_plugin(model: onnx.ModelProto, images: np.ndarray) -> list:
    """Return what the model gives with the CPU reference in the place of the plugin."""
    onnx.checker.check_model(model)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    node = copy.graph.node.pop(0)
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    assert (node.domain, node.op_type, list(node.input)) == (DOMAIN, OPERATOR, ["images"])
    assert attributes.keys() == {"pads", "blocksize"}
    assert attributes["blocksize"] == 2
    (declared,) = (value for value in copy.graph.value_info if value.name == node.output[0])
    copy.graph.input.append(declared)
    session = onnxruntime.InferenceSession(copy.SerializeToString(), providers=["CPUExecutionProvider"])
    blocks = _reference.padded_space_to_depth(images, attributes["pads"])
    return session.run(None, {"images": images, node.output[0]: blocks})


@pytest.mark.parametrize("plugin", [False, True], ids=["standard", "plugin"])
@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("size", [(64, 96), (32, 32), (2, 4), (226, 130)])
def test_results_are_the_same(size: tuple, quantized: bool, plugin: bool) -> None:
    model = network(metadata(None), quantized=quantized)
    images = np.random.default_rng(1).uniform(-2, 2, (2, 3, *size)).astype(np.float32)
    expected = outputs_of(model, images)
    if plugin:
        found = rewritten(model, "GroupedNMS", OPERATOR)
        assert not {node.op_type for node in found.graph.node} & {"Pad", "SpaceToDepth"}
        actual = outputs_with_plugin(found, images)
    else:
        found = rewritten(model, "GroupedNMS")
        assert [node.op_type for node in found.graph.node][:2] == ["Pad", "SpaceToDepth"]
        actual = outputs_of(found, images)
    np.testing.assert_allclose(actual[0], expected[0], atol=ATOL * 10, rtol=ATOL)
    np.testing.assert_array_equal(actual[1], expected[1])
    if not quantized:
        weight, bias = (
            torch.from_numpy(numpy_helper.to_array(t).copy()) for t in model.graph.initializer[:2]
        )
        torch_maps = torch.nn.functional.conv2d(torch.from_numpy(images), weight, bias, stride=2, padding=3)
        np.testing.assert_allclose(actual[0], torch_maps.numpy(), atol=ATOL * 10, rtol=ATOL)


@pytest.mark.parametrize("quantized", [False, True])
def test_who_reads_the_blocks(quantized: bool) -> None:
    """The quantized convolution's blocks are quantized, as the images were; all other readers keep the images."""
    found = rewritten(network(metadata(None), quantized=quantized), OPERATOR)
    (blocks,) = found.graph.node[0].output
    readers = {node.op_type for node in found.graph.node if blocks in node.input}
    assert readers == ({"QuantizeLinear"} if quantized else {"Conv"})
    assert [n.op_type for n in found.graph.node if "images" in n.input] == [OPERATOR, "Shape"]
    assert [(o.domain, o.version) for o in found.opset_import] == [("", 16), (DOMAIN, 1)]


def test_the_plugins_node_in_standard_operators() -> None:
    model = network(metadata(None))
    found = rewritten(model, OPERATOR)
    in_standard_operators(found)
    images = np.random.default_rng(2).uniform(-2, 2, (2, 3, 34, 46)).astype(np.float32)
    for expected, actual in zip(outputs_of(rewritten(model), images), outputs_of(found, images)):
        np.testing.assert_array_equal(actual, expected, strict=True)


@pytest.mark.parametrize(
    ("ops", "expected"),
    [((), ["Pad", "SpaceToDepth"]), ((OPERATOR,), [OPERATOR])],
    ids=["standard", "plugin"],
)
def test_lowering_takes_what_the_plugins_have(ops: tuple, expected: list) -> None:
    graph = engine_model(network(metadata(None)), ops, fakes_of_engines.library().tensorrt)
    assert [node.op_type for node in graph.graph.node] == [*expected, "Conv", "Shape"]


@pytest.mark.parametrize("ops", [(), (OPERATOR,)], ids=["standard", "plugin"])
def test_the_convolutions_arithmetic_is_counted(ops: tuple) -> None:
    found = rewritten(network(metadata(None)), *ops)
    sizes = {"B": 2, "H": 64, "W": 96}  # of a batch of two, which dense_flops divides by
    assert dense_flops(found, sizes) == {"conv": 2.0 * (32 * 48) * 8 * (12 * 4 * 4)}


def test_no_precision_plan_holds_the_blocks() -> None:
    """They are FP16 with the convolution: in a weakly typed network as it likes, in a typed file by its type."""
    found = rewritten(network(metadata(None)), OPERATOR)
    plan = default_plan(found)
    made = found.graph.node[0]
    assert not plan.nodes & {made.name, "conv"}
    typed = fp16_model(found, plan)
    types = element_types(typed)
    (reader,) = (node for node in typed.graph.node if node.op_type == "Conv")
    (blocks,) = next(node.output for node in typed.graph.node if node.op_type == OPERATOR)
    assert [types[name] for name in (blocks, *reader.input[:2])] == [TensorProto.FLOAT16] * 3


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
    assert rewritten(model, OPERATOR) == model


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
