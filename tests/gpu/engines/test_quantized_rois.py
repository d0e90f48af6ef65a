"""Engines in which MultiLevelRoiAlign reads and writes INT8, beside the same engine with TensorRT's Q/DQ layers."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Optional

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtime.engine.builder import build_engine
from runtime.engine.config import EngineConfig
from runtime.engine.files import Machine
from runtime.engine.inspection import layers_from
from runtime.engine.session import EngineSession
from runtime.precision.plan import PrecisionGroup, PrecisionPlan
from tests.gpu.engines import harness

pytestmark = [pytest.mark.gpu, pytest.mark.tensorrt]

SCALES = ("output_scale", "feature_scales")
CHANNELS, NUM_ROIS, BATCH, SIZE = 64, 50, 2, (64, 96)
# Values are about normal: four standard deviations in 127 steps.
STEP = 4 / 127
# Of results up to 3. A hundredth of the values may be a step apart, where one engine rounds what the other has in FP16:
# a sum of 576 or more weighted values moves by a fraction of a step.
DIFFERENCE = 1.5 * STEP


class Builder:
    """Nodes of a network in which every convolution and product reads quantized data and weights."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list = []
        self.tensors = [
            numpy_helper.from_array(np.float32(STEP), "step"),
            numpy_helper.from_array(np.int8(0), "zero"),
        ]

    def add(self, op: str, inputs: list, output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"/{output}", **attributes))
        return output

    def quantized(self, tensor: str, step: str = "step") -> str:
        self.add("QuantizeLinear", [tensor, step, "zero"], f"{tensor}_quantized")
        return self.add("DequantizeLinear", [f"{tensor}_quantized", step, "zero"], f"{tensor}_dequantized")

    def weights(self, name: str, shape: tuple, fan_in: int) -> str:
        values = self.rng.standard_normal(shape) / np.sqrt(fan_in)
        self.tensors.append(numpy_helper.from_array(values.astype(np.float32), name))
        self.tensors.append(numpy_helper.from_array(np.float32(np.abs(values).max() / 127), f"{name}_step"))
        return self.quantized(name, f"{name}_step")

    def convolution(self, tensor: str, output: str, stride: int) -> str:
        weights = self.weights(f"{output}_weights", (CHANNELS, CHANNELS, 3, 3), CHANNELS * 9)
        data = tensor if tensor.endswith("_dequantized") else self.quantized(tensor)
        return self.add("Conv", [data, weights], output, strides=[stride] * 2, pads=[1] * 4)

    def roi_align(self, maps: list, output: str, bins: int) -> str:
        return self.add(
            "MultiLevelRoiAlign",
            ["rois", *maps],
            output,
            domain="maskrcnn",
            output_height=bins,
            output_width=bins,
            spatial_scales=[1.0, 0.5],
            finest_scale=56.0,
        )


def network() -> onnx.ModelProto:
    """Maps of two levels -> RoI features -> a fully connected layer, and a convolution."""
    net = Builder()
    data = net.quantized("data")
    maps = [net.quantized(net.convolution(data, f"map_{level}", 2**level)) for level in range(2)]
    flat = net.add("Flatten", [net.roi_align(maps, "box_rois", 7)], "flat", axis=1)
    weights = net.weights("box_weights", (CHANNELS * 49, CHANNELS), CHANNELS * 49)
    net.add("Gemm", [net.quantized(flat), weights], "box")
    net.convolution(net.roi_align(maps, "mask_rois", 14), "mask", 1)

    def value(name: str, shape: list) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    inputs = [value("data", ["B", CHANNELS, *SIZE]), value("rois", ["R", 5])]
    outputs = [value("box", ["R", CHANNELS]), value("mask", ["R", CHANNELS, 14, 14])]
    graph = helper.make_graph(net.nodes, "net", inputs, outputs, net.tensors)
    opsets = [helper.make_opsetid("", 16), helper.make_opsetid("maskrcnn", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def opened(
    machine: Machine, attributes: tuple = SCALES, plan: Optional[PrecisionPlan] = None
) -> EngineSession:
    """Build and open an engine of a plugin that takes these attributes."""
    shapes = (
        ("data", ((1, CHANNELS, *SIZE), (BATCH, CHANNELS, *SIZE), (BATCH, CHANNELS, *SIZE))),
        ("rois", ((1, 5), (NUM_ROIS, 5), (2 * NUM_ROIS, 5))),
    )
    config = EngineConfig(precision="int8", shapes=shapes, tactic_sources=harness.tactic_sources())
    assert machine.plugins.attributes["MultiLevelRoiAlign"] >= set(SCALES)
    plugins = replace(machine.plugins, attributes={"MultiLevelRoiAlign": frozenset(attributes)})
    built = build_engine(network(), config, plan=plan, plugins=plugins, library=machine.library)
    return EngineSession(built.data, library=machine.library, cuda=machine.cuda)


@pytest.fixture(scope="module")
def sessions(machine: Machine) -> Iterator[list[EngineSession]]:
    """INT8 on both sides of the plugin, and on neither."""
    with ExitStack() as stack:
        yield [stack.enter_context(opened(machine, taken)) for taken in (SCALES, ())]


def feeds(num_rois: int, batch: int) -> dict:
    rng = np.random.default_rng(num_rois)
    corners = rng.uniform(-10, 60, (num_rois, 2))
    sides = np.exp(rng.uniform(np.log(4), np.log(200), (num_rois, 2)))
    image = rng.integers(0, batch, (num_rois, 1))
    return {
        "data": rng.standard_normal((batch, CHANNELS, *SIZE)).astype(np.float32),
        "rois": np.hstack([image, corners, corners + sides]).astype(np.float32),
    }


def quantizers(session: EngineSession) -> list[str]:
    """Return the names of layers that quantize RoI features and nothing else."""
    names = [layer.name for layer in layers_from(session.layer_information())]
    assert any("/box_rois" in name for name in names), names
    return [name for name in names if name.startswith(("/flat_quantized", "/mask_rois_quantized"))]


def check_equal(found: dict, expected: dict) -> None:
    for name, array in expected.items():
        assert np.abs(array).max() > 1.5 * DIFFERENCE, name
        assert np.abs(found[name] - array).max() <= DIFFERENCE, name


@pytest.mark.parametrize(("num_rois", "batch"), [(1, 1), (NUM_ROIS, BATCH), (2 * NUM_ROIS, 1)])
def test_results_are_those_of_quantizelinear(num_rois: int, batch: int, sessions: list) -> None:
    found, expected = (session.run(feeds(num_rois, batch)) for session in sessions)
    check_equal(found, expected)


def test_no_layer_quantizes_roi_features(sessions: list) -> None:
    for session in sessions:
        session.run(feeds(NUM_ROIS, BATCH))
    assert [len(quantizers(session)) for session in sessions] == [0, 2]


def test_a_plan_keeps_the_operator_as_it_is(machine: Machine, sessions: list) -> None:
    plan = PrecisionPlan((PrecisionGroup("RoI features", "A reason.", ("/mask_rois",)),))
    with opened(machine, plan=plan) as session:
        found = session.run(feeds(NUM_ROIS, BATCH))
        check_equal(found, sessions[1].run(feeds(NUM_ROIS, BATCH)))
        assert len(quantizers(session)) == 1
