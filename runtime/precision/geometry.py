"""Which nodes of a detector are geometry, read from the graph: the default precision plan.

Dense work is every layer with weights and all that lies on the way of the activations to one: elementwise operators,
pooling, normalisation, resizing, attention. From each layer the walk goes backwards through any operator, and at an
operator that samples (RoIAlign, grid sampling, Resize) through its features only, never through coordinates. So it
ends at the images, and does not run from the box head through the RoIs into the proposals.

Everything else that computes on floats is geometry: anchors, decoding, clipping, probabilities, the best k, NMS, RoI
coordinates, what is made of the mask logits. Three kinds of nodes are in neither: RoI operators that take FP16
features and FP32 coordinates together, what only moves the results of a layer (transposing raw logits, gathering the
mask of a class where SelectMasks does not: the values stay the same), and constants, which have the type of their
reader.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from runtime.graphs.operators import (
    COORDINATE_INPUTS,
    DENSE,
    MOVEMENT,
    ONE_TYPE,
    PROBABILITY_OPS,
    ROI_OPS,
    SHAPE_OPS,
    is_nms,
)
from runtime.graphs.view import Graph
from runtime.precision.plan import PrecisionGroup, PrecisionPlan

if TYPE_CHECKING:
    import onnx

# The figures were measured on a Mask R-CNN R50-FPN at 800x1216, in a graph without the fused operators.
REASONS = {
    "shapes and anchors": "anchor coordinates beyond 2048 px are not all FP16 numbers, and a size that is computed "
    "from a rounded scale factor is another size",
    "proposal scores": "FP16 probabilities near 1 are 0.0005 apart: below that the best k and NMS know no order",
    "proposal decoding and NMS": "coordinates above 1024 px move in whole pixels in FP16, and exp and the offsets that "
    "separate NMS groups overflow",
    "RoI coordinates": "RoIs beyond 256x256 px have an area that FP16 does not hold, so that the wrong FPN level is "
    "read (2.6 points of mask AP), and coordinates above 1024 px move in whole pixels",
    "box scores": "FP16 probabilities near 1 are 0.0005 apart: below that NMS and the best K know no order",
    "box decoding and NMS": "the offsets of NMS in standard operators overflow in FP16, and coordinates above 1024 px "
    "move in whole pixels",
    "mask probabilities": "contours are where the probability is the threshold, and move with its rounding",
    "pasting": "pixel coordinates above 1024 are whole pixels in FP16, and contours move with them",
    "feature sampling": "features and coordinates have one type in this operator, and FP16 coordinates above 1024 px "
    "move in whole pixels",
    "normalisation statistics": "squares overflow in FP16 from 256 on, and a small epsilon is rounded to nothing",
}


def default_plan(model: "onnx.ModelProto") -> PrecisionPlan:
    """Return the plan that follows from the graph alone: geometry in FP32, layers with weights in FP16.

    Works for any detector; the module says how the two are told apart.

    Raises:
        ValueError: a node that has to be in the plan has no name of its own.
        RuntimeError: the package onnx is not installed.
    """
    return PrecisionPlan(geometry_groups(model))


def geometry_groups(model: "onnx.ModelProto") -> tuple[PrecisionGroup, ...]:
    """Return the nodes that stay FP32 in any detector, grouped; see the module.

    Raises:
        ValueError: one of these nodes has no name, or the name of another node.
        RuntimeError: the package onnx is not installed.
    """
    graph = Graph(model)
    dense = dense_path(graph)
    half = dense | _carried(graph, dense)
    half |= _constants_of(graph, half)
    names: dict[int, str] = {}
    for index, node in enumerate(graph.nodes):
        if not graph.computes_on_floats(index) or node.op_type in ROI_OPS - ONE_TYPE:
            continue
        if node.op_type in ONE_TYPE and index in dense:
            names[index] = "feature sampling"
        elif index not in half:
            names[index] = ""
    statistics = _statistics(graph, dense)
    names.update(dict.fromkeys(statistics, "normalisation statistics"))
    names.update(_geometry_names(graph, dense, {i for i, name in names.items() if not name}))
    _check_names(graph, names)
    members = defaultdict(list)
    for index in sorted(names):
        members[names[index]].append(graph.nodes[index].name)
    return tuple(PrecisionGroup(name, REASONS[name], tuple(nodes)) for name, nodes in members.items())


def dense_path(graph: Graph) -> set[int]:
    """Return the layers with weights, their biases, and all that lies on the activations' way to one."""
    pending = [i for i, node in enumerate(graph.nodes) if node.op_type in DENSE and _has_weights(graph, i)]
    found: set[int] = set()
    while pending:
        index = pending.pop()
        if index in found:
            continue
        found.add(index)
        # What is quantized between two layers is on the way: integers, from one operator to its counterpart.
        is_dequantized = graph.nodes[index].op_type == "DequantizeLinear"
        activations = (
            t
            for t in feature_inputs(graph, index)
            if t not in graph.constants and (is_dequantized or graph.is_float(t))
        )
        pending.extend(graph.producer[t] for t in activations if t in graph.producer)
    return found | {i for i in range(len(graph.nodes)) if _is_bias(graph, i)}


