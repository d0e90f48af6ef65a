"""The C++ library finds what Python's ``Detector(..., backend="openvino")`` finds, in the same pixels."""

import json
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from examples import CHECKPOINT_PATH, CONFIG_PATH, IMAGES_DIR
from examples.shapes import write_coco
from export import quantize_model
from export.model import load_model
from runtime import Detector as PythonDetector
from runtime.graphs.inlining import inlined
from runtime.images import read_image
from tests.cpp import library as cpp
from tests.cpp.agreement import BOX_PX, SCORE, assert_same
from tests.cpp.conftest import ROOT, Installed, run
from tests.cpp.library import Library
from tests.export.test_graph import export_loaded
from tests.runtime import fakes


def compare(library: Library, model: Path, batches: Sequence[Sequence[np.ndarray]], **options: Any) -> int:
    """Run batches in both, with the same options; return the number of detections."""
    with (
        cpp.Detector(library, model, threads=2, **options) as ours,
        PythonDetector(model, backend="openvino", threads=2, **options) as theirs,
    ):
        assert ours.classes == list(theirs.metadata.classes)
        assert ours.masks == theirs.metadata.masks
        return sum(assert_same(ours(batch), theirs(batch)) for batch in batches)


def save_inlined(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(inlined(model), path)
    return path


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    """The embedded images: landscape, portrait and square."""
    return [read_image(path) for path in sorted(IMAGES_DIR.iterdir())]


@pytest.fixture(scope="module")
def fixed(embedded: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model at 448x640, masks cropped."""
    return save_inlined(embedded, tmp_path_factory.mktemp("fixed") / "m.onnx")


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory: pytest.TempPathFactory) -> "dict[str, Path]":
    """The embedded model of any size, by its kind of masks."""
    loaded = load_model(str(CONFIG_PATH), CHECKPOINT_PATH)
    folder = tmp_path_factory.mktemp("dynamic")
    return {
        masks: save_inlined(
            export_loaded(loaded, folder / f"{masks}.traced.onnx", masks=masks, dynamic_size=True),
            folder / f"{masks}.onnx",
        )
        for masks in ("crop", "full")
    }


def test_fixed_size(library: Library, fixed: Path, photos: list[np.ndarray]) -> None:
    assert compare(library, fixed, [photos[:1], photos[1:4], photos]) > 100


@pytest.mark.parametrize("masks", ["crop", "full"])
def test_any_size(library: Library, dynamic: "dict[str, Path]", photos: list[np.ndarray], masks: str) -> None:
    assert compare(library, dynamic[masks], [photos[:1], photos[1:4]]) > 50


def test_a_size_that_comes_often_gets_a_network_of_its_own(library: Library, tmp_path: Path) -> None:
    """It is compiled when it would have saved what compiling takes; what is found stays the same."""
    model = fakes.save(tmp_path / "m.onnx", fakes.metadata(size=None))
    images = [fakes.random_image(50, 70)]
    with cpp.Detector(library, model, threads=1) as detector:
        ((first,), *others) = [detector(images) for _ in range(1500)]
    assert len(first.boxes) == 3
    for (found,) in others:
        np.testing.assert_array_equal(found.boxes, first.boxes)
        assert found.rle == first.rle


def test_batches_are_split(library: Library, fixed: Path, photos: list[np.ndarray]) -> None:
    assert compare(library, fixed, [photos], batch_size=2, streams=2) > 100


def test_int8(library: Library, embedded_path: Path, photos: list[np.ndarray], tmp_path: Path) -> None:
    write_coco(tmp_path / "calibration", num=4, seed=4001, sizes=((448, 640),))
    images = sorted((tmp_path / "calibration").rglob("*.jpg")) or sorted(
        (tmp_path / "calibration").rglob("*.png")
    )
    made = quantize_model(embedded_path, tmp_path / "int8.onnx", images, threads=1)
    model = save_inlined(onnx.load(made.path), tmp_path / "m.onnx")
    assert compare(library, model, [photos[:2]]) > 10


def test_trained_r50(library: Library, test_data: Path, tmp_path: Path) -> None:
    loaded = load_model(
        "mask-rcnn_r50_fpn_2x_coco", test_data / "checkpoints" / "mask-rcnn_r50_fpn_shapes.pth"
    )
    exported = export_loaded(loaded, tmp_path / "traced.onnx", size=(480, 640))
    model = save_inlined(exported, tmp_path / "m.onnx")
    folder = test_data / "datasets" / "shapes_val"
    images = [read_image(folder / f"{i:06d}.jpg") for i in (6, 1)]
    assert compare(library, model, [images]) > 20


def test_rows_may_lie_apart(library: Library, fixed: Path, photos: list[np.ndarray]) -> None:
    """A crop of a larger image, whose rows are not one after the other."""
    wide = np.zeros((photos[0].shape[0], photos[0].shape[1] + 13, 3), np.uint8)
    wide[:, 5:-8] = photos[0]
    with cpp.Detector(library, fixed) as detector:
        (apart,), (together,) = detector([wide[:, 5:-8]]), detector([photos[0]])
    np.testing.assert_array_equal(apart.boxes, together.boxes)
    assert apart.rle == together.rle
    assert len(apart.boxes) > 5


def test_no_images(library: Library, fixed: Path) -> None:
    with cpp.Detector(library, fixed) as detector:
        assert detector([]) == []
        pending = detector.submit([])
        assert pending.results() == []
        pending.free()


def test_min_score(library: Library, fixed: Path, photos: list[np.ndarray]) -> None:
    with cpp.Detector(library, fixed) as detector:
        (every,), (some,) = detector(photos[:1]), detector(photos[:1], 0.5)
    keep = every.scores >= np.float32(0.5)
    assert 0 < keep.sum() < len(keep)
    np.testing.assert_array_equal(some.boxes, every.boxes[keep])
    assert some.rle == [counts for counts, kept in zip(every.rle, keep) if kept]


def test_submitted_images_have_been_read(library: Library, fixed: Path, photos: list[np.ndarray]) -> None:
    """Several batches at once, waited for in another order; a batch that nobody waits for."""
    with cpp.Detector(library, fixed, streams=2) as detector:
        expected = [detector([photo]) for photo in photos[:3]]
        pixels = [photo.copy() for photo in photos[:3]]
        pending = [detector.submit([image]) for image in pixels]
        for image in pixels:
            image[:] = 0
        dropped = detector.submit([photos[0]])
        for index in (2, 0, 1):
            (found,) = pending[index].results()
            np.testing.assert_array_equal(found.boxes, expected[index][0].boxes)
            assert found.rle == expected[index][0].rle
        with pytest.raises(
            cpp.LibraryError, match=r"pending: expected a batch under way, found one that was"
        ):
            pending[0].results()
        for batch in (*pending, dropped):
            batch.free()


def test_a_detector_in_two_threads_and_two_detectors(
    library: Library, fixed: Path, photos: list[np.ndarray]
) -> None:
    with (
        cpp.Detector(library, fixed, threads=1) as first,
        cpp.Detector(library, fixed, threads=1, streams=1) as second,
    ):
        expected = [first([photo]) for photo in photos[:2]]

        def worker(detector: cpp.Detector, index: int) -> list[cpp.Found]:
            return [detector([photos[index]])[0] for _ in range(5)]

        calls = [(lambda d=d, i=i: worker(d, i)) for d in (first, second) for i in (0, 1)]
        for found, index in zip(cpp.in_threads(calls), (0, 1, 0, 1)):
            for one in found:
                np.testing.assert_array_equal(one.boxes, expected[index][0].boxes)
                assert one.rle == expected[index][0].rle


def test_a_mask_in_the_callers_rows(library: Library, fixed: Path, photos: list[np.ndarray]) -> None:
    image = photos[0]
    height, width = image.shape[:2]
    with (
        cpp.Detector(library, fixed, threads=2) as ours,
        PythonDetector(fixed, backend="openvino", threads=2) as theirs,
    ):
        (expected,) = theirs([image])
        rows = ours.mask([image], 1, width + 9)
        np.testing.assert_array_equal(rows[:, :width], expected.masks[1])
        assert expected.masks[1].any()
        assert (rows[:, width:] == 7).all()
        for index, pitch, message in (
            (10**6, width, "masks: expected an index below"),
            (0, width - 1, "row_pitch: expected at least"),
        ):
            with pytest.raises(cpp.LibraryError, match=message):
                ours.mask([np.ascontiguousarray(image[:, : max(pitch, width)])], index, pitch)


def save_ppm(path: Path, image: np.ndarray) -> Path:
    height, width = image.shape[:2]
    path.write_bytes(f"P6 {width} {height} 255\n".encode() + image[:, :, ::-1].tobytes())
    return path


def test_the_example_writes_cocos_results(
    installed: Installed, fixed: Path, photos: list[np.ndarray], tmp_path: Path
) -> None:
    """A project of its own that found the package, run on files; PPM has every pixel as it is."""
    paths = [save_ppm(tmp_path / f"{i}.ppm", photo) for i, photo in enumerate(photos[:3])]
    program = installed.programs / "cpp" / "maskrcnn_detect"
    printed = run(program, fixed, *paths, "--out", tmp_path / "results.json", "--min-score", "0.3")
    results = json.loads((tmp_path / "results.json").read_text())
    with PythonDetector(fixed, backend="openvino") as detector:
        found = [detections.filter(0.3) for detections in detector(photos[:3])]
    expected = [
        (image_id, int(label) + 1, counts["counts"])
        for image_id, detections in enumerate(found, 1)
        for label, counts in zip(detections.labels, detections.rle())
    ]
    assert [(r["image_id"], r["category_id"], r["segmentation"]["counts"]) for r in results] == expected
    corners = np.concatenate([detections.boxes for detections in found])
    boxes = np.array([r["bbox"] for r in results])
    np.testing.assert_allclose(boxes[:, :2], corners[:, :2], rtol=0, atol=BOX_PX)
    np.testing.assert_allclose(boxes[:, 2:], corners[:, 2:] - corners[:, :2], rtol=0, atol=2 * BOX_PX)
    scores = np.concatenate([detections.scores for detections in found])
    np.testing.assert_allclose([r["score"] for r in results], scores, rtol=0, atol=SCORE)
    assert len(printed.splitlines()) == len(results) > 20


@pytest.mark.parametrize(("example", "option"), [("detect", "--out"), ("benchmark", "--json")])
def test_the_examples_refuse_a_file_that_cannot_be_written_before_they_open_the_model(
    installed: Installed, tmp_path: Path, example: str, option: str
) -> None:
    out = tmp_path / "missing" / "x.json"
    program = installed.programs / "cpp" / f"maskrcnn_{example}"
    done = subprocess.run(
        [program, tmp_path / "none.onnx", "i.ppm", option, out], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr == (
        f"{example}: error: {out}: expected a file that can be written, found: No such file or directory; name "
        "another, in a folder that is there\n"
    )


@pytest.mark.parametrize("program", ["detect", "benchmark"])
def test_the_examples_refuse_a_folder_as_an_image(installed: Installed, tmp_path: Path, program: str) -> None:
    done = subprocess.run(
        [installed.programs / "cpp" / f"maskrcnn_{program}", fakes.save(tmp_path / "m.onnx"), tmp_path],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr == f"{program}: error: {tmp_path}: expected a file that can be read, found none\n"


def test_the_example_says_that_its_output_was_not_written(
    installed: Installed, fixed: Path, photos: list[np.ndarray], tmp_path: Path
) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [
                installed.programs / "cpp" / "maskrcnn_detect",
                fixed,
                save_ppm(tmp_path / "a.ppm", photos[0]),
            ],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert done.returncode == 2
    assert done.stderr.startswith(
        "detect: error: standard output: expected to write to it, found: No space left"
    )


@pytest.mark.parametrize(
    ("option", "value"),
    [("--batch", v) for v in ("abc", "", "2x", "0", "-1", "1.5")]
    + [("--min-score", v) for v in ("abc", "", "0.3x", "nan", "1.5", "-0.1")],
)
def test_the_example_refuses_a_number_that_is_none(installed: Installed, option: str, value: str) -> None:
    program = installed.programs / "cpp" / "maskrcnn_detect"
    done = subprocess.run(
        [program, "m.onnx", "i.ppm", option, value], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"detect: error: {option}: expected a ")
    assert f'found "{value}"' in done.stderr


def test_the_benchmark_runs(installed: Installed, photos: list[np.ndarray], tmp_path: Path) -> None:
    model = fakes.save(tmp_path / "m.onnx")
    image = save_ppm(tmp_path / "a.ppm", photos[0])
    program = installed.programs / "cpp" / "maskrcnn_benchmark"
    first, *rows = run(program, model, image, "--batch", 3, "--runs", 2).splitlines()
    assert "OpenVINO" in first
    assert [row.split(":")[0].split() for row in rows] == [["batch", "1"], ["batch", "3"]]


def test_from_c(installed: Installed, tmp_path: Path) -> None:
    model = fakes.save(tmp_path / "m.onnx")
    program = installed.programs / "consumer" / "from_c"
    rows = [row.split() for row in run(program, model, 50, 75).splitlines()]
    assert [(row[0], row[1]) for row in rows] == [("square", "0.900"), ("circle", "0.500")]
    shares = np.array([fakes.UNIT_BOXES[0], fakes.UNIT_BOXES[1]]) * (75, 50, 75, 50)
    np.testing.assert_allclose(np.array([row[2:] for row in rows], float), shares, atol=0.3)
    done = subprocess.run(
        [program, tmp_path / "none.onnx", "5", "5"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr.startswith(
        f"1 model {tmp_path}/none.onnx: expected a file, found nothing; make it with"
    )


def test_an_interpreter_that_is_not_there_is_said(tmp_path: Path) -> None:
    if shutil.which("cmake") is None:
        pytest.skip("no cmake")
    python = tmp_path / "none" / "python"
    done = subprocess.run(
        ["cmake", "-S", ROOT, "-B", tmp_path / "build", f"-DPython_EXECUTABLE={python}"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    said = " ".join(done.stderr.split())
    assert f"-DPython_EXECUTABLE: expected an interpreter, found no file {python}." in said


def test_memory_does_not_grow(installed: Installed, tmp_path: Path) -> None:
    """Two threads with a detector each; ten thousand calls are run by hand (docs/cpp.md)."""
    model = fakes.save(tmp_path / "m.onnx")
    rows = run(installed.programs / "consumer" / "soak", model, 600, 2).splitlines()
    (_, first), (loops, last) = (map(int, row.split()) for row in rows)
    assert loops == 600
    assert last < 1.1 * first


def test_signals_are_handled_after_detectors_that_went_in_the_order_they_came(
    installed: Installed, tmp_path: Path
) -> None:
    """Of OpenVINO's stack for signal handlers nothing stays in the thread that opened them."""
    model = fakes.save(tmp_path / "m.onnx")
    printed = run(installed.programs / "consumer" / "signals", model)
    assert (
        printed == f"stack as before\nthreads that ended with another's 0\nhandled {signal.SIGTERM.value}\n"
    )


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_a_forked_process_is_refused(
    installed: Installed, library: Library, tmp_path: Path, backend: str
) -> None:
    """It has none of the threads: without a refusal, what waits for them waits without end."""
    if backend.encode() not in library.backends().split():
        pytest.skip(f"built without {backend}")
    model = fakes.save(tmp_path / "m.onnx")
    rows = run(installed.programs / "consumer" / "forked", model, backend).splitlines()
    words = ": expected to be used in the process that made it, found one forked off it; open the model there"
    assert rows == [
        f"detect: detector{words}",
        f"submit: detector{words}",
        f"wait: pending{words}",
        "opened there: 3 found",
        "destroyed",
        "ended 0",
        "here: 3 found",
    ]


def test_without_memory_there_is_an_error(installed: Installed, tmp_path: Path) -> None:
    """Neither an exception that crosses the boundary, nor the end of the process."""
    rows = run(installed.programs / "consumer" / "memory", fakes.save(tmp_path / "m.onnx")).splitlines()
    counts = {name: int(words.split()[0]) for name, words in (row.split(": ") for row in rows)}
    assert len(counts) == 10
    assert min(counts.values()) > 0


def test_messages_have_pythons_numbers_whatever_the_locale(installed: Installed, tmp_path: Path) -> None:
    printed = run(installed.programs / "consumer" / "words", fakes.save(tmp_path / "m.onnx"))
    assert printed.splitlines() == [
        "batch_size: expected a whole number from 1 to 1024, or 0, found 12345678",
        "images[0]: expected edges of up to 1048576 px and up to 536870912 pixels, found 2000000x1000000 px (height x "
        "width) with 3 channels; use a smaller image",
    ]


def test_what_is_exported(installed: Installed) -> None:
    """The public names alone, versioned, under a name with the version of the interface."""
    symbols = [line.split()[-1] for line in run("nm", "-D", "--defined-only", installed.library).splitlines()]
    names = [name for name in symbols if name != "MASKRCNN_0"]
    assert all(name.endswith("@@MASKRCNN_0") for name in names)
    assert all(name.startswith(("maskrcnn_", "_ZN8maskrcnn", "_ZNK8maskrcnn")) for name in names)
    assert not [
        name for name in names if name.startswith("maskrcnn_") and name.split("@")[0] not in cpp._FUNCTIONS
    ]
    assert {name.split("@")[0] for name in names} >= set(cpp._FUNCTIONS)
    assert "libmaskrcnn_runtime.so.0" in run("readelf", "-d", installed.library)


def test_version(library: Library) -> None:
    assert library.version() == b"0.1.0"
    assert library.backends().split()[0] == b"openvino"
