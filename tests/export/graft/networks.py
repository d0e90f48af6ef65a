"""Small networks with the outputs of real detectors: a convolution for each level, then what its exporter writes.

Boxes and key points read the first channel of the image alone, scores the other two: NaN in one pixel is NaN in the
boxes, or in the scores, of one cell.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIZE = (64, 96)


@dataclass(frozen=True)
class Recipe:
    """What a network is made to say.

    Attributes:
        classes: how many.
        score: mean of the scores' logits, or of the scores where the network returns them as they are.
        spread: of what depends on the image.
        baked: constants hold batch 1 and the size, as exporters leave them.
        opset: of the graph.
        size: (height, width) px, declared.
        batch: declared; None: free.
    """

    classes: int = 1
    score: float = 0.0
    spread: float = 1.0
    baked: bool = True
    opset: int = 16
    size: tuple[int, int] = SIZE
    batch: Optional[int] = 1


class Net:
    """A graph that grows."""

    def __init__(self, recipe: Recipe, seed: int = 0) -> None:
        self.recipe = recipe
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.outputs: list[tuple[str, Sequence[object]]] = []

    def const(self, array: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def op(self, kind: str, *inputs: str, name: Optional[str] = None, **attributes: object) -> str:
        out = name or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [out], f"/head/{out}", **attributes))
        return out

    def shape(self, *lengths: int) -> str:
        return self.const(np.array(lengths, np.int64))

    def level(self, stride: int, bias: np.ndarray, is_score: np.ndarray) -> str:
        """Return (B, len(bias), h, w): ``bias`` and something of the image around each cell."""
        parts, order = [], []
        for channels, rows in (((0, 1), np.flatnonzero(~is_score)), ((1, 3), np.flatnonzero(is_score))):
            if len(rows):
                parts.append(self._convolved(stride, channels, bias[rows]))
                order += rows.tolist()
        if len(parts) == 1:
            return parts[0]
        places = self.const(np.argsort(order).astype(np.int64))
        return self.op("Gather", self.op("Concat", *parts, axis=1), places, axis=1)

    def _convolved(self, stride: int, channels: tuple[int, int], bias: np.ndarray) -> str:
        """Apart: 0 times NaN is NaN."""
        start, stop = channels
        pixels = self.op("Slice", "x", self.shape(start), self.shape(stop), self.shape(1))
        weights = self.random.normal(size=(len(bias), stop - start, stride, stride))
        weights *= self.recipe.spread / (stride * np.sqrt(stop - start))
        values = (self.const(v.astype(np.float32)) for v in (weights, bias))
        return self.op("Conv", pixels, *values, kernel_shape=[stride] * 2, strides=[stride] * 2)

    def flat(self, maps: str, width: int, *, name: Optional[str] = None) -> str:
        """Return (B, h w A, width) of (B, A width, h, w)."""
        leading = 1 if self.recipe.baked else 0
        moved = self.op("Transpose", maps, perm=[0, 2, 3, 1])
        return self.op("Reshape", moved, self.shape(leading, -1, width), name=name)

    def output(self, name: str) -> None:
        self.outputs.append((name, ()))

    def model(self, layout: str = "nchw") -> onnx.ModelProto:
        batch, (height, width) = self.recipe.batch or "n", self.recipe.size
        lengths = [batch, 3, height, width] if layout == "nchw" else [batch, height, width, 3]
        graph = helper.make_graph(
            self.nodes,
            "network",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, lengths)],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name, _ in self.outputs],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.recipe.opset)])
        model.ir_version = 8
        inferred = onnx.shape_inference.infer_shapes(model)
        del model.graph.output[:]
        model.graph.output.extend(inferred.graph.output)
        return model


def _mask(*parts: tuple[int, bool]) -> np.ndarray:
    return np.concatenate([np.full(count, value) for count, value in parts])


def scrfd(recipe: Recipe, anchors: int = 2) -> onnx.ModelProto:
    """``score_8``, … ``kps_32``, as InsightFace's newer exports: flat, batch 1."""
    net = Net(recipe)
    found: dict[str, list[str]] = {"score": [], "bbox": [], "kps": []}
    for stride in (8, 16, 32):
        parts = (("score", recipe.classes, recipe.score), ("bbox", 4, 2.0), ("kps", 10, 0.0))
        for role, width, bias in parts:
            is_score = role == "score"
            maps = net.level(stride, np.full(anchors * width, bias), np.full(anchors * width, is_score))
            if is_score:
                maps = net.op("Sigmoid", maps)
            found[role].append(net.flat(maps, width, name=f"{role}_{stride}"))
    for names in found.values():
        for name in names:
            net.output(name)
    return net.model()


def retinaface(recipe: Recipe) -> onnx.ModelProto:
    """``loc``, ``conf`` (softmax inside), ``landmarks``."""
    net = Net(recipe)
    widths = {"loc": 4, "conf": 1 + recipe.classes, "landmarks": 10}
    for role, width in widths.items():
        levels = []
        for stride in (8, 16, 32):
            bias = np.zeros(2 * width)
            if role == "conf":
                bias.reshape(2, width)[:, 1:] = recipe.score
            levels.append(net.flat(net.level(stride, bias, np.full(2 * width, role == "conf")), width))
        joined = net.op("Concat", *levels, axis=1, name="logits" if role == "conf" else role)
        net.output(net.op("Softmax", joined, axis=-1, name="conf") if role == "conf" else joined)
    return net.model()


def centerface(recipe: Recipe) -> onnx.ModelProto:
    """``537`` to ``540``."""
    net = Net(recipe)
    heat = net.op(
        "Sigmoid", net.level(4, np.full(recipe.classes, recipe.score), np.full(recipe.classes, True))
    )
    net.output(net.op("Identity", heat, name="537"))
    for name, width, bias in (("538", 2, 1.0), ("539", 2, 0.0), ("540", 10, 0.5)):
        net.output(net.op("Identity", net.level(4, np.full(width, bias), np.full(width, False)), name=name))
    return net.model()


