"""ONNX files: bytes flipped, nodes, weights and attributes changed, other operator sets, weights that lie elsewhere."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from runtime.compare import main as compare
from runtime.detector import Detector
from runtime.engine.lowering import engine_model
from runtime.graphs.load import graph_errors, load_onnx, metadata_of
from runtime.precision.__main__ import main as precision_main
from runtime.precision.choice import chosen_plan
from tests.fuzz import materials
from tests.fuzz.mutations import damaged_bytes, damaged_word, pick
from tests.fuzz.trial import Trial
from tests.runtime import fakes
from tests.runtime.engine import fakes as engine_fakes

NUMBERS = (-(2**63), -(2**31), -2, -1, 0, 1, 2, 3, 64, 1000, 2**31, 2**40, 2**63 - 1)
FLOATS = (float("nan"), float("inf"), -1.0, 0.0, 1e30, 1e-30)
# Operators that a detector has, with attributes that their kernels divide by or take memory for.
EXTRAS: tuple[tuple[str, dict[str, Any], tuple[tuple[int, ...], ...]], ...] = (
    (
        "Conv",
        {"group": 1, "strides": [1, 1], "dilations": [1, 1], "pads": [1, 1, 1, 1], "kernel_shape": [3, 3]},
        ((4, 3, 3, 3),),
    ),
    (
        "ConvTranspose",
        {"group": 1, "strides": [2, 2], "dilations": [1, 1], "kernel_shape": [2, 2]},
        ((3, 4, 2, 2),),
    ),
    (
        "MaxPool",
        {
            "kernel_shape": [2, 2],
            "strides": [2, 2],
            "pads": [0, 0, 0, 0],
            "dilations": [1, 1],
            "ceil_mode": 0,
        },
        (),
    ),
    ("AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0, 0, 0, 0]}, ()),
    ("GlobalAveragePool", {}, ()),
    ("Resize", {"mode": "nearest"}, ((0,), (4,))),
    ("InstanceNormalization", {"epsilon": 1e-5}, ((3,), (3,))),
    ("DepthToSpace", {"blocksize": 1, "mode": "DCR"}, ()),
    ("SpaceToDepth", {"blocksize": 2}, ()),
    ("LRN", {"size": 3}, ()),
    ("Softmax", {"axis": 1}, ()),
    ("LayerNormalization", {"axis": -1}, ((96,),)),
    ("TopK", {"axis": -1, "largest": 1, "sorted": 1}, ()),
    ("Pad", {"mode": "constant"}, ()),
    ("GroupNormalization", {"num_groups": 3}, ((3,), (3,))),
    ("Transpose", {"perm": [0, 2, 3, 1]}, ()),
    ("Flatten", {"axis": 1}, ()),
    ("Concat", {"axis": 1}, ()),
    ("Split", {"axis": 1}, ()),
)


def models(folder: Path, random: np.random.Generator) -> Trial:
    """Damage a model, and detect with it, or read it as the exporter, the builder and the planner do."""
    path = folder / "damaged.onnx"
    said = _damaged_model(path, random)
    kind = int(random.integers(10))
    if kind < 6:
        return Trial(said, lambda: _detect(path), (str(path), "images of shape", "model output"))
    if kind < 8:
        return Trial(said, lambda: _read(path), (str(path),))
    if kind == 8:
        return Trial(said, lambda: _lowered(path), (str(path), "model: expected a plugin"))
    materials.write_good(folder)
    arguments = [str(folder / "good.onnx"), str(path), "--images", str(folder / "1.png"), "--threads", "1"]
    layers = [*arguments, "--layers", "--backend-a", "onnxruntime", "--backend-b", "onnxruntime"]
    return Trial(f"layers: {said}", lambda: compare(layers), (str(path), "onnxruntime", "good.onnx"), True)


def precision(folder: Path, random: np.random.Generator) -> Trial:
    """Damage a model, and have a command write its plan or its FP16 form."""
    path, out = folder / "damaged.onnx", folder / "out"
    said = _damaged_model(path, random)
    command, name = pick(random, (("plan", "p.plan.json"), ("convert", "half.onnx")))
    target = out / name

    def check() -> str:
        return "" if target.is_file() and target.stat().st_size else "no output"

    arguments = [command, str(path), "-o", str(target)]
    return Trial(f"{command}: {said}", lambda: precision_main(arguments), (str(path),), True, check, out)


def _detect(path: Path) -> None:
    with Detector(path, threads=1) as detector:
        (detections,) = detector([fakes.random_image(*materials.SIZE)])
        list(detections.rle()) if detections.has_masks else None


def _read(path: Path) -> None:
    model = load_onnx(path)
    metadata_of(model, path)
    chosen_plan(path, model)


def _lowered(path: Path) -> None:
    model = load_onnx(path)
    with graph_errors(path, model):
        engine_model(model, (), engine_fakes.library().tensorrt)


def _damaged_model(path: Path, random: np.random.Generator) -> str:
    kind = int(random.integers(10))
    if kind < 2:
        said, data = damaged_bytes(materials.fake_model(), random)
        path.write_bytes(data)
        return said
    model = fakes.model()
    if kind < 5:
        _add_extra(model, random)
    changes = [pick(random, CHANGES)(model, random) for _ in range(1 + int(random.integers(3) == 0))]
    if kind == 9:
        changes.append(_elsewhere(model, random))
    path.write_bytes(model.SerializeToString())
    return "; ".join(changes)


def _add_extra(model: onnx.ModelProto, random: np.random.Generator) -> None:
    """Add an operator of images whose output reaches no detection but is an output's neighbour: it runs."""
    kind, attributes, shapes = pick(random, EXTRAS)
    weights = []
    for index, shape in enumerate(shapes):
        name = f"extra_{index}"
        values = np.ones(shape, np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
        weights.append(name)
    if kind == "TopK":
        model.graph.initializer.append(numpy_helper.from_array(np.array([2]), "extra_k"))
        weights.append("extra_k")
    if kind == "Pad":
        model.graph.initializer.append(
            numpy_helper.from_array(np.array([0, 0, 1, 1, 0, 0, 1, 1]), "extra_pads")
        )
        weights.append("extra_pads")
    outputs = ["extra", "extra_more"] if kind in ("TopK", "Split") else ["extra"]
    node = helper.make_node(kind, ["images", *weights], outputs, name="extra", **attributes)
    # What nobody reads is removed before it runs: its sum, times nothing, goes into the boxes.
    total = helper.make_node("ReduceSum", ["extra"], ["extra_sum"], keepdims=0)
    nothing = helper.make_node("Min", ["extra_sum", "extra_zero"], ["extra_nothing"])
    scaled = helper.make_node("Add", ["boxes_plain", "extra_nothing"], ["boxes"])
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0), "extra_zero"))
    index = next(i for i, n in enumerate(model.graph.node) if "boxes" in n.output)
    model.graph.node[index].output[0] = "boxes_plain"
    for offset, added in enumerate((node, total, nothing, scaled)):
        model.graph.node.insert(index + 1 + offset, added)