def _is_bias(graph: Graph, index: int) -> bool:
    """Return whether the node adds the bias of a MatMul, which has none of its own."""
    node = graph.nodes[index]
    layers = {i for i in graph.before(index) if graph.nodes[i].op_type == "MatMul" and _has_weights(graph, i)}
    return node.op_type == "Add" and bool(layers) and not graph.vectors.isdisjoint(node.input)


def feature_inputs(graph: Graph, index: int) -> list[str]:
    """Return the tensors that a node reads, without those that say where or how large."""
    node = graph.nodes[index]
    coordinates = {node.input[i] for i in COORDINATE_INPUTS.get(node.op_type, ()) if i < len(node.input)}
    return [name for name in graph.inputs[index] if name not in coordinates]


def _has_weights(graph: Graph, index: int) -> bool:
    return any(name in graph.constants for name in graph.nodes[index].input[:2])


def _carried(graph: Graph, dense: Collection[int]) -> set[int]:
    """Return the nodes that only move what layers made."""
    carried: set[int] = set()
    for index, node in enumerate(graph.nodes):
        floats = [name for name in graph.inputs[index] if graph.is_float(name)]
        makers = [graph.producer.get(name, -1) for name in floats]
        is_moved = node.op_type in MOVEMENT and makers and all(m in dense or m in carried for m in makers)
        if is_moved and index not in dense:
            carried.add(index)
    return carried


def _constants_of(graph: Graph, half: Collection[int]) -> set[int]:
    """Return the nodes that make constants (a transposed weight) which only these nodes read."""
    found: set[int] = set()
    for index in reversed(range(len(graph.nodes))):
        is_constant = all(name in graph.constants for name in graph.nodes[index].output)
        readers = list(graph.after(index))
        if is_constant and readers and all(r in half or r in found for r in readers):
            found.add(index)
    return found


def _statistics(graph: Graph, dense: Collection[int]) -> set[int]:
    """Return the nodes of a normalisation in single operators from the square to the division by its root.

    The mean may be one of means: rows first, then what is left.
    """
    found: set[int] = set()
    for index in sorted(dense):
        if not _is_square(graph.nodes[index]):
            continue
        chain = [index]
        for op_types in ({"ReduceMean"}, {"ReduceMean"}, {"Add"}, {"Sqrt"}, {"Div", "Reciprocal"}):
            chain += [i for i in graph.after(chain[-1]) if graph.nodes[i].op_type in op_types][:1]
        types = [graph.nodes[i].op_type for i in chain[1:]]
        means = types.count("ReduceMean")
        if means and types[means : means + 2] == ["Add", "Sqrt"]:
            found.update(chain)
    return found


def _is_square(node: "onnx.NodeProto") -> bool:
    return node.op_type == "Pow" or (node.op_type == "Mul" and node.input[0] == node.input[1])


def _geometry_names(graph: Graph, dense: Collection[int], geometry: Collection[int]) -> dict[int, str]:
    """Return each geometry node's group."""
    roi_depth = _roi_depth(graph)
    stages = _stages(graph, roi_depth)
    heads = _heads(graph, dense, roi_depth)
    probabilities = _probabilities(graph, geometry)
    has_data = _depends_on_data(graph)
    rois = _roi_coordinates(graph, roi_depth)
    names = {}
    for index in geometry:
        head = heads[stages[index]]
        if index in rois:
            names[index] = "RoI coordinates"
        elif index not in has_data:
            names[index] = "shapes and anchors"
        elif index in probabilities:
            names[index] = "mask probabilities" if head == "mask" else f"{head} scores"
        else:
            names[index] = "pasting" if head == "mask" else f"{head} decoding and NMS"
    return names


