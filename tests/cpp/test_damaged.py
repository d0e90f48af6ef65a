"""Damaged files, arguments out of range and null pointers: an error that says what is wrong, never a crash.

Whole sweeps run in a process of their own, so that a crash is a failed test and not the end of the run.
"""

import json
import subprocess
import sys
from ctypes import byref, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from runtime import Detector as PythonDetector
from runtime.metadata import KEY
from tests.cpp import library as cpp
from tests.cpp.conftest import ROOT, Installed
from tests.cpp.library import Library
from tests.runtime import fakes


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fakes.save(tmp_path_factory.mktemp("model") / "m.onnx")


def refusal(library: Library, path: Path, **options: Any) -> cpp.LibraryError:
    with pytest.raises(cpp.LibraryError) as caught:
        cpp.Detector(library, path, **options).close()
    return caught.value


def python_refusal(path: Path) -> str:
    with pytest.raises((ValueError, FileNotFoundError, RuntimeError)) as caught:
        PythonDetector(path, backend="openvino").close()
    return str(caught.value)


def save_described(path: Path, change: Any) -> None:
    """Write the fake with its metadata changed: a dict of fields, None for one that is gone, or a text."""
    proto = fakes.model()
    text = change
    if isinstance(change, dict):
        data = {**json.loads(fakes.metadata().to_json()), **change}
        text = json.dumps({name: value for name, value in data.items() if value is not ...})
    onnx.helper.set_model_props(proto, {KEY: text})
    onnx.save(proto, path)


DESCRIBED: dict[str, Any] = {
    "no_json": "nothing",
    "format": {"format": 3},
    "no_format": {"format": ...},
    "format_text": {"format": "2"},
    "list": "[1, 2]",
    "missing": {"steps": ..., "classes": ...},
    "masks": {"masks": "round"},
    "threshold": {"mask_threshold": 1.5},
    "threshold_text": {"mask_threshold": "x"},
    "rows": {"max_per_img": 0},
    "size": {"size": [64, 96.5]},
    "divisor": {"size_divisor": 0},
    "std": {"std": [1, 0, 1]},
    "order": {"color_order": "hsv"},
    "step": {"steps": [{"step": "turn"}]},
    "step_text": {"steps": ["fit"]},
    "step_field": {"steps": [{"step": "fit", "box": [64, 96], "colour": 1}]},
    "step_missing": {"steps": [{"step": "fit"}]},
    "step_range": {"steps": [{"step": "fit", "box": [64, -96]}]},
    "step_choice": {"steps": [{"step": "fit", "box": [64, 96], "interpolation": "cubic"}]},
    "resize": {"steps": [{"step": "resize"}]},
    "pad": {"steps": [{"step": "pad"}]},
    "load": {"load": {"color_type": "sepia"}},
    "classes": {"classes": []},
    "skeleton": {"keypoints": ["a", "b"], "skeleton": [[0, 2]]},
    "clip": {"clip": 1},
    "huge": {"max_per_img": 10**30},
    "number": "1.5",
    "text": '"mask"',
    "classes_text": {"classes": "abc"},
    "classes_null": {"classes": None},
    "classes_numbers": {"classes": ["a", 1]},
    "keypoints_object": {"keypoints": {"a": 1}},
    "keypoints_numbers": {"keypoints": [1.5]},
    "skeleton_number": {"skeleton": 3},
    "skeleton_line": {"keypoints": ["a", "b"], "skeleton": [[0, 1], 1]},
    "skeleton_long": {"keypoints": ["a", "b"], "skeleton": [[0, 1, 1]]},
    "mean_number": {"mean": 5},
    "mean_empty": {"mean": []},
    "mean_text": {"mean": [1, "x", 3]},
    "mean_large": {"mean": [1, 1e39, 3]},
    "std_flag": {"std": True},
    "std_flags": {"std": [1, True, 1]},
    "size_text": {"size": "64x96"},
    "size_number": {"size": 64},
    "steps_object": {"steps": {"step": "fit"}},
    "steps_null": {"steps": None},
    "input": {"input": "float16"},
    "input_null": {"input": None},
}
# A JSON library's words for what is not JSON, and for numbers of thirty digits, are its own.
OWN_WORDS = ("no_json", "huge")


