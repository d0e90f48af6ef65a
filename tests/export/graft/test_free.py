"""Batches and sizes that were fixed when a network was traced: freed and proven, or refused with the node."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.graft.api import grafted
from export.graft.head import load_head
from tests.export.graft.networks import NETWORKS, Net, Recipe, scrfd, yolov8
from tests.export.graft.test_heads import SIZE, check_rows, expected_of, images_of, run


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "network.onnx"
    onnx.save(model, path)
    return path


def check_batches(path: Path, head: str, **options: object) -> None:
    """Two different images at once are what the decoder finds in each."""
    made = grafted(path, head, **options)
    size = options.get("size") or SIZE
    images = images_of(2, size)
    found = run(made, images)
    assert found["num_dets"].min() > 0
    for index, image in enumerate(images):
        check_rows(found, index, expected_of(made, image), made, size)


def test_a_declared_batch_is_freed(tmp_path: Path) -> None:
    """As CenterFace has it: ten images are declared, and nothing else knows of them."""
    check_batches(saved(NETWORKS["centerface"](Recipe(batch=10)), tmp_path), "centerface")


def test_an_example_of_a_size_is_not_taken_for_the_size(tmp_path: Path) -> None:
    path = saved(NETWORKS["centerface"](Recipe(batch=10, size=(32, 32))), tmp_path)
    assert grafted(path, "centerface").metadata.size == (640, 640)
    check_batches(path, "centerface", size=SIZE)


def test_a_free_network_stays_free(tmp_path: Path) -> None:
    for name in ("retinaface", "yolov5", "yolov8-seg"):
        path = saved(NETWORKS[name](Recipe(baked=False, batch=None)), tmp_path)
        check_batches(path, name)


def test_an_old_opset_is_converted(tmp_path: Path) -> None:
    model = scrfd(Recipe())
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", 11))
    for node in model.graph.node:
        assert node.op_type in ("Slice", "Conv", "Concat", "Gather", "Sigmoid", "Transpose", "Reshape")
    path = saved(model, tmp_path)
    made = grafted(path, "scrfd")
    assert [entry.version for entry in made.model.opset_import if not entry.domain] == [16]
    check_batches(path, "scrfd")


def test_weights_that_are_declared_as_inputs(tmp_path: Path) -> None:
    model = scrfd(Recipe())
    for tensor in model.graph.initializer:
        model.graph.input.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        )
    check_batches(saved(model, tmp_path), "scrfd")


def test_outputs_without_a_batch_get_one(tmp_path: Path) -> None:
    """InsightFace's own exports: (N, 1), (N, 4), (N, 10), made by Reshape to [-1, n]."""
    model = scrfd(Recipe())
    targets = {node.input[1] for node in model.graph.node if node.op_type == "Reshape"}
    for tensor in model.graph.initializer:
        if tensor.name in targets:
            width = int(numpy_helper.to_array(tensor)[-1])
            tensor.CopyFrom(numpy_helper.from_array(np.array([-1, width], np.int64), tensor.name))
    for output in model.graph.output:
        del output.type.tensor_type.shape.dim[0]
    check_batches(saved(model, tmp_path), "scrfd")


def test_constant_sizes_of_a_resize_become_scales(tmp_path: Path) -> None:
    """As SCRFD's neck has them: another size, and another batch."""
    net = Net(Recipe())
    small = net.op("AveragePool", "x", kernel_shape=[2, 2], strides=[2, 2])
    sizes = net.const(np.array([1, 3, *SIZE], np.int64))
    net.weights += [numpy_helper.from_array(np.zeros(0, np.float32), "no_roi")]
    large = net.op(
        "Resize", small, "no_roi", "", sizes, mode="nearest", coordinate_transformation_mode="asymmetric"
    )
    inner = scrfd(Recipe())
    nodes = [*net.nodes, *inner.graph.node]
    for node in inner.graph.node:
        for index, name in enumerate(node.input):
            if name == "x":
                node.input[index] = large
    names = {tensor.name: f"inner_{tensor.name}" for tensor in inner.graph.initializer}
    for tensor in inner.graph.initializer:
        tensor.name = names[tensor.name]
    for node in inner.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = names.get(name, name)
    del inner.graph.node[:]
    inner.graph.node.extend(nodes)
    inner.graph.initializer.extend(net.weights)
    path = saved(inner, tmp_path)
    check_batches(path, "scrfd")
    check_batches(path, "scrfd", size=(96, 160))


