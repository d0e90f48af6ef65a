"""Facts about operators, by their ONNX names: one table, and what follows from it.

An operator of our own is one row here, a body in ``export``, a traced function in ``patches`` and, with a plugin, a
directory in ``plugins``; ``tests/test_operators.py`` holds them against each other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable, Optional

# Of the operators that carry a body of standard ones.
DOMAIN = "maskrcnn"
STANDARD_DOMAINS = ("", "ai.onnx")
# onnx.TensorProto's element types.
FLOAT, INT32 = 1, 6

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Operator:
    """What has to be known of an operator that onnx does not say, or does not know itself.

    Attributes:
        name: of the node.
        is_ours: it is of the domain ``maskrcnn``.
        has_plugin: our plugin library has a creator of this name.
        outputs: the element type of each output, where there is no body that says so; None: that of one input.
        type_of_input: the index of that input.
        coordinates: indices of inputs that say where or how large, not what. Precision walks never follow them.
        fp32_inputs: of these, the ones that stay float32 where the node computes in FP16.
        is_fp32: its floats are float32 in any plan.
        reads_fp16: such a plugin reads what layers wrote, in either type.
        has_one_type: it takes features and coordinates in one type only, and so stays FP32 with its coordinates.
        is_roi: features at places.
        is_probability: it makes probabilities.
        orders_rows: the order of what it returns depends on the data: where two scores are equal but for rounding, rows
            swap places.
        decodes_boxes: it returns boxes and scores, and attribute ``top`` says how many of each level.
        selected_shapes: what selects rows has outputs of these shapes, by batch and attributes, which inference does
            not follow into the body.
    """

    name: str
    is_ours: bool = False
    has_plugin: bool = False
    outputs: Optional[tuple[int, ...]] = None
    type_of_input: int = 0
    coordinates: tuple[int, ...] = ()
    fp32_inputs: tuple[int, ...] = ()
    is_fp32: bool = False
    reads_fp16: bool = False
    has_one_type: bool = False
    is_roi: bool = False
    is_probability: bool = False
    orders_rows: bool = False
    decodes_boxes: bool = False
    selected_shapes: Optional[Callable[[int, Mapping[str, Any]], Shapes]] = None


def _top_shapes(batch: int, attributes: Mapping[str, Any]) -> Shapes:
    return ((batch, attributes["k"]),) * 2


def _proposal_shapes(batch: int, attributes: Mapping[str, Any]) -> Shapes:
    num_rows = sum(attributes["top"])
    return (batch, num_rows, 4), (batch, num_rows)


OPERATORS: Sequence[Operator] = (
    # Of our own.
    Operator(
        "MultiLevelRoiAlign",
        is_ours=True,
        has_plugin=True,
        type_of_input=1,
        coordinates=(0,),
        fp32_inputs=(0,),
        is_roi=True,
    ),
    Operator(
        "GroupedNMS", is_ours=True, has_plugin=True, outputs=(INT32, INT32), is_fp32=True, orders_rows=True
    ),
    Operator("PasteMasks", is_ours=True, has_plugin=True, is_fp32=True),
    Operator(
        "SelectTop",
        is_ours=True,
        has_plugin=True,
        outputs=(FLOAT, INT32),
        is_fp32=True,
        orders_rows=True,
        selected_shapes=_top_shapes,
    ),
    Operator(
        "DecodeProposals",
        is_ours=True,
        has_plugin=True,
        outputs=(FLOAT, FLOAT),
        is_fp32=True,
        reads_fp16=True,
        orders_rows=True,
        decodes_boxes=True,
        selected_shapes=_proposal_shapes,
    ),
    Operator(
        "DecodeDetections",
        is_ours=True,
        has_plugin=True,
        outputs=(FLOAT, FLOAT),
        is_fp32=True,
        reads_fp16=True,
    ),
    Operator(
        "SelectMasks",
        is_ours=True,
        has_plugin=True,
        outputs=(FLOAT,),
        is_fp32=True,
        reads_fp16=True,
        is_probability=True,
    ),
    Operator("DeformConv2d", is_ours=True),
    # Of mmcv 1.x's graphs.
    Operator("MMCVRoiAlign", has_plugin=True, coordinates=(1,), fp32_inputs=(1,), is_roi=True),
    Operator("grid_sampler", has_plugin=True, coordinates=(1,), has_one_type=True),
    # Of ONNX. Resize's scales are float32 by definition.
    Operator("RoiAlign", coordinates=(1, 2), has_one_type=True, is_roi=True),
    Operator("MaxRoiPool", coordinates=(1,), has_one_type=True, is_roi=True),
    Operator("GridSample", coordinates=(1,), has_one_type=True),
    Operator("Resize", coordinates=(1, 2, 3), fp32_inputs=(2,)),
    Operator("Upsample", coordinates=(1,)),
    Operator("TopK", orders_rows=True),
    Operator("NonZero", orders_rows=True),
    Operator("Unique", orders_rows=True),
    Operator("Sigmoid", is_probability=True),
    Operator("Softmax", is_probability=True),
    Operator("HardSigmoid", is_probability=True),
)
BY_NAME: Mapping[str, Operator] = {operator.name: operator for operator in OPERATORS}


def _names(has: Callable[[Operator], object]) -> frozenset[str]:
    return frozenset(operator.name for operator in OPERATORS if has(operator))


OURS = _names(lambda op: op.is_ours)
PLUGINS = _names(lambda op: op.has_plugin)
ROI_OPS = _names(lambda op: op.is_roi)
ONE_TYPE = _names(lambda op: op.has_one_type)
FP16_LOGITS = _names(lambda op: op.reads_fp16)
FP32_PLUGINS = _names(lambda op: op.is_fp32)
PROBABILITY_OPS = _names(lambda op: op.is_probability)
# Functions of ours that a typed model has in FP16: they take FP16 features and FP32 coordinates at once.
MIXED_FUNCTIONS = _names(lambda op: op.is_ours and op.fp32_inputs)
COORDINATE_INPUTS = {op.name: op.coordinates for op in OPERATORS if op.coordinates}
FP32_COORDINATES = {op.name: op.fp32_inputs for op in OPERATORS if op.fp32_inputs}
OUTPUT_TYPES = {op.name: op.outputs for op in OPERATORS if op.outputs}

# Layers with weights. A MatMul of two activations is one only where it leads to another (attention).
DENSE = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

# Values go out as they came in: of FP16 values the result is the same in FP16 and in FP32.
MOVEMENT = frozenset(
    {
        "Concat",
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
        "Identity",
        "Reshape",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)
# The same, of operators that choose among values.
EXACT = MOVEMENT | {"MaxPool", "Relu"}

SHAPE_OPS = frozenset({"Shape", "Size"})
CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})


def is_nms(op_type: str) -> bool:
    """Return whether the operator is some non-maximum suppression: GroupedNMS, NonMaxSuppression, TRTBatchedNMS."""
    return "NMS" in op_type or op_type.endswith("NonMaxSuppression")


def orders_rows(op_type: str) -> bool:
    """Return whether the order of what the operator returns depends on the data."""
    return is_nms(op_type) or (op_type in BY_NAME and BY_NAME[op_type].orders_rows)


def type_of_input(op_type: str) -> int:
    """Return the index of the input whose type the outputs of an operator without a known type have."""
    return BY_NAME[op_type].type_of_input if op_type in BY_NAME else 0
