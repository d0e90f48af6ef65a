"""Which layers of a weakly typed network the plan's nodes became."""

from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
from onnx import parser

from runtime.engine.builder import build_engine, with_inlined_nodes
from runtime.engine.config import EngineConfig
from runtime.engine.layer_precision import constrain_layers, layer_owners
from runtime.engine.lowering import engine_model
from runtime.engine.plugins import PluginLibrary
from runtime.precision.geometry import default_plan
from runtime.precision.plan import PrecisionGroup, PrecisionPlan
from tests.runtime.engine import fakes
from tests.runtime.engine.conftest import PLUGIN_OPS


@pytest.mark.parametrize(
    ("layers", "nodes", "owners"),
    [
        (["/Conv"], ["/Conv"], ["/Conv"]),
        # The parser makes several layers of some nodes, and numbers the later ones.
        (
            ["/GreaterOrEqual_1", "/GreaterOrEqual_1_47", "/GreaterOrEqual_1_48"],
            ["/GreaterOrEqual", "/GreaterOrEqual_1"],
            ["/GreaterOrEqual_1"] * 3,
        ),
        # A name that ends in a number is itself first of all.
        (["/Mul_1", "/Mul_1_2"], ["/Mul", "/Mul_1"], ["/Mul_1", "/Mul_1"]),
        (["/Mul_1"], ["/Mul"], ["/Mul"]),
        # Helpers come before what they help, also several, also for a layer with a number.
        (
            ["/Sub", "(Unnamed Layer* 119) [Shuffle]", "(Unnamed Layer* 120) [Shuffle]", "/Div_1_9", "/Relu"],
            ["/Sub", "/Div_1", "/Relu"],
            ["/Sub", "/Div_1", "/Div_1", "/Div_1", "/Relu"],
        ),
        # Behind the last node there is nothing to help.
        (["/Relu", "(Unnamed Layer* 3) [Shuffle]"], ["/Relu"], ["/Relu", ""]),
        # A weight is called after the initializer, and is nobody's helper.
        (["backbone.conv1.weight", "/Conv"], ["/Conv"], ["", "/Conv"]),
        ([], ["/Conv"], []),
    ],
)
def test_layers_are_their_nodes(layers: list, nodes: list, owners: list) -> None:
    assert layer_owners(layers, nodes) == owners


MODEL = """<ir_version: 8, opset_import: ["": 17]>
net (float[B, 3, 8, 8] x) => (float[B, 3, 8, 8] y, int64[4] s) {
    a = Relu(x)
    b = Exp(a)
    y = Mul(b, b)
    s = Shape(b)
}"""


def _model() -> onnx.ModelProto:
    model = parser.parse_model(MODEL)
    for node in model.graph.node:
        node.name = f"/{node.op_type}"
    return model


def _plan(*nodes: str) -> PrecisionPlan:
    return PrecisionPlan((PrecisionGroup("geometry", "A reason.", nodes),))


@pytest.mark.parametrize("version", fakes.WEAKLY_TYPED)
def test_the_plans_layers_compute_and_store_float32(version: str) -> None:
    library = fakes.library(version)
    built = build_engine(
        _model(), EngineConfig(precision="fp16"), plan=_plan("/Exp", "/Mul", "/Shape"), library=library
    )
    header = fakes.opened(built.data)
    assert header["float32"] == ["/Exp", "/Mul"]  # /Shape makes integers
    assert built.num_float32 == 2
    assert header["flags"] == ["FP16", "OBEY_PRECISION_CONSTRAINTS", "TF32"]


def test_a_plan_without_float_layers_constrains_nothing() -> None:
    built = build_engine(_model(), EngineConfig(), plan=_plan("/Shape"), library=fakes.library())
    assert built.num_float32 == 0
    assert fakes.opened(built.data)["flags"] == ["FP16", "TF32"]


