"""Attributes that end the process in onnxruntime are refused before it gets the file."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtime.graphs.attributes import check_attributes
from runtime.graphs.session import inference_session


def _model(
    op: str, in_function: bool = False, in_branch: bool = False, **attributes: object
) -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.ones((3, 4, 2, 2), np.float32), "w")
    node = helper.make_node(op, ["x", "w"], ["y"], name="n", **attributes)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 3, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    functions, nodes = [], [node]
    if in_branch:
        branch = helper.make_graph([node], "branch", [], [y])
        nodes = [helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch)]
    if in_function:
        functions = [helper.make_function("own", "F", ["x", "w"], ["y"], [node], opsets)]
        nodes = [helper.make_node("F", ["x", "w"], ["y"], domain="own")]
    graph = helper.make_graph(nodes, "g", [x], [y], [weight])
    return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=8)


def _saved(folder: Path, model: onnx.ModelProto) -> Path:
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("operator", "attributes", "words"),
    [
        ("ConvTranspose", {"group": 0}, "ConvTranspose, group: expected 1 to 2147483648, found 0"),
        ("ConvTranspose", {"group": -1}, "ConvTranspose, group: expected 1 to 2147483648, found -1"),
        ("Conv", {"strides": [1, 0]}, "Conv, strides: expected 1 to 2147483648, found 0"),
        (
            "DepthToSpace",
            {"blocksize": 2**40},
            f"DepthToSpace, blocksize: expected 1 to 32768, found {2**40}",
        ),
        (
            "RoiAlign",
            {"sampling_ratio": 2**62},
            f"RoiAlign, sampling_ratio: expected 0 to 32768, found {2**62}",
        ),
    ],
)
@pytest.mark.parametrize("place", [{}, {"in_function": True}, {"in_branch": True}])
def test_an_attribute_out_of_range_is_refused_with_its_operator(
    operator: str, attributes: dict, words: str, place: dict, tmp_path: Path
) -> None:
    path = _saved(tmp_path, _model(operator, **place, **attributes))
    for check in (check_attributes, lambda path: inference_session(path, ["CPUExecutionProvider"])):
        with pytest.raises(ValueError, match=f"model {path}: {words}; the file is damaged, make it again"):
            check(path)


def test_packed_lists_are_read_too(tmp_path: Path) -> None:
    """Protobuf's other form of a list, which onnx's own writer does not use."""
    model = _model("Conv", strides=[1, 300])
    plain = model.graph.node[0].attribute[0].SerializeToString()
    packed = bytes([0x0A, 7]) + b"strides" + bytes([0x42, 3, 1, 0xAC, 2]) + bytes([0xA0, 1, 7])
    assert onnx.AttributeProto.FromString(packed).ints == [1, 300]
    data = model.SerializeToString()
    zero = packed.replace(bytes([0x42, 3, 1, 0xAC, 2]), bytes([0x42, 3, 1, 0x80, 0]))
    attribute = onnx.AttributeProto.FromString(zero)
    assert attribute.ints == [1, 0]
    assert plain in data
    node = model.graph.node[0].SerializeToString().replace(bytes([0x2A, len(plain)]) + plain, b"")
    graph = bytes([0x0A, len(node) + 2 + len(zero)]) + node + bytes([0x2A, len(zero)]) + zero
    (tmp_path / "m.onnx").write_bytes(bytes([0x3A, len(graph)]) + graph)
    with pytest.raises(ValueError, match="Conv, strides: expected 1 to 2147483648, found 0"):
        check_attributes(tmp_path / "m.onnx")


def test_good_models_and_what_is_no_model_pass(tmp_path: Path, embedded_path: Path) -> None:
    check_attributes(embedded_path)
    check_attributes(_saved(tmp_path, _model("Conv", group=1, strides=[2, 2], pads=[0, 0, 0, 0])))
    data = _model("ConvTranspose", group=1).SerializeToString()
    for other in (b"", b"\xff" * 40, data[:-3], b"text", b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"):
        (tmp_path / "other").write_bytes(other)
        check_attributes(tmp_path / "other")