def test_channels_last(tmp_path: Path) -> None:
    """As TensorFlow's exports take images."""
    model = yolov8(Recipe(classes=2))
    (given,) = model.graph.input
    given.CopyFrom(helper.make_tensor_value_info("picture", TensorProto.FLOAT, [1, *SIZE, 3]))
    model.graph.node.insert(0, helper.make_node("Transpose", ["picture"], ["x"], "nchw", perm=[0, 3, 1, 2]))
    check_batches(saved(model, tmp_path), "yolov8")


def test_half_precision_outside(tmp_path: Path) -> None:
    """Input and outputs of float16: the contract's are float32."""
    model = yolov8(Recipe(classes=2))
    (given,), (output,) = model.graph.input, model.graph.output
    given.CopyFrom(helper.make_tensor_value_info("half", TensorProto.FLOAT16, [1, 3, *SIZE]))
    model.graph.node.insert(0, helper.make_node("Cast", ["half"], ["x"], "up", to=TensorProto.FLOAT))
    model.graph.node.append(helper.make_node("Cast", [output.name], ["rows"], "down", to=TensorProto.FLOAT16))
    output.name = "rows"
    output.type.tensor_type.elem_type = TensorProto.FLOAT16
    check_batches(saved(model, tmp_path), "yolov8")


def test_tensors_that_are_named_as_the_contracts(tmp_path: Path) -> None:
    """YOLOv8's own input is called images; an output of another network might be called masks."""
    model = yolov8(Recipe(classes=2))
    names = {"x": "images", "output0": "dets", model.graph.node[0].output[0]: "masks"}
    for named in (*model.graph.input, *model.graph.output):
        named.name = names.get(named.name, named.name)
    for node in model.graph.node:
        for tensors in (node.input, node.output):
            for index, name in enumerate(tensors):
                tensors[index] = names.get(name, name)
    check_batches(saved(model, tmp_path), "yolov8")


def test_a_batch_inside_that_cannot_be_freed_is_refused_with_the_node(tmp_path: Path) -> None:
    """Images are mixed up where the batch is merged into the places: shapes are right, results are not."""
    model = yolov8(Recipe(classes=2))
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 3, -1], np.int64), "all_in_one"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1, 3, *SIZE], np.int64), "apart"))
    nodes = [
        helper.make_node("Transpose", ["x"], ["first"], "turn", perm=[1, 0, 2, 3]),
        helper.make_node("Reshape", ["first", "apart"], ["mixed"], "/neck/mixes"),
    ]
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = "mixed" if name == "x" else name
    for node in reversed(nodes):
        model.graph.node.insert(0, node)
    with pytest.raises(ValueError, match="expected each image's results to be the same") as refused:
        grafted(saved(model, tmp_path), "yolov8")
    assert "network.onnx" in str(refused.value)
    assert "turn (Transpose)" in str(refused.value)