def yolov5(recipe: Recipe) -> onnx.ModelProto:
    """``output`` (B, N, 5 + C): px, objectness, scores."""
    net, width = Net(recipe), 5 + recipe.classes
    levels = []
    for stride in (8, 16, 32):
        bias = np.tile(np.concatenate(([48, 32, 24, 24], np.full(1 + recipe.classes, recipe.score))), 3)
        is_score = np.tile(_mask((4, False), (1 + recipe.classes, True)), 3)
        raw = net.flat(net.level(stride, bias, is_score), width)
        # Boxes far enough apart to be several, scores as probabilities.
        box = net.op("Slice", raw, net.shape(0), net.shape(4), net.shape(2))
        spread = net.op("Mul", box, net.const(np.array([1, 1, 0.5, 0.5], np.float32)))
        scores = net.op("Sigmoid", net.op("Slice", raw, net.shape(4), net.shape(width), net.shape(2)))
        levels.append(net.op("Concat", spread, scores, axis=2))
    net.output(net.op("Concat", *levels, axis=1, name="output"))
    return net.model()


def yolov8(recipe: Recipe, coefficients: int = 0, keypoints: int = 0) -> onnx.ModelProto:
    """``output0`` (B, 4 + C + 3 P + M, N), and with M prototypes ``output1`` (B, M, h / 4, w / 4)."""
    net = Net(recipe)
    behind = coefficients + 3 * keypoints
    width = 4 + recipe.classes + behind
    levels = []
    for stride in (8, 16, 32):
        bias = np.concatenate(([48, 32, 24, 24], np.full(recipe.classes, recipe.score), np.zeros(behind)))
        is_score = _mask((4, False), (recipe.classes, True), (behind, False))
        maps = net.level(stride, bias, is_score)
        leading = 1 if recipe.baked else 0
        raw = net.op("Reshape", maps, net.shape(leading, width, -1))
        cut = [net.shape(v) for v in (0, 4, 4 + recipe.classes, width, 1)]
        box = net.op("Slice", raw, cut[0], cut[1], cut[4])
        scores = net.op("Sigmoid", net.op("Slice", raw, cut[1], cut[2], cut[4]))
        parts = [box, scores, net.op("Slice", raw, cut[2], cut[3], cut[4])] if behind else [box, scores]
        levels.append(net.op("Concat", *parts, axis=1))
    net.output(net.op("Concat", *levels, axis=2, name="output0"))
    if coefficients:
        prototypes = net.level(4, np.zeros(coefficients), np.full(coefficients, False))
        net.output(net.op("Identity", prototypes, name="output1"))
    return net.model()


def yolov8_seg(recipe: Recipe) -> onnx.ModelProto:
    return yolov8(recipe, coefficients=32)


def yolov4(recipe: Recipe) -> onnx.ModelProto:
    """``boxes`` (B, N, 1, 4) in shares, ``confs`` (B, N, C)."""
    net = Net(recipe)
    boxes, scores = [], []
    for stride in (8, 16, 32):
        raw = net.flat(net.op("Sigmoid", net.level(stride, np.zeros(12), np.full(12, False))), 4)
        low, high = (
            net.op("Slice", raw, net.shape(start), net.shape(start + 2), net.shape(2)) for start in (0, 2)
        )
        extent = net.op("Mul", high, net.const(np.float32(0.3)))
        boxes.append(net.op("Concat", low, net.op("Add", low, extent), axis=2))
        count = 3 * recipe.classes
        logits = net.level(stride, np.full(count, recipe.score), np.full(count, True))
        scores.append(net.flat(net.op("Sigmoid", logits), recipe.classes))
    joined = net.op("Concat", *boxes, axis=1)
    net.output(net.op("Unsqueeze", joined, net.shape(2), name="boxes"))
    net.output(net.op("Concat", *scores, axis=1, name="confs"))
    return net.model()


def maps(recipe: Recipe, layout: str = "anchors_first") -> onnx.ModelProto:
    """Of each level the map of its last convolution, in the layouts of exporters."""
    net, width = Net(recipe), 5 + recipe.classes
    for stride in (8, 16, 32):
        height, across = (edge // stride for edge in recipe.size)
        bias = np.tile(np.concatenate((np.zeros(4), np.full(1 + recipe.classes, recipe.score))), 3)
        is_score = np.tile(_mask((4, False), (1 + recipe.classes, True)), 3)
        level = net.level(stride, bias, is_score)
        if layout == "anchors_first":
            net.output(net.op("Identity", level, name=f"map_{stride}"))
            continue
        leading = 1 if recipe.baked else 0
        apart = net.op("Reshape", level, net.shape(leading, 3, width, height, across))
        perm = [0, 1, 3, 4, 2] if layout == "anchors_apart" else [0, 3, 4, 1, 2]
        net.output(net.op("Transpose", apart, perm=perm, name=f"map_{stride}"))
    return net.model()


def yolov5_maps(recipe: Recipe) -> onnx.ModelProto:
    return maps(recipe, "anchors_apart")


NETWORKS: dict[str, Callable[[Recipe], onnx.ModelProto]] = {
    "scrfd": scrfd,
    "retinaface": retinaface,
    "centerface": centerface,
    "yolov4": yolov4,
    "yolov4-maps": maps,
    "yolov5": yolov5,
    "yolov5-maps": yolov5_maps,
    "yolov8": yolov8,
    "yolov8-seg": yolov8_seg,
}
# Of faces; their heads name one class.
FACES = ("scrfd", "retinaface", "centerface")
