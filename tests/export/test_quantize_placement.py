"""Where Q/DQ pairs are: TensorRT's rules, and onnxruntime's, read off the file node by node."""

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from onnx.helper import make_tensor_value_info

from export.quantization.layers import find_layers
from export.quantization.placement import place, quantized_model
from runtime.comparison.sources import load_batch
from runtime.engine.builder import build_engine
from runtime.engine.config import EngineConfig
from runtime.engine.library import open_library
from runtime.engine.lowering import engine_model
from runtime.graphs.load import metadata_of
from runtime.graphs.session import import_onnxruntime, open_session
from runtime.metadata import KEY
from runtime.precision.geometry import default_plan
from runtime.precision.plan import PrecisionGroup, PrecisionPlan

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
Q, DQ = "QuantizeLinear", "DequantizeLinear"


class Nodes:
    """The main graph of a model: who makes a tensor, who reads it, and what initialisers hold."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.all = list(graph.node)
        self.by_name = {node.name: node for node in self.all}
        self.maker = {name: node for node in self.all for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.all:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.values = {tensor.name: tensor for tensor in graph.initializer}
        self.weighted = [
            n for n in self.all if n.op_type in WEIGHTED and not n.domain and self._from_constant(n.input[1])
        ]

    def _from_constant(self, name: str) -> bool:
        while name in self.maker:
            name = self.maker[name].input[0]
        return name in self.values

    def pair(self, tensor: str) -> tuple[onnx.NodeProto, onnx.NodeProto]:
        """Return the Q and the DQ that a tensor comes out of."""
        dq = self.maker[tensor]
        assert dq.op_type == DQ
        q = self.maker[dq.input[0]]
        assert q.op_type == Q
        assert q.input[1:] == dq.input[1:]
        return q, dq

    def array(self, name: str) -> np.ndarray:
        return numpy_helper.to_array(self.values[name])


def axis_of(node: onnx.NodeProto) -> int:
    return next((a.i for a in node.attribute if a.name == "axis"), 1)


def test_every_layer_reads_pairs(int8: onnx.ModelProto, embedded: onnx.ModelProto) -> None:
    """The model has no layer with weights that stays float."""
    nodes, source = Nodes(int8), Nodes(embedded)
    assert [n.name for n in nodes.weighted] == [n.name for n in source.weighted]
    assert len(nodes.weighted) == 53
    for node in nodes.weighted:
        for tensor in node.input[:2]:
            nodes.pair(tensor)
        for bias in node.input[2:]:
            assert nodes.values[bias].data_type == TensorProto.FLOAT


def test_activations_are_symmetric_with_one_scale(int8: onnx.ModelProto) -> None:
    nodes = Nodes(int8)
    scales = []
    for node in nodes.weighted:
        q, _ = nodes.pair(node.input[0])
        zero = nodes.values[q.input[2]]
        assert zero.data_type == TensorProto.INT8
        assert not nodes.array(q.input[2]).any()
        assert nodes.array(q.input[1]).shape == ()
        scales.append(float(nodes.array(q.input[1])))
    assert min(scales) > 0


def test_weights_have_a_scale_for_each_output_channel(int8: onnx.ModelProto) -> None:
    nodes = Nodes(int8)
    for node in nodes.weighted:
        q, dq = nodes.pair(node.input[1])
        weight = nodes.array(q.input[0])
        transposed = node.op_type == "ConvTranspose"
        axis = 1 if transposed else 0
        assert axis_of(q) == axis_of(dq) == axis
        scale, zero = nodes.array(q.input[1]), nodes.array(q.input[2])
        assert zero.dtype == np.int8
        assert not zero.any()
        largest = np.abs(weight).max(axis=tuple(i for i in range(weight.ndim) if i != axis))
        np.testing.assert_allclose(scale, largest / 127, rtol=1e-5)


def test_no_two_layers_share_the_pair_of_a_weight(int8: onnx.ModelProto, embedded: onnx.ModelProto) -> None:
    """TensorRT runs a layer in FP32 whose quantized weight others read; the file has the weight once."""
    nodes = Nodes(int8)
    for node in nodes.weighted:
        q, dq = nodes.pair(node.input[1])
        assert len(nodes.readers[q.output[0]]) == len(nodes.readers[dq.output[0]]) == 1
    shared = [name for name in nodes.values if len(nodes.readers.get(name, ())) == 5 and "weight" in name]
    assert len(shared) == 3  # of the RPN's head
    size = sum(len(t.raw_data) for t in embedded.graph.initializer)
    assert sum(len(t.raw_data) for t in int8.graph.initializer) < 1.05 * size


def test_convolution_addition_and_relu_fuse(int8: onnx.ModelProto) -> None:
    """The convolution's output is read by the addition alone and is not quantized; the other input is."""
    nodes = Nodes(int8)
    joins = 0
    for node in nodes.all:
        makers = [nodes.maker.get(name) for name in node.input]
        if node.op_type != "Add" or not any(m is not None and m.op_type == "Conv" for m in makers):
            continue
        (main,) = (name for name, m in zip(node.input, makers) if m is not None and m.op_type == "Conv")
        (other,) = (name for name in node.input if name != main)
        assert nodes.readers[main] == [node]
        nodes.pair(other)
        joins += 1
    assert joins == 8 + 3  # residual blocks, levels of the FPN


