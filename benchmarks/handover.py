"""mmdet's own proposals, heads and masks, on the feature maps and RPN outputs that onnxruntime computed.

Two libraries' convolutions differ in their last bits. Where two RPN scores are equal but for those bits, as they are
near 1, NMS keeps the one or the other of two neighbouring proposals. Handed the results of the same convolutions, mmdet
has to find what the exported file finds; whatever remains is a fault.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
import onnxruntime
import torch
from mmdet.structures import DetDataSample
from onnx import helper
from torch import Tensor, nn

from benchmarks.inference import infer
from export.verify import ordered_ties
from runtime.graphs.operators import DOMAIN
from runtime.host.preprocess import Batch


class _Probabilities(Tensor):
    """Scores whose sigmoid has been taken: onnxruntime's and PyTorch's differ in the last bit, too."""

    def sigmoid(self) -> Tensor:
        return self.as_subclass(Tensor)


@dataclass(frozen=True, eq=False)
class NetworkOutputs:
    """What the convolutions make of a batch.

    Attributes:
        features: the maps that RoIs are read from, (B, C, H_l, W_l) float32 each, finest first.
        scores: RPN's objectness after the sigmoid, (B, anchors, H_l, W_l) float32 each.
        deltas: RPN's box regression, (B, 4 * anchors, H_l, W_l) float32 each.
    """

    features: tuple[Tensor, ...]
    scores: tuple[Tensor, ...]
    deltas: tuple[Tensor, ...]

    def relative_difference(self, other: "NetworkOutputs") -> dict[str, float]:
        """Return the largest difference of each kind, as a share of the tensor's largest magnitude."""
        return {
            name: max(_relative(a, b) for a, b in zip(getattr(self, name), getattr(other, name)))
            for name in ("features", "scores", "deltas")
        }


class ExposedModel:
    """An exported file whose network outputs can be read."""

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        """Open a file with a sigmoid RPN as ``export.maskrcnn`` writes it."""
        model = onnx.load(str(path))
        # The scores are made in this operator's body.
        model = onnx.inliner.inline_selected_functions(model, [(DOMAIN, "DecodeProposals")])
        self._names = _tensor_names(model.graph)
        self._results = [output.name for output in model.graph.output]
        exposed = [name for names in self._names.values() for name in names]
        model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in exposed)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, batch: Batch) -> tuple[dict[str, np.ndarray], NetworkOutputs]:
        """Return the file's outputs by name, and its network's."""
        names = self._results + [name for each in self._names.values() for name in each]
        feeds = {"images": batch.images, "image_sizes": batch.image_sizes}
        values = dict(zip(names, self._session.run(names, feeds)))
        tensors = {
            kind: [torch.from_numpy(values[name]) for name in each] for kind, each in self._names.items()
        }
        deltas = tuple(tensors["deltas"])
        scores = (_as_map(flat, delta) for flat, delta in zip(tensors["scores"], deltas))
        return {name: values[name] for name in self._results}, NetworkOutputs(
            tuple(tensors["features"]), tuple(scores), deltas
        )


def own_outputs(model: nn.Module, batch: Batch) -> NetworkOutputs:
    """Return what mmdet's network makes of the batch."""
    with torch.no_grad():
        features = model.extract_feat(torch.from_numpy(batch.images))
        logits, deltas = model.rpn_head(features)
    num_levels = model.roi_head.bbox_roi_extractor.num_inputs
    return NetworkOutputs(tuple(features[:num_levels]), tuple(x.sigmoid() for x in logits), tuple(deltas))


def infer_from(model: nn.Module, paths: Sequence[Path], outputs: NetworkOutputs) -> list[DetDataSample]:
    """Run mmdet on image files (``benchmarks.inference.infer``) with its convolutions' results replaced.

    Equal scores stay in order (``export.verify.ordered_ties``).
    """
    scores = [scores.as_subclass(_Probabilities) for scores in outputs.scores]
    with ExitStack() as stack:
        stack.enter_context(ordered_ties())
        for owner, name, value in (
            (model, "extract_feat", outputs.features),
            (model.rpn_head, "forward", (scores, list(outputs.deltas))),
        ):
            stack.enter_context(mock.patch.object(owner, name, return_value=value))
        return infer(model, paths)


def _tensor_names(graph: onnx.GraphProto) -> dict[str, list[str]]:
    """Return the names of each kind, level by level: those of a convolution are in the order it is called in."""
    producers = {output: node for node in graph.node for output in node.output}
    aligns = [node for node in graph.node if node.op_type == "MultiLevelRoiAlign"]
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    sigmoids = [node for node in graph.node if node.op_type == "Sigmoid"]
    names = {
        "features": list(aligns[0].input[1:]) if aligns else [],
        "scores": [n.output[0] for n in sigmoids if _has_weight(_convolution(n, producers), "rpn_cls")],
        "deltas": [n.output[0] for n in convolutions if _has_weight(n, "rpn_reg")],
    }
    if not all(names.values()) or len(names["scores"]) != len(names["deltas"]):
        found = ", ".join(f"{len(each)} {kind}" for kind, each in names.items())
        raise ValueError(
            f"graph: expected feature maps, RPN scores and RPN deltas of every level, found {found}"
        )
    return names


def _convolution(node: onnx.NodeProto, producers: dict[str, onnx.NodeProto]) -> onnx.NodeProto:
    """Return the convolution that a node's data comes from, or the first node that has another origin."""
    while node.op_type != "Conv" and node.input and node.input[0] in producers:
        node = producers[node.input[0]]
    return node


def _has_weight(node: onnx.NodeProto, module: str) -> bool:
    return node.op_type == "Conv" and f".{module}." in node.input[1]


def _as_map(flat: Tensor, like: Tensor) -> Tensor:
    """Return scores (B, H * W * anchors, ...) as (B, anchors, H, W)."""
    batch, channels, height, width = like.shape
    return flat.reshape(batch, height, width, channels // 4).permute(0, 3, 1, 2)


def _relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())
