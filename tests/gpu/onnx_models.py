"""Writes small ONNX files with one plugin node each, for machines without onnx: python -m tests.gpu.onnx_models FOLDER.

The attributes are those of the modules tests/gpu/<op>/plugin.py, written out: those need TensorRT, this one onnx.
"""

import math
import sys
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from export.functions import functions_for

OPSET = 17
FLOAT, INT32 = TensorProto.FLOAT, TensorProto.INT32


def model_of(
    op: str, attributes: dict, inputs: list, outputs: list, *, with_body: bool = False
) -> onnx.ModelProto:
    """Return a model of one node. inputs, outputs: (name, type, shape)."""
    node = helper.make_node(
        op, [i[0] for i in inputs], [o[0] for o in outputs], domain="maskrcnn", **attributes
    )
    graph = helper.make_graph(
        [node],
        op,
        [helper.make_tensor_value_info(*i) for i in inputs],
        [helper.make_tensor_value_info(*o) for o in outputs],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("maskrcnn", 1)]
    functions = functions_for([node], OPSET) if with_body else []
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=functions)


def models() -> dict[str, onnx.ModelProto]:
    features = [(f"feature_{i}", FLOAT, ["B", 16, f"H{i}", f"W{i}"]) for i in range(4)]
    roi_align = {
        "output_height": 7,
        "output_width": 7,
        "spatial_scales": [1 / 4, 1 / 8, 1 / 16, 1 / 32],
        "finest_scale": 56.0,
        "sampling_ratio": 0,
        "mode": "avg",
        "coordinate_transformation_mode": "half_pixel",
    }
    nms = {"iou_threshold": 0.5, "score_threshold": 0.1, "max_output": 50}
    boxes = [("boxes", FLOAT, ["B", "M", 4]), ("scores", FLOAT, ["B", "M"]), ("groups", INT32, ["B", "M"])]
    kept = [("indices", INT32, ["B", 50]), ("count", INT32, ["B"])]
    masks = [("masks", FLOAT, ["B", "K", 28, 28]), ("boxes", FLOAT, ["B", "K", 4])]
    canvas = ("canvas", FLOAT, ["B", 3, "H", "W"])
    rois = ("rois", FLOAT, ["R", 5])
    paste = ["PasteMasks", {"threshold": 0.5}, [*masks, canvas], [("masks_out", FLOAT, ["B", "K", "H", "W"])]]
    scores = [("scores", FLOAT, ["B", "N"])]
    best = [("values", FLOAT, ["B", 100]), ("indices", INT32, ["B", 100])]
    maps = [
        (f"{kind}_{i}", FLOAT, ["B", channels, f"H{i}", f"W{i}"])
        for kind, channels in (("logits", 3), ("deltas", 12))
        for i in range(3)
    ]
    decode_proposals = {
        "top": [300, 300, 100],
        "means": [0.0, 0.0, 0.0, 0.0],
        "stds": [1.0, 1.0, 1.0, 1.0],
        "max_ratio": abs(math.log(16 / 1000)),
        "clip": 1,
        "min_size": 10.0,
    }
    proposals = [("boxes", FLOAT, ["B", 700, 4]), ("scores", FLOAT, ["B", 700])]
    return {
        "multi_level_roi_align": model_of(
            "MultiLevelRoiAlign", roi_align, [rois, *features], [("out", FLOAT, ["R", 16, 7, 7])]
        ),
        "grouped_nms": model_of("GroupedNMS", nms, boxes, kept),
        "grouped_nms_with_body": model_of("GroupedNMS", nms, boxes, kept, with_body=True),
        "select_top": model_of("SelectTop", {"k": 100}, scores, best),
        "decode_proposals": model_of(
            "DecodeProposals",
            decode_proposals,
            [*maps, ("priors", FLOAT, ["N", 4]), ("image_sizes", FLOAT, ["B", 2])],
            proposals,
        ),
        "padded_space_to_depth": model_of(
            "PaddedSpaceToDepth",
            {"pads": [4, 4, 2, 2], "blocksize": 2},
            [("images", FLOAT, ["B", 3, "H", "W"])],
            [("blocks", FLOAT, ["B", 12, "rows", "columns"])],
        ),
        # A plugin of TensorRT 8 writes float32; 8.5 converts it to uint8 neither by Cast nor by an IdentityLayer ("Cast
        # output type does not support UINT8"), so that no file here does.
        "paste_masks": model_of(*paste),
    }


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, model in models().items():
        onnx.save(model, folder / f"{name}.onnx")


if __name__ == "__main__":
    main()
