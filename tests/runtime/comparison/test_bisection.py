"""The first tensor at which two networks part, found with few marked tensors."""

import warnings
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Optional

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.functions import functions_for
from runtime.backends import onnxruntime, tensorrt
from runtime.comparison.bisection import (
    LayerReport,
    Side,
    compare_layers,
    measure,
    with_outputs,
)
from runtime.graphs.view import tensor_types
from runtime.runner import LayerRunner

CHAIN, BRANCH = 40, 10
CHANNELS = 4


class Network:
    """Builds a model node by node; every node's name is its output's."""

    def __init__(self, **inputs: list) -> None:
        self.nodes, self.weights = [], {}
        self.inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()]

    def node(self, op: str, name: str, *inputs: str, outputs: tuple = (), **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, inputs, outputs or [name], name=f"node_{name}", **attributes))
        return name

    def weight(self, name: str, array: object) -> str:
        self.weights[name] = np.asarray(array)
        return name

    def conv(self, name: str, source: str) -> str:
        """Add a 1x1 convolution that mixes channels and keeps magnitudes."""
        generator = np.random.default_rng(len(self.nodes))
        mixing = np.linalg.qr(generator.standard_normal((CHANNELS, CHANNELS)))[0]
        weight = self.weight(f"{name}.weight", mixing.astype(np.float32)[:, :, None, None])
        return self.node("Conv", name, source, weight)

    def model(self, *outputs: str) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "network",
            self.inputs,
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            [numpy_helper.from_array(array, name) for name, array in self.weights.items()],
        )
        opsets = [helper.make_opsetid("", 16), helper.make_opsetid("maskrcnn", 1)]
        functions = functions_for(self.nodes, 16)
        return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=8)


def branched() -> onnx.ModelProto:
    """Return a chain of 40 convolutions; from the 10th a side branch of 10, added at the 30th; two outputs."""
    network = Network(x=["B", CHANNELS, 6, 7])
    main = network.conv("start", "x")
    side = main
    for index in range(CHAIN):
        if index == 10:
            side = main
        if index == 30:
            main = network.node("Add", "joined", main, side)
        # The branches' nodes alternate, so that the order of the nodes says little about who depends on whom.
        if 10 <= index < 10 + BRANCH:
            side = network.node(
                "LeakyRelu", f"side_{index}_relu", network.conv(f"side_{index}", side), alpha=0.7
            )
        main = network.node("LeakyRelu", f"main_{index}_relu", network.conv(f"main_{index}", main), alpha=0.7)
    network.node("Identity", "side", side)
    network.node("Identity", "main", main)
    return network.model("main", "side")


def ranked(op: str = "TopK", num_rows: int = 40) -> onnx.ModelProto:
    """Return a network that takes the ten rows of the best scores, all of which are equal, through a head.

    Args:
        op: that finds them, TopK or SelectTop.
        num_rows: of which.
    """
    generator = np.random.default_rng(0)
    network = Network(x=[1, num_rows, CHANNELS])
    network.weight("gain", np.ones((1, num_rows), np.float32))
    network.node("ReduceMax", "peak", "x", axes=[1, 2], keepdims=0)
    network.node("Mul", "scores", "gain", "peak")
    if op == "TopK":
        network.node("TopK", "top", "scores", network.weight("k", np.array([10])), outputs=("best", "order"))
    else:
        network.node(op, "top", "scores", outputs=("best", "order"), domain="maskrcnn", k=10)
    network.node("Gather", "rows", "x", "order", axis=1)
    network.node("Squeeze", "chosen", "rows", network.weight("axis", np.array([1])))
    source = "chosen"
    for index in range(12):
        weight = network.weight(
            f"head_{index}.weight", generator.standard_normal((CHANNELS, CHANNELS), np.float32)
        )
        source = network.node(
            "Tanh", f"head_{index}_tanh", network.node("MatMul", f"head_{index}", source, weight)
        )
    network.node("Identity", "y", source)
    return network.model("y", "best")


