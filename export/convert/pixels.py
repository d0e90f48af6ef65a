"""A model that takes pixels: colour order, normalisation and pad value go into the graph.

What a pixel becomes is looked up in the table of 256 values that ``runtime.host.preprocess`` makes of each channel, so
that it is the same number in every runtime: a division by a constant is a multiplication in some. What lies outside an
image is the pad value, whatever a client pads with; ``image_sizes`` says where that begins.
"""

from dataclasses import replace
from typing import Optional

import onnx
from onnx import TensorProto, helper

from export.graft.builder import FLOAT, INT32, Builder
from runtime.graphs.load import import_onnx
from runtime.host.preprocess import normalisation_tables
from runtime.metadata import KEY, ModelMetadata
from runtime.transforms import Normalize

PREFIX = "pixels"
_NORMALISED = f"{PREFIX}/normalised"
_KINDS = {"uint8": TensorProto.UINT8, "float32": FLOAT}


def with_pixel_input(model: onnx.ModelProto, metadata: ModelMetadata, input: str) -> onnx.ModelProto:
    """Return the model with an input of pixels; the one that is given stays.

    Args:
        model: float32, of ours.
        metadata: of it.
        input: ``uint8`` or ``uint8_nhwc``, what ``images`` is: (B, C, H, W) or (B, H, W, C), as the test pipeline's
            steps leave it, with anything outside each image.

    Raises:
        ValueError: the steps do not leave uint8 pixels, or the model takes pixels already.
    """
    check_pixels(metadata)
    changed = replace(metadata, input=input)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    put_before(copy, changed, "uint8")
    properties = {p.key: p.value for p in copy.metadata_props}
    helper.set_model_props(copy, {**properties, KEY: changed.to_json()})
    import_onnx().checker.check_model(copy)
    return copy


def check_pixels(metadata: ModelMetadata) -> None:
    """Refuse a model whose network's input is no function of single uint8 pixels.

    Raises:
        ValueError: names the step.
    """
    if metadata.input != "float32":
        raise ValueError(
            f"--input uint8: expected a model that takes float32, found one that takes {metadata.input}; convert the "
            "file that it was made of"
        )
    found = next((step for step in metadata.steps if isinstance(step, Normalize)), None)
    if found is not None or metadata.load.to_float32:
        what = "to_float32" if found is None else "Normalize, which makes floats of them before the end"
        raise ValueError(
            f"--input uint8: expected a test pipeline that leaves uint8 pixels to the data preprocessor, found {what}; "
            "leave --input out, and send float32 images"
        )


def put_before(model: onnx.ModelProto, metadata: ModelMetadata, kind: str) -> None:
    """Put what makes the network's input of pixels before the graph.

    Args:
        model: whose input ``images`` is normalised; changed in place.
        metadata: ``input`` says how the pixels lie.
        kind: ``uint8``; or ``float32``, for whole numbers from 0 to 255.
    """
    graph = model.graph
    _read_instead(graph, "images", _NORMALISED)
    made = onnx.GraphProto()
    builder = Builder(made, PREFIX)
    pixels = builder.float("images") if kind == "uint8" else "images"
    if metadata.input == "uint8_nhwc":
        pixels = builder.op("Transpose", pixels, perm=[0, 3, 1, 2])
    if metadata.color_order == "rgb":
        pixels = builder.op("Gather", pixels, builder.ints(2, 1, 0), axis=1)
    values = _looked_up(builder, pixels, metadata)
    inside = _inside(builder, pixels, metadata.size)
    made.node.append(
        helper.make_node(
            "Where",
            [inside, values, builder.op("Identity", float(metadata.pad_value))],
            [_NORMALISED],
            f"{PREFIX}/Where",
        )
    )
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*made.node, *nodes])
    graph.initializer.extend(made.initializer)
    _declare(graph, metadata, _KINDS[kind])


def _looked_up(b: Builder, pixels: str, metadata: ModelMetadata) -> str:
    """Return (B, C, H, W) float32: each pixel's value in its channel's table."""
    tables = normalisation_tables(metadata)
    start = b.op("Cast", [[[256.0 * channel]] for channel in range(len(tables))], to=INT32)
    index = b.op("Add", b.op("Cast", pixels, to=INT32), start)
    return b.op("Gather", tables.ravel(), index, axis=0)


def _inside(b: Builder, pixels: str, size: Optional[tuple[int, int]]) -> str:
    """Return (B, 1, H, W) bool: whether a pixel is one of its image's."""
    axes = []
    for column, axis in ((0, 2), (1, 3)):
        limit = b.op("Unsqueeze", b.columns("image_sizes", column, column + 1), b.ints(1, 2))
        place = b.op("Less", _places(b, pixels, axis, size), limit)  # (B, 1, 1, n)
        axes.append(b.op("Transpose", place, perm=[0, 1, 3, 2]) if axis == 2 else place)
    return b.op("And", *axes)


def _places(b: Builder, pixels: str, axis: int, size: Optional[tuple[int, int]]) -> str:
    """Return 0, 1, 2, … along an axis of the pixels, float32."""
    if size is not None:
        return b.op("Identity", list(map(float, range(size[axis - 2]))))
    length = b.op("Gather", b.op("Shape", pixels), b.ints(axis), axis=0)
    zero, one = b.op("Squeeze", b.ints(0)), b.op("Squeeze", b.ints(1))
    return b.float(b.op("Range", zero, b.op("Squeeze", length), one))


def _read_instead(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *((attribute.g,) if attribute.HasField("g") else ())):
                _read_instead(inner, old, new)


def _declare(graph: onnx.GraphProto, metadata: ModelMetadata, kind: int) -> None:
    """Write down what the input is; free dimensions keep their names."""
    value = next(v for v in graph.input if v.name == "images")
    batch, channels, height, width = (d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim)
    nchw, nhwc = [batch, channels, height, width], [batch, height, width, channels]
    shape = nhwc if metadata.input == "uint8_nhwc" else nchw
    value.CopyFrom(helper.make_tensor_value_info("images", kind, shape))
