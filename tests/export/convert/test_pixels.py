"""Pixels as the model's input: the same bits as the float file, whatever is outside the images."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from export.convert.pixels import with_pixel_input
from export.quantization.api import quantize_model
from runtime import Detector
from runtime.backends import load_backend
from runtime.engine.files import EngineRequest, resolve
from runtime.graphs.load import load_onnx, metadata_of
from runtime.host.preprocess import prepare
from runtime.images import read_image
from runtime.infer import main as infer
from runtime.metadata import ModelMetadata
from runtime.transforms import Load, Normalize, Resize

LAYOUTS = ("uint8", "uint8_nhwc")


def _converted(path: Path, folder: Path, layout: str) -> Path:
    model = load_onnx(path)
    made = folder / f"{path.stem}_{layout}.onnx"
    onnx.save(with_pixel_input(model, metadata_of(model), layout), made)
    return made


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", ["fixed", "any"])
def test_pixels_give_the_bits_of_the_float_file(
    layout: str,
    size: str,
    embedded_path: Path,
    any_size_path: Path,
    photos: list[Path],
    tmp_path: Path,
) -> None:
    path = embedded_path if size == "fixed" else any_size_path
    made = _converted(path, tmp_path, layout)
    images = [read_image(photo) for photo in photos]
    floats, pixels = load_backend(path, "onnxruntime"), load_backend(made, "onnxruntime")
    given = prepare(images, floats.metadata)
    expected = floats.run(given.images, given.image_sizes)
    batch = prepare(images, pixels.metadata)
    assert batch.images.dtype == np.uint8
    # A client may pad with anything.
    view = batch.images if layout == "uint8_nhwc" else batch.images.transpose(0, 2, 3, 1)
    for image, (height, width) in zip(view, batch.image_sizes.astype(int)):
        image[height:], image[:, width:] = 77, 201
    found = pixels.run(batch.images, batch.image_sizes)
    assert expected["num_dets"].min() > 10
    assert {n: a.tobytes() for n, a in expected.items()} == {n: a.tobytes() for n, a in found.items()}


def test_openvino_finds_the_same(any_size_path: Path, photos: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    made = _converted(any_size_path, tmp_path, "uint8_nhwc")
    images = [read_image(photo) for photo in photos]
    with Detector(any_size_path, "openvino") as floats, Detector(made, "openvino", sizes=1) as pixels:
        for expected, found in zip(floats(images), pixels(images)):
            np.testing.assert_array_equal(expected.boxes, found.boxes)
            assert expected.rle() == found.rle()


def _passed_through(metadata: ModelMetadata) -> onnx.ModelProto:
    """Return a model that puts out its input."""
    size = metadata.size or ("height", "width")
    shape = ["batch", metadata.channels, *size]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["images"], ["out"], "pass")],
        "pass",
        [
            helper.make_tensor_value_info("images", TensorProto.FLOAT, shape),
            helper.make_tensor_value_info("image_sizes", TensorProto.FLOAT, ["batch", 2]),
        ],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, shape)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _metadata(**changed: object) -> ModelMetadata:
    facts = ModelMetadata(
        classes=("a",),
        mean=(123.675, 116.28, 103.53),
        std=(58.395, 57.12, 57.375),
        color_order="rgb",
        steps=(Resize(scale=(64, 64), keep_ratio=True),),
        size=None,
        size_divisor=32,
        masks="none",
        mask_threshold=0.5,
        score_threshold=0.05,
        max_per_img=10,
    )
    return replace(facts, **changed)


@pytest.mark.parametrize(
    "metadata",
    [
        _metadata(),
        _metadata(color_order="bgr", pad_value=1.5, size=(8, 16)),
        _metadata(pad_value=-0.25, mean=(0.0, 1e-3, 255.0), std=(1.0, 3.0, 1e-3)),
        _metadata(color_order="bgr", mean=(7.0,), std=(3.0,), load=Load(color_type="grayscale")),
    ],
    ids=["rgb", "bgr, pad value, fixed", "odd numbers", "grey"],
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_value_of_every_channel(metadata: ModelMetadata, layout: str) -> None:
    model = with_pixel_input(_passed_through(metadata), metadata, layout)
    rng = np.random.default_rng(3)
    height, width = metadata.size or (20, 30)
    channels = metadata.channels
    pixels = rng.integers(0, 256, (2, height, width, channels), np.uint8)
    sizes = np.array([[height - 2, width], [height, width - 5]], np.float32)
    mean, std = np.array(metadata.mean, np.float32), np.array(metadata.std, np.float32)
    ordered = pixels[..., ::-1] if metadata.color_order == "rgb" else pixels
    expected = (ordered.astype(np.float32) - mean) / std
    for image, (rows, columns) in zip(expected, sizes.astype(int)):
        image[rows:], image[:, columns:] = metadata.pad_value, metadata.pad_value
    feed = pixels if layout == "uint8_nhwc" else np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": feed, "image_sizes": sizes})
    np.testing.assert_array_equal(found, expected.transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        (
            _metadata(steps=(Normalize((1.0,) * 3, (1.0,) * 3, to_rgb=False),)),
            "found Normalize, which makes floats of them",
        ),
        (_metadata(load=Load(to_float32=True)), "found to_float32"),
        (_metadata(input="uint8"), "found one that takes uint8"),
    ],
)
def test_what_is_no_function_of_pixels_is_refused(metadata: ModelMetadata, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        with_pixel_input(_passed_through(metadata), metadata, "uint8")


def test_the_metadata_says_so_and_knows_what_it_may_say() -> None:
    facts = _metadata(input="uint8_nhwc")
    assert ModelMetadata.from_json(facts.to_json()) == facts
    with pytest.raises(ValueError, match="input: expected one of float32, uint8, uint8_nhwc, found 'int8'"):
        _metadata(input="int8")


def test_commands_run_it_or_refuse_it_by_name(
    embedded_path: Path, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = _converted(embedded_path, tmp_path, "uint8")
    options = ["--backend", "onnxruntime", "--no-overlays", "--out", str(tmp_path / "out")]
    assert infer([*options, "--model", str(made), *map(str, photos)]) == 0
    assert "detections of score" in capsys.readouterr().out
    with pytest.raises(ValueError, match="for an engine of `runtime`.*found one that takes uint8 pixels"):
        resolve(EngineRequest(made, tmp_path / "m.engine"))
    with pytest.raises(ValueError, match="for calibration, found one that takes uint8 pixels"):
        quantize_model(made, tmp_path / "q.onnx", [photos[0]])
    backend = load_backend(made, "onnxruntime")
    with pytest.raises(ValueError, match=r"images: expected uint8 \(\?, 3, 448, 640\), found float32"):
        backend.run(np.zeros((1, 3, 448, 640), np.float32), np.ones((1, 2), np.float32))