def changed(model: onnx.ModelProto, *weights: str, by: float = 0.2) -> onnx.ModelProto:
    """Return a copy in which one value of each weight is another."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for name in weights:
        tensor = next(t for t in copy.graph.initializer if t.name == name)
        array = numpy_helper.to_array(tensor).copy()
        array.flat[1] += by
        tensor.CopyFrom(numpy_helper.from_array(array, name))
    return copy


class Counting:
    """onnxruntime, which counts; some tensors it cannot give, some only without others."""

    def __init__(self, *, broken: tuple = (), most: Optional[int] = None) -> None:
        self.marked, self.closed = [], 0
        self._broken, self._most = set(broken), most

    def __call__(self, model: onnx.ModelProto) -> LayerRunner:
        names = {output.name for output in model.graph.output}
        self.marked.append(len(names) - 2)
        if names & self._broken:
            raise RuntimeError(f"no {sorted(names & self._broken)}")
        if self._most is not None and len(names) - 2 > self._most:
            raise RuntimeError("out of memory")
        run = onnxruntime.layer_runner(threads=1)(model)
        owner = self

        class Run:
            def __call__(self, feeds: Mapping) -> Mapping:
                return run(feeds)

            def close(self) -> None:
                owner.closed += 1

        return Run()


FEEDS = {"x": np.random.default_rng(1).standard_normal((2, CHANNELS, 6, 7)).astype(np.float32)}
ROWS = {"x": np.random.default_rng(1).standard_normal((1, 40, CHANNELS)).astype(np.float32)}


def compared(
    expected: onnx.ModelProto, found: onnx.ModelProto, runner: object = None, **options: object
) -> LayerReport:
    runner = runner or Counting()
    feeds = ROWS if expected.graph.input[0].type.tensor_type.shape.dim[1].dim_value == 40 else FEEDS
    return compare_layers(Side(expected, runner), Side(found, runner), feeds, **options)


def test_equal_networks_do_not_part():
    runner = Counting()
    report = compared(branched(), branched(), runner)
    assert report.first is None
    assert [error.name for error in report.measured] == ["side", "main"]
    # The outputs tell all, and they were not marked.
    assert (report.num_marked, report.num_runs, runner.marked, runner.closed) == (0, 1, [0, 0], 2)


@pytest.mark.parametrize(
    "name",
    [
        "start",
        "main_0",
        "main_9",
        "main_10",
        "main_17",
        "side_10",
        "side_19",
        "main_29",
        "main_30",
        "main_39",
    ],
)
def test_exactly_the_changed_convolution_is_named(name: str):
    runner = Counting()
    report = compared(branched(), changed(branched(), f"{name}.weight"), runner)
    assert (report.first.name, report.first.node, report.first.op) == (name, f"node_{name}", "Conv")
    assert report.first.ordered_by == ""
    assert report.num_tensors == 104
    # Of a hundred tensors, three rounds of eight.
    assert report.num_marked <= 24
    assert report.num_runs <= 5
    assert (max(runner.marked), len(runner.marked)) == (8, 2 * report.num_runs)
    assert sum(runner.marked) == 2 * report.num_marked
    positions = [error.position for error in report.measured]
    assert positions == sorted(positions)


@pytest.mark.parametrize("chunk", [1, 3, 200])
def test_the_chunk_is_the_most_that_is_marked(chunk: int):
    runner = Counting()
    report = compared(branched(), changed(branched(), "main_17.weight"), runner, chunk=chunk)
    assert report.first.name == "main_17"
    assert max(runner.marked) <= chunk


def test_of_two_faults_the_first():
    """In the nodes' order, though it lies on the branch that joins later."""
    for pair, first in ((("main_12", "side_11"), "side_11"), (("side_15", "main_14"), "main_14")):
        report = compared(branched(), changed(branched(), *(f"{name}.weight" for name in pair)))
        assert report.first.name == first


def test_the_worst_place_and_values_are_those_of_the_tensors():
    expected, found = branched(), changed(branched(), "main_17.weight", by=0.5)
    first = compared(expected, found).first
    a, b = (
        onnxruntime.layer_runner()(with_outputs(model, ["main_17"], tensor_types(model)))(FEEDS)["main_17"]
        for model in (expected, found)
    )
    difference = np.abs(a - b)
    assert first.shape == first.found_shape == a.shape
    assert first.index == np.unravel_index(difference.argmax(), a.shape)
    assert (first.expected, first.found) == (a[first.index], b[first.index])
    assert first.absolute == difference.max()
    assert first.relative == pytest.approx(difference.max() / np.abs(a).max())
    assert first.share == np.count_nonzero(difference > 1e-3 * np.abs(a).max()) / a.size


