"""What a strongly typed parser says to the typed model: TensorRT-RTX's, which needs no GPU.

It has none of our plugins, so the graph is cut at their nodes; but for those that are inlined.
"""

import onnx
import pytest

from runtime.engine.compat import TensorRT
from runtime.engine.lowering import engine_model
from runtime.precision import default_plan
from runtime.precision.typed import fp16_model

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: `pip install tensorrt-rtx`")


@pytest.fixture(scope="module")
def typed(tiny: onnx.ModelProto) -> onnx.ModelProto:
    converted = fp16_model(tiny, default_plan(tiny))
    inlined = ("DecodeProposals", "DecodeDetections", "SelectMasks")
    others = [function.name for function in converted.functions if function.name not in inlined]
    graph = engine_model(converted, others, TensorRT(trt))
    return onnx.shape_inference.infer_shapes(graph)


def outputs_of(part: onnx.ModelProto) -> tuple[list[str], dict[str, object]]:
    """Parse; return the errors, and each output's type."""
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    network = trt.Builder(logger).create_network(0)
    parser = trt.OnnxParser(network, logger)
    parser.parse(part.SerializeToString())
    errors = [parser.get_error(i).desc() for i in range(parser.num_errors)]
    found = [network.get_output(i) for i in range(network.num_outputs)]
    return errors, {tensor.name: tensor.dtype for tensor in found}


@pytest.mark.parametrize("part", ["proposals", "boxes", "masks"])
def test_the_parser_finds_no_two_types_in_one_operator(part: str, typed: onnx.ModelProto) -> None:
    proposal_nms, box_nms = (node for node in typed.graph.node if node.op_type == "GroupedNMS")
    box_rois, mask_rois = (node for node in typed.graph.node if node.op_type == "MultiLevelRoiAlign")
    inputs, outputs = {
        "proposals": (["images", "image_sizes"], proposal_nms.input[:2]),
        "boxes": (["images", "image_sizes", *proposal_nms.output, box_rois.output[0]], box_nms.input[:2]),
        "masks": (["labels", mask_rois.output[0]], ["masks"]),
    }[part]
    cut = onnx.utils.Extractor(typed).extract_model(list(inputs), list(outputs))
    errors, types = outputs_of(cut)
    assert errors == []
    assert types == dict.fromkeys(outputs, trt.float32)
    declared = {value.name: value.type.tensor_type.elem_type for value in cut.graph.input}
    cut_at = [name for rois in (box_rois, mask_rois) for name in rois.output if name in declared]
    assert len(cut_at) == (part != "proposals")
    assert all(declared[name] == onnx.TensorProto.FLOAT16 for name in cut_at)