def _attribute(model: onnx.ModelProto, random: np.random.Generator) -> str:
    nodes = [node for node in model.graph.node if node.attribute]
    extra = [node for node in nodes if node.name == "extra"]
    node = extra[0] if extra and random.random() < 0.8 else pick(random, nodes)
    attribute = pick(random, list(node.attribute))
    where = f"{node.op_type}.{attribute.name}"
    if attribute.type == onnx.AttributeProto.INT:
        attribute.i = pick(random, NUMBERS)
        return f"{where} = {attribute.i}"
    if attribute.type == onnx.AttributeProto.INTS:
        values = list(attribute.ints)
        values = pick(
            random,
            (
                values[:-1],
                values * 2,
                [pick(random, NUMBERS) for _ in values],
                [pick(random, NUMBERS)] + values[1:],
            ),
        )
        del attribute.ints[:]
        attribute.ints.extend(values)
        return f"{where} = {values}"
    if attribute.type == onnx.AttributeProto.FLOAT:
        attribute.f = pick(random, FLOATS)
        return f"{where} = {attribute.f}"
    if attribute.type == onnx.AttributeProto.STRING:
        attribute.s = pick(random, (b"", b"\xff", b"linear", b"cubic"))
        return f"{where} = {attribute.s!r}"
    if attribute.type == onnx.AttributeProto.TENSOR:
        return f"{where}: {_tensor(attribute.t, random)}"
    attribute.type = int(random.integers(0, 15))
    return f"{where} of type {attribute.type}"