def test_a_batch_that_a_node_refuses_is_refused_with_it(tmp_path: Path) -> None:
    model = yolov8(Recipe(classes=2))
    constant = np.zeros((1, 3, *SIZE), np.float32)
    model.graph.initializer.append(numpy_helper.from_array(constant, "one_image"))
    nodes = [
        helper.make_node("Concat", ["x", "one_image"], ["two"], "/neck/pair", axis=0),
        helper.make_node("Split", ["two"], ["of_image", "rest"], "/neck/apart", axis=0),
    ]
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = "of_image" if name == "x" else name
    for node in reversed(nodes):
        model.graph.node.insert(0, node)
    with pytest.raises(ValueError, match="/neck/apart"):
        grafted(saved(model, tmp_path), "yolov8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda g: g.input.append(helper.make_tensor_value_info("im_shape", 1, [1, 2])),
            "expected one input",
        ),
        (
            lambda g: g.input[0].CopyFrom(
                helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 3, *SIZE])
            ),
            "expected float images",
        ),
        (
            lambda g: g.input[0].CopyFrom(
                helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, *SIZE])
            ),
            "expected float images",
        ),
    ],
)
def test_other_inputs_are_refused(change: object, message: str, tmp_path: Path) -> None:
    model = scrfd(Recipe())
    change(model.graph)
    path = tmp_path / "network.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match=message):
        grafted(path, "scrfd")


def test_a_size_between_cells_is_refused(tmp_path: Path) -> None:
    path = saved(scrfd(Recipe()), tmp_path)
    with pytest.raises(ValueError, match="--size: expected multiples of 32, found 100 96"):
        grafted(path, "scrfd", size=(100, 96))
    with pytest.raises(ValueError, match="--size, --dynamic-size: expected one of them"):
        grafted(path, "scrfd", size=(96, 96), dynamic_size=True)


def behind_rows(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    """Append a node that makes ``output0`` of what it was, ``all``."""
    for before in model.graph.node:
        before.output[:] = ["all" if name == "output0" else name for name in before.output]
    model.graph.node.append(node)


@pytest.mark.parametrize("name", ["yolov8", "yolov8-seg"])
@pytest.mark.parametrize("size", [(64, 96), (96, 64), (64, 64)])
def test_cells_that_are_constants_make_no_dynamic_size(
    name: str, size: tuple[int, int], tmp_path: Path
) -> None:
    """As YOLOv8 has them; of the size turned by 90 degrees there are as many."""
    model = NETWORKS[name](Recipe(size=size))
    cells = sum(size[0] * size[1] // stride**2 for stride in (8, 16, 32))
    places = np.zeros((1, 1, cells), np.float32)
    model.graph.initializer.append(numpy_helper.from_array(places, "cells"))
    behind_rows(model, helper.make_node("Add", ["all", "cells"], ["output0"], "/head/places"))
    path = saved(model, tmp_path)
    grafted(path, name)
    with pytest.raises(ValueError, match="--dynamic-size: expected a network that runs at any") as refused:
        grafted(path, name, dynamic_size=True)
    said = str(refused.value)
    assert "/head/places" in said
    assert f"cells are constants of the size that it was exported with, {size[0]}x{size[1]}" in said
    assert said.endswith("leave out --dynamic-size")


def test_outputs_of_one_size_make_no_dynamic_size(tmp_path: Path) -> None:
    """Nothing fails; there are as many rows at any size."""
    model = NETWORKS["yolov8"](Recipe())
    for key, value in (("start", [0]), ("stop", [126]), ("axis", [2])):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), key))
    behind_rows(model, helper.make_node("Slice", ["all", "start", "stop", "axis"], ["output0"], "/head/cut"))
    path = saved(model, tmp_path)
    grafted(path, "yolov8")
    with pytest.raises(ValueError, match="--dynamic-size: .* found output0 .*leave out --dynamic-size"):
        grafted(path, "yolov8", dynamic_size=True)


def test_what_is_no_network(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected an ONNX file, found nothing"):
        grafted(tmp_path / "none.onnx", "scrfd")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(ValueError, match="expected an ONNX, found a file that onnx refuses"):
        grafted(tmp_path / "text.onnx", "scrfd")
    made = grafted(saved(scrfd(Recipe()), tmp_path), replace(load_head("scrfd"), pre_nms=10))
    onnx.save(made.model, tmp_path / "done.onnx")
    with pytest.raises(ValueError, match="found one of this tool's own"):
        grafted(tmp_path / "done.onnx", "scrfd")