@pytest.mark.parametrize("name", DESCRIBED)
def test_metadata_is_refused_in_pythons_words(library: Library, tmp_path: Path, name: str) -> None:
    save_described(tmp_path / "m.onnx", DESCRIBED[name])
    found = refusal(library, tmp_path / "m.onnx")
    assert found.code == "invalid"
    assert f"model {tmp_path}/m.onnx: model metadata" in str(found)
    if name not in OWN_WORDS:
        assert str(found) == python_refusal(tmp_path / "m.onnx")


@pytest.mark.parametrize("layout", ["uint8", "uint8_nhwc"])
def test_a_graph_that_takes_pixels_is_refused_by_name(library: Library, tmp_path: Path, layout: str) -> None:
    """Python runs it; here it is not the file that is at fault."""
    shape = "B, 3, 64, 96" if layout == "uint8" else "B, 64, 96, 3"
    path = fakes.save(tmp_path / "m.onnx", fakes.metadata(input=layout), images=f"uint8[{shape}]")
    assert str(refusal(library, path)) == (
        f"model {path}: model metadata, input: expected float32, found {layout!r}: the C++ runtime does not fill it; "
        "take the file that it was converted from, or run it from Python"
    )


@pytest.mark.parametrize("version", [-1, 10_001, 2**31, 2**62])
def test_operator_sets_that_do_not_exist(installed: Installed, tmp_path: Path, version: int) -> None:
    """OpenVINO counts down from them, for hours."""
    proto = fakes.model()
    proto.opset_import[0].version = version
    onnx.save(proto, tmp_path / "m.onnx")
    assert ended(installed, tmp_path / "m.onnx", "openvino") == python_refusal(tmp_path / "m.onnx")


DIVISIONS = {
    "least": ("Div", np.array([np.iinfo(np.int64).min], np.int64), np.array([-1], np.int64), ""),
    "least_int32": ("Div", np.array([5, np.iinfo(np.int32).min], np.int32), np.array(-1, np.int32), ""),
    "zero": ("Mod", np.array([7], np.int64), np.array([3, 0], np.int64), ""),
    "zero_uint8": ("Div", np.array([7], np.uint8), np.array([0], np.uint8), ""),
    "constants": ("Div", np.array([7], np.int32), np.array([0], np.int32), "value"),
    "constant_ints": ("Mod", np.array([7], np.int64), np.array([1, 0], np.int64), "value_ints"),
    "inside": ("Div", np.array([7], np.int64), np.array([0], np.int64), "if"),
}


def save_division(path: Path, name: str) -> None:
    """Write the fake with a division added to it, named or not, of initializers or constants, in the graph or an If."""
    operator, dividend, divisor, kind = DIVISIONS[name]
    proto = fakes.model()
    division = onnx.helper.make_node(operator, ["of", "by"], ["quotient"], name="" if kind else "halved")
    nodes, weights = [division], []
    for each, values in (("of", dividend), ("by", divisor)):
        if kind.startswith("value"):
            value = onnx.numpy_helper.from_array(values) if kind == "value" else values.tolist()
            nodes.insert(0, onnx.helper.make_node("Constant", [], [each], **{kind: value}))
        elif name == "least_int32":  # in the field for numbers, not in raw bytes
            weights.append(
                onnx.helper.make_tensor(each, onnx.TensorProto.INT32, values.shape, values.ravel().tolist())
            )
        else:
            weights.append(onnx.numpy_helper.from_array(values, each))
    proto.graph.initializer.extend(weights)
    if kind == "if":
        quotient = onnx.helper.make_tensor_value_info("quotient", onnx.TensorProto.INT64, None)
        branch = onnx.helper.make_graph(nodes, "branch", [], [quotient])
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "whether"))
        nodes = [onnx.helper.make_node("If", ["whether"], ["chosen"], then_branch=branch, else_branch=branch)]
    proto.graph.node.extend(nodes)
    onnx.save(proto, path)


