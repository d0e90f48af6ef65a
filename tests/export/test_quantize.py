"""The command: what it writes and prints, how it caches, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Callable

import cv2
import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

from export.quantization.api import QuantizeResult
from export.quantize import main
from runtime import Detector
from runtime.comparison.sources import load_batch
from runtime.graphs.load import load_onnx, metadata_of, save_model
from runtime.graphs.session import open_session
from runtime.images import read_image
from runtime.precision.__main__ import main as precision_main
from runtime.precision.plan import plan_path
from runtime.quantization import quantization_of
from tests.runtime import fakes
from tests.runtime.processes import SECONDS

ROOT = Path(__file__).parents[2]


def run(*arguments: object) -> int:
    return main([str(a) for a in arguments])


def test_the_record(quantized: QuantizeResult, embedded_path: Path) -> None:
    record = quantization_of(onnx.load(quantized.path))
    assert record == quantized.record
    assert (record.method, record.num_layers, dict(record.left_out), record.num_images) == (
        "average",
        41,
        {},
        12,
    )
    assert quantized.num_nodes == 53
    assert quantized.num_detections > 100
    assert set(record.versions) == {"onnx", "onnxruntime"}
    assert len(record.source_sha256) == len(record.images_sha256) == 64
    with Detector(quantized.path, "onnxruntime") as detector:
        assert detector.backend.quantization == record
        assert bool(detector.notes) == (record.activations == "int8")


def test_batches_are_their_images(quantized: QuantizeResult, images: list[Path]) -> None:
    """Two different images at once find what each finds alone."""
    metadata = metadata_of(onnx.load(quantized.path))
    with open_session(load_onnx(quantized.path), threads=1) as session:
        batches = (load_batch(paths, metadata) for paths in (images, images[:1], images[1:]))
        both, *alone = (session.run({"images": b.images, "image_sizes": b.image_sizes}) for b in batches)
    for index, single in enumerate(alone):
        assert single["num_dets"] > 3
        for name, value in single.items():
            np.testing.assert_array_equal(both[name][index], value[0], err_msg=name)


def test_the_command_and_its_cache(
    embedded_path: Path, calibration_images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    cache, report = tmp_path / "ranges.json", tmp_path / "report.json"
    source = tmp_path / "m.onnx"
    source.write_bytes(embedded_path.read_bytes())
    images = calibration_images[:2]
    assert precision_main(["plan", str(source), "-o", str(plan_path(source))]) == 0
    options = ("--images", *images, "--cache", cache, "--threads", 1, "--batch", 2)
    assert run(source, *options, "--report", report, "--worst", 1) == 0
    first = (tmp_path / "m.int8.onnx").read_bytes()
    assert "average over 2 images" in capsys.readouterr().out
    assert plan_path(tmp_path / "m.int8.onnx").read_bytes() == plan_path(source).read_bytes()
    content = json.loads(report.read_text())
    assert len(content["layers"]) == 41
    assert [layer["share"] is not None for layer in content["layers"][:2]] == [True, False]
    assert content["quantization"]["activations"] == "int8"

    assert run(source, *options, "-o", tmp_path / "again.onnx") == 0
    assert "average over 2 images, from the cache" in capsys.readouterr().out
    assert (tmp_path / "again.onnx").read_bytes() == first


def _refused(*arguments: object, capsys: pytest.CaptureFixture) -> str:
    assert run(*arguments) == 2
    return capsys.readouterr().err


def test_a_cache_of_something_else_is_refused(
    embedded_path: Path, calibration_images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    cache = tmp_path / "ranges.json"
    image, other = calibration_images[:2]
    base = (embedded_path, "--cache", cache, "--threads", 1, "-o", tmp_path / "q.onnx")
    assert run(*base, "--images", image) == 0
    changed = onnx.load(embedded_path)
    changed.doc_string = "another"
    onnx.save(changed, tmp_path / "other.onnx")
    for arguments, message in (
        ((tmp_path / "other.onnx", *base[1:], "--images", image), "expected the model of SHA-256"),
        ((*base, "--images", other), "expected images of SHA-256"),
        ((*base, "--images", image, other), "expected the number of images 2, found 1"),
        ((*base, "--images", image, "--method", "entropy"), "expected --method entropy, found average"),
        ((*base, "--images", image, "--activations", "uint8"), "expected --activations uint8, found int8"),
    ):
        assert message in _refused(*arguments, capsys=capsys)
    content = json.loads(cache.read_text())
    for text, message in (
        ("{", "expected JSON"),
        (json.dumps({**content, "format": 9}), "expected format 3, found 9"),
        (json.dumps({**content, "ranges": 3}), "expected all of its fields"),
        (json.dumps({**content, "ranges": {}}), "expected a range of"),
    ):
        cache.write_text(text)
        assert message in _refused(*base, "--images", image, capsys=capsys)


REFUSALS: dict[str, tuple[Callable[[Path, Path], list], str]] = {
    "no images": (lambda model, folder: [model], "--images: expected images to calibrate on, found none"),
    "an empty folder": (lambda model, folder: [model, "--images", folder / "empty"], "expected images"),
    "a broken image": (
        lambda model, folder: [model, "--images", folder / "broken.jpg"],
        "broken.jpg: expected a whole JPEG",
    ),
    "nothing to find": (
        lambda model, folder: [model, "--images", folder / "black.png", "--threads", 1],
        "calibration images: expected objects that the model finds, found none in 1 images",
    ),
    "output over input": (
        lambda model, folder: [model, "--images", folder / "black.png", "-o", model],
        "expected a file that is not read, found the input",
    ),
    "cache over an image": (
        lambda model, folder: [model, "--images", folder / "black.png", "--cache", folder / "black.png"],
        "expected a file that is not read, found the input",
    ),
    "a suffix": (
        lambda model, folder: [model, "--images", folder / "black.png", "-o", folder / "x.engine"],
        "expected a name that ends in .onnx, found '.engine'",
    ),
    "another's model": (
        lambda model, folder: [folder / "foreign.onnx", "--images", folder / "black.png"],
        "expected one that `python -m export.maskrcnn` or `python -m export.graft` wrote, found none of its metadata",
    ),
    "no layers": (
        lambda model, folder: [folder / "fake.onnx", "--images", folder / "black.png"],
        "expected convolutions or fully connected layers to quantize, found 0",
    ),
    "an unknown layer": (
        lambda model, folder: [model, "--images", folder / "black.png", "--leave-out", "/nothing"],
        "layers: expected names of convolutions and fully connected layers, found /nothing",
    ),
    "a drop without data": (
        lambda model, folder: [model, "--images", folder / "black.png", "--ap-drop", 0.01],
        "expected both or neither, found only ap_drop",
    ),
    "a percentile": (
        lambda model, folder: [model, "--images", folder / "black.png", "--percentile", 101],
        "percentile: expected more than 0 and at most 100",
    ),
    "no quantized model": (lambda model, folder: [model, "--as-is"], "expected Q/DQ operators, found none"),
    "images of a quantized model": (
        lambda model, folder: [model, "--as-is", "--images", folder / "black.png"],
        "--as-is: expected no --images, found some",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_is_refused(
    name: str, embedded_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 not much")
    cv2.imwrite(str(tmp_path / "black.png"), np.zeros((448, 640, 3), np.uint8))
    fakes.save(tmp_path / "fake.onnx")
    foreign = onnx.load(tmp_path / "fake.onnx")
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / "foreign.onnx")
    model = tmp_path / "m.onnx"
    model.write_bytes(embedded_path.read_bytes())
    arguments, message = REFUSALS[name]
    assert message in _refused(*arguments(model, tmp_path), capsys=capsys)
    assert not [
        path for path in tmp_path.iterdir() if path.name.endswith(("int8.onnx", ".part", "uint8.onnx"))
    ]


def test_a_quantized_model_is_refused(
    quantized: QuantizeResult, calibration_images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = (quantized.path, "--images", calibration_images[0], "-o", tmp_path / "x.onnx")
    assert "expected a float model, found one that is quantized already" in _refused(
        *arguments, capsys=capsys
    )
    assert precision_main(["convert", str(quantized.path), "-o", str(tmp_path / "x.onnx")]) == 2
    assert "found a model that is quantized already" in capsys.readouterr().err


class _Reader(CalibrationDataReader):
    def __init__(self, feeds: list[dict[str, np.ndarray]]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict:
        return next(self._feeds, None)


def test_a_file_of_another_tool_is_taken_as_it_is(
    embedded_path: Path, images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """onnxruntime's own quantizer, by itself: the file runs, and gets a record when it is asked for."""
    metadata = metadata_of(onnx.load(embedded_path))
    batch = load_batch(images[:1], metadata)
    reader = _Reader([{"images": batch.images, "image_sizes": batch.image_sizes}])
    theirs, ours = tmp_path / "theirs.onnx", tmp_path / "ours.onnx"
    settings = {"op_types_to_quantize": ["Conv"], "per_channel": True, "activation_type": QuantType.QInt8}
    quantize_static(embedded_path, theirs, reader, **settings)
    assert run(theirs, "--as-is", "-o", ours) == 0
    assert "as is" in capsys.readouterr().out
    record = quantization_of(onnx.load(ours))
    assert (record.activations, record.method, record.num_layers) == ("as is", "as is", 36)
    found = []
    for path in (theirs, ours):
        with Detector(path, "onnxruntime", threads=1) as detector:
            found += detector([read_image(images[0], metadata.load)])
    assert len(found[0]) > 3
    np.testing.assert_array_equal(found[0].boxes, found[1].boxes)


def test_nan_is_named(
    embedded: onnx.ModelProto, images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    broken = onnx.ModelProto()
    broken.CopyFrom(embedded)
    (weight,) = (t for t in broken.graph.initializer if t.name == "model.roi_head.mask_head.upsample.bias")
    weight.CopyFrom(numpy_helper.from_array(np.full(tuple(weight.dims), np.nan, np.float32), weight.name))
    save_model(broken, tmp_path / "m.onnx")
    message = _refused(tmp_path / "m.onnx", "--images", images[0], "--threads", 1, capsys=capsys)
    assert "expected finite activations, found NaN or infinity in /mask_head/relu/Relu_output_0" in message


def test_it_needs_no_pytorch() -> None:
    program = (
        "import sys, export.quantize, export\nexport.quantize_model\n"
        "print(sorted({n.split('.')[0] for n in sys.modules} & {'torch', 'mmdet', 'mmcv', 'mmengine', 'patches'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=SECONDS
    )
    assert done.stdout.strip() == "[]"