def test_a_difference_within_the_tolerance_is_none():
    found = changed(branched(), "main_39.weight", by=1e-3)
    assert compared(branched(), found, tolerance=1e-2).first is None
    assert compared(branched(), found, tolerance=1e-5).first.name == "main_39"


def test_tensors_that_cannot_be_outputs_are_left_out():
    runner = Counting(broken=("main_17", "main_3_relu"))
    report = compared(branched(), changed(branched(), "main_17.weight"), runner)
    assert report.first.name == "main_17_relu"
    assert set(report.unmeasured) >= {"main_17"}
    assert "no ['main_17']" in report.unmeasured["main_17"]


def test_fewer_are_marked_where_many_do_not_run():
    runner = Counting(most=2)
    report = compared(branched(), changed(branched(), "main_17.weight"), runner)
    assert report.first.name == "main_17"
    assert report.unmeasured == {}


def test_a_network_that_does_not_run_at_all_says_why():
    with pytest.raises(RuntimeError, match=r"no \['main'\]"):
        compared(branched(), branched(), Counting(broken=("main",)))


def test_nan_parts_and_is_shown():
    found = changed(branched(), "side_15.weight", by=np.nan)
    first = compared(branched(), found).first
    assert first.name == "side_15"
    assert (first.relative, first.absolute) == (np.inf, np.inf)
    assert np.isnan(first.found)