@pytest.mark.parametrize("name", DIVISIONS)
def test_divisions_that_end_the_process(installed: Installed, tmp_path: Path, name: str) -> None:
    save_division(tmp_path / "m.onnx", name)
    assert ended(installed, tmp_path / "m.onnx", "openvino") == python_refusal(tmp_path / "m.onnx")


def test_divisions_that_do_not(library: Library, tmp_path: Path) -> None:
    """By -1 of others than the least, by what is computed, and of floats."""
    proto = fakes.model()
    for index, (dividend, divisor) in enumerate(
        (
            (np.array([5, -5], np.int64), np.array([-1, 2], np.int64)),
            (np.array([np.iinfo(np.int32).min], np.int32), np.array([1], np.int32)),
            (np.array([1], np.float32), np.array([0], np.float32)),
        )
    ):
        names = [f"of{index}", f"by{index}"]
        proto.graph.initializer.extend(
            onnx.numpy_helper.from_array(values, name) for name, values in zip(names, (dividend, divisor))
        )
        proto.graph.node.append(onnx.helper.make_node("Div", names, [f"quotient{index}"]))
    onnx.save(proto, tmp_path / "m.onnx")
    assert _open(library, tmp_path / "m.onnx")


def test_a_path_that_cannot_be_looked_at_is_not_a_missing_file(library: Library, tmp_path: Path) -> None:
    path = tmp_path / ("a" * 300 + ".onnx")
    found = refusal(library, path)
    assert str(found) == (
        f"model {path}: expected to read it, found: File name too long; check the path, and who may read it"
    )
    assert found.code == "failed"


def test_other_files_are_refused_in_pythons_words(library: Library, tmp_path: Path) -> None:
    foreign = fakes.save(tmp_path / "foreign.onnx", with_metadata=False)
    half = fakes.save(tmp_path / "half.onnx", images="float16[B, 3, 64, 96]")
    fixed = fakes.save(tmp_path / "fixed.onnx", dets="float[1, 4, 5]")
    (tmp_path / "folder.onnx").mkdir()
    paths = (foreign, half, fixed, tmp_path / "folder.onnx", tmp_path / "none.onnx")
    for path in paths:
        # Python's commands have --model.
        expected = python_refusal(path).replace(", or name another with --model", "")
        assert str(refusal(library, path)) == expected
    assert refusal(library, paths[-1]).code == "not found"


def test_local_functions_are_refused(library: Library, embedded_path: Path) -> None:
    found = refusal(library, embedded_path)
    assert "expected standard operators alone, found the local functions" in str(found)
    assert "--for openvino" in str(found)
    assert "`python -m export.convert MODEL --for onnx -o DIR`" in str(found)  # without -o it does not run


def test_other_suffixes(library: Library, tmp_path: Path) -> None:
    has = library.backends().decode()
    for name, message in (
        ("m.engine", f"expected a library that was built with tensorrt, found one with {has} alone"),
        ("m.txt", "expected a file .onnx, .engine, .plan or .trt, found the suffix '.txt'"),
        ("m", "found the suffix ''"),
    ):
        (tmp_path / name).write_bytes(b"x")
        assert message in str(refusal(library, tmp_path / name))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": -1}, "threads: expected a whole number from 0 to 1024, found -1"),
        ({"streams": -2}, "streams: expected a whole number from 1 to 1024, found -2"),
        ({"sizes": -2}, "sizes: expected a whole number from 0 to 256, found -2"),
        ({"sizes": 257}, "sizes: expected a whole number from 0 to 256, found 257"),
        (
            {"cache": b"/proc/version/cache"},
            "cache: expected a folder that can be made and written to, found /proc/version/",
        ),
        (
            {"plugins": b"x.so"},
            "plugins: expected an option of openvino, found one of another backend ('x.so'); leave",
        ),
        (
            {"device_index": 1},
            "device_index: expected an option of openvino, found one of another backend (1); leave",
        ),
        ({"batch_size": 5000}, "batch_size: expected a whole number from 1 to 1024, or 0, found 5000"),
    ],
)
def test_options_out_of_range(library: Library, model: Path, options: dict, message: str) -> None:
    assert message in str(refusal(library, model, **options))


