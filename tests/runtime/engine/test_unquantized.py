"""Nodes without an INT8 kernel: found in what TensorRT says, left float, and the engine is built all the same."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper, parser

from runtime.engine.builder import build_engine
from runtime.engine.config import EngineConfig
from runtime.engine.unquantized import leave_float, without_kernel
from tests.runtime.engine import fakes

# A pyramid's step: the coarse map, twice as large, is added to the fine one; all of it quantized.
MODEL = """<ir_version: 8, opset_import: ["": 17]>
net (float[B, 4, 4, 4] coarse, float[B, 4, 8, 8] fine) => (float[B, 4, 8, 8] y) {
    qc = QuantizeLinear(coarse, s, z)
    dc = DequantizeLinear(qc, s, z)
    large = Resize<mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor">
        (dc, , scales)
    ql = QuantizeLinear(large, s, z)
    dl = DequantizeLinear(ql, s, z)
    qf = QuantizeLinear(fine, s, z)
    df = DequantizeLinear(qf, s, z)
    kernel_q = QuantizeLinear(kernel, s, z)
    kernel_dq = DequantizeLinear(kernel_q, s, z)
    f = Conv(df, kernel_dq)
    sum = Add(f, dl)
    other = Relu(dc)
    least = ReduceMin<keepdims = 1>(other)
    y = Add(sum, least)
}"""
NO_KERNEL = (
    "10: [optimizer.cpp::computeCosts::3728] Error Code 10: Internal Error (Could not find any implementation for "
    "node {}.)"
)


def _model() -> onnx.ModelProto:
    model = parser.parse_model(MODEL)
    values = {
        "s": np.float32(0.1),
        "z": np.int8(0),
        "scales": np.float32([1, 1, 2, 2]),
        "kernel": np.random.default_rng(0).standard_normal((4, 4, 1, 1)).astype(np.float32),
    }
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), n) for n, v in values.items())
    for node in model.graph.node:
        node.name = f"/{node.output[0]}"
    return model


def _node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def _run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


def test_pairs_on_both_sides_go_and_others_keep_theirs() -> None:
    model = _model()
    assert leave_float(model, ["/large"]) == ["/large"]
    names = [node.name for node in model.graph.node]
    assert "/ql" not in names
    assert "/dl" not in names
    assert _node(model, "/large").input[0] == "coarse"
    assert list(_node(model, "/sum").input) == ["f", "large"]
    assert _node(model, "/other").input[0] == "dc"
    assert leave_float(model, ["/large"]) == []


def test_values_are_those_that_were_rounded() -> None:
    """On multiples of the scale nothing was rounded: the results are the same."""
    generator = np.random.default_rng(1)
    feeds = {
        name: (generator.integers(-90, 90, (2, 4, side, side)) * np.float32(0.1)).astype(np.float32)
        for name, side in (("coarse", 4), ("fine", 8))
    }
    model = _model()
    expected = _run(model, feeds)
    leave_float(model, ["/large"])
    np.testing.assert_allclose(_run(model, feeds), expected, atol=1e-5)


def test_a_node_between_floats_stays() -> None:
    model = _model()
    before = model.SerializeToString()
    assert leave_float(model, ["/least", "/nothing"]) == []
    assert model.SerializeToString() == before


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([NO_KERNEL.format("/large")], ["/large"]),
        ([NO_KERNEL.format("/large + /other")], ["/large", "/other"]),
        ([NO_KERNEL.format("/f + /sum")], ["/sum"]),
        ([NO_KERNEL.format("PWN(/large)")], ["/large"]),
        ([NO_KERNEL.format("PWN(PWN(/large), /other)")], ["/large", "/other"]),
        ([NO_KERNEL.format("/largest")], []),
        ([NO_KERNEL.format("{ForeignNode[/large.../other]}")], []),
        (["4: Could not find any implementation", "out of memory"], []),
        ([], []),
    ],
)
def test_nodes_are_read_from_what_tensorrt_says(errors: list[str], expected: list[str]) -> None:
    assert without_kernel(errors, _model()) == expected


def _refuses(*names: str):
    """Return what fails while one of the nodes is quantized, naming the first."""

    def failure(model: onnx.ModelProto) -> str:
        makers = {tensor: node for node in model.graph.node for tensor in node.output}
        for node in model.graph.node:
            maker = makers.get(node.input[0])
            if node.name in names and maker is not None and maker.op_type == "DequantizeLinear":
                return NO_KERNEL.format(node.name)
        return ""

    return failure


@pytest.mark.parametrize("names", [("/large",), ("/large", "/other")])
def test_an_engine_is_built_with_such_nodes_in_float(names: tuple[str, ...]) -> None:
    library = fakes.library(failure=_refuses(*names))
    built = build_engine(_model(), EngineConfig(precision="int8"), library=library)
    assert built.warnings[: len(names)] == tuple(f"no INT8 kernel, left float: {name}" for name in names)
    assert len(library.tensorrt.trt.created.builds) == 1 + len(names)


def test_what_cannot_be_left_float_is_refused_as_tensorrt_says() -> None:
    library = fakes.library(failure=NO_KERNEL.format("/f"))
    with pytest.raises(RuntimeError, match="Could not find any implementation for node /f"):
        build_engine(_model(), EngineConfig(precision="int8"), library=library)
    assert len(library.tensorrt.trt.created.builds) == 1


def test_other_precisions_are_built_once() -> None:
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Relu", ["x"], ["y"], name="/y")],
            "g",
            [helper.make_tensor_value_info("x", 1, ["B", 4])],
            [helper.make_tensor_value_info("y", 1, ["B", 4])],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    library = fakes.library(failure=NO_KERNEL.format("/y"))
    with pytest.raises(RuntimeError, match="Could not find any implementation for node /y"):
        build_engine(model, EngineConfig(), library=library)
    assert len(library.tensorrt.trt.created.builds) == 1
