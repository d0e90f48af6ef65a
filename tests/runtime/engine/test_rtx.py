"""The real parser and builder of TensorRT-RTX, which need no GPU.

Its networks are strongly typed, it takes no plugins of ours, and has no RoiAlign: what is built is the network's dense
part, from the images to the RPN's heads.
"""

import importlib.util
import struct
from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, parser

from runtime.engine.builder import BuiltEngine, build_engine
from runtime.engine.config import EngineConfig
from runtime.engine.library import Library, open_library
from runtime.engine.lowering import engine_model
from runtime.precision.geometry import default_plan
from tests.runtime.engine.conftest import PLUGIN_OPS

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt_rtx is not installed: `pip install tensorrt-rtx` (Linux, x86-64)",
)

BATCH = (1, 2, 5)
SIZE = (3, 128, 192)


@pytest.fixture(scope="module")
def rtx() -> Library:
    return open_library("tensorrt_rtx")


@pytest.fixture(scope="module")
def dense(exported: onnx.ModelProto, rtx: Library) -> onnx.ModelProto:
    """Backbone, FPN and RPN heads of the exported model."""
    graph = engine_model(exported, PLUGIN_OPS, rtx.tensorrt)
    outputs = [
        node.output[0]
        for node in graph.graph.node
        if node.op_type == "Conv" and node.name.startswith(("/rpn_head/rpn_cls", "/rpn_head/rpn_reg"))
    ]
    assert len(outputs) == 10
    return onnx.utils.Extractor(graph).extract_model(["images"], outputs)


@pytest.fixture(scope="module")
def single(dense: onnx.ModelProto, rtx: Library) -> BuiltEngine:
    return build_engine(dense, EngineConfig(batch=BATCH, precision="fp32"), library=rtx)


def _model(text: str) -> onnx.ModelProto:
    return parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]>\n{text}')


def _has_shape(data: bytes, shape: Sequence[int]) -> bool:
    """Whether an engine holds a shape, as 64-bit integers, one after the other."""
    return struct.pack(f"<{len(shape)}q", *shape) in data


def _num_weight_bytes(model: onnx.ModelProto) -> int:
    return sum(int(np.prod(t.dims)) * 4 for t in model.graph.initializer if t.data_type == TensorProto.FLOAT)


def test_the_library_counts_as_the_newest(rtx: Library) -> None:
    assert rtx.tensorrt.is_rtx
    assert rtx.tensorrt.strongly_typed
    assert rtx.tensorrt.name.startswith("TensorRT-RTX 1.")
    assert isinstance(rtx.tensorrt.plugin_names(), set)


def test_the_dense_part_builds_in_fp32(single: BuiltEngine, dense: onnx.ModelProto) -> None:
    assert len(single.data) > _num_weight_bytes(dense)
    assert single.num_layers >= len(dense.graph.node)
    assert single.num_float32 == 0
    assert single.warnings == ()
    assert single.seconds > 0


def test_the_profile_is_in_the_engine(single: BuiltEngine, dense: onnx.ModelProto, rtx: Library) -> None:
    assert [_has_shape(single.data, (batch, *SIZE)) for batch in BATCH] == [True] * 3
    assert not _has_shape(single.data, (7, *SIZE))
    other = build_engine(dense, EngineConfig(batch=(1, 3, 7), precision="fp32"), library=rtx)
    assert [_has_shape(other.data, (batch, *SIZE)) for batch in (1, 2, 3, 7, 5)] == [True] * 4 + [False]


def test_fp16_halves_the_weights(single: BuiltEngine, dense: onnx.ModelProto, rtx: Library) -> None:
    """All of this part is dense: the default plan leaves it to FP16."""
    plan = default_plan(dense)
    half = build_engine(dense, EngineConfig(batch=BATCH), plan=plan, library=rtx)
    saved = len(single.data) - len(half.data)
    assert saved == pytest.approx(_num_weight_bytes(dense) / 2, rel=0.1)
    assert [_has_shape(half.data, (batch, *SIZE)) for batch in BATCH] == [True] * 3


def test_tf32_builds(dense: onnx.ModelProto, rtx: Library) -> None:
    config = EngineConfig(batch=(1, 1, 1), precision="tf32", workspace_mib=256, tactic_sources=())
    assert len(build_engine(dense, config, library=rtx).data) > _num_weight_bytes(dense)


def test_a_dynamic_size_has_its_ranges_in_the_engine(rtx: Library) -> None:
    model = _model(
        "net (float[B, 3, H, W] images, float[B, 2] image_sizes) => (float[B, 3, H, W] y, float[B, 2] z) "
        "{ y = Relu(images) z = Relu(image_sizes) }"
    )
    config = EngineConfig(batch=(1, 2, 3), height=(64, 96, 160), width=(32, 128, 224), precision="fp32")
    data = build_engine(model, config, library=rtx).data
    for shape in ((1, 3, 64, 32), (2, 3, 96, 128), (3, 3, 160, 224), (2, 2), (3, 2)):
        assert _has_shape(data, shape)