def test_a_shortcut_has_the_pair_of_the_next_convolution(int8: onnx.ModelProto) -> None:
    nodes = Nodes(int8)
    add = nodes.by_name["/backbone/layer1/layer1.1/Add"]
    first = nodes.by_name["/backbone/layer1/layer1.1/conv1/Conv"]
    assert add.input[1] == first.input[0]


def test_of_two_convolutions_the_smaller_output_has_a_pair(
    int8: onnx.ModelProto, embedded: onnx.ModelProto, calibration_images: list[Path]
) -> None:
    nodes, source = Nodes(int8), Nodes(embedded)
    names = [f"/backbone/layer{stage}/layer{stage}.0/Add" for stage in (2, 3, 4)]
    tensors = [tensor for name in names for tensor in source.by_name[name].input]
    largest = np.mean(
        [[np.abs(a).max() for a in _computed(embedded, tensors, p)] for p in calibration_images], 0
    )
    sizes = dict(zip(tensors, largest))
    for name in names:
        quantized = [t for t in nodes.by_name[name].input if nodes.maker[t].op_type == DQ]
        assert len(quantized) == 1
        (smaller,) = (nodes.pair(tensor)[0].input[0] for tensor in quantized)
        (larger,) = (tensor for tensor in source.by_name[name].input if tensor != smaller)
        assert sizes[smaller] < sizes[larger]


def _computed(model: onnx.ModelProto, tensors: list[str], path: Path) -> list[np.ndarray]:
    """Return activations of one image."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend(make_tensor_value_info(name, TensorProto.FLOAT, None) for name in tensors)
    batch = load_batch([path], metadata_of(model, path))
    with open_session(copy) as session:
        found = session.run({"images": batch.images, "image_sizes": batch.image_sizes})
    return [found[tensor] for tensor in tensors]


def test_outputs_of_layers_and_heads_stay_float(int8: onnx.ModelProto, embedded: onnx.ModelProto) -> None:
    nodes, source = Nodes(int8), Nodes(embedded)
    firsts = [f"/backbone/layer{stage}/layer{stage}.0/" for stage in (2, 3, 4)]
    shortcuts = [n.name for n in nodes.weighted if n.name.startswith(tuple(firsts)) and "conv1" not in n.name]
    assert len(shortcuts) == 6
    for node in nodes.weighted:
        if node.name in shortcuts:
            continue  # one of two: see above
        # Of a layer without ReLU that another reads directly: the FPN's.
        direct = {r.op_type for r in source.readers[node.output[0]]} & {*WEIGHTED, "Resize", "MaxPool"}
        is_quantized = any(r.op_type == Q for r in nodes.readers[node.output[0]])
        assert is_quantized == bool(direct), node.name
    for op in ("DecodeProposals", "DecodeDetections", "SelectMasks", "GroupedNMS"):
        for node in (n for n in nodes.all if n.op_type == op):
            assert node.input == source.by_name[node.name].input


@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_the_rest_of_the_file_is_as_it_was(
    kind: str, embedded: onnx.ModelProto, request: pytest.FixtureRequest
) -> None:
    found = request.getfixturevalue(kind)
    bodies = {f.name: f.SerializeToString() for f in found.functions}
    assert bodies == {f.name: f.SerializeToString() for f in embedded.functions}
    assert len(bodies) > 3
    properties = {p.key: p.value for p in found.metadata_props}
    assert properties[KEY] == next(p.value for p in embedded.metadata_props if p.key == KEY)
    assert set(properties) == {p.key for p in embedded.metadata_props} | {"maskrcnn_quantization"}
    for name in ("input", "output"):
        mine, theirs = (getattr(m.graph, name) for m in (found, embedded))
        assert [v.SerializeToString() for v in mine] == [v.SerializeToString() for v in theirs]
    assert found.producer_name == embedded.producer_name
    geometry = default_plan(embedded).nodes
    assert geometry
    assert default_plan(found).nodes == geometry
    assert geometry <= {node.name for node in found.graph.node}


def test_uint8_has_integer_weights_and_biases(uint8: onnx.ModelProto) -> None:
    nodes = Nodes(uint8)
    assert len(nodes.weighted) == 53
    for node in nodes.weighted:
        q, _ = nodes.pair(node.input[0])
        assert nodes.values[q.input[2]].data_type == TensorProto.UINT8
        for index, kind in ((1, TensorProto.INT8), (2, TensorProto.INT32)):
            dq = nodes.maker[node.input[index]]
            assert dq.op_type == DQ
            assert nodes.values[dq.input[0]].data_type == kind
    assert not any(t.data_type == TensorProto.FLOAT and len(t.dims) > 1 for t in uint8.graph.initializer)


def test_onnxruntime_fuses_uint8(uint8: onnx.ModelProto, tmp_path: Path) -> None:
    """Every convolution between layers is one integer kernel; the heads' logits come out of float ones."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(uint8.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = onnx.load(tmp_path / "optimized.onnx").graph.node
    convolutions = [n for n in found if "Conv" in n.op_type]
    floats = [n.name for n in convolutions if n.op_type != "QLinearConv"]
    assert len(convolutions) == 49
    # Logits: of five levels twice, and of masks; and the transposed convolution, which has no integer kernel.
    assert len(floats) == 12, floats
    assert sum(n.op_type == "QGemm" for n in found) == 4


