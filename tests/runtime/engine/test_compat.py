"""What differs between TensorRT's releases, on the fake of each."""

import sys

import onnx
import pytest
from onnx import parser

from runtime.cuda.binding import host_array
from runtime.engine.builder import build_engine
from runtime.engine.compat import TensorRT, load_tensorrt
from runtime.engine.config import EngineConfig
from runtime.engine.library import Library
from tests.runtime.engine import fake_cuda, fakes

MODEL = """<ir_version: 8, opset_import: ["": 17]>
net (float[B, 4] x, int32[4] shift) => (float[B, 4] y, int32[4] z, bool[B, 4] flags) {
    y = Add(x, x)
    z = Add(shift, shift)
    flags = Greater(x, y)
}"""


QUANTIZED = """<ir_version: 8, opset_import: ["": 17]>
net (float[B, 4] x) => (float[B, 4] y) {
    scale = Constant<value = float {0.1}>()
    zero = Constant<value = int8 {0}>()
    q = QuantizeLinear(x, scale, zero)
    y = DequantizeLinear(q, scale, zero)
}"""


def _model() -> onnx.ModelProto:
    return parser.parse_model(MODEL)


def _engine(library: Library, num_profiles: int = 1) -> object:
    """Return an engine; the profiles after the first are of twice the size each."""
    tensorrt = library.tensorrt
    builder = tensorrt.trt.Builder(library.logger)
    network = tensorrt.new_network(builder)
    assert tensorrt.trt.OnnxParser(network, library.logger).parse(_model().SerializeToString())
    config = builder.create_builder_config()
    for index in range(num_profiles):
        profile = builder.create_optimization_profile()
        profile.set_shape("x", (1, 4), (2, 4), (4 << index, 4))
        profile.set_shape("shift", (4,), (4,), (4,))
        assert config.add_optimization_profile(profile) == index
    return library.engine_from(builder.build_serialized_network(network, config))


@pytest.mark.parametrize(
    ("version", "release", "strongly_typed"),
    [
        ("8.4.1.5", (8, 4, 1, 5), False),
        ("8.5.3.1", (8, 5, 3, 1), False),
        ("8.6.1", (8, 6, 1), False),
        ("10.0.1.6", (10, 0, 1, 6), False),
        ("10.11.0.33", (10, 11, 0, 33), False),
        ("10.12.0.36", (10, 12, 0, 36), True),
        ("10.13.3.9", (10, 13, 3, 9), True),
        ("11.1.0.106", (11, 1, 0, 106), True),
    ],
)
def test_the_release_decides_who_writes_fp16(version: str, release: tuple, strongly_typed: bool) -> None:
    tensorrt = TensorRT(fakes.tensorrt(version))
    assert tensorrt.release == release
    assert tensorrt.strongly_typed == strongly_typed
    assert tensorrt.name == f"TensorRT {version}"
    assert not tensorrt.is_rtx


@pytest.mark.parametrize(
    ("version", "text", "release"),
    [("8.6.1.post1", "8.6.1.post1", (8, 6, 1, 1)), ("10.3.0b1", "10.3.0b1", (10, 3, 0, 1))],
)
def test_versions_with_letters_are_read(version: str, text: str, release: tuple) -> None:
    module = fakes.tensorrt(fakes.V10_0)
    module.__version__ = version
    assert (TensorRT(module).version, TensorRT(module).release) == (text, release)


def test_rtx_counts_as_the_newest() -> None:
    module = fakes.tensorrt("1.7.1.116")
    module.__name__ = "tensorrt_rtx"
    tensorrt = TensorRT(module)
    assert tensorrt.is_rtx
    assert tensorrt.strongly_typed
    assert tensorrt.release > (11, 1)
    assert tensorrt.name == "TensorRT-RTX 1.7.1.116"


@pytest.mark.parametrize("version", fakes.RELEASES)
def test_networks_have_the_flags_of_their_release(version: str) -> None:
    library = fakes.library(version)
    network = library.tensorrt.new_network(library.tensorrt.trt.Builder(library.logger))
    expected = {
        fakes.V8_4: 0b01,  # explicit batch
        fakes.V8_5: 0b01,
        fakes.V10_0: 0,
        fakes.V10_13: 0b10,  # strongly typed
        fakes.V11: 0,
    }
    assert network.flags == expected[version]