def test_outputs_of_the_plans_layers_are_float32_too() -> None:
    """``precision`` alone leaves it to the builder to store them in FP16."""
    library = fakes.library()
    trt = library.tensorrt.trt
    network = trt.Builder(library.logger).create_network(1)
    trt.OnnxParser(network, library.logger).parse(_model().SerializeToString())
    layers = {layer.name: layer for layer in network.layers}
    assert library.tensorrt.keep_float32(layers["/Exp"])
    assert layers["/Exp"].output_types == {0: trt.float32}
    assert layers["/Exp"].precision == trt.float32
    assert not library.tensorrt.keep_float32(layers["/Shape"])
    assert layers["/Relu"].precision is None


def test_a_plugin_that_writes_int8_is_told_nothing() -> None:
    """Told to store FP32, it would have no format for what it writes."""
    tensorrt = fakes.library().tensorrt
    trt = tensorrt.trt
    rois, maps = (SimpleNamespace(name=name, dtype=trt.float32) for name in ("rois", "maps"))
    features = SimpleNamespace(name="features", dtype=trt.int8)
    layer = fakes._WeakLayer("/align", trt.LayerType["ELEMENTWISE"], [rois, maps], [features])
    assert not tensorrt.keep_float32(layer)
    assert (layer.precision, layer.output_types) == (None, {})


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_a_plan_means_nothing_outside_fp16(precision: str) -> None:
    built = build_engine(
        _model(), EngineConfig(precision=precision), plan=_plan("/Exp"), library=fakes.library()
    )
    assert fakes.opened(built.data)["float32"] == []
    assert fakes.opened(built.data)["flags"] == (["TF32"] if precision == "tf32" else [])


@pytest.mark.parametrize("version", [fakes.V10_13, fakes.V11])
def test_a_strongly_typed_network_gets_the_plan_as_types(version: str) -> None:
    built = build_engine(_model(), EngineConfig(), plan=_plan("/Exp"), library=fakes.library(version))
    model = onnx.shape_inference.infer_shapes(fakes.onnx_in(built.data))
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in (*model.graph.value_info, *model.graph.output)
    }
    by_name = {node.name: node.output[0] for node in model.graph.node}
    assert types[by_name["/Relu"]] == onnx.TensorProto.FLOAT16
    assert types[by_name["/Exp"]] == onnx.TensorProto.FLOAT
    assert types["y"] == onnx.TensorProto.FLOAT
    assert fakes.opened(built.data)["flags"] == ["TF32"]
    assert built.num_float32 == 0


WIDEN_MODEL = """<ir_version: 8, opset_import: ["": 17, "maskrcnn": 1]>
net (float[B, 4] boxes, float[B, 4] x) => (float[B, 4] y) {
    wide = maskrcnn.Widen(boxes)
    y = Add(wide, x)
}
<domain: "maskrcnn", opset_import: ["": 17]>
Widen (boxes) => (wide) {
    two = Constant<value = float {2.0}>()
    wide = Mul(boxes, two)
}"""


@pytest.mark.parametrize("version", [fakes.V8_5, fakes.V11])
def test_what_an_operator_is_inlined_to_takes_its_place_in_the_plan(version: str) -> None:
    """Its node is not there any more, and the plan cannot name those that came instead."""
    model = parser.parse_model(WIDEN_MODEL)
    model.graph.node[0].name, model.graph.node[1].name = "/Widen", "/Add"
    graph = engine_model(model, (), fakes.library(version).tensorrt)
    (inlined,) = {node.name for node in graph.graph.node} - {"/Add"}
    plan = with_inlined_nodes(_plan("/Widen", "/Add"), model, graph)
    assert plan.nodes == {"/Add", inlined}
    assert [group.name for group in plan.groups] == ["geometry", "inlined operators"]
    assert all(group.reason for group in plan.groups)


def test_without_inlined_operators_the_plan_stays() -> None:
    plan = _plan("/Exp")
    assert with_inlined_nodes(plan, _model(), _model()) == plan


