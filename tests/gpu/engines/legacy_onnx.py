"""A small detector in the form in which mmcv 1.x and mmdet 2.x wrote Mask R-CNN, and the same in standard ONNX.

What is typical of those files: opset 11; NonMaxSuppression, whose selected indices become a mask over the scores
(``ScatterND``) that TopK then sorts; boxes and scores gathered by flat indices; `MMCVRoiAlign` on RoIs that begin with
the image's number; masks pasted at the image's size by `grid_sampler`. Both are nodes of the domain `mmcv`, without a
definition in the file.

Weights and images are made up, from fixed seeds. In every image more boxes survive than there are rows.
"""

from collections.abc import Sequence
from typing import Any, Union

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 11
STANDARD_OPSET = 16  # the first with GridSample, and with RoiAlign's half_pixel
HEIGHT, WIDTH = 96, 128
STRIDE = 8
NUM_CLASSES = 4
NUM_ROWS = 16
CHANNELS = 32

_IOU_THRESHOLD, _SCORE_THRESHOLD, _MAX_PER_CLASS = 0.5, 0.2, 20
_LEAST_SIDE, _LARGEST_SIDE = 6.0, 30.0  # of a box, from its centre, px
_NUM_PLACES = (HEIGHT // STRIDE) * (WIDTH // STRIDE)
_INTERPOLATION_MODES = ("bilinear", "nearest", "bicubic")
_PADDING_MODES = ("zeros", "border", "reflection")


class _Graph:
    """Nodes and initializers in the making. Nodes are named as torch did: ``Conv_0``, ``Relu_1``."""

    def __init__(self) -> None:
        self.nodes: list = []
        self.initializers: list = []
        self._random = np.random.RandomState(3)

    def constant(self, value: Union[np.ndarray, list, int, float], dtype: type = np.float32) -> str:
        name = f"constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def add(self, op: str, *inputs: str, output: str = "", num_outputs: int = 1, **attributes: Any) -> Any:
        """Add a node; return the name of its output, or a list of names."""
        number = len(self.nodes)
        outputs = [output or f"{op}_{number}_output_{i}" for i in range(num_outputs)]
        node = helper.make_node(op, inputs, outputs, name=f"{op}_{number}", **attributes)
        self.nodes.append(node)
        return outputs[0] if num_outputs == 1 else outputs

    def conv(self, data: str, channels: int, outputs: int, size: int, *, stride: int = 1, gain=1.4) -> str:
        """Add a convolution with random weights that keeps the values' size, or changes it by a factor."""
        shape = (outputs, channels, size, size)
        weights = self._random.standard_normal(shape) * gain / np.sqrt(channels * size * size)
        return self.add(
            "Conv",
            data,
            self.constant(weights),
            self.constant(self._random.standard_normal(outputs) * 0.1),
            kernel_shape=[size, size],
            pads=[size // 2] * 4,
            strides=[stride, stride],
        )

    def reshape(self, data: str, *shape: int) -> str:
        return self.add("Reshape", data, self.constant(shape, np.int64))

    def column(self, data: str, index: int, axis: int = 1) -> str:
        """Return one column of a table, as ``table[:, index]`` was traced."""
        return self.add("Gather", data, self.constant(index, np.int64), axis=axis)


def legacy_model() -> onnx.ModelProto:
    """Return the model.

    Input ``input`` (B, 3, 96, 128) float32; outputs ``dets`` (B, K, 5) float32, ``labels`` (B, K) int64 and
    ``masks`` (B, K, 96, 128) float32, probabilities; K = 16, B is free.
    """
    graph = _Graph()
    features = _features(graph)
    boxes, scores = _candidates(graph, features)
    dets, kept_boxes = _suppressed(graph, boxes, scores)
    _masks(graph, features, kept_boxes)
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, HEIGHT, WIDTH])]
    outputs = [
        helper.make_tensor_value_info(dets, TensorProto.FLOAT, ["batch", NUM_ROWS, 5]),
        helper.make_tensor_value_info("labels", TensorProto.INT64, ["batch", NUM_ROWS]),
        helper.make_tensor_value_info("masks", TensorProto.FLOAT, ["batch", NUM_ROWS, HEIGHT, WIDTH]),
    ]
    made = helper.make_graph(graph.nodes, "torch-jit-export", inputs, outputs, graph.initializers)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("mmcv", 1)]
    return helper.make_model(made, opset_imports=opsets, ir_version=6, producer_name="pytorch")