def test_a_typed_half_precision_copy():
    """Casts are tensors of one side only; the converter is onnxruntime's own."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    blocked = [f"node_main_{i}" for i in range(5, 9)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        half = convert_float_to_float16(branched(), keep_io_types=True, node_block_list=blocked)
        wrong = convert_float_to_float16(
            changed(branched(), "main_22.weight"), keep_io_types=True, node_block_list=blocked
        )
    assert any("cast" in node.name for node in half.graph.node)
    assert compared(branched(), half, tolerance=0.02).first is None
    for models in ((branched(), wrong), (wrong, branched()), (half, wrong)):
        assert compared(*models, tolerance=0.02).first.name == "main_22"


def test_models_without_common_tensors_are_refused():
    network = Network(x=["B", CHANNELS, 6, 7])
    network.conv("other", "x")
    with pytest.raises(
        ValueError, match="expected two models with float tensors of the same names, found none"
    ):
        compared(branched(), network.model("other"))
    with pytest.raises(ValueError, match="chunk: expected at least 1, found 0"):
        compared(branched(), branched(), chunk=0)


class TestOrder:
    """The scores differ by a millionth, so that ten other rows come first."""

    found = staticmethod(lambda *weights, op="TopK": changed(with_gain(ranked(op)), *weights))

    @pytest.mark.parametrize("op", ["TopK", "SelectTop"])
    def test_rows_in_another_order_are_no_difference(self, op: str):
        apart = [error.name for error in compare_outputs(ranked(op), self.found(op=op)) if error > 0.1]
        assert apart == ["y"], "the test is one only if the outputs differ, row by row"
        report = compared(ranked(op), self.found(op=op))
        assert report.first is None
        assert set(report.same_order) == {"best", "order"}
        assert "y" in [error.name for error in report.measured]

    @pytest.mark.parametrize("index", [0, 5, 11])
    def test_a_fault_behind_the_order_is_found(self, index: int):
        report = compared(ranked(), self.found(f"head_{index}.weight"))
        assert (report.first.name, report.first.ordered_by) == (f"head_{index}", "")
        positions = [error.position for error in report.measured]
        assert positions == sorted(positions)

    def test_a_fault_before_the_order_comes_first(self):
        report = compared(ranked(), changed(ranked(), "gain", "head_3.weight"))
        assert report.first.name == "scores"
        assert report.same_order == ()
        (output,) = (error for error in report.measured if error.name == "y")
        assert output.ordered_by == "node_top"

    def test_where_the_order_cannot_be_given_it_is_said(self):
        class Refusing(Counting):
            def __call__(self, model: onnx.ModelProto) -> LayerRunner:
                if len(model.graph.input) > 1:
                    raise RuntimeError("too many inputs")
                return super().__call__(model)

        report = compared(ranked(), self.found(), Refusing())
        assert (report.same_order, report.order_problem) == ((), "too many inputs")
        assert report.first.ordered_by == "node_top"


class TestProposals:
    """24 anchors of scores that are equal but for a millionth, one of a better score, of which 10 are taken."""

    best = 7

    def feeds(self) -> dict[str, np.ndarray]:
        x = np.ones((24, 1, 1, 1), np.float32)
        x[self.best] = 2
        return {"x": x.reshape(1, 2, 4, 3).transpose(0, 3, 1, 2).copy()}

    def compared(self, found: onnx.ModelProto) -> LayerReport:
        return compare_layers(Side(proposals(), Counting()), Side(found, Counting()), self.feeds())

    def test_rows_in_another_order_are_no_difference(self):
        found = proposals(gain=np.linspace(1, 1 + 1e-5, 24))
        rows = [onnxruntime.layer_runner()(model)(self.feeds())["boxes"] for model in (proposals(), found)]
        assert np.abs(rows[0] - rows[1]).max() > 10, "the test is one only if other rows are taken"
        report = self.compared(found)
        assert report.first is None
        assert set(report.same_order) == {"boxes", "scores"}
        assert {"boxes", "scores"} <= {error.name for error in report.measured}

    def test_another_box_is_found_though_the_rows_are_given_to_both(self):
        report = self.compared(proposals(gain=np.linspace(1, 1 + 1e-5, 24), moved=self.best))
        assert (report.first.name, report.first.op, report.first.ordered_by) == (
            "boxes",
            "DecodeProposals",
            "",
        )
        assert report.first.share == pytest.approx(1 / 10)
        assert report.first.absolute == pytest.approx(4)

    def test_a_box_of_the_lowest_score_is_one_that_need_not_be_taken(self):
        assert self.compared(proposals(moved=0)).first is None


def proposals(gain: object = 1.0, moved: Optional[int] = None) -> onnx.ModelProto:
    """Return DecodeProposals over one level of 2 x 4 places with 3 anchors, its ten best; deltas are 0.

    Args:
        gain: of each anchor's logit.
        moved: the anchor whose box is 4 px further right and down.
    """
    corners = np.arange(24, dtype=np.float32)[:, None] * [20, 10]
    priors = np.concatenate([corners, corners + 30], 1).astype(np.float32)
    if moved is not None:
        priors[moved] += 4
    network = Network(x=[1, 3, 2, 4])
    gains = np.broadcast_to(np.float32(gain), 24).reshape(1, 2, 4, 3).transpose(0, 3, 1, 2)
    network.node("Mul", "logits", "x", network.weight("gain", gains))
    inputs = [
        "logits",
        network.weight("deltas", np.zeros((1, 12, 2, 4), np.float32)),
        network.weight("priors", priors),
        network.weight("image_sizes", np.float32([[800, 800]])),
    ]
    attributes = {
        "top": [10],
        "means": [0.0] * 4,
        "stds": [1.0] * 4,
        "max_ratio": 4.0,
        "clip": 1,
        "min_size": 0.0,
    }
    network.node(
        "DecodeProposals", "rows", *inputs, outputs=("boxes", "scores"), domain="maskrcnn", **attributes
    )
    network.node("Tanh", "y", "boxes")
    return network.model("y", "boxes")


def with_gain(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace the equal gains by ones of which the last rows' are the largest."""
    tensor = next(t for t in model.graph.initializer if t.name == "gain")
    gain = np.linspace(1, 1 + 1e-5, tensor.dims[1], dtype=np.float32)[None]
    tensor.CopyFrom(numpy_helper.from_array(gain, "gain"))
    return model


class NamedError(float):
    """A difference with a name."""

    name: str


def compare_outputs(expected: onnx.ModelProto, found: onnx.ModelProto) -> list[NamedError]:
    """Return the largest difference of each output, run by onnxruntime as it is."""
    errors = []
    a, b = (onnxruntime.layer_runner()(model)(ROWS) for model in (expected, found))
    for name in a:
        error = NamedError(np.abs(a[name] - b[name]).max())
        error.name = name
        errors.append(error)
    return errors


