"""Small ONNX files of the contract whose outputs are known: the network's input itself, or constants."""

from pathlib import Path
from typing import Any, Optional

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from runtime.metadata import KEY, ModelMetadata
from runtime.transforms import Step

OPSET = 17


def metadata(steps: tuple[Step, ...] = (), **fields: Any) -> ModelMetadata:
    """Return metadata with what a test does not care about filled in."""
    defaults: dict[str, Any] = {
        "classes": ("cat", "dog"),
        "mean": (123.675, 116.28, 103.53),
        "std": (58.395, 57.12, 57.375),
        "color_order": "rgb",
        "size": None,
        "size_divisor": 32,
        "masks": "none",
        "mask_threshold": 0.5,
        "score_threshold": 0.05,
        "max_per_img": 4,
    }
    return ModelMetadata(steps=steps, **{**defaults, **fields})


def save_echo(path: Path, described: ModelMetadata) -> None:
    """Write a model of fixed size whose scores are every value of its input, and nothing else.

    ``described.max_per_img`` is how many there are. Boxes are zeros: what a box says is rescaled, a score is not.
    """
    rows = described.max_per_img
    zeros = np.zeros((1, rows, 4), np.float32)
    nodes = [
        helper.make_node("Reshape", ["images", "column"], ["values"]),
        helper.make_node("Mul", ["values", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "zeros"], ["boxes"]),
        helper.make_node("Concat", ["boxes", "values"], ["dets"], axis=2),
        helper.make_node("Squeeze", ["nothing", "last"], ["flat"]),
        helper.make_node("Cast", ["flat"], ["labels"], to=TensorProto.INT32),
        helper.make_node("Add", ["labels", "ones"], ["counted"]),
        helper.make_node("ReduceSum", ["counted", "second"], ["num_dets"], keepdims=0),
    ]
    weights = {
        "column": np.array([-1, rows, 1], np.int64),
        "zero": np.zeros((), np.float32),
        "zeros": zeros,
        "last": np.array([2], np.int64),
        "second": np.array([1], np.int64),
        "ones": np.ones((1, rows), np.int32),
    }
    _save(path, described, nodes, weights)


def save_constant(
    path: Path,
    described: ModelMetadata,
    dets: np.ndarray,
    masks: Optional[np.ndarray] = None,
    keypoints: Optional[np.ndarray] = None,
    labels: Optional[np.ndarray] = None,
    num_dets: Optional[int] = None,
) -> None:
    """Write a model that finds the same in every image: ``dets`` of (K, 5), ``masks`` (K, h, w)."""
    rows = len(dets)
    outputs = {
        "dets": dets.astype(np.float32)[None],
        "labels": (np.arange(rows) % len(described.classes) if labels is None else labels).astype(np.int32)[
            None
        ],
        "num_dets": np.array([rows if num_dets is None else num_dets], np.int32),
    }
    if masks is not None:
        outputs["masks"] = masks[None]
    if keypoints is not None:
        outputs["keypoints"] = keypoints.astype(np.float32)[None]
    nodes = [helper.make_node("Shape", ["images"], ["batch"], start=0, end=1)]
    weights: dict[str, np.ndarray] = {}
    for name, array in outputs.items():
        weights[f"{name}_value"] = array
        weights[f"{name}_rest"] = np.array(array.shape[1:], np.int64)
        if array.ndim > 1:
            nodes.append(helper.make_node("Concat", ["batch", f"{name}_rest"], [f"{name}_shape"], axis=0))
        shape = f"{name}_shape" if array.ndim > 1 else "batch"
        nodes.append(helper.make_node("Expand", [f"{name}_value", shape], [name]))
    _save(path, described, nodes, weights)


_TYPES = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32, "uint8": TensorProto.UINT8}


def _save(
    path: Path,
    described: ModelMetadata,
    nodes: list[onnx.NodeProto],
    weights: dict[str, np.ndarray],
) -> None:
    height, width = described.size or ("height", "width")
    channels, rows = described.channels, described.max_per_img
    shapes: dict[str, tuple[str, list]] = {
        "num_dets": ("int32", ["batch"]),
        "dets": ("float32", ["batch", rows, 5]),
        "labels": ("int32", ["batch", rows]),
    }
    if described.keypoints:
        shapes["keypoints"] = ("float32", ["batch", rows, len(described.keypoints), 3])
    if described.masks in ("crop", "grid"):
        shapes["masks"] = ("float32", ["batch", rows, "mask_height", "mask_width"])
    if described.masks == "full":
        shapes["masks"] = ("uint8", ["batch", rows, height, width])
    inputs = {
        "images": ("float32", ["batch", channels, height, width]),
        "image_sizes": ("float32", ["batch", 2]),
    }

    def infos(of: dict[str, tuple[str, list]]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(n, _TYPES[kind], shape) for n, (kind, shape) in of.items()]

    graph = helper.make_graph(
        nodes,
        "known",
        infos(inputs),
        infos(shapes),
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    helper.set_model_props(model, {KEY: described.to_json()})
    onnx.save(model, path)
