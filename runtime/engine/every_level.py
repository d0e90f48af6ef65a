"""RoI features in shapes that TensorRT knows, where no plugin computes them.

The body of MultiLevelRoiAlign gives each feature map its own RoIs, found with NonZero, and puts the rows back with
ScatterElements. TensorRT does not see that the parts add up to the whole, and builds no engine ("dimensions not
compatible for Scatter elements"). Here each map gets all RoIs, and each row is taken from the right one: several times
the work, the same numbers.
"""

from typing import TYPE_CHECKING, Optional

from runtime.engine.quantized_rois import ROI_ALIGN
from runtime.graphs.load import import_onnx

if TYPE_CHECKING:
    import onnx

Producers = dict[str, "onnx.NodeProto"]


def align_on_every_level(function: "onnx.FunctionProto") -> bool:
    """Rewrite the body of a MultiLevelRoiAlign.

    Args:
        function: is changed, where its body is as ``export.functions`` writes it, whatever is cast in it.

    Returns:
        Whether it was.
    """
    if function.name != ROI_ALIGN:
        return False
    producers = {name: node for node in function.node for name in node.output}
    levels = [node for node in function.node if node.op_type == "RoiAlign"]
    ways = [_own_rois(node, producers) for node in levels]
    picked = _put_back(function, [node.output[0] for node in levels])
    if not levels or None in ways or picked is None:
        return False
    make_node = import_onnx().helper.make_node
    axes = f"{picked}_axes"
    added = [make_node("Constant", [], [axes], value_ints=[1, 2, 3])]
    result = levels[0].output[0]
    for level, (node, way) in enumerate(zip(levels, ways)):
        scaled, boxes, images, is_here = way
        scaled.input[0], node.input[2] = boxes, images
        if level == 0:
            continue
        column, chosen = f"{picked}_column_{level}", f"{picked}_level_{level}"
        if level == len(levels) - 1:
            chosen = picked
        added.append(make_node("Unsqueeze", [is_here, axes], [column]))
        added.append(make_node("Where", [column, node.output[0], result], [chosen]))
        result = chosen
    if len(levels) == 1:
        added = [make_node("Identity", [result], [picked])]
    for node in added:
        node.name = f"{function.name}/{node.output[0]}"
    place = next(i for i, node in enumerate(function.node) if picked in node.output)
    nodes = list(function.node)
    _keep(function, [*nodes[:place], *added, *nodes[place + 1 :]])
    return True


def _own_rois(
    node: "onnx.NodeProto", producers: Producers
) -> Optional[tuple["onnx.NodeProto", str, str, str]]:
    """Return the scaling of a level's RoIs, all boxes, all image numbers, and the tensor that says which are its own.

    Returns:
        None of a body that is another.
    """
    scaled = producers.get(node.input[1])
    boxes = producers.get(scaled.input[0]) if scaled is not None and scaled.op_type == "Mul" else None
    images = producers.get(node.input[2])
    gathers = (boxes, images)
    if any(gather is None or gather.op_type != "Gather" for gather in gathers):
        return None
    found = producers.get(boxes.input[1])
    if found is not None and found.op_type == "Squeeze":
        found = producers.get(found.input[0])
    if found is None or found.op_type != "NonZero" or boxes.input[1] != images.input[1]:
        return None
    return scaled, boxes.input[0], images.input[0], found.input[0]


def _put_back(function: "onnx.FunctionProto", aligned: list[str]) -> Optional[str]:
    """Return the tensor that has the rows of all levels, in the order of the RoIs; None of a body that is another."""
    joined = [n.output[0] for n in function.node if n.op_type == "Concat" and list(n.input) == aligned]
    gathers = [n.output[0] for n in function.node if n.op_type == "Gather" and n.input[0] in joined]
    return gathers[0] if len(gathers) == 1 else None


def _keep(function: "onnx.FunctionProto", nodes: list["onnx.NodeProto"]) -> None:
    """Give the function those of the nodes that its outputs depend on."""
    needed = set(function.output)
    kept: list[onnx.NodeProto] = []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    del function.node[:]
    function.node.extend(reversed(kept))