def _roi_depth(graph: Graph) -> list[int]:
    """Return for each node how many RoI operators follow each other on the way to it, at most."""
    depth: list[int] = []
    for index in range(len(graph.nodes)):
        before = (depth[i] + (graph.nodes[i].op_type in ROI_OPS) for i in graph.before(index))
        depth.append(max(before, default=0))
    return depth


def _stages(graph: Graph, roi_depth: list[int]) -> list[int]:
    """Return the depth at which a node's results are first read: box limits belong to the boxes that they clip."""
    stages = list(roi_depth)
    for index in reversed(range(len(stages))):
        if graph.nodes[index].op_type not in ROI_OPS:
            stages[index] = min((stages[i] for i in graph.after(index)), default=roi_depth[index])
    return stages


def _heads(graph: Graph, dense: Iterable[int], roi_depth: list[int]) -> list[str]:
    """Return which head works at each depth: fully connected layers make boxes, convolutions of RoIs masks."""
    layers: list[set[str]] = [set() for _ in range(max(roi_depth, default=0) + 1)]
    for index in dense:
        if graph.nodes[index].op_type in DENSE:
            layers[roi_depth[index]].add(graph.nodes[index].op_type)
    heads = ["box" if ops & {"Gemm", "MatMul"} or not ops else "mask" for ops in layers]
    heads[0] = "proposal" if any(node.op_type in ROI_OPS for node in graph.nodes) else "box"
    return heads


def _probabilities(graph: Graph, geometry: Collection[int]) -> set[int]:
    """Return sigmoid and softmax, and what makes something of their results alone."""
    found: set[int] = set()
    for index in sorted(geometry):
        node = graph.nodes[index]
        floats = [t for t in graph.inputs[index] if graph.is_float(t) and t not in graph.constants]
        from_found = bool(floats) and all(graph.producer.get(t) in found for t in floats)
        if node.op_type in PROBABILITY_OPS or (from_found and not is_nms(node.op_type)):
            found.add(index)
    return found


def _depends_on_data(graph: Graph) -> set[int]:
    """Return the nodes whose results depend on the inputs' values, and not on their shapes alone."""
    found: set[int] = set()
    for index, node in enumerate(graph.nodes):
        values = [name for name in graph.inputs[index] if name not in graph.constants]
        depends = any(name not in graph.producer or graph.producer[name] in found for name in values)
        if depends and node.op_type not in SHAPE_OPS:
            found.add(index)
    return found


def _roi_coordinates(graph: Graph, roi_depth: list[int]) -> set[int]:
    """Return what is made of the boxes that an NMS keeps, up to the next RoI operator."""
    rois = [
        node.input[i]
        for node in graph.nodes
        if node.op_type in ROI_OPS
        for i in COORDINATE_INPUTS[node.op_type]
        if i < len(node.input)
    ]
    needed = graph.ancestors(rois)
    found: set[int] = set()
    for index, node in enumerate(graph.nodes):
        if is_nms(node.op_type):
            kept = graph.descendants([index])
            found |= {i for i in kept & needed if roi_depth[i] == roi_depth[index]}
    return found


def _check_names(graph: Graph, indices: Iterable[int]) -> None:
    """Refuse nodes that a plan cannot name."""
    uses: dict[str, int] = defaultdict(int)
    for node in graph.nodes:
        uses[node.name] += 1
    bad = [
        graph.nodes[i] for i in sorted(indices) if not graph.nodes[i].name or uses[graph.nodes[i].name] > 1
    ]
    if bad:
        first = f"{bad[0].op_type} that makes {bad[0].output[0]!r} is called {bad[0].name!r}"
        raise ValueError(
            f"model: expected nodes with names of their own, since a plan consists of names, found {len(bad)} without: "
            f"{first}; give each node a name, e.g. its first output's, and save the file"
        )