def _attribute_type(model: onnx.ModelProto, random: np.random.Generator) -> str:
    node = pick(random, [node for node in model.graph.node if node.attribute])
    attribute = pick(random, list(node.attribute))
    attribute.type = int(random.integers(0, 15))
    return f"{node.op_type}.{attribute.name} of type {attribute.type}"


def _initializer(model: onnx.ModelProto, random: np.random.Generator) -> str:
    return _tensor(pick(random, list(model.graph.initializer)), random)


def _tensor(tensor: onnx.TensorProto, random: np.random.Generator) -> str:
    kind = int(random.integers(6))
    if kind == 0:
        tensor.data_type = int(random.integers(0, 24))
        return f"{tensor.name} of type {tensor.data_type}"
    if kind == 1 and len(tensor.dims):
        tensor.dims[int(random.integers(len(tensor.dims)))] = pick(random, NUMBERS)
        return f"{tensor.name} of shape {list(tensor.dims)}"
    if kind == 2:
        tensor.raw_data = tensor.raw_data[: int(random.integers(len(tensor.raw_data) + 1))]
        return f"{tensor.name} cut"
    if kind == 3:
        tensor.name = pick(random, ("", "images", "dets", "x" * 10_000))
        return f"a tensor called {tensor.name[:20]!r}"
    if kind == 4:
        del tensor.dims[:]
        return f"{tensor.name} without a shape"
    tensor.raw_data = random.bytes(len(tensor.raw_data))
    return f"{tensor.name} of other values"


def _node(model: onnx.ModelProto, random: np.random.Generator) -> str:
    nodes = model.graph.node
    index = int(random.integers(len(nodes)))
    node, kind = nodes[index], int(random.integers(9))
    if kind == 0:
        del nodes[index]
        return f"no {node.op_type}"
    if kind == 1:
        node.op_type = pick(
            random,
            ("", "Nothing", "Loop", "If", "Scan", "Identity", "Relu", "Gather", "TopK", "NonMaxSuppression"),
        )
        return f"another operator, {node.op_type}"
    if kind == 2:
        node.domain = pick(random, ("com.microsoft", "ai.onnx.ml", "nothing", "mmdeploy"))
        return f"{node.op_type} of {node.domain}"
    if kind == 3 and len(node.input):
        node.input[int(random.integers(len(node.input)))] = pick(
            random, ("", "nothing", *node.output, "dets", "image_sizes")
        )
        return f"{node.op_type} of another input"
    if kind == 4:
        node.output[0] = pick(random, ("", "images", "dets", "x"))
        return f"{node.op_type} to another output"
    if kind == 5:
        nodes.append(node)
        return f"{node.op_type} twice"
    if kind == 6:
        nodes.insert(0, node)
        return f"{node.op_type} first"
    if kind == 7:
        node.name = pick(random, ("", "x", "\0", "a/" * 5000, nodes[0].name))
        return "another name"
    del node.attribute[:]
    return f"{node.op_type} without attributes"


