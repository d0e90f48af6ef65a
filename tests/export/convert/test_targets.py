"""What each target gets: read with its own schema or reader where there is one, and run where that is possible."""

import configparser
import importlib.util
import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from export.convert import deepstream, triton
from export.convert.__main__ import TARGETS as COMMANDS_TARGETS
from export.convert.__main__ import main
from export.convert.api import TARGETS
from export.convert.source import Options, Source
from runtime import Detector
from runtime.backends import load_backend
from runtime.engine.config import EngineConfig
from runtime.engine.sidecar import Provenance, Sidecar
from runtime.graphs.inlining import inlined
from runtime.graphs.load import load_onnx, metadata_of
from runtime.graphs.operators import DOMAIN, PLUGINS
from runtime.host.preprocess import prepare
from runtime.images import read_image
from runtime.metadata import KEY
from tests.export.convert.triton_server import VARIABLE, running

# In px, scores and probabilities.
ROUNDING = 1e-3
DEEPSTREAM = "MASKRCNN_TEST_DEEPSTREAM"
DRIVER = Path(__file__).with_name("deepstream_driver.cpp")


def _model_config() -> Any:
    """Return the schema that Triton's clients are made with; not as the package, which wants another protobuf."""
    spec = importlib.util.find_spec("tritonclient")
    if spec is None:
        pytest.skip("tritonclient is not installed")
    path = Path(spec.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    found = importlib.util.spec_from_file_location("model_config_pb2", path)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def _parsed(path: Path) -> Any:
    from google.protobuf import text_format

    return text_format.Parse(path.read_text(), _model_config().ModelConfig())


def _outputs(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds)))


def _with_bodies(lowered: onnx.ModelProto, source: onnx.ModelProto) -> onnx.ModelProto:
    """Return a lowered graph with the bodies of the plugins' operators in it again."""
    made = onnx.ModelProto()
    made.CopyFrom(lowered)
    made.functions.extend(source.functions)
    return inlined(made)


@pytest.fixture
def engine(embedded_path: Path, tmp_path: Path) -> Path:
    """What stands for an engine: its bytes are nobody's, its sidecar is real."""
    path = tmp_path / "m.engine"
    path.write_bytes(b"an engine")
    metadata = metadata_of(load_onnx(embedded_path))
    made_of = Provenance("0" * 64, None, "TensorRT 10.3.0", "GPU", "9.0")
    config = EngineConfig(batch=(1, 2, 4))
    Sidecar(
        "0" * 64,
        "m.onnx",
        made_of,
        config,
        None,
        metadata,
        {"seconds": 1.0, "bytes": 9, "num_layers": 3, "num_float32": 0},
    ).save(path)
    return path