@pytest.mark.parametrize("ops", [(), PLUGIN_OPS], ids=["inlined", "plugins"])
@pytest.mark.parametrize("version", fakes.RELEASES)
def test_the_default_plan_of_a_detector_is_applied(
    version: str, ops: tuple[str, ...], exported: onnx.ModelProto
) -> None:
    library = fakes.library(version, plugins=ops)
    plugins = PluginLibrary(Path("plugins.so"), "0" * 64, frozenset(ops))
    built = build_engine(
        exported, EngineConfig(), plan=default_plan(exported), plugins=plugins, library=library
    )
    ops_by_name = {node.name: node.op_type for node in fakes.onnx_in(built.data).graph.node}
    if version in fakes.WEAKLY_TYPED:
        kept = {ops_by_name[name] for name in fakes.opened(built.data)["float32"]}
        fused = {"DecodeProposals", "DecodeDetections", "SelectMasks"}  # they read FP16
        assert not kept & fused
        assert (kept >= {"Softmax", "Exp", "Sigmoid"}) == (not ops)
        assert ("TopK" in kept) == (not ops)
        assert not kept & {"Conv", "ConvTranspose", "Gemm", "MaxPool"}
        assert ("RoiAlign" in kept) == (not ops)
    else:
        graph = fakes.onnx_in(built.data).graph
        types = {tensor.name: tensor.data_type for tensor in graph.initializer}
        assert {types[node.input[1]] for node in graph.node if node.op_type in ("Conv", "Gemm")} == {
            onnx.TensorProto.FLOAT16
        }
        assert built.num_float32 == 0


PROPOSALS = """<ir_version: 8, opset_import: ["": 17, "maskrcnn": 1]>
net (float[B, 8, 4, 4] x, float[B, 2] sizes) => (float[B, 9, 4] boxes, float[B, 9] scores)
<float[3, 8, 1, 1] w, float[12, 8, 1, 1] v, float[48, 4] priors> {
    logits = Conv(x, w)
    deltas = Conv(x, v)
    boxes, scores = maskrcnn.DecodeProposals<top = [9]>(logits, deltas, priors, sizes)
}"""


@pytest.mark.parametrize(
    ("plan", "kept"),
    [
        (["/decode"], []),
        (["/decode", "/logits"], ["/logits", "/decode"]),
        (["/decode", "/logits", "/deltas"], ["/logits", "/deltas", "/decode"]),
        (["/logits"], ["/logits"]),
    ],
)
def test_what_reads_either_type_is_free_unless_its_makers_are_not(plan: list, kept: list) -> None:
    """The maps of one plugin have one type. Anchors stay float32 in any plan with the plugin."""
    library = fakes.library()
    tensorrt, trt = library.tensorrt, library.tensorrt.trt
    graph = parser.parse_model(PROPOSALS)
    names = ["/logits", "/deltas", "/decode"]
    for node, name in zip(graph.graph.node, names):
        node.name = name
    tensors = {
        name: SimpleNamespace(name=name, dtype=trt.float32)
        for name in ("x", "sizes", "logits", "deltas", "constant", "other", "boxes", "scores")
    }

    def layer(name: str, kind: str, inputs: list, outputs: list) -> fakes._WeakLayer:
        ends = [[tensors[t] for t in each] for each in (inputs, outputs)]
        return fakes._WeakLayer(name, trt.LayerType[kind], *ends)

    priors, unused = (layer(n, "CONSTANT", [], [t]) for n, t in (("priors", "constant"), ("more", "other")))
    layers = [
        layer("/logits", "CONVOLUTION", ["x"], ["logits"]),
        layer("/deltas", "CONVOLUTION", ["x"], ["deltas"]),
        priors,
        unused,
        layer("/decode", "ELEMENTWISE", ["logits", "deltas", "constant", "sizes"], ["boxes", "scores"]),
    ]
    network = SimpleNamespace(num_layers=len(layers), get_layer=layers.__getitem__)
    assert constrain_layers(network, graph, _plan(*plan), tensorrt) == len(kept)
    assert [each.name for each in layers if each.precision == trt.float32] == kept
    assert priors.output_types == ({0: trt.float32} if "/decode" in plan else {})
    assert (priors.precision, unused.output_types) == (None, {})