def test_logits_that_a_softmax_reads_stay_float() -> None:
    """A head that takes the mean of a distribution by a convolution (DFL), its logits beside those of classes."""
    weights = {"wf": (8, 3, 3, 3), "wa": (8, 8, 1, 1), "wc": (8, 8, 1, 1), "wm": (1, 8, 1, 1)}
    values = [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in weights.items()]
    values.append(numpy_helper.from_array(np.array([8, 8]), "halves"))
    node = onnx.helper.make_node
    nodes = [
        node("Conv", ["x", "wf"], ["features"], name="features", pads=[1, 1, 1, 1]),
        node("Relu", ["features"], ["active"], name="active"),
        node("Conv", ["active", "wa"], ["sides"], name="sides"),
        node("Conv", ["active", "wc"], ["classes"], name="classes"),
        node("Concat", ["sides", "classes"], ["joined"], name="joined", axis=1),
        node("Split", ["joined", "halves"], ["own", "others"], name="split", axis=1),
        node("Softmax", ["own"], ["shares"], name="shares", axis=1),
        node("Conv", ["shares", "wm"], ["mean"], name="mean"),
        node("Sigmoid", ["others"], ["scores"], name="scores"),
    ]
    inputs = [make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])]
    outputs = [make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("mean", "scores")]
    graph = onnx.helper.make_graph(nodes, "head", inputs, outputs, values)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    placed = place(model, find_layers(model, PrecisionPlan(())), PrecisionPlan(()), "uint8")
    assert set(placed.tensors) == {"x", "features", "active", "shares"}


@pytest.mark.parametrize("activations", ["int8", "uint8"])
def test_what_a_plan_names_stays_float(embedded: onnx.ModelProto, activations: str, tmp_path: Path) -> None:
    gone = ("/rpn_head/rpn_conv/Conv", "/neck/lateral_convs.0/conv/Conv", "/backbone/layer1/layer1.0/Add")
    plan = PrecisionPlan((*default_plan(embedded).groups, PrecisionGroup("some", "because", gone)))
    layers = find_layers(embedded, plan)
    assert dict(layers.left_out) == {gone[0]: "because", gone[1]: "because"}
    placement = place(embedded, layers, plan, activations)
    found = Nodes(quantized_model(embedded, layers, placement, dict.fromkeys(placement.tensors, (-2.0, 3.0))))
    source = Nodes(embedded)
    for name in gone[:2]:
        assert found.by_name[name].input[1:] == source.by_name[name].input[1:]
    quantized = [n for n in found.weighted if found.maker.get(n.input[1], n).op_type == DQ]
    assert len(quantized) == 51


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed (Linux, x86-64)"
)
def test_tensorrt_parses_and_builds_it(int8: onnx.ModelProto, embedded: onnx.ModelProto) -> None:
    """Backbone, FPN and RPN's heads, which is as far as TensorRT-RTX has the operators; INT8 weights are smaller."""
    rtx = open_library("tensorrt_rtx")
    plugins = ("DecodeDetections", "DecodeProposals", "GroupedNMS", "MultiLevelRoiAlign", "SelectMasks")
    sizes = []
    for model, precision in ((embedded, "fp32"), (int8, "int8")):
        graph = engine_model(model, plugins, rtx.tensorrt)
        logits = [
            n.output[0]
            for n in graph.graph.node
            if n.op_type == "Conv" and n.name.startswith(("/rpn_head/rpn_cls", "/rpn_head/rpn_reg"))
        ]
        dense = onnx.utils.Extractor(graph).extract_model(["images"], logits)
        # One profile: the kernels of several would hide what the weights take.
        config = EngineConfig(batch=(1, 2, 4), profiles=((1, 2, 4),), precision=precision)
        built = build_engine(dense, config, library=rtx)
        assert built.warnings == ()
        sizes.append(len(built.data))
    assert sizes[1] < 0.9 * sizes[0]