def standard_form(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the same graph with RoiAlign and GridSample of standard ONNX in the place of mmcv's operators.

    All its other operators mean in opset 16 what they mean in opset 11.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    nodes = list(copy.graph.node)
    del copy.graph.node[:], copy.opset_import[:]
    for node in nodes:
        copy.graph.node.extend(_REPLACEMENTS.get(node.op_type, lambda same: [same])(node))
    copy.opset_import.append(helper.make_opsetid("", STANDARD_OPSET))
    copy.ir_version = 8
    return copy


def images(num_images: int, seed: int = 0) -> np.ndarray:
    """Return (B, 3, 96, 128) float32: bright rectangles on noise, different in every image."""
    random = np.random.RandomState(seed)
    stack = random.standard_normal((num_images, 3, HEIGHT, WIDTH)).astype(np.float32) * 0.3
    for image in stack:
        for _ in range(8):
            top, left = random.randint(0, HEIGHT - 16), random.randint(0, WIDTH - 16)
            height, width = random.randint(8, 40, 2)
            color = random.uniform(-2, 2, (3, 1, 1))
            image[:, top : top + height, left : left + width] += color.astype(np.float32)
    return stack


# --- The parts of the model -----------------------------------------------------------------------------------------


def _features(graph: _Graph) -> str:
    data = graph.add("Relu", graph.conv("input", 3, 16, 3, stride=2))
    data = graph.add("Relu", graph.conv(data, 16, CHANNELS, 3, stride=2))
    return graph.add("Relu", graph.conv(data, CHANNELS, CHANNELS, 3, stride=2))


def _candidates(graph: _Graph, features: str) -> tuple[str, str]:
    """Return boxes (B, N, 4) and scores (B, C, N) of every place of the feature map."""
    head = graph.add("Relu", graph.conv(features, CHANNELS, CHANNELS, 3))
    scores = graph.add("Sigmoid", graph.conv(head, CHANNELS, NUM_CLASSES, 1, gain=3.0))
    sides = graph.add("Sigmoid", graph.conv(head, CHANNELS, 4, 1, gain=2.0))
    sides = graph.add("Mul", sides, graph.constant(_LARGEST_SIDE - _LEAST_SIDE))
    sides = graph.add("Add", sides, graph.constant(_LEAST_SIDE))
    sides = graph.reshape(graph.add("Transpose", sides, perm=[0, 2, 3, 1]), -1, _NUM_PLACES, 4)
    rows, columns = np.mgrid[: HEIGHT // STRIDE, : WIDTH // STRIDE].reshape(2, -1)
    centres = graph.constant((np.stack([columns, rows], 1) + 0.5) * STRIDE)
    low = graph.add("Sub", centres, _columns(graph, sides, 0, 2))
    high = graph.add("Add", centres, _columns(graph, sides, 2, 4))
    boxes = graph.add("Concat", low, high, axis=2)
    boxes = graph.add("Max", boxes, graph.constant(0.0))
    boxes = graph.add("Min", boxes, graph.constant([WIDTH, HEIGHT, WIDTH, HEIGHT]))
    return boxes, graph.reshape(scores, -1, NUM_CLASSES, _NUM_PLACES)


def _columns(graph: _Graph, table: str, start: int, stop: int) -> str:
    limits = (graph.constant([value], np.int64) for value in (start, stop, 2))
    return graph.add("Slice", table, *limits)


def _suppressed(graph: _Graph, boxes: str, scores: str) -> tuple[str, str]:
    """Return dets (B, K, 5) and their boxes (B, K, 4), and make ``labels``: mmdet's add_dummy_nms_for_onnx."""
    limits = [
        graph.constant([_MAX_PER_CLASS], np.int64),
        graph.constant([_IOU_THRESHOLD]),
        graph.constant([_SCORE_THRESHOLD]),
    ]
    selected = graph.add("NonMaxSuppression", boxes, scores, *limits)
    image, label, place = (graph.column(selected, index) for index in range(3))
    # Candidates are numbered image by image, class by class, place by place.
    position = graph.add("Mul", image, graph.constant(NUM_CLASSES, np.int64))
    position = graph.add("Add", position, label)
    position = graph.add("Mul", position, graph.constant(_NUM_PLACES, np.int64))
    position = graph.add("Add", position, place)

    flat_scores = graph.reshape(scores, -1, 1)
    nothing = graph.add(
        "ConstantOfShape",
        graph.add("Shape", flat_scores),
        value=numpy_helper.from_array(np.zeros(1, np.float32)),
    )
    # mask[position, :] += 1
    ones = graph.add("Add", graph.add("Gather", nothing, position, axis=0), graph.constant(1.0))
    mask = graph.add("ScatterND", nothing, graph.reshape(position, -1, 1), ones)
    flat_scores = graph.add("Mul", flat_scores, mask)
    repeated = graph.add(
        "Tile", graph.reshape(boxes, -1, _NUM_PLACES * 4), graph.constant([1, NUM_CLASSES], np.int64)
    )
    flat_boxes = graph.add("Mul", graph.reshape(repeated, -1, 4), mask)

    num_candidates = NUM_CLASSES * _NUM_PLACES
    best, index = graph.add(
        "TopK",
        graph.reshape(flat_scores, -1, num_candidates),
        graph.constant([NUM_ROWS], np.int64),
        num_outputs=2,
        axis=1,
        largest=1,
        sorted=1,
    )
    offset = graph.add("Mul", _image_numbers(graph, scores), graph.constant(num_candidates, np.int64))
    flat_index = graph.add("Add", graph.reshape(offset, -1, 1), index)
    best_boxes = graph.add("Gather", flat_boxes, flat_index, axis=0)
    labels = graph.constant(np.repeat(np.arange(NUM_CLASSES), _NUM_PLACES), np.int64)
    graph.add("Gather", labels, index, axis=0, output="labels")
    dets = graph.add("Concat", best_boxes, graph.reshape(best, -1, NUM_ROWS, 1), axis=2, output="dets")
    return dets, best_boxes


def _image_numbers(graph: _Graph, tensor: str) -> str:
    """Return (B,) int64, ``torch.arange(batch_size)``."""
    batch = graph.column(graph.add("Shape", tensor), 0, axis=0)
    return graph.add("Range", graph.constant(0, np.int64), batch, graph.constant(1, np.int64))


def _masks(graph: _Graph, features: str, boxes: str) -> None:
    """Make ``masks``: RoI features, the mask head, and mmdet's _do_paste_mask."""
    numbers = graph.add("Cast", _image_numbers(graph, boxes), to=TensorProto.FLOAT)
    numbers = graph.add(
        "Expand", graph.reshape(numbers, -1, 1, 1), graph.constant([1, NUM_ROWS, 1], np.int64)
    )
    rois = graph.reshape(graph.add("Concat", numbers, boxes, axis=2), -1, 5)
    aligned = graph.add(
        "MMCVRoiAlign",
        features,
        rois,
        domain="mmcv",
        output_height=14,
        output_width=14,
        spatial_scale=1 / STRIDE,
        sampling_ratio=0,
        mode="avg",
        aligned=1,
    )
    head = graph.add("Relu", graph.conv(aligned, CHANNELS, CHANNELS, 3))
    weights = graph.constant(np.random.RandomState(4).standard_normal((CHANNELS, 16, 2, 2)) * 0.2)
    head = graph.add("ConvTranspose", head, weights, kernel_shape=[2, 2], strides=[2, 2])
    probabilities = graph.add("Sigmoid", graph.conv(graph.add("Relu", head), 16, 1, 1))
    pasted = graph.add(
        "grid_sampler",
        probabilities,
        _grid(graph, graph.reshape(boxes, -1, 4)),
        domain="mmcv",
        interpolation_mode=0,
        padding_mode=0,
        align_corners=0,
    )
    graph.add("Reshape", pasted, graph.constant([-1, NUM_ROWS, HEIGHT, WIDTH], np.int64), output="masks")


def _grid(graph: _Graph, boxes: str) -> str:
    """Return (R, H, W, 2): every pixel's place in the mask of each box, -1 to 1."""
    axes = []
    for low, size in ((0, WIDTH), (1, HEIGHT)):
        start, stop = (graph.reshape(graph.column(boxes, i), -1, 1) for i in (low, low + 2))
        pixels = graph.constant(np.arange(size)[None] + 0.5)
        place = graph.add("Div", graph.add("Sub", pixels, start), graph.add("Sub", stop, start))
        place = graph.add("Sub", graph.add("Mul", place, graph.constant(2.0)), graph.constant(1.0))
        place = graph.reshape(place, -1, *((1, WIDTH, 1) if low == 0 else (HEIGHT, 1, 1)))
        axes.append(graph.add("Expand", place, graph.constant([1, HEIGHT, WIDTH, 1], np.int64)))
    return graph.add("Concat", *axes, axis=3)


# --- Standard operators ---------------------------------------------------------------------------------------------


def _standard_roi_align(node: onnx.NodeProto) -> list:
    settings = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    settings["coordinate_transformation_mode"] = (
        "half_pixel" if settings.pop("aligned") else "output_half_pixel"
    )
    features, rois = node.input
    numbers, image, boxes = (f"{node.name}/{part}" for part in ("numbers", "image", "boxes"))
    columns = [
        numpy_helper.from_array(value, f"{node.name}/{name}")
        for name, value in (("first", np.array(0)), ("others", np.arange(1, 5)))
    ]
    return [
        *(_node("Constant", [], column.name, value=column) for column in columns),
        _node("Gather", [rois, columns[0].name], numbers, axis=1),
        _node("Cast", [numbers], image, to=TensorProto.INT64),
        _node("Gather", [rois, columns[1].name], boxes, axis=1),
        _node("RoiAlign", [features, boxes, image], node.output[0], **settings),
    ]


def _standard_grid_sample(node: onnx.NodeProto) -> list:
    settings = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return [
        _node(
            "GridSample",
            node.input,
            node.output[0],
            mode=_INTERPOLATION_MODES[settings["interpolation_mode"]],
            padding_mode=_PADDING_MODES[settings["padding_mode"]],
            align_corners=settings["align_corners"],
        )
    ]


def _node(op: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [output], name=output, **attributes)


_REPLACEMENTS = {"MMCVRoiAlign": _standard_roi_align, "grid_sampler": _standard_grid_sample}