MEASURES = {
    "equal": ([1, -2], [1, -2], 0.0, 0.0),
    "by the largest": ([1, -4], [1.5, -4], 0.125, 0.5),
    "zeros": ([0, 0], [0, 0.25], 0.25, 0.5),
    "equal infinities": ([1, np.inf], [1, np.inf], 0.0, 0.0),
    "one infinity": ([1, 2], [1, np.inf], np.inf, 0.5),
    "opposite infinities": ([1, np.inf], [1, -np.inf], np.inf, 0.5),
    "NaN on both sides": ([1, np.nan], [1, np.nan], 0.0, 0.0),
    "NaN on one side": ([1, 2], [1, np.nan], np.inf, 0.5),
    "NaN on the other side": ([np.nan, 2], [1, 2], np.inf, 0.5),
    "all NaN": ([np.nan, np.nan], [1, 2], np.inf, 1.0),
    "nothing": ([], [], 0.0, 0.0),
    "shapes": ([1, 2], [1], np.inf, 1.0),
}


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_measure(name: str, dtype: type):
    expected, found, relative, share = MEASURES[name]
    figures = measure(np.array(expected, np.float32), np.array(found, dtype), 1e-3)
    assert (figures["relative"], figures["share"]) == (relative, share)


def test_types_are_the_nodes_and_not_what_an_old_copy_says():
    network = Network(x=["B", CHANNELS, 6, 7])
    network.node("Cast", "half", "x", to=TensorProto.FLOAT16)
    network.node("Neg", "minus", "half")
    network.node("Cast", "y", "minus", to=TensorProto.FLOAT)
    model = network.model("y")
    model.graph.value_info.append(helper.make_tensor_value_info("minus", TensorProto.FLOAT, None))
    model.graph.value_info.append(helper.make_tensor_value_info("unknown", TensorProto.INT32, None))
    types = {name: kind.tensor_type.elem_type for name, kind in tensor_types(model).items()}
    assert types == {
        "x": TensorProto.FLOAT,
        "half": TensorProto.FLOAT16,
        "minus": TensorProto.FLOAT16,
        "y": TensorProto.FLOAT,
        "unknown": TensorProto.INT32,
    }
    assert len(model.graph.value_info) == 2


def test_onnxruntimes_errors_are_said_in_one_line():
    model = branched()
    with pytest.raises(RuntimeError, match="onnxruntime: expected to run the model on x "):
        onnxruntime.layer_runner()(model)({"x": np.zeros((1, 9, 6, 7), np.float32)})
    model.graph.node[0].op_type = "Nonsense"
    with pytest.raises(RuntimeError, match="found one that it cannot load: .*Nonsense") as error:
        onnxruntime.layer_runner()(model)
    assert "\n" not in str(error.value)


def test_tensorrt_builds_with_the_settings_and_one_timing_cache(monkeypatch: pytest.MonkeyPatch):
    """Without TensorRT: what is built of what, and what the session gets."""
    calls = []

    def build_engine(
        model: object, config: object, *, plan: object, timing_cache: bytes, **rest: object
    ) -> object:
        calls.append((model, config, plan, timing_cache))
        return SimpleNamespace(data=b"engine", timing_cache=b"cache")

    class Session:
        inputs = {"order": SimpleNamespace(dtype="int32"), "x": SimpleNamespace(dtype="float32")}
        closed = 0

        def __init__(self, data: bytes) -> None:
            assert data == b"engine"

        def run(self, feeds: dict) -> dict:
            return {name: array.dtype for name, array in feeds.items()}

        def close(self) -> None:
            Session.closed += 1

    monkeypatch.setattr("runtime.backends.tensorrt.open_library", lambda: SimpleNamespace(tensorrt=None))
    monkeypatch.setattr("runtime.backends.tensorrt.load_plugins", lambda path, tensorrt: None)
    monkeypatch.setattr("runtime.backends.tensorrt.build_engine", build_engine)
    monkeypatch.setattr("runtime.backends.tensorrt.EngineSession", Session)
    make = tensorrt.layer_runner("config", plan="plan")
    for model in ("first", "second"):
        runner = make(model)
        found = runner({"order": np.zeros(3, np.int64), "x": np.zeros(3, np.float32), "unused": np.zeros(1)})
        assert found == {"order": "int32", "x": "float32"}
        runner.close()
    assert calls == [("first", "config", "plan", b""), ("second", "config", "plan", b"cache")]
    assert Session.closed == 2
