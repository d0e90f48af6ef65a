"""What the precision of a detector turns on: facts about operators, by their ONNX names."""

# Layers with weights. A MatMul of two activations is one only where it leads to another (attention).
DENSE = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

# RoI operators: features at places. mmcv 1.x writes MMCVRoiAlign.
ROI_OPS = frozenset({"MultiLevelRoiAlign", "MMCVRoiAlign", "RoiAlign", "MaxRoiPool"})

# Inputs that say where or how large, not what: indices per operator. Precision walks never follow them, and in a
# strongly typed FP16 model those of ``FP32_COORDINATES`` are float32.
COORDINATE_INPUTS = {
    "MultiLevelRoiAlign": (0,),
    "MMCVRoiAlign": (1,),
    "RoiAlign": (1, 2),
    "MaxRoiPool": (1,),
    "GridSample": (1,),
    "grid_sampler": (1,),
    "Resize": (1, 2, 3),
    "Upsample": (1,),
}
# Operators that take FP16 features and FP32 coordinates at once: the plugins (plugins/README.md), and Resize, whose
# scales are float32 by definition.
FP32_COORDINATES = {"MultiLevelRoiAlign": (0,), "MMCVRoiAlign": (1,), "Resize": (2,)}
# Operators that take features and coordinates in one type only, and so stay FP32 with their coordinates.
ONE_TYPE = frozenset({"RoiAlign", "MaxRoiPool", "GridSample", "grid_sampler"})

# What onnx cannot say of operators without a body, which is how TensorRT's plugins are written: the type of each output
# (1 and 6 are onnx.TensorProto.FLOAT and INT32). Others have outputs of the type of their first input.
OUTPUT_TYPES = {
    "GroupedNMS": (6, 6),
    "SelectTop": (1, 6),
    "DecodeProposals": (1, 1),
    "DecodeDetections": (1, 1),
    "SelectMasks": (1,),
}
# Operators whose floats are float32 in any plan; NMS besides. In a weakly typed network those of ``FP16_LOGITS`` read
# what layers wrote, in either type.
FP16_LOGITS = frozenset({"DecodeProposals", "DecodeDetections", "SelectMasks"})
FP32_PLUGINS = FP16_LOGITS | {"PasteMasks", "SelectTop"}
# Operators of which each output has the type of one of its inputs.
OUTPUT_TYPE_OF_INPUT = {"MultiLevelRoiAlign": 1, "MMCVRoiAlign": 0, "grid_sampler": 0}

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
PROBABILITY_OPS = frozenset({"Sigmoid", "Softmax", "HardSigmoid", "SelectMasks"})


def is_nms(op_type: str) -> bool:
    """Return whether the operator is some non-maximum suppression: GroupedNMS, NonMaxSuppression, TRTBatchedNMS."""
    return "NMS" in op_type or op_type == "NonMaxSuppression"
