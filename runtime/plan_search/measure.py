"""What FP16 does to each tensor of a model: its range, and the error against FP32.

One graph computes both. Beside each node that would be FP16 stand two FP16 copies: one reads the results of the
copies before it, and its error is what has gathered so far; one reads the float32 tensors, and its error is the
node's own. Both take coordinates and indices from the float32 model, so that RoI n is the same RoI on both sides and
not another proposal in its place. Norms are taken inside the graph, each right behind its tensor: single numbers are
all that leaves it, and it needs little more memory than the model itself (R50-FPN at 800x1216: 1.2 GB for 0.7 GB).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Optional

import numpy as np

from runtime.graphs.load import import_onnx
from runtime.graphs.operators import EXACT
from runtime.graphs.session import open_session
from runtime.plan_search.emulation import Emulator, HalfWriter
from runtime.precision.plan import PrecisionPlan
from runtime.precision.prepare import FP32, fp32_nodes, prepared, replace

if TYPE_CHECKING:
    import onnx

FP16_MAX = 65504.0
_GATHERED, _OWN = "|gathered", "|own"


@dataclass(frozen=True)
class TensorFigures:
    """One float tensor of the main graph, over all images.

    Attributes:
        tensor, node, op_type: its name, and the node that makes it.
        max_abs: largest absolute value in FP32.
        error: relative error of FP16 up to here, ``|x16 - x| / |x|`` in Euclidean norms, counted from the last
            FP32 tensors before it; infinite where FP16 makes Inf or NaN of it; None for a tensor that stays FP32.
        own_error: the same of this node alone; 0 for one that only moves or selects values.
    """

    tensor: str
    node: str
    op_type: str
    max_abs: float
    error: Optional[float]
    own_error: Optional[float]

    @property
    def overflows(self) -> bool:
        """Whether a value is beyond FP16's range, NaN included."""
        return not self.max_abs <= FP16_MAX


def measure(
    emulator: Emulator,
    plan: PrecisionPlan,
    feeds: Iterable[Mapping[str, np.ndarray]],
    *,
    threads: Optional[int] = None,
) -> list[TensorFigures]:
    """Run the model on each feed, and return the figures of its float tensors in the graph's order.

    Args:
        emulator: of the model.
        plan: what stays FP32.
        feeds: the model's inputs, one dictionary for each run.
        threads: CPU threads of onnxruntime; None lets it choose.

    Raises:
        ValueError: the plan is another model's.
        RuntimeError: onnxruntime failed.
    """
    model, tensors = _measuring_model(emulator, plan)
    numbers: dict[str, list[float]] = {value.name: [] for value in model.graph.output}
    with open_session(model, threads=threads, in_file_order=True) as session:
        for feed in feeds:
            for name, value in session.run(feed).items():
                numbers[name].append(float(value))
    return [_figures(tensor, numbers) for tensor in tensors]


@dataclass(frozen=True)
class _Tensor:
    """A float tensor of the main graph, and whether it is FP16 under the plan."""

    name: str
    node: str
    op_type: str
    is_half: bool


def _measuring_model(emulator: Emulator, plan: PrecisionPlan) -> "tuple[onnx.ModelProto, list[_Tensor]]":
    """Return the model, whose outputs are norms, and the tensors that they are of."""
    copy = prepared(emulator.original, plan)
    writer = HalfWriter(emulator, copy)
    tensors: list[_Tensor] = []
    outputs: list[str] = []
    for node, fp32 in zip(copy.graph.node, fp32_nodes(copy, plan)):
        writer.nodes.append(node)
        floats = [name for name in node.output if emulator.is_float(name)]
        if floats and not fp32:
            writer.add_half(node, _GATHERED)
            if node.op_type not in EXACT:
                writer.add_half(node, _OWN, from_half=False)
        made = [_Tensor(name, node.name, node.op_type, not fp32) for name in floats]
        tensors += made
        outputs += [name for tensor in made for name in _add_norms(writer, tensor)]
    make = import_onnx().helper.make_tensor_value_info
    replace(copy.graph.output, [make(name, FP32, []) for name in outputs])
    writer.write()
    return copy, tensors


def _add_norms(writer: HalfWriter, tensor: _Tensor) -> list[str]:
    """Add what is measured of a tensor; return the names of the numbers."""
    make, name = import_onnx().helper.make_node, tensor.name
    writer.nodes.append(make("Abs", [name], [f"{name}|abs"]))
    writer.nodes.append(make("ReduceMax", [f"{name}|abs"], [f"{name}|max"], keepdims=0))
    if not tensor.is_half:
        return [f"{name}|max"]
    writer.nodes.append(make("ReduceL2", [name], [f"{name}|norm"], keepdims=0))
    copies = (_GATHERED,) if tensor.op_type in EXACT else (_GATHERED, _OWN)
    for suffix in copies:
        writer.nodes.append(make("Sub", [f"{name}{suffix}", name], [f"{name}{suffix}|difference"]))
        difference = f"{name}{suffix}|difference"
        writer.nodes.append(make("ReduceL2", [difference], [f"{name}{suffix}|error"], keepdims=0))
    return [f"{name}|max", f"{name}|norm", *(f"{name}{suffix}|error" for suffix in copies)]


def _figures(tensor: _Tensor, numbers: Mapping[str, Sequence[float]]) -> TensorFigures:
    error = own_error = None
    if tensor.is_half:
        norm = numbers[f"{tensor.name}|norm"]
        error = _relative(numbers[f"{tensor.name}{_GATHERED}|error"], norm)
        own_error = _relative(numbers.get(f"{tensor.name}{_OWN}|error", [0.0]), norm)
    # An empty tensor's largest value is -inf.
    max_abs = max(0.0, float(np.max(numbers[f"{tensor.name}|max"])))
    return TensorFigures(tensor.name, tensor.node, tensor.op_type, max_abs, error, own_error)


def _relative(errors: Sequence[float], norms: Sequence[float]) -> float:
    """Return the relative error over all runs; infinite where it is Inf or NaN, or an error where there was 0."""
    error, norm = np.linalg.norm(errors), np.linalg.norm(norms)
    if not np.isfinite(error) or not np.isfinite(norm):
        return float("inf")
    if norm == 0:
        return 0.0 if error == 0 else float("inf")
    return float(error / norm)
