"""What OpenVINO computes wrongly in quantized models, kept from it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import openvino

_IMAGE_RANK = 4
# Input channels of a convolution that reads images: grey, color, or color with an alpha.
_MOST_IMAGE_CHANNELS = 4


def separate_quantizers(model: "openvino.Model") -> None:
    """Put a pooling of one pixel, which changes nothing, before operators that quantize what OpenVINO then gets wrong.

    Both were seen in 2026.4. A Concat: its inputs are quantized instead, and of a YOLOv8 in INT8 nothing is left; one
    that several operators read, and what is behind a pooling, OpenVINO leaves alone. The sum that a convolution of
    images is, with its bias: fused with the quantization it is off by several steps on some processors (AMX), and the
    scores of SCRFD, CenterFace and YOLOv8 with activations in uint8 by 0.01 to 0.1.

    Args:
        model: is changed.
    """
    import openvino.opset1 as ops

    for node in model.get_ordered_ops():
        if node.get_type_name() != "FakeQuantize":
            continue
        source = node.input_value(0)
        if _is_of_images(source) and (_type(source) == "Concat" or _convolves_images(source)):
            pooled = ops.max_pool(source, [1, 1], [0, 0], [0, 0], [1, 1])
            node.input(0).replace_source_output(pooled.output(0))


def _type(output: Any) -> str:
    return output.get_node().get_type_name()


def _is_of_images(output: Any) -> bool:
    rank = output.get_partial_shape().rank
    return rank.is_static and rank.get_length() == _IMAGE_RANK


def _convolves_images(output: Any) -> bool:
    """Return whether it is a convolution of few channels, with a bias or without."""
    if _type(output) == "Add":
        output = output.get_node().input_value(0)
    if _type(output) != "Convolution":
        return False
    channels = output.get_node().input_value(1).get_partial_shape()[1]
    return channels.is_static and channels.get_length() <= _MOST_IMAGE_CHANNELS