def test_unsupported_operators_are_all_listed(rtx: Library) -> None:
    model = _model(
        "net (float[B, 3, 8, 8] x) => (float[B, 3, 8, 8] y, float[B, 3] d, int32[B, K] w) {\n"
        "  y = Relu(x)\n  d = Det(x)\n  flat = Flatten(x)\n  w = Multinomial(flat)\n}"
    )
    model.graph.node[1].name = "/det"
    with pytest.raises(ValueError) as caught:
        build_engine(model, EngineConfig(precision="fp32"), library=rtx)
    first, *lines = str(caught.value).split("\n")
    assert first.startswith(
        f"model: expected an ONNX that {rtx.tensorrt.name} parses, found 2 errors; an operator"
    )
    assert [line.split(":")[0] for line in lines] == ["  Det (node 1, /det)", "  Multinomial (node 3, w)"]


def test_what_needs_our_plugins_is_refused_by_name(exported: onnx.ModelProto, rtx: Library) -> None:
    """The bodies are inlined, and the parser's RoiAlign is a plugin, of which it has none."""
    with pytest.raises(
        ValueError,
        match=r"(?s)TensorRT-RTX .* parses, found 1 error; .*RoiAlign \(node \d+, MultiLevelRoiAlign/",
    ):
        build_engine(exported, EngineConfig(precision="fp32"), library=rtx)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_best_k_build_without_the_plugin(exported: onnx.ModelProto, rtx: Library, precision: str) -> None:
    """From the images to the candidates of RPN's NMS: DecodeProposals by its body, with TopK in it."""
    graph = engine_model(exported, [op for op in PLUGIN_OPS if op != "DecodeProposals"], rtx.tensorrt)
    nms = next(node for node in graph.graph.node if node.op_type == "GroupedNMS")
    part = onnx.utils.Extractor(graph).extract_model(["images", "image_sizes"], nms.input[:2])
    assert sum(node.op_type == "TopK" for node in part.graph.node) == 5
    config = EngineConfig(batch=BATCH, precision=precision)
    built = build_engine(part, config, plan=default_plan(part), library=rtx)
    assert built.num_layers >= len(part.graph.node)
    assert _has_shape(built.data, (BATCH[-1], *SIZE))


def test_axes_as_value_ints_build(rtx: Library) -> None:
    """TensorRT 8.5 takes zeros for such constants, which is why they become initializers."""
    model = _model(
        "net (float[B, 3, 8] x) => (float[B, 1, 3, 8, 1] y, float[B, 3] z) {\n"
        "  axes = Constant<value_ints = [1, 4]>()\n  y = Unsqueeze(x, axes)\n"
        "  last = Constant<value_int = 2>()\n  z = ReduceMax<axes = [2], keepdims = 0>(x)\n"
        "  unused = Gather<axis = 2>(x, last)\n}"
    )
    built = build_engine(model, EngineConfig(batch=(1, 2, 4), precision="fp32"), library=rtx)
    assert _has_shape(built.data, (4, 3, 8))


def test_there_is_no_timing_cache(single: BuiltEngine, rtx: Library) -> None:
    """RTX warns that it is deprecated and does nothing; warnings are errors in these tests."""
    assert single.timing_cache == b""
    model = _model("net (float[B, 3] x) => (float[B, 3] y) { y = Relu(x) }")
    built = build_engine(
        model, EngineConfig(precision="fp32"), library=rtx, timing_cache=b"of another release"
    )
    assert built.data
    assert built.timing_cache == b""


def test_the_progress_monitor_follows_the_build(dense: onnx.ModelProto, rtx: Library) -> None:
    steps, lines = [], []
    build_engine(
        dense,
        EngineConfig(batch=(1, 1, 1), precision="fp32"),
        library=rtx,
        monitor=lambda *step: steps.append(step),
        echo=lines.append,
    )
    phases = list(dict.fromkeys(phase for phase, _, _ in steps))
    assert phases[0] == "Building engine"
    assert "choosing kernels" not in phases  # which is read from the log of older releases
    assert len(phases) > 3
    for phase in phases:
        done = [(step, total) for name, step, total in steps if name == phase]
        assert done[0][0] == 0
        assert all(0 <= step <= total for step, total in done)
    assert any(line.startswith("[info] Opset version:") for line in lines)
    assert any(line.startswith("[verbose] ") for line in lines)


def test_a_damaged_engine_says_why(rtx: Library, single: BuiltEngine) -> None:
    """Reading a good one takes a GPU."""
    with pytest.raises(
        ValueError, match=r"engine: expected one that TensorRT-RTX .* reads, found: .*; build it again"
    ):
        rtx.engine_from(single.data[:1000])
