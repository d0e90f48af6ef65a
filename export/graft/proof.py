"""Runs a network, and proves that its batch is free: images one by one, two and three at once give the same."""

from collections.abc import Mapping, Sequence
from typing import Any, Optional

import numpy as np
import onnx
from onnx import helper

from export.graft.free import NetworkInput
from runtime.graphs.session import import_onnxruntime, one_line, run_errors

Arrays = dict[str, np.ndarray]
# Of the largest value of a tensor: kernels that add in another order at another batch.
TOLERANCE = 1e-4
_REMEDY = (
    "constants in it hold another batch or size: export the network with dynamic axes, or at that size, or leave "
    "--size and --dynamic-size out"
)


class NetworkError(ValueError):
    """onnxruntime refuses or fails in a network.

    Attributes:
        reason: its message, which names the node.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class Network:
    """A network in an onnxruntime session on the CPU."""

    def __init__(self, model: onnx.ModelProto, given: NetworkInput, name: str) -> None:
        """Open it.

        Raises:
            NetworkError: onnxruntime refuses it.
        """
        self._given, self._name = given, name
        runtime = import_onnxruntime()
        options = runtime.SessionOptions()
        options.log_severity_level = 4  # what it complains of comes as an error
        self.outputs = [value.name for value in model.graph.output]
        try:
            self._session = runtime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except run_errors() as error:
            raise NetworkError(
                f"{name}: expected a graph that onnxruntime loads with its batch free{_at(model)}, found: "
                f"{one_line(error)}; {_REMEDY}",
                one_line(error),
            ) from error

    def __call__(self, images: np.ndarray) -> Arrays:
        """Run (B, 3, H, W) float32 images.

        Raises:
            NetworkError: onnxruntime fails; its message names the node.
        """
        try:
            found = self._session.run(self.outputs, {self._given.name: self._given.array(images)})
        except run_errors() as error:
            batch, _, height, width = images.shape
            raise NetworkError(
                f"{self._name}: expected a graph that runs at batch {batch} and {height}x{width} px, found that "
                f"onnxruntime fails: {one_line(error)}; {_REMEDY}",
                one_line(error),
            ) from error
        return dict(zip(self.outputs, found))


def _at(model: onnx.ModelProto) -> str:
    lengths = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    return f" at an input of {'x'.join(str(n or '?') for n in lengths)}"


def noise(count: int, size: tuple[int, int], head: Any) -> np.ndarray:
    """Return (count, 3, H, W) float32 different images of noise, as the network expects their values."""
    random = np.random.default_rng(0)
    pixels = random.uniform(0, 255, (count, 3, *size))
    mean, std = (np.array(v)[:, None, None] for v in (head.input.mean, head.input.std))
    return ((pixels - mean) / std).astype(np.float32)


def check_batch(model: onnx.ModelProto, given: NetworkInput, images: np.ndarray, name: str) -> None:
    """Run three images one by one, and two and three at once.

    Args:
        model: whose batch is free.
        given: its input.
        images: (3, 3, H, W) float32, different ones.
        name: of its file, for messages.

    Raises:
        ValueError: it fails, or an image's results depend on those beside it; names the node.
    """
    network = Network(model, given, name)
    alone = [network(image[None]) for image in images]
    for count in (2, 3):
        together = network(images[:count])
        if _differing(together, alone[:count]) is not None:
            raise ValueError(_first_difference(model, given, images[:count], name))


def _differing(
    together: Mapping[str, np.ndarray], alone: Sequence[Mapping[str, np.ndarray]]
) -> Optional[str]:
    """Return the first tensor that is not the single images' one after the other, or None."""
    return next((n for n, array in together.items() if not _agrees(array, [part[n] for part in alone])), None)


def _agrees(together: np.ndarray, alone: Sequence[np.ndarray]) -> bool:
    if together.ndim == 0 or any(part.ndim == 0 for part in alone):
        return False
    expected = np.concatenate(alone)
    if together.shape != expected.shape:
        return False
    scale = float(np.abs(expected).max(initial=0.0))
    return bool(np.allclose(together, expected, rtol=0, atol=TOLERANCE * max(scale, 1e-6), equal_nan=True))


def _first_difference(model: onnx.ModelProto, given: NetworkInput, images: np.ndarray, name: str) -> str:
    """Return the refusal, with the first node whose result depends on the batch."""
    marked = onnx.ModelProto()
    marked.CopyFrom(model)
    del marked.graph.output[:]
    inferred = onnx.shape_inference.infer_shapes(model).graph
    floats = {
        value.name
        for value in (*inferred.value_info, *inferred.output)
        if value.type.tensor_type.elem_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    }
    makers = {out: node for node in model.graph.node for out in node.output if out in floats}
    for out in makers:
        marked.graph.output.append(helper.make_empty_tensor_value_info(out))
    network = Network(marked, given, name)
    alone = [network(image[None]) for image in images]
    together = network(images)
    # Tensors of the graph alone (of weights, of its size) are the same at any batch.
    candidates = {n: a for n, a in together.items() if not np.array_equal(a, alone[0][n])}
    wrong = _differing(candidates, alone)
    node = makers.get(wrong or "")
    place = f"node {node.name or node.output[0]} ({node.op_type})" if node is not None else "its outputs"
    found = together[wrong].shape if wrong else ""
    return (
        f"{name}: expected each image's results to be the same in a batch of {len(images)} as alone, found others from "
        f"{place} on {found}; the batch is fixed there: export the network with a dynamic batch"
    )