@pytest.mark.parametrize("version", fakes.RELEASES)
@pytest.mark.parametrize(
    ("precision", "flags"), [("fp32", []), ("tf32", ["TF32"]), ("fp16", ["FP16", "TF32"])]
)
def test_precisions_are_flags_where_there_are_flags(precision: str, flags: list, version: str) -> None:
    built = build_engine(
        _model(),
        EngineConfig(precision=precision),
        library=fakes.library(version),
    )
    weak = version in fakes.WEAKLY_TYPED
    assert fakes.opened(built.data)["flags"] == (flags if weak else [f for f in flags if f != "FP16"])


@pytest.mark.parametrize("version", fakes.RELEASES)
def test_int8_is_a_flag_beside_fp16(version: str) -> None:
    model = onnx.parser.parse_model(QUANTIZED)
    built = build_engine(model, EngineConfig(precision="int8"), library=fakes.library(version))
    weak = version in fakes.WEAKLY_TYPED
    assert fakes.opened(built.data)["flags"] == (["FP16", "INT8", "TF32"] if weak else ["TF32"])


def test_a_precision_that_the_file_has_not_is_refused() -> None:
    quantized = onnx.parser.parse_model(QUANTIZED)
    with pytest.raises(ValueError, match="--precision int8: expected an ONNX with QuantizeLinear"):
        build_engine(_model(), EngineConfig(precision="int8"), library=fakes.library())
    for precision in ("fp32", "tf32", "fp16"):
        with pytest.raises(
            ValueError, match=f"--precision {precision}: expected a float ONNX, found a quantized one"
        ):
            build_engine(quantized, EngineConfig(precision=precision), library=fakes.library())


@pytest.mark.parametrize("version", fakes.RELEASES)
def test_tensors_are_known_by_name(version: str) -> None:
    library = fakes.library(version)
    tensorrt, engine = library.tensorrt, _engine(library)
    assert tensorrt.tensor_names(engine) == (["x", "shift"], ["flags", "z", "y"])
    dtypes = {name: tensorrt.tensor_dtype(engine, name) for name in ("x", "shift", "y", "z", "flags")}
    assert dtypes == {"x": "float32", "shift": "int32", "y": "float32", "z": "int32", "flags": "bool"}
    assert tensorrt.tensor_shape(engine, "x") == (None, 4)
    assert tensorrt.tensor_shape(engine, "z") == (4,)
    assert tensorrt.profile_shapes(engine, "x") == ((1, 4), (2, 4), (4, 4))
    assert tensorrt.profile_shapes(engine, "shift") == ((4,),) * 3


@pytest.mark.parametrize("version", fakes.RELEASES)
def test_several_profiles_are_told_apart(version: str) -> None:
    """Until 9 the bindings are there once for each profile."""
    library = fakes.library(version)
    tensorrt, engine = library.tensorrt, _engine(library, num_profiles=3)
    if version in (fakes.V8_4, fakes.V8_5):
        assert engine.num_bindings == 15
        assert engine.get_binding_name(5 + 3) == "x [profile 1]"
    assert tensorrt.tensor_names(engine) == (["x", "shift"], ["flags", "z", "y"])
    assert tensorrt.profile_shapes(engine, "x", 2) == ((1, 4), (2, 4), (16, 4))


@pytest.mark.parametrize("num_profiles", [1, 3])
@pytest.mark.parametrize("version", fakes.RELEASES)
def test_addresses_reach_the_tensors_of_their_names(version: str, num_profiles: int) -> None:
    library = fakes.library(version)
    tensorrt = library.tensorrt
    context = _engine(library, num_profiles).create_execution_context()
    assert tensorrt.set_input_shape(context, "x", (3, 4))
    assert tensorrt.set_input_shape(context, "shift", (4,))
    assert not tensorrt.set_input_shape(context, "x", (5, 4))
    assert tensorrt.output_shape(context, "y") == (3, 4)
    assert tensorrt.output_shape(context, "z") == (4,)
    device = fake_cuda.Device()
    stream = device.new_stream()
    # In no order that an engine has.
    addresses = {name: device.malloc(256) for name in ("z", "x", "flags", "shift", "y")}
    fake_cuda.memory_at(addresses["x"], 48).view("f4")[:] = range(-4, 8)
    fake_cuda.memory_at(addresses["shift"], 16).view("i4")[:] = [5, 6, 7, 8]
    assert tensorrt.enqueue(context, addresses, stream)
    device.synchronize(stream)
    assert fake_cuda.memory_at(addresses["y"], 48).view("f4").tolist() == [2.0 * v for v in range(-4, 8)]
    assert fake_cuda.memory_at(addresses["z"], 16).view("i4").tolist() == [10, 12, 14, 16]
    assert fake_cuda.memory_at(addresses["flags"], 12).tolist() == [1, 1, 1, 1] + [0] * 8
    if version == fakes.V8_4:
        own = [addresses[name] for name in ("flags", "z", "y", "x", "shift")]
        assert context.bindings == own + [0] * 5 * (num_profiles - 1)