def _header(model: onnx.ModelProto, random: np.random.Generator) -> str:
    kind = int(random.integers(8))
    if kind == 0:
        model.ir_version = pick(random, (0, -1, 1, 3, 12, 99, 2**40))
        return f"IR version {model.ir_version}"
    if kind == 1 and model.opset_import:
        model.opset_import[0].version = pick(random, (0, -1, 1, 6, 9, 11, 13, 22, 26, 99, 2**40))
        return f"opset {model.opset_import[0].version}"
    if kind in (1, 2):
        del model.opset_import[:]
        return "no opset"
    if kind == 3:
        for property in model.metadata_props:
            property.value = damaged_word(property.value, random).encode("utf-8", "replace").decode()
        return "other metadata"
    if kind == 4:
        del model.metadata_props[:]
        return "no metadata"
    value = pick(random, [*model.graph.input, *model.graph.output])
    if kind == 5:
        value.type.tensor_type.elem_type = int(random.integers(0, 24))
        return f"{value.name} of type {value.type.tensor_type.elem_type}"
    if kind == 6:
        dims = value.type.tensor_type.shape.dim
        pick(random, list(dims)).dim_value = pick(random, NUMBERS)
        return f"{value.name} of shape {[d.dim_value for d in dims]}"
    value.name = pick(random, ("", "x", "images", "dets"))
    return f"an input or output called {value.name!r}"


def _cycle(model: onnx.ModelProto, random: np.random.Generator) -> str:
    nodes = [node for node in model.graph.node if len(node.input)]
    one, other = pick(random, nodes), pick(random, nodes)
    one.input[0], other.input[0] = other.output[0], one.output[0]
    return f"{one.op_type} and {other.op_type} wait for each other"


def _subgraph(model: onnx.ModelProto, random: np.random.Generator) -> str:
    """Nest graphs deeply."""
    depth = pick(random, (1, 5, 30))
    graph = helper.make_graph([], "inner", [], [])
    for _ in range(depth):
        node = helper.make_node(
            "If",
            ["lit"],
            ["nested"],
            then_branch=graph,
            else_branch=graph if depth < 6 else helper.make_graph([], "e", [], []),
        )
        graph = helper.make_graph(
            [node], "inner", [], [helper.make_tensor_value_info("nested", TensorProto.FLOAT, None)]
        )
    model.graph.node.append(helper.make_node("If", ["lit"], ["deep"], then_branch=graph, else_branch=graph))
    return f"If {depth} deep"


def _function(model: onnx.ModelProto, random: np.random.Generator) -> str:
    """Give an operator a body: of itself, of nothing, of another domain."""
    name = pick(random, ("Mul", "Where", "Own"))
    inner = pick(
        random,
        (
            helper.make_node(name, ["a", "b"], ["c"], domain="own"),
            helper.make_node("Add", ["a", "b"], ["c"]),
            helper.make_node("Add", ["a", "nothing"], ["d"]),
        ),
    )
    opsets = pick(
        random,
        ([], [helper.make_opsetid("", 17)], [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]),
    )
    model.functions.append(helper.make_function("own", name, ["a", "b"], ["c"], [inner], opsets))
    model.opset_import.append(helper.make_opsetid("own", 1))
    node = next((n for n in model.graph.node if n.op_type == "Mul"), model.graph.node[0])
    node.op_type, node.domain = name, "own"
    return f"a body of {name}"


def _elsewhere(model: onnx.ModelProto, random: np.random.Generator) -> str:
    """Put weights where they must not be read from, or are not."""
    tensor = pick(random, list(model.graph.initializer))
    location = pick(
        random,
        (
            "../secret",
            "/etc/passwd",
            "/dev/zero",
            "nothing",
            "",
            ".",
            "damaged.onnx",
            "x" * 300,
            "a\0b",
            "\udcff".encode("utf-8", "surrogatepass").decode("latin-1"),
        ),
    )
    length, offset = (
        pick(random, ("16", "-1", "99999999999999", "x", "")),
        pick(random, ("0", "-1", "99999999999999", "x")),
    )
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=value)
    return f"weights in {location[:20]!r} at {offset}, {length} bytes"


Change = Callable[[onnx.ModelProto, np.random.Generator], str]
CHANGES: tuple[Change, ...] = (
    *(_attribute,) * 5,
    _attribute_type,
    *(_initializer,) * 3,
    *(_node,) * 4,
    *(_header,) * 4,
    _cycle,
    _subgraph,
    _function,
    _elsewhere,
)
