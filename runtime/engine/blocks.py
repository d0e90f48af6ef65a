"""A first convolution that reads images of any size as blocks of 2 x 2 pixels.

TensorRT has kernels for three input channels where height and width are fixed; where they are free it takes one for
many channels, on which most of the arithmetic is padding: on an H200 in FP16 it is four times slower. A convolution of
stride 2 is one of stride 1 on the image's blocks, with four times the channels and a kernel of half the size: the same
products in another order, and a few with 0.

Blocks are made by one plugin (``PaddedSpaceToDepth``, which exported files do not have), which writes them in the type
and layout that the convolution reads; without it by Pad and SpaceToDepth, which take several times as long.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Optional

import numpy as np

from runtime.graphs.load import import_onnx, metadata_of
from runtime.graphs.operators import DOMAIN

if TYPE_CHECKING:
    import onnx

OPERATOR = "PaddedSpaceToDepth"
_BLOCK = 2
_KERNEL = 7
# Top, left, bottom, right. Even, so that a block's pixels are pairs of the image's, which a kernel reads in one load.
_PADS = (4, 4, 2, 2)
_MAX_CHANNELS = 4
_IMAGES = "images"
_SUFFIX = "_in_blocks"


@dataclass(frozen=True)
class _Reader:
    """An input of a node: the convolution's own, or where that is quantized, that of the operator that quantizes it."""

    node: "onnx.NodeProto"
    place: int

    @property
    def tensor(self) -> str:
        return self.node.input[self.place]

    def read(self, tensor: str) -> None:
        self.node.input[self.place] = tensor


def read_images_in_blocks(model: "onnx.ModelProto", plugin_ops: Collection[str] = ()) -> None:
    """Rewrite the first convolution of a model of ours of dynamic size, where it is one of 7 x 7 and stride 2.

    A quantized one too: what is quantized are the blocks then, and the rearranged weight, by the same scales.

    Args:
        model: is changed.
        plugin_ops: names of the operators that plugins provide.
    """
    if not _has_even_sizes(model):
        return
    producers = {name: node for node in model.graph.node for name in node.output}
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if not _has_attributes(node):
            continue
        images, weight = (_reader(node, place, producers) for place in (0, 1))
        tensor = weights.get(weight.tensor)
        if images.tensor == _IMAGES and tensor is not None and _fits(tuple(tensor.dims)):
            _rewrite(model.graph, node, images, weight, tensor)
            if OPERATOR in plugin_ops:
                _declare(model, tensor)
            else:
                in_standard_operators(model)
            return


def in_standard_operators(model: "onnx.ModelProto") -> None:
    """Put Pad and SpaceToDepth in the place of the plugin's node, for whoever does not know it.

    Args:
        model: is changed.
    """
    onnx = import_onnx()
    nodes = []
    for node in model.graph.node:
        if (node.domain, node.op_type) != (DOMAIN, OPERATOR):
            nodes.append(node)
            continue
        (images,), (blocks,) = node.input, node.output
        top, left, bottom, right = next(a.ints for a in node.attribute if a.name == "pads")
        pads, padded = f"{blocks}_pads", f"{blocks}_padded"
        amounts = np.array([0, 0, top, left, 0, 0, bottom, right], np.int64)
        model.graph.initializer.append(onnx.numpy_helper.from_array(amounts, pads))
        nodes.append(onnx.helper.make_node("Pad", [images, pads], [padded], name=padded))
        nodes.append(
            onnx.helper.make_node("SpaceToDepth", [padded], [blocks], name=node.name, blocksize=_BLOCK)
        )
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _has_even_sizes(model: "onnx.ModelProto") -> bool:
    """Return whether this is a model of ours whose images have any size, in whole blocks."""
    try:
        metadata = metadata_of(model)
    except ValueError:  # said by who reads the file, with its name
        return False
    return metadata is not None and metadata.size is None and metadata.size_divisor % _BLOCK == 0