def test_a_type_that_numpy_lacks_is_refused() -> None:
    tensorrt = fakes.library().tensorrt
    with pytest.raises(ValueError, match="tensor: expected one of float32, .*, found DataType.FP8"):
        tensorrt.dtype_name("DataType.FP8")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("FLOAT", "float32"),
        ("HALF", "float16"),
        ("INT8", "int8"),
        ("INT32", "int32"),
        ("INT64", "int64"),
        ("BOOL", "bool"),
        ("UINT8", "uint8"),
    ],
)
def test_types_have_numpys_names(name: str, expected: str) -> None:
    tensorrt = fakes.library(fakes.V11).tensorrt
    assert tensorrt.dtype_name(tensorrt.trt.DataType[name]) == expected


@pytest.mark.parametrize("version", fakes.RELEASES)
def test_plugins_are_asked_of_the_registry(version: str) -> None:
    trt = fakes.tensorrt(version, plugins=["RoiAlign", "BatchedNMS"])
    tensorrt = TensorRT(trt)
    assert tensorrt.plugin_names() == {"RoiAlign", "BatchedNMS"}
    fakes.register(trt, "GroupedNMS")
    assert tensorrt.plugin_names() == {"RoiAlign", "BatchedNMS", "GroupedNMS"}


@pytest.mark.parametrize("version", fakes.RELEASES)
def test_workspace_names_and_tactics_reach_the_builder(version: str) -> None:
    built = build_engine(
        _model(),
        EngineConfig(workspace_mib=512, tactic_sources=("cudnn", "edge_mask_convolutions")),
        library=fakes.library(version),
    )
    header = fakes.opened(built.data)
    assert header["pools"] == {"WORKSPACE": 512 << 20}
    assert header["tactic_sources"] == 0b1100
    assert header["detailed"]


@pytest.mark.parametrize(("sources", "bits"), [(None, None), ((), 0)])
def test_no_tactic_source_is_not_the_builders_choice(sources: object, bits: object) -> None:
    built = build_engine(_model(), EngineConfig(tactic_sources=sources), library=fakes.library())
    assert fakes.opened(built.data)["tactic_sources"] == bits
    assert fakes.opened(built.data)["pools"] == {}


def test_a_tactic_source_that_the_release_lacks_is_refused() -> None:
    message = (
        r"--tactic-sources: expected some of cublas, cublas_lt, cudnn, edge_mask_convolutions \(TensorRT 8.4.1.5\), "
        "found jit_convolutions"
    )
    config = EngineConfig(tactic_sources=("cublas", "jit_convolutions"))
    with pytest.raises(ValueError, match=message):
        build_engine(_model(), config, library=fakes.library(fakes.V8_4))


def test_the_package_is_imported_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", fakes.tensorrt(fakes.V10_0))
    assert load_tensorrt().version == fakes.V10_0


def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    message = (
        r"TensorRT: expected the Python package tensorrt, found none that loads \(.*\); `pip install tensorrt` "
        r"\(8.4 or later\), or run the .onnx with `--backend onnxruntime`"
    )
    with pytest.raises(RuntimeError, match=message):
        load_tensorrt()


@pytest.mark.parametrize("version", ["7.2.3.4", "8.2.5.1", "8.3.0.0"])
def test_what_is_too_old_is_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", fakes.tensorrt(version))
    with pytest.raises(RuntimeError, match=f"TensorRT: expected 8.4 or later, found {version}; upgrade it"):
        load_tensorrt()


def test_host_memory_is_seen_and_not_copied() -> None:
    device = fake_cuda.Device()
    address = device.malloc(4, pinned=True)
    array = host_array(4, address)
    array[:] = [1, 2, 3, 4]
    assert fake_cuda.memory_at(address, 4).tolist() == [1, 2, 3, 4]
