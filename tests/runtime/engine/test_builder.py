"""Parse, constrain, build: what is asked of TensorRT, and what is said when it fails."""

import re

import onnx
import pytest
from onnx import helper, parser

from runtime.engine.builder import build_engine
from runtime.engine.config import EngineConfig
from tests.runtime import fakes as models
from tests.runtime.engine import fakes

MODEL = """<ir_version: 8, opset_import: ["": 17]>
net (float[B, 3, 8, 8] x) => (float[B, 3, 8, 8] y) {
    a = Relu(x)
    b = Det(a)
    c = Relu(b)
    y = Bernoulli(c)
}"""


def _model() -> onnx.ModelProto:
    model = parser.parse_model(MODEL)
    model.graph.node[1].name = "/det"
    return model


@pytest.mark.parametrize("version", fakes.RELEASES)
def test_a_build_returns_engine_and_figures(version: str) -> None:
    built = build_engine(_model(), EngineConfig(batch=(1, 2, 4)), library=fakes.library(version))
    assert fakes.opened(built.data)["profiles"] == [
        {"x": [[1, 3, 8, 8], [1, 3, 8, 8], [1, 3, 8, 8]]},
        {"x": [[2, 3, 8, 8], [2, 3, 8, 8], [4, 3, 8, 8]]},
    ]
    assert built.timing_cache == f"timing cache of {version}\nkernel\n".encode()
    assert built.seconds > 0
    assert built.num_layers >= 4
    warning = "TensorRT was linked against cuDNN 8.6.0 but loaded cuDNN 8.5.0"
    assert built.warnings == (warning,)


@pytest.mark.parametrize("version", fakes.RELEASES)
def test_all_errors_of_the_parser_are_listed_by_operator(version: str) -> None:
    library = fakes.library(version, unsupported=("Det", "Bernoulli"))
    with pytest.raises(ValueError) as caught:
        build_engine(_model(), EngineConfig(precision="fp32"), library=library)
    first, *lines = str(caught.value).split("\n")
    all_errors = [
        "  Det (node 1, /det): No importer registered for op: Det. Plugin not found",
        "  Bernoulli (node 3, y): No importer registered for op: Bernoulli. Plugin not found",
    ]
    assert lines == (all_errors[:1] if version in (fakes.V8_4, fakes.V8_5) else all_errors)
    count = "1 error" if len(lines) == 1 else "2 errors"
    assert re.match(
        rf"model: expected an ONNX that TensorRT {version} parses, found {count}; .*`make plugins`", first
    )


def test_a_failed_build_says_what_tensorrt_says() -> None:
    library = fakes.library(failure="10: [optimizer.cpp] Could not find any implementation for node {...}.")
    message = (
        r"TensorRT 8.5.3.1: expected an engine, found: 10: \[optimizer.cpp\] Could not find any implementation .*; "
        "--verbose shows the whole log"
    )
    with pytest.raises(RuntimeError, match=message):
        build_engine(_model(), EngineConfig(), library=library)


def test_nobody_listens_after_a_failure() -> None:
    library = fakes.library(failure="no memory")
    lines = []
    with pytest.raises(RuntimeError):
        build_engine(_model(), EngineConfig(), library=library, echo=lines.append)
    count = len(lines)
    library.logger.log(1, "later")
    assert len(lines) == count > 0


def test_a_free_dimension_without_a_range_is_refused() -> None:
    model = models.model(models.metadata(size=None))
    message = (
        r"input images: expected a range for the free dimension 2 of \?x3x\?x\?, found none; give --size"
    )
    with pytest.raises(ValueError, match=message):
        build_engine(model, EngineConfig(), library=fakes.library())


def test_an_operator_without_plugin_is_refused_before_tensorrt_sees_it() -> None:
    node = helper.make_node("grid_sampler", ["x"], ["y"], name="/sample", domain="mmcv")
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17, "mmcv": 1]> net (float[B] x) => (float[B] y) { y = Relu(x) }'
    )
    model.graph.node[0].CopyFrom(node)
    library = fakes.library()
    with pytest.raises(
        ValueError, match=r"found none for mmcv::grid_sampler \(node /sample\); build the plugin"
    ):
        build_engine(model, EngineConfig(), library=library)
    assert library.tensorrt.trt.created.configs == []


@pytest.mark.parametrize("version", fakes.RELEASES)
def test_a_timing_cache_is_read_and_extended(version: str) -> None:
    library = fakes.library(version)
    first = build_engine(_model(), EngineConfig(), library=library)
    second = build_engine(_model(), EngineConfig(), library=library, timing_cache=first.timing_cache)
    assert second.timing_cache == first.timing_cache + b"kernel\n"


def test_a_timing_cache_of_another_release_is_ignored() -> None:
    other = build_engine(_model(), EngineConfig(), library=fakes.library(fakes.V8_4)).timing_cache
    built = build_engine(_model(), EngineConfig(), library=fakes.library(), timing_cache=other)
    assert built.timing_cache == b"timing cache of 8.5.3.1\nkernel\n"


@pytest.mark.parametrize("version", fakes.RELEASES)
def test_progress_is_reported_by_monitor_or_log(version: str) -> None:
    steps = []
    built = build_engine(
        _model(),
        EngineConfig(precision="fp32"),
        library=fakes.library(version),
        monitor=lambda *step: steps.append(step),
    )
    num = built.num_layers
    if version in (fakes.V8_4, fakes.V8_5):
        choosing = [("choosing kernels", i + 1, num) for i in range(num)]
        assert steps == [("fusing layers", 0, 0), *choosing, ("writing the engine", 0, 0)]
    else:
        assert steps == [("Building Engine", i, num) for i in range(num + 1)]


def test_the_whole_log_can_be_echoed() -> None:
    lines = []
    build_engine(_model(), EngineConfig(), library=fakes.library(), echo=lines.append)
    assert "[verbose] =============== Computing costs for " in lines
    assert sum(line.startswith("[warning] TensorRT was linked") for line in lines) == 2
