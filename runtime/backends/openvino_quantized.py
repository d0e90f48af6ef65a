"""What OpenVINO computes wrongly in quantized models, kept from it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import openvino

_IMAGE_RANK = 4


def keep_concats_whole(model: "openvino.Model") -> None:
    """Put a pooling of one pixel, which changes nothing, between each Concat and the operator that quantizes it.

    OpenVINO (seen in 2026.4) quantizes the inputs of such a Concat instead, and gets other numbers: of a YOLOv8 in INT8
    nothing is left. A Concat that several operators read, and what is behind a pooling, it leaves alone.

    Args:
        model: is changed.
    """
    import openvino.opset1 as ops

    for node in model.get_ordered_ops():
        if node.get_type_name() != "FakeQuantize":
            continue
        source = node.input_value(0)
        if source.get_node().get_type_name() == "Concat" and _is_of_images(source):
            pooled = ops.max_pool(source, [1, 1], [0, 0], [0, 0], [1, 1])
            node.input(0).replace_source_output(pooled.output(0))


def _is_of_images(output: Any) -> bool:
    rank = output.get_partial_shape().rank
    return rank.is_static and rank.get_length() == _IMAGE_RANK