def test_triton_reads_the_repository_of_an_onnx(
    any_size_path: Path, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "t"
    words = [
        "--for",
        "triton",
        "-o",
        str(folder),
        "--name",
        "shapes",
        "--batch",
        "1",
        "2",
        "4",
        "--instances",
        "3",
    ]
    assert main([str(any_size_path), *words]) == 0
    printed = capsys.readouterr().out
    assert f"tritonserver --model-repository={folder / 'models'}" in printed
    assert f"tritonserver --model-repository={folder / 'models'}" in (folder / "README.md").read_text()
    assert int(printed.partition(" detections found again")[0].splitlines()[-1]) > 50
    config = _parsed(folder / "models" / "shapes" / "config.pbtxt")
    assert (config.name, config.backend, config.max_batch_size) == ("shapes", "onnxruntime", 4)
    assert config.HasField("dynamic_batching")
    assert [g.count for g in config.instance_group] == [3]
    model = onnx.load(folder / "models" / "shapes" / "1" / "model.onnx")
    assert not model.functions
    assert not any(node.domain == DOMAIN for node in model.graph.node)
    for declared, values in ((config.input, model.graph.input), (config.output, model.graph.output)):
        for tensor, value in zip(declared, values):
            shape = [d.dim_value or -1 for d in value.type.tensor_type.shape.dim]
            own = [-1, *(tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims)]
            assert (tensor.name, own) == (value.name, shape)
            kind = _model_config().DataType.Name(tensor.data_type)
            assert kind == {1: "TYPE_FP32", 6: "TYPE_INT32"}[value.type.tensor_type.elem_type]
    batch = prepare([read_image(p) for p in photos], metadata_of(model))
    feeds = {"images": batch.images, "image_sizes": batch.image_sizes}
    expected = load_backend(any_size_path, "onnxruntime").run(**feeds)
    for name, array in _outputs(model, feeds).items():
        np.testing.assert_array_equal(array, expected[name], name)


def test_triton_reads_the_repository_of_an_engine(engine: Path, tmp_path: Path) -> None:
    folder = tmp_path / "t"
    plugins = ["--plugins", "/opt/libmaskrcnn_plugins.so"]
    assert main([str(engine), "--for", "triton", "-o", str(folder), *plugins]) == 0
    config = _parsed(folder / "models" / "maskrcnn" / "config.pbtxt")
    assert (config.backend, config.max_batch_size) == ("tensorrt", 4)
    assert list(config.instance_group[0].profile) == ["0", "1"]
    assert (folder / "models" / "maskrcnn" / "1" / "model.plan").read_bytes() == b"an engine"
    images = _parsed(folder / "models" / "maskrcnn_images" / "config.pbtxt")
    assert images.parameters["model"].string_value == "detector.engine"
    assert (folder / "models" / "maskrcnn_images" / "1" / "detector.engine.json").is_file()
    start = (folder / "README.md").read_text()
    assert "--backend-config=tensorrt,plugins=/opt/libmaskrcnn_plugins.so" in start


def test_pixels_of_triton(embedded_path: Path, tmp_path: Path) -> None:
    words = ["--for", "triton", "--input", "uint8", "--layout", "nhwc", "-o", str(tmp_path / "t")]
    assert main([str(embedded_path), *words]) == 0
    config = _parsed(tmp_path / "t" / "models" / "maskrcnn" / "config.pbtxt")
    (images, sizes) = config.input
    assert (list(images.dims), _model_config().DataType.Name(images.data_type)) == (
        [448, 640, 3],
        "TYPE_UINT8",
    )
    assert (sizes.name, list(sizes.dims)) == ("image_sizes", [2])


def test_a_real_triton_runs_the_model_of_image_files(
    any_size_path: Path, photos: list[Path], tmp_path: Path
) -> None:
    environment = os.environ.get(VARIABLE)
    if not environment:
        pytest.skip(f"{VARIABLE} is not set: it names an environment with nvidia-pytriton")
    http = pytest.importorskip("tritonclient.http")
    assert main([str(any_size_path), "--for", "triton", "--no-verify", "-o", str(tmp_path / "t")]) == 0
    repository = tmp_path / "t" / "models"
    # The bundled server has the Python backend alone.
    (repository / "maskrcnn").rename(tmp_path / "not_here")
    with Detector(any_size_path, "onnxruntime") as detector:
        expected = detector([read_image(path) for path in photos])
    with running(Path(environment), repository, tmp_path) as url:
        client = http.InferenceServerClient(url)

        def ask(*files: bytes) -> Any:
            image = http.InferInput("image", [len(files), 1], "BYTES")
            image.set_data_from_numpy(np.array([[data] for data in files], object))
            return client.infer("maskrcnn_images", [image])

        found = ask(*(path.read_bytes() for path in photos))
        for index, one in enumerate(expected):
            (num,) = found.as_numpy("num_dets")[index]
            assert num == len(one) > 10
            assert found.as_numpy("image_size")[index].tolist() == list(one.image_size)
            np.testing.assert_allclose(found.as_numpy("boxes")[index, :num], one.boxes, atol=0.01)
            np.testing.assert_allclose(found.as_numpy("scores")[index, :num], one.scores, atol=1e-4)
            np.testing.assert_array_equal(found.as_numpy("labels")[index, :num], one.labels)
            assert not found.as_numpy("scores")[index, num:].any()
            counts = [c.decode() for c in found.as_numpy("rle")[index, :num]]
            same = [a == b["counts"] for a, b in zip(counts, one.rle())]
            assert np.mean(same) > 0.9  # another onnxruntime: single pixels
        with pytest.raises(Exception, match="image 0: expected an image, found 3 bytes"):
            ask(b"abc")
        assert ask(photos[0].read_bytes()).as_numpy("num_dets")[0, 0] == len(expected[0])


@pytest.mark.parametrize(
    ("release", "words"),
    [
        ("8.5.3", ["--plugins=/p/lib.so", "--buildOnly"]),
        ("8.6.1", ["--staticPlugins=/p/lib.so", "--skipInference"]),
        ("10.3", ["--staticPlugins=/p/lib.so", "--skipInference"]),
        ("10.13", ["--staticPlugins=/p/lib.so", "--skipInference", "--stronglyTyped"]),
        ("11.1", ["--staticPlugins=/p/lib.so", "--skipInference", "--stronglyTyped"]),
    ],
)
def test_trtexec_gets_the_plugins_nodes_and_its_own_spelling(
    release: str, words: list[str], embedded_path: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "with space"
    given = ["--tensorrt", release, "--plugins", "/p/lib.so", "--batch", "1", "4", "8"]
    assert main([str(embedded_path), "--for", "trtexec", "-o", str(folder), *given]) == 0
    build = (folder / "README.md").read_text().split("```sh\n")[1].splitlines()[0]
    assert f"'--onnx={folder}/model.onnx'" in build or f"--onnx='{folder}/model.onnx'" in build
    assert "--optShapes=images:4x3x448x640,image_sizes:4x2" in build
    assert build.split("--maxShapes=")[1].split()[1:] == ["--noTF32", *words[1:]]
    assert f" {words[0]} " in build
    model = onnx.load(folder / "model.onnx")
    assert not model.functions
    plugins = {node.op_type for node in model.graph.node if node.domain == DOMAIN}
    assert {"MultiLevelRoiAlign", "DecodeDetections", "GroupedNMS"} <= plugins <= PLUGINS


def test_trtexecs_file_is_the_model(any_size_path: Path, photos: list[Path], tmp_path: Path) -> None:
    assert (
        main([str(any_size_path), "--for", "trtexec", "-o", str(tmp_path / "t"), "--tensorrt", "8.5.3"]) == 0
    )
    build = (tmp_path / "t" / "README.md").read_text()
    assert "--minShapes=images:1x3x64x64,image_sizes:1x2" in build
    source = load_onnx(any_size_path)
    batch = prepare([read_image(p) for p in photos], metadata_of(source))
    feeds = {"images": batch.images, "image_sizes": batch.image_sizes}
    expected = _outputs(source, feeds)
    assert expected["num_dets"].min() > 10
    made = _with_bodies(onnx.load(tmp_path / "t" / "model.onnx"), source)
    for name, array in _outputs(made, feeds).items():
        # The first convolution has its sums in another order: see runtime.engine.blocks.
        tolerance = 1e-3 if array.dtype == np.float32 else 0
        np.testing.assert_allclose(array, expected[name], rtol=0, atol=tolerance, err_msg=name)


def test_half_precision_is_in_the_file_or_refused(
    embedded_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(embedded_path), "--for", "trtexec", "--precision", "fp16", "-o", str(tmp_path / "t")]
    assert main([*words, "--tensorrt", "10.3"]) == 2
    assert "--precision fp16: expected TensorRT 10.12 or later" in capsys.readouterr().err
    assert not (tmp_path / "t").exists()
    assert main([*words, "--tensorrt", "10.13"]) == 0
    types = [t.data_type for t in onnx.load(tmp_path / "t" / "model.onnx").graph.initializer]
    assert types.count(onnx.TensorProto.FLOAT16) > 20


def test_openvinos_ir_has_the_weights_and_finds_the_same(
    embedded_path: Path, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    openvino = pytest.importorskip("openvino")
    folder = tmp_path / "ir"
    assert main([str(embedded_path), "--for", "openvino", "-o", str(folder)]) == 0
    assert int(capsys.readouterr().out.partition(" detections found again")[0].splitlines()[-1]) > 50
    source = onnx.load(embedded_path)
    model = openvino.Core().read_model(folder / "model.xml")
    (written,) = (p.value for p in source.metadata_props if p.key == KEY)
    assert json.loads(model.get_rt_info([KEY]).astype(str)) == json.loads(written)
    constants = [op for op in model.get_ops() if op.get_type_name() == "Constant"]
    assert not any(str(op.get_element_type()) in ("<Type: 'float16'>", "f16") for op in constants)
    there = {op.data.tobytes() for op in constants}
    weights = [onnx.numpy_helper.to_array(t) for t in source.graph.initializer if len(t.dims) == 4]
    assert len(weights) > 20
    assert all(w.tobytes() in there for w in weights)
    images = [read_image(path) for path in photos]
    with Detector(embedded_path, "openvino") as of_onnx, Detector(folder / "model.xml") as of_ir:
        assert of_ir.backend.name == "openvino"
        for expected, found in zip(of_onnx(images), of_ir(images)):
            assert len(expected) > 10
            np.testing.assert_array_equal(expected.boxes, found.boxes)
            assert expected.rle() == found.rle()
    (folder / "model.bin").unlink()
    with pytest.raises(ValueError, match=r"model.xml: expected an IR of OpenVINO with its \.bin beside it"):
        Detector(folder / "model.xml")


@pytest.mark.parametrize("keypoints", [(), ("eye", "nose")])
def test_key_points_that_a_target_leaves_out_are_noted(
    keypoints: tuple[str, ...], embedded_path: Path
) -> None:
    facts = replace(metadata_of(load_onnx(embedded_path)), keypoints=keypoints)
    notes = (*deepstream._notes(facts, (448, 640)), *triton._notes("m_images", False, Options(), facts))
    left_out = [note for note in notes if "key points" in note]
    assert len(left_out) == (2 if keypoints else 0)
    assert all("the model's 2 key points are left out" in note for note in left_out)


def test_nvinfers_configuration_and_graph(
    any_size_path: Path, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(any_size_path), "--for", "deepstream", "-o", str(tmp_path / "d")]
    assert main(words) == 2
    assert "expected one size of the network's input" in capsys.readouterr().err
    assert main([*words, "--size", "448x640"]) == 2
    assert "net-scale-factor, offsets: expected one factor" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()
    assert main([*words, "--size", "448x640", "--input", "uint8", "--tensorrt", "8.5.3"]) == 0
    assert "note: The parser was not compiled here" in capsys.readouterr().err
    config = configparser.ConfigParser(delimiters=("=",))
    config.read(tmp_path / "d" / "config_infer_primary_maskrcnn.txt")
    given = config["property"]
    assert (given["network-type"], given["cluster-mode"], given["output-instance-mask"]) == ("3", "4", "1")
    assert (
        given["parse-bbox-instance-mask-func-name"] in (tmp_path / "d" / "nvdsinfer_maskrcnn.cpp").read_text()
    )
    assert (given["net-scale-factor"], given["offsets"], given["model-color-format"]) == (
        "1.0",
        "0.0;0.0;0.0",
        "1",
    )
    assert given["infer-dims"] == "3;448;640"
    source = load_onnx(any_size_path)
    metadata = metadata_of(source)
    assert len((tmp_path / "d" / "labels.txt").read_text().splitlines()) == len(metadata.classes)
    model = onnx.load(tmp_path / "d" / given["onnx-file"])
    assert [value.name for value in model.graph.input] == ["images"]
    # As nvinfer hands them over: whole images of floats.
    images = [np.ascontiguousarray(read_image(p)[:448, :448]) for p in photos]
    pixels = np.zeros((2, 3, 448, 640), np.float32)
    for target, image in zip(pixels, images):
        target[:, : image.shape[0], : image.shape[1]] = image.transpose(2, 0, 1)
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (metadata.mean, metadata.std))
    sizes = np.array([[448, 640]] * 2, np.float32)
    expected = _outputs(source, {"images": (pixels[:, ::-1] - mean) / std, "image_sizes": sizes})
    assert expected["num_dets"].min() > 5
    found = _outputs(_with_bodies(model, source), {"images": pixels})
    assert found["num_dets"].shape == (2, 1)
    for name, array in found.items():
        # Of a fixed size onnxruntime computes ahead what it rounds otherwise.
        np.testing.assert_allclose(
            array.reshape(expected[name].shape), expected[name], 0, ROUNDING, err_msg=name
        )


def test_a_factor_is_given_where_it_is_exact(embedded_path: Path) -> None:
    facts = metadata_of(load_onnx(embedded_path))
    assert deepstream.scaling(replace(facts, mean=(1.5, 2.0, 3.0), std=(4.0,) * 3)) == (0.25, (1.5, 2.0, 3.0))
    with pytest.raises(ValueError, match="none to the last bit; give --input uint8"):
        deepstream.scaling(replace(facts, mean=(0.0,) * 3, std=(255.0,) * 3))
    for masks, remedy in (
        ("full", "export it with `--masks crop`"),
        ("grid", "of a Mask R-CNN alone lie so"),
    ):
        with pytest.raises(
            ValueError, match=f"expected masks in their boxes for nvinfer .*found masks {masks}; .*{remedy}"
        ):
            deepstream._checked(Source(embedded_path, replace(facts, masks=masks)), None)


def test_the_parser_of_nvinfer(tmp_path: Path) -> None:
    headers = os.environ.get(DEEPSTREAM)
    if not headers:
        pytest.skip(
            f"{DEEPSTREAM} is not set: it names folders with nvdsinfer_custom_impl.h, NvInfer.h and CUDA's"
        )
    program = tmp_path / "driver"
    includes = [f"-isystem{folder}" for folder in headers.split(":")]
    files = [str(deepstream.PARSER_SOURCE), str(DRIVER)]
    options = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined"]
    subprocess.run(["g++", *options, *includes, *files, "-o", str(program)], check=True, timeout=300)
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "12 checks\n"), done.stdout + done.stderr


def test_the_command_knows_every_target() -> None:
    assert set(COMMANDS_TARGETS) == set(TARGETS)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--for", "onnx", "--layout", "nhwc"], "--layout: expected --input uint8 with it"),
        (["--for", "triton", "--name", "a/b"], "--name: expected letters, digits"),
        (["--for", "trtexec", "--tensorrt", "7.2"], "TensorRT: expected a release such as 8.5.3 or 10.3"),
        (
            ["--for", "trtexec", "--tensorrt", "8.5", "--input", "uint8"],
            "--input uint8: expected TensorRT 10",
        ),
        (
            ["--for", "deepstream", "--input", "uint8", "--layout", "nhwc"],
            "--layout: expected nchw for nvinfer",
        ),
    ],
)
def test_refusals_name_the_option(
    words: list[str], said: str, embedded_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(embedded_path), "-o", str(tmp_path / "o"), *words]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_models_that_cannot_be_converted(
    engine: Path, embedded_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["-o", str(tmp_path / "o")]
    assert main([str(engine), "--for", "openvino", *out]) == 2
    assert "expected an ONNX for openvino, found an engine" in capsys.readouterr().err
    foreign = tmp_path / "foreign.onnx"
    model = onnx.load(embedded_path)
    del model.metadata_props[:]
    onnx.save(model, foreign)
    assert main([str(foreign), "--for", "triton", *out]) == 2
    assert "found none of its metadata" in capsys.readouterr().err
    blank = tmp_path / "blank.png"
    import cv2

    cv2.imwrite(str(blank), np.zeros((64, 64, 3), np.uint8))
    assert main([str(embedded_path), "--for", "onnx", *out, "--images", str(blank)]) == 2
    assert "expected images in which" in capsys.readouterr().err