IMAGES: dict[str, tuple[dict[str, int], str]] = {
    "null": ({"pixels": 0}, "expected pixels, found a null pointer"),
    "no_height": ({"height": 0}, "expected a height and a width of at least 1 px, found 0x20"),
    "negative": ({"width": -5}, "expected a height and a width of at least 1 px, found 10x-5"),
    "two_channels": ({"channels": 2}, r"expected 3 (blue, green, red) channels of uint8, found 2"),
    "many_channels": ({"channels": 2**31 - 1}, "found 2147483647; convert the image"),
    "pitch": ({"row_pitch": 59}, "expected rows at least 60 bytes apart, found a row_pitch of 59; it is"),
    "negative_pitch": ({"row_pitch": -60}, "expected rows at least 60 bytes apart"),
    "short": ({"num_bytes": 599}, "expected a buffer of at least 600 bytes"),
    "huge": ({"height": 2**31 - 1, "width": 2**31 - 1}, "expected edges of up to 1048576 px"),
    "large": ({"height": 2**20, "width": 2**20}, "expected edges of up to 1048576 px and up to 536870912"),
    "wide": ({"height": 1, "width": 2**20 + 1}, "expected edges of up to 1048576 px"),
    "device": ({"on_device": 1}, "expected host memory, as OpenVINO"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_images_are_refused(library: Library, model: Path, name: str) -> None:
    changes, message = IMAGES[name]
    pixels = np.zeros((10, 20, 3), np.uint8)
    (image,) = cpp.images_of([pixels])
    image.num_bytes = 600
    for field, value in changes.items():
        setattr(image, field, value)
    with (
        cpp.Detector(library, model) as detector,
        pytest.raises(cpp.LibraryError) as caught,
    ):
        detector.raw(byref(image), 1)
    assert "images[0]: " in str(caught.value)
    assert message in str(caught.value)
    assert caught.value.code == "invalid"


def test_an_image_that_does_not_fit(library: Library, tmp_path: Path) -> None:
    fakes.save(tmp_path / "m.onnx", fakes.metadata(steps=()))
    image = np.zeros((65, 20, 3), np.uint8)
    with cpp.Detector(library, tmp_path / "m.onnx") as ours:
        with pytest.raises(cpp.LibraryError) as caught:
            ours([image])
        with (
            PythonDetector(tmp_path / "m.onnx", backend="openvino") as theirs,
            pytest.raises(ValueError) as expected,
        ):
            theirs([image])
    assert str(caught.value) == str(expected.value)


def test_null_pointers(library: Library, model: Path) -> None:
    null, error = c_void_p(), c_void_p()
    text = str(model).encode()
    pointer = c_void_p()
    calls = [
        lambda: library.open(None, None, byref(pointer), byref(error)),
        lambda: library.open(text, None, None, byref(error)),
        lambda: library.open(text, byref(cpp.Options()), byref(pointer), byref(error)),
        lambda: library.detect(None, None, 0, 0.0, None, byref(pointer), byref(error)),
        lambda: library.detect(None, None, 0, 0.0, None, None, byref(error)),
        lambda: library.submit(None, None, 1, 0.0, None, byref(pointer), byref(error)),
        lambda: library.wait(None, byref(pointer), byref(error)),
        lambda: library.rle(None, 0, 0, byref(pointer), byref(error)),
        lambda: library.rle(None, 0, 0, None, byref(error)),
        lambda: library.mask(None, 0, 0, None, 0, byref(error)),
    ]
    for call in calls:
        assert cpp.CODES[call()] == "invalid"
        assert b": expected " in library.error_message(error)
        library.error_free(error)
    for release in ("detector_free", "pending_free", "results_free", "string_free", "error_free"):
        getattr(library, release)(null)
    assert library.open(None, None, byref(pointer), None) == 2  # nobody wants to know why
    assert library.num_classes(null) == library.num_images(null) == library.num_detections(null, 0) == 0
    for read in ("mask_mode", "backend"):
        assert getattr(library, read)(null) is None
    assert library.class_name(null, 0) is None
    assert not library.boxes(null, 0)
    assert library.error_message(null) == b""
    assert library.error_code(null) == 0


def test_out_of_range(library: Library, model: Path) -> None:
    with cpp.Detector(library, model) as detector:
        results = c_void_p()
        images = cpp.images_of([fakes.random_image(20, 30)])
        library.call("detect", detector._pointer, images, 1, 0.0, None, byref(results))
        assert library.num_detections(results, 0) == 3
        assert library.num_detections(results, 1) == 0
        assert not library.scores(results, 1)
        counts = c_void_p()
        for image, row, message in (
            (1, 0, "image: expected an index below 1, found 1"),
            (0, 3, "masks: expected an index below 3, found 3"),
        ):
            with pytest.raises(cpp.LibraryError, match=message):
                library.call("rle", results, image, row, byref(counts))
        with pytest.raises(cpp.LibraryError, match="null pointer"):
            library.call("mask", results, 0, 0, None, 0)
        library.results_free(results)
        assert library.class_name(detector._pointer, 3) is None
        with pytest.raises(cpp.LibraryError, match="min_score: expected a number, found NaN"):
            detector([fakes.random_image(20, 30)], float("nan"))
        with pytest.raises(cpp.LibraryError, match=r"stream: expected none.*, found one; leave it out"):
            library.call("detect", detector._pointer, images, 1, 0.0, 1, byref(results))
        with pytest.raises(cpp.LibraryError, match=f"num_images: expected up to {2**31}, found {2**31 + 1}"):
            library.call("detect", detector._pointer, images, 2**31 + 1, 0.0, None, byref(results))


def test_no_masks(library: Library, tmp_path: Path) -> None:
    fakes.save(tmp_path / "m.onnx", fakes.metadata(masks="none"))
    with (
        cpp.Detector(library, tmp_path / "m.onnx") as detector,
        pytest.raises(cpp.LibraryError, match="masks: expected a model with masks, found one without"),
    ):
        detector.mask([fakes.random_image(20, 30)], 0, 30)


def test_damaged_files(installed: Installed, model: Path, tmp_path: Path) -> None:
    """Cut at every length of the first kilobyte and at 60 more, and with bytes of the metadata changed."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.cpp.test_damaged", str(installed.library), str(model), str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    num_cut, num_changed, num_opened = map(int, done.stdout.split())
    assert num_cut > 500
    assert num_changed > 200
    assert num_opened < num_changed  # a letter of a class name may be another


def ended(installed: Installed, path: Path, backend: str) -> str:
    """Open a file in a process of its own; return what the library says of it."""
    code = "import sys; from tests.cpp.test_damaged import refused; refused(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(installed.library), str(path), backend],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=30,
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-3000:])
    return done.stdout


def refused(library_path: str, path: str, backend: str) -> None:
    """Print a refusal."""
    try:
        cpp.Detector(Library(Path(library_path)), Path(path), threads=1, backend=backend.encode()).close()
    except cpp.LibraryError as error:
        print(error, end="")


def _open(library: Library, path: Path) -> bool:
    """Return whether the library opens it; what it says of a refusal names the file."""
    try:
        with cpp.Detector(library, path, threads=1) as detector:
            detector([np.full((30, 40, 3), 200, np.uint8)])
    except cpp.LibraryError as error:
        if "expected" not in str(error) and "OpenVINO" not in str(error):
            raise AssertionError(f"unclear words: {error}") from error
        return False
    return True


def _main(library_path: str, model: str, folder: str) -> None:
    library, data, target = Library(Path(library_path)), Path(model).read_bytes(), Path(folder) / "d.onnx"
    lengths = [*range(0, min(1024, len(data)), 2), *np.linspace(1024, len(data) - 1, 60).astype(int)]
    num_cut = 0
    for length in lengths:
        target.write_bytes(data[:length])
        if _open(library, target):
            raise AssertionError(f"opened when cut at {length} of {len(data)}")
        num_cut += 1
    start = data.index(b'{"format"')
    random, num_opened = np.random.default_rng(1), 0
    changes = [(int(random.integers(start, len(data))), int(random.integers(0, 256))) for _ in range(300)]
    for place, value in changes:
        target.write_bytes(data[:place] + bytes([value]) + data[place + 1 :])
        num_opened += _open(library, target)
    print(num_cut, len(changes), num_opened)


if __name__ == "__main__":
    _main(*sys.argv[1:])