def _reader(node: "onnx.NodeProto", place: int, producers: Mapping[str, "onnx.NodeProto"]) -> _Reader:
    quantizer = _maker_of(
        _maker_of(node, place, "DequantizeLinear", producers), 0, "QuantizeLinear", producers
    )
    return _Reader(node, place) if quantizer is None else _Reader(quantizer, 0)


def _maker_of(
    node: Optional["onnx.NodeProto"], place: int, op_type: str, producers: Mapping[str, "onnx.NodeProto"]
) -> Optional["onnx.NodeProto"]:
    maker = producers.get(node.input[place]) if node is not None else None
    return maker if maker is not None and maker.op_type == op_type else None


def _has_attributes(node: "onnx.NodeProto") -> bool:
    """Return whether this is a convolution of stride 2 whose output has half the size of its input."""
    if node.op_type != "Conv":
        return False
    get = import_onnx().helper.get_attribute_value
    found = {attribute.name: get(attribute) for attribute in node.attribute}
    pad = _KERNEL // 2
    expected = {"strides": [_BLOCK] * 2, "pads": [pad] * 4, "dilations": [1, 1], "group": 1}
    defaults = {"dilations": [1, 1], "group": 1}
    return "auto_pad" not in found and all(
        found.get(name, defaults.get(name)) == value for name, value in expected.items()
    )


def _fits(shape: tuple[int, ...]) -> bool:
    return len(shape) == 4 and shape[1] <= _MAX_CHANNELS and shape[2:] == (_KERNEL, _KERNEL)


def _rewrite(
    graph: "onnx.GraphProto",
    node: "onnx.NodeProto",
    images: _Reader,
    weight: _Reader,
    tensor: "onnx.TensorProto",
) -> None:
    onnx = import_onnx()
    blocks, kernel = (f"{node.name}{_SUFFIX}_{part}" for part in ("images", "kernel"))
    size = (_KERNEL + 1) // _BLOCK
    rearranged = kernel_of_blocks(onnx.numpy_helper.to_array(tensor))
    graph.initializer.append(onnx.numpy_helper.from_array(rearranged, kernel))
    images.read(blocks)
    weight.read(kernel)
    kept = [a for a in node.attribute if a.name not in ("strides", "pads", "kernel_shape")]
    added = {"strides": [1, 1], "pads": [0] * 4, "kernel_shape": [size] * 2}
    attributes = [*kept, *(onnx.helper.make_attribute(name, value) for name, value in added.items())]
    del node.attribute[:]
    node.attribute.extend(attributes)
    options = {"pads": _PADS, "blocksize": _BLOCK}
    made = onnx.helper.make_node(OPERATOR, [_IMAGES], [blocks], name=blocks, domain=DOMAIN, **options)
    nodes = [made, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _declare(model: "onnx.ModelProto", weight: "onnx.TensorProto") -> None:
    """Say what onnx does not know of the plugin's node, the first one: its domain, its output's type and channels.

    Args:
        model: is changed.
        weight: of the convolution that read the images, which have its type.
    """
    onnx = import_onnx()
    if all(imported.domain != DOMAIN for imported in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    shape = [None, weight.dims[1] * _BLOCK**2, None, None]
    (blocks,) = model.graph.node[0].output
    declared = onnx.helper.make_tensor_value_info(blocks, weight.data_type, shape)
    model.graph.value_info.append(declared)


def kernel_of_blocks(weight: np.ndarray) -> np.ndarray:
    """Return (O, 4 * C, (k + 1) / 2, (k + 1) / 2) for blocks of (O, C, k, k) for pixels, k odd, of the same type.

    Channels are those of SpaceToDepth: by row and column in the block, then by channel.
    """
    grown = np.pad(weight, [(0, 0), (0, 0), (1, 0), (1, 0)])
    outputs, channels, height, width = grown.shape
    parts = grown.reshape(outputs, channels, height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK)
    by_block = parts.transpose(0, 3, 5, 1, 2, 4)
    return np.ascontiguousarray(by_block).reshape(outputs, -1, height // _BLOCK, width // _BLOCK)
