"""Engines on a real GPU: built, run, held against onnxruntime, refused and built again.

Where TensorRT is there may be no PyTorch, so leave out the conftest that imports it:

    pytest -m tensorrt --confcutdir=tests/gpu tests/gpu/test_engines.py -v

| variable | |
| --- | --- |
| ``MASKRCNN_TEST_MODEL`` | an ONNX of ``export.maskrcnn``, fixed size (default: ``out/maskrcnn.onnx``) |
| ``MASKRCNN_PLUGINS`` | the plugin library (default: where ``make plugins`` puts it) |
| ``MASKRCNN_TACTIC_SOURCES`` | as ``--tactic-sources`` of ``runtime.build``: ``none`` without cuBLAS and cuDNN |
| ``MASKRCNN_TIMING_CACHE`` | file of kernel timings that outlives the run (default: a temporary one) |

Builds take most of the time. Engines are made when a test first needs them, and the tests stand in that order: a small
network, the model in FP32, in FP16, a network of mmcv 1.x, then what builds again and again.
"""

import dataclasses
import gc
import importlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr
from pathlib import Path
from typing import Callable, Optional

import numpy as np
import pytest

try:
    import onnx
    import onnxruntime
    import tensorrt  # noqa: F401
    from onnx import TensorProto, helper, numpy_helper
except (ImportError, OSError) as error:
    pytest.skip(f"TensorRT, onnx or onnxruntime is not installed: {error}", allow_module_level=True)

from runtime import build
from runtime.backends import backend_name
from runtime.coco_writer import IMAGES, RESULTS
from runtime.compare import main as compare_main
from runtime.comparison.detections import arrays_from_detections
from runtime.comparison.difference import DetectionArrays, Tolerance, compare_image
from runtime.cuda.binding import open_cuda
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.engine.config import EngineConfig
from runtime.engine.files import EngineRequest, Machine, check_engine, ensure_engine
from runtime.engine.library import open_library
from runtime.engine.plugins import VARIABLE, find_plugins, load_plugins
from runtime.engine.session import EngineSession
from runtime.engine.sidecar import Sidecar, sidecar_path
from runtime.host.postprocess import detections_from_outputs
from runtime.host.preprocess import prepare
from runtime.images import find_images, read_image
from tests.gpu import legacy_onnx

pytestmark = [pytest.mark.gpu, pytest.mark.tensorrt]

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "images"
MODEL_VARIABLE = "MASKRCNN_TEST_MODEL"
TIMING_CACHE_VARIABLE = "MASKRCNN_TIMING_CACHE"
TACTIC_SOURCES = os.environ.get("MASKRCNN_TACTIC_SOURCES")
LARGEST_BATCH = 8
# What a library of an earlier release does not have.
FUSED = {"DecodeDetections", "DecodeProposals", "SelectMasks"}
COMMAND_SECONDS = 900

# The same kernels in another batch: nothing but the order of sums may differ.
SAME = Tolerance(box_px=1e-3, score=1e-5)
# FP16 keeps 11 bits; a detection near a threshold may be on the other side of it.
HALF = Tolerance(box_px=1.0, score=0.05, mask=0.01)
HALF_MIN_SCORE, HALF_MARGIN, HALF_SHARE = 0.3, 0.05, 0.05
# Of the small networks in FP32: sums in another order.
CLOSE, CLOSE_PX = 5e-4, 1e-3
# What the driver itself may keep between two measurements; an engine and its buffers are many times that.
MEMORY_SLACK_BYTES = 8 << 20

WITHOUT_ONNXRUNTIME = """
import sys
sys.modules["onnxruntime"] = None  # importing it fails
from runtime.infer import main
sys.exit(main())
"""


# --- Engines --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def machine() -> Machine:
    try:
        cuda = open_cuda()
        path = find_plugins()
    except (RuntimeError, FileNotFoundError) as error:
        pytest.skip(str(error))
    if path is None:
        pytest.skip(f"no plugin library: run `make plugins`, or name it in {VARIABLE}")
    library = open_library()
    plugins = load_plugins(path, library.tensorrt)
    if not plugins.ops:
        pytest.skip("the plugin library was loaded by other tests of this process; run this file by itself")
    return Machine(library, cuda, plugins)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="session")
def timing_cache(folder: Path) -> Path:
    named = os.environ.get(TIMING_CACHE_VARIABLE)
    return Path(named).resolve() if named else folder / "timing.cache"


@pytest.fixture(scope="session")
def model(folder: Path, machine: Machine) -> Path:
    """The model in a folder of its own, where engines and their sidecars go."""
    source = Path(os.environ.get(MODEL_VARIABLE, ROOT / "out" / "maskrcnn.onnx"))
    if not source.is_file():
        pytest.skip(f"no model {source}: run `python -m export.maskrcnn`, or name one in {MODEL_VARIABLE}")
    return Path(shutil.copy(source, folder / "maskrcnn.onnx"))


@pytest.fixture(scope="session")
def fp32(model: Path, timing_cache: Path) -> Path:
    return built(model, model.with_name("fp32.engine"), timing_cache, "--precision", "fp32")


@pytest.fixture(scope="session")
def fp16(model: Path, timing_cache: Path) -> Path:
    """With the default plan, where ``Detector(model)`` looks for it."""
    return built(model, model.with_suffix(".engine"), timing_cache)


@pytest.fixture(scope="session")
def detector(fp32: Path) -> Iterator[Detector]:
    with Detector(fp32) as opened:
        yield opened


@pytest.fixture(scope="session")
def half_detector(fp16: Path) -> Iterator[Detector]:
    with Detector(fp16) as opened:
        yield opened


@pytest.fixture(scope="session")
def oracle(model: Path) -> Iterator[Detector]:
    with Detector(model, "onnxruntime") as opened:
        yield opened


@pytest.fixture(scope="session")
def images() -> list:
    """Twelve different images of different sizes: the examples, and the same mirrored."""
    examples = [read_image(path) for path in find_images([str(EXAMPLES)])]
    return examples + [np.ascontiguousarray(image[:, ::-1]) for image in examples]


@pytest.fixture(scope="session")
def small(folder: Path, machine: Machine, timing_cache: Path) -> Path:
    """A folder with the engine of a network of one layer, which takes a moment to build."""
    place = folder / "small"
    place.mkdir()
    onnx.save(small_model(), place / "small.onnx")
    ensure_engine(small_request(place, timing_cache), machine)
    return place


@pytest.fixture(scope="session")
def legacy(folder: Path, machine: Machine) -> Path:
    path = folder / "legacy.onnx"
    onnx.save(legacy_onnx.legacy_model(), path)
    return path


def built(model: Path, engine: Path, timing_cache: Path, *options: str) -> Path:
    """Build with ``runtime.build``, which also writes what is in the engine to the sidecar."""
    log = io.StringIO()
    with redirect_stderr(log):
        status = build.main(build_arguments(model, engine, timing_cache, *options))
    assert status == 0, log.getvalue()[-2000:]
    return engine


def build_arguments(model: Path, engine: Path, timing_cache: Path, *options: str) -> list:
    sources = () if TACTIC_SOURCES is None else ("--tactic-sources", TACTIC_SOURCES)
    arguments = (model, "-o", engine, "--timing-cache", timing_cache, *sources, *options)
    return [str(argument) for argument in arguments]


def tactic_sources() -> Optional[tuple]:
    if TACTIC_SOURCES is None:
        return None
    return () if TACTIC_SOURCES == "none" else tuple(TACTIC_SOURCES.split(","))


def small_model(seed: int = 0) -> onnx.ModelProto:
    weights = np.random.default_rng(seed).standard_normal((4, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["data", "weights"], ["sums"], name="conv", pads=[1] * 4),
        helper.make_node("Relu", ["sums"], ["out"], name="relu"),
    ]
    data = helper.make_tensor_value_info("data", TensorProto.FLOAT, ["batch", 3, 16, 16])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", 4, 16, 16])
    graph = helper.make_graph(nodes, "small", [data], [out], [numpy_helper.from_array(weights, "weights")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def small_request(place: Path, timing_cache: Path) -> EngineRequest:
    config = EngineConfig(precision="fp32", tactic_sources=tactic_sources())
    return EngineRequest(place / "small.onnx", place / "small.engine", config, timing_cache=timing_cache)


def check_small(place: Path, machine: Machine) -> None:
    """Run the engine, and the ONNX beside it in onnxruntime."""
    feeds = {"data": np.random.default_rng(1).standard_normal((3, 3, 16, 16)).astype(np.float32)}
    with open_session(place / "small.engine", machine) as session:
        found = session.run(feeds)["out"]
    np.testing.assert_allclose(found, run_onnx(onnx.load(place / "small.onnx"), feeds)["out"], atol=CLOSE)


def open_session(engine: Path, machine: Machine) -> EngineSession:
    return EngineSession(engine.read_bytes(), library=machine.library, cuda=machine.cuda)


def run_onnx(model: onnx.ModelProto, feeds: dict) -> dict:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    data = model.SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, feeds)))


def run_command(*arguments: object) -> subprocess.CompletedProcess:
    """Run a new Python in the project's folder."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        timeout=COMMAND_SECONDS,
    )


def free_device_bytes() -> int:
    try:
        cudart = importlib.import_module("cuda.bindings.runtime")
    except ImportError:
        cudart = pytest.importorskip("cuda.cudart")
    status, free, _ = cudart.cudaMemGetInfo()
    assert int(status) == 0
    return int(free)


# --- Detections -----------------------------------------------------------------------------------------------------


def violations(expected: Sequence[Detections], found: Sequence[Detections], tolerance: Tolerance) -> list:
    """Return in words what differs, image by image."""
    assert len(expected) == len(found)
    assert any(len(detections) for detections in expected)
    return [
        f"image {index}: {words}"
        for index, pair in enumerate(zip(expected, found))
        for words in compare_image(*map(arrays_from_detections, pair)).violations(tolerance)
    ]


def half_disagreement(expected: Sequence[DetectionArrays], found: Sequence[DetectionArrays]) -> float:
    """Return the share of detections, sure on one side, without a close counterpart on the other.

    The counterpart may be a little less sure. NMS may keep a neighbouring box where scores are almost equal.
    """
    assert len(expected) == len(found)
    total = disagreeing = 0
    for a, b in zip(expected, found):
        for sure, others in ((a, b), (b, a)):
            # Of the others, the sure ones are looked at in the other direction.
            others = at_least(others, HALF_MIN_SCORE - HALF_MARGIN)
            difference = compare_image(at_least(sure, HALF_MIN_SCORE), others)
            total += difference.expected
            disagreeing += len(difference.missing) + int((difference.boxes_px > HALF.box_px).sum())
    assert total > 0
    return disagreeing / total


def at_least(arrays: DetectionArrays, score: float) -> DetectionArrays:
    keep = np.flatnonzero(arrays.scores >= score)
    masks = None if arrays.masks is None else [arrays.masks[i] for i in keep]
    return DetectionArrays(arrays.boxes[keep], arrays.scores[keep], arrays.labels[keep], masks)


def arrays_of(detections: Sequence[Detections]) -> list:
    return [arrays_from_detections(item) for item in detections]


def arrays_from_results(place: Path) -> list:
    """Return what ``runtime.infer`` wrote, in the order of its images."""
    from pycocotools import mask

    results = json.loads((place / RESULTS).read_text())
    arrays = []
    for image in json.loads((place / IMAGES).read_text())["images"]:
        own = [result for result in results if result["image_id"] == image["id"]]
        corners = np.array([result["bbox"] for result in own], np.float32).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        scores = np.array([result["score"] for result in own], np.float32)
        labels = np.array([result["category_id"] - 1 for result in own], np.int32)
        masks = [mask.decode(result["segmentation"]) for result in own]
        arrays.append(DetectionArrays(corners, scores, labels, masks))
    return arrays


# --- Engine files, with a network that builds in a moment -----------------------------------------------------------


def truncate(place: Path, name: str) -> None:
    engine = place / f"{name}.engine"
    engine.write_bytes(engine.read_bytes()[: engine.stat().st_size // 2])


def change_onnx(place: Path, name: str) -> None:
    path = place / f"{name}.onnx"
    changed = onnx.load(path)
    for tensor in changed.graph.initializer:
        if tensor.name == "weights":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 2, "weights"))
    changed.doc_string = "changed"
    onnx.save(changed, path)


def edit_sidecar(field: str, value: str) -> Callable[[Path, str], None]:
    def edit(place: Path, name: str) -> None:
        path = sidecar_path(place / f"{name}.engine")
        content = json.loads(path.read_text())
        content["provenance"][field] = value
        path.write_text(json.dumps(content))

    return edit


def remove_sidecar(place: Path, name: str) -> None:
    sidecar_path(place / f"{name}.engine").unlink()


# What happened to the files, and what the message names.
STALE = {
    "truncated": (truncate, r"engine file: expected \d+ bytes .* found \d+ bytes .*: truncated"),
    "other ONNX": (change_onnx, r"ONNX \(SHA-256\): expected \w+, found \w+"),
    "other GPU": (edit_sidecar("gpu", "NVIDIA A100-PCIE-40GB"), "GPU: expected .*, found NVIDIA A100"),
    "other compute capability": (
        edit_sidecar("compute_capability", "8.0"),
        r"compute capability: expected .*, found 8\.0",
    ),
    "other TensorRT": (edit_sidecar("tensorrt", "TensorRT 8.4.1.5"), r"TensorRT: expected .*8\.4\.1\.5"),
    "no sidecar": (remove_sidecar, r"expected \w+\.engine\.json beside it"),
}


def test_a_small_network_equals_onnxruntime(small: Path, machine: Machine) -> None:
    check_small(small, machine)


@pytest.mark.parametrize("name", STALE)
def test_a_stale_engine_is_refused_or_built_again(
    name: str, small: Path, machine: Machine, timing_cache: Path, tmp_path: Path
) -> None:
    place = Path(shutil.copytree(small, tmp_path / "copy"))
    spoil, words = STALE[name]
    spoil(place, "small")
    before = (place / "small.engine").read_bytes()
    request = small_request(place, timing_cache)
    with pytest.raises(ValueError, match=words):
        ensure_engine(request, machine, "never")
    assert (place / "small.engine").read_bytes() == before
    notes: list = []
    ensure_engine(request, machine, "auto", notify=notes.append)
    assert len(notes) == 1
    assert re.match(f"building .*{words}", notes[0])
    ensure_engine(request, machine, "never")
    check_small(place, machine)


def test_an_engine_of_another_plugin_library_is_refused_or_built_again(
    small: Path, machine: Machine, timing_cache: Path, tmp_path: Path
) -> None:
    """In new processes: a library registers its operators once in each."""
    place = Path(shutil.copytree(small, tmp_path / "copy"))
    other = tmp_path / "libother.so"
    other.write_bytes(machine.plugins.path.read_bytes() + b"\0")
    arguments = build_arguments(
        place / "small.onnx", place / "small.engine", timing_cache, "--precision", "fp32"
    )
    command = ("-m", "runtime.build", *arguments, "--plugins", other, "--rebuild")
    words = r"plugin library \(SHA-256\): expected \w+, found \w+"
    refused = run_command(*command, "never")
    assert refused.returncode == 2
    assert re.search(f"error: engine .*{words}", refused.stderr)
    rebuilt = run_command(*command, "auto")
    assert rebuilt.returncode == 0, rebuilt.stderr[-1000:]
    assert re.search(f"building .*{words}", rebuilt.stderr)
    with pytest.raises(ValueError, match=words):
        ensure_engine(small_request(place, timing_cache), machine, "never")
    check_small(place, machine)


# --- The model in FP32 ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_fp32_equals_onnxruntime(batch: int, detector: Detector, oracle: Detector, images: list) -> None:
    assert violations(oracle(images[:batch]), detector(images[:batch]), Tolerance()) == []


def test_every_batch_equals_batch_one(detector: Detector, images: list) -> None:
    alone = [detector([image])[0] for image in images[:LARGEST_BATCH]]
    for batch in range(2, LARGEST_BATCH + 1):
        start = LARGEST_BATCH - batch
        found = detector(images[start:LARGEST_BATCH])
        assert violations(alone[start:], found, SAME) == [], f"batch {batch}"


def test_a_batch_beyond_the_profile_is_split(detector: Detector, images: list) -> None:
    assert len(images) > LARGEST_BATCH + 2
    several = images[: LARGEST_BATCH + 3]
    alone = [detector([image])[0] for image in several]
    assert violations(alone, detector(several), SAME) == []


def test_a_shape_outside_the_profile_is_refused_with_the_range(fp32: Path, machine: Machine) -> None:
    with open_session(fp32, machine) as session:
        low, _, high = session.inputs["images"].profile
        for shape in ((low[0], low[1], low[2] + 1, low[3]), (high[0] + 1, *high[1:])):
            words = re.escape(f"input images: expected a shape from {low} to {high}, found {shape}")
            feeds = {
                "images": np.zeros(shape, np.float32),
                "image_sizes": np.zeros((shape[0], 2), np.float32),
            }
            with pytest.raises(ValueError, match=words):
                session.run(feeds)


def test_two_detectors_in_one_process(fp32: Path, detector: Detector, images: list) -> None:
    alone = [detector([image])[0] for image in images[:4]]
    second = Detector(fp32)
    with Detector(fp32) as first:
        found = [(first if index % 2 else second)([image])[0] for index, image in enumerate(images[:4])]
        assert violations(alone, found, SAME) == []
    # The first is closed; the second does not mind.
    assert violations(alone[:2], second(images[:2]), SAME) == []
    second.close()


def test_threads_share_a_detector(detector: Detector, images: list) -> None:
    several = images[:6]
    alone = [detector([image])[0] for image in several]
    with ThreadPoolExecutor(4) as pool:
        found = [detections[0] for detections in pool.map(lambda image: detector([image]), several * 2)]
    assert violations(alone * 2, found, SAME) == []


def test_each_thread_has_a_detector(fp32: Path, detector: Detector, images: list) -> None:
    def detect(image: np.ndarray) -> Detections:
        with Detector(fp32) as own:
            own([image])
            return own([image])[0]

    alone = [detector([image])[0] for image in images[:4]]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(detect, images[:4]))
    assert violations(alone, found, SAME) == []


def test_closing_gives_the_memory_back(fp32: Path, images: list) -> None:
    free = []
    for _ in range(5):
        with Detector(fp32) as opened:
            opened(images[:2])
        gc.collect()
        free.append(free_device_bytes())
    # The first time CUDA and TensorRT load their kernels, and keep them.
    assert min(free[1:]) >= free[0] - MEMORY_SLACK_BYTES, [f"{b >> 20} MiB free" for b in free]


def test_cuda_graphs_change_nothing(fp32: Path, detector: Detector, images: list) -> None:
    """From the third call of a batch size on; another size in between starts over."""
    alone = [detector([image])[0] for image in images[:4]]
    with Detector(fp32, cuda_graphs=True) as graphed:
        for start, stop in ((0, 2), (2, 4), (0, 2), (1, 3), (0, 1), (0, 2), (2, 4), (0, 2), (1, 3)):
            assert violations(alone[start:stop], graphed(images[start:stop]), SAME) == []
        assert graphed.backend.cuda_graph_failure == ""


@pytest.mark.parametrize("name", STALE)
def test_a_stale_engine_does_not_open(name: str, model: Path, fp32: Path, tmp_path: Path) -> None:
    copy_engine(model, fp32, tmp_path)
    spoil, words = STALE[name]
    spoil(tmp_path, "maskrcnn")
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        Detector(tmp_path / "maskrcnn.engine")


def copy_engine(model: Path, engine: Path, place: Path) -> Path:
    """Copy the model, its engine and the sidecar, the two as ``maskrcnn.engine``."""
    copy = place / "maskrcnn.engine"
    shutil.copy(model, place / "maskrcnn.onnx")
    shutil.copy(engine, copy)
    shutil.copy(sidecar_path(engine), sidecar_path(copy))
    return copy


def test_compare_finds_that_onnx_and_engine_agree(
    model: Path, fp32: Path, capsys: pytest.CaptureFixture
) -> None:
    status = compare_main([str(model), str(fp32), "--backend-a", "onnxruntime", "--batch", "2"])
    assert status == 0, "".join(capsys.readouterr())[-2000:]


# --- FP16 with the default plan -------------------------------------------------------------------------------------


def test_fp16_runs_the_dense_layers_in_fp16(fp16: Path) -> None:
    figures = Sidecar.load(fp16).build
    assert figures["dense_flops_share"]["fp16"] >= 0.95, figures
    assert figures["layers_kept_fp32"] > 0


def test_fp16_finds_what_onnxruntime_finds(half_detector: Detector, oracle: Detector, images: list) -> None:
    expected, found = oracle(images[:6]), half_detector(images[:6])
    assert half_disagreement(arrays_of(expected), arrays_of(found)) <= HALF_SHARE


def test_fp16_has_no_nan(half_detector: Detector, images: list) -> None:
    batch = prepare(images[:LARGEST_BATCH], half_detector.metadata)
    outputs = half_detector.backend.run(batch.images, batch.image_sizes)
    assert [name for name, array in outputs.items() if not np.isfinite(array).all()] == []


def test_engines_of_two_precisions_side_by_side(
    detector: Detector, half_detector: Detector, images: list
) -> None:
    results = []
    for image in images[:3]:
        half_detector([image])
        results.append(detector([image])[0])
    assert violations(detector(images[:3]), results, SAME) == []


@pytest.mark.parametrize("backend", ["tensorrt", "auto"])
def test_infer_finds_what_onnxruntime_finds(
    backend: str, model: Path, fp16: Path, oracle: Detector, tmp_path: Path
) -> None:
    # `auto` has to choose TensorRT: it has no onnxruntime.
    start = ("-m", "runtime.infer") if backend == "tensorrt" else ("-c", WITHOUT_ONNXRUNTIME)
    options = ("--batch", 2, "--rebuild", "never", "--no-overlays", "--out", tmp_path)
    done = run_command(*start, EXAMPLES, "--model", model, "--backend", backend, *options)
    assert done.returncode == 0, done.stderr[-1000:]
    paths = find_images([str(EXAMPLES)])
    expected = [oracle([read_image(path)])[0] for path in paths]
    assert half_disagreement(arrays_of(expected), arrays_from_results(tmp_path)) <= HALF_SHARE


def test_auto_is_tensorrt_here(model: Path) -> None:
    assert backend_name(model, "auto") == "tensorrt"
    assert backend_name(model, "auto", "cpu") == "onnxruntime"


# --- A network of mmcv 1.x ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_onnx_of_mmcv_1_builds_and_runs(
    precision: str, legacy: Path, machine: Machine, timing_cache: Path
) -> None:
    options = ("--precision", precision, "--batch", "1", "2", "4")
    engine = built(legacy, legacy.with_name(f"legacy_{precision}.engine"), timing_cache, *options)
    standard = legacy_onnx.standard_form(onnx.load(legacy))
    check = check_legacy if precision == "fp32" else check_legacy_half
    with open_session(engine, machine) as session:
        for start, stop in ((0, 1), (1, 4)):
            feeds = {"input": legacy_onnx.images(4)[start:stop]}
            expected = run_onnx(standard, feeds)
            # With every row in use there is no order among empty ones to compare.
            assert (expected["dets"][..., 4] > 0).all()
            check(expected, session.run(feeds))


def check_legacy(expected: dict, found: dict) -> None:
    np.testing.assert_array_equal(found["labels"], expected["labels"])
    np.testing.assert_allclose(found["dets"][..., :4], expected["dets"][..., :4], rtol=0, atol=CLOSE_PX)
    np.testing.assert_allclose(found["dets"][..., 4], expected["dets"][..., 4], rtol=0, atol=CLOSE)
    np.testing.assert_allclose(found["masks"], expected["masks"], rtol=0, atol=CLOSE)


def check_legacy_half(expected: dict, found: dict) -> None:
    """Nearly equal scores may have swapped their rows, or the last one may have been another's."""
    assert all(np.isfinite(array).all() for array in found.values())
    for index in range(len(expected["dets"])):
        sides = (
            DetectionArrays(
                side["dets"][index, :, :4],
                side["dets"][index, :, 4],
                side["labels"][index],
                side["masks"][index] > 0.5,
            )
            for side in (expected, found)
        )
        difference = compare_image(*sides)
        assert difference.matched >= legacy_onnx.NUM_ROWS - 2
        assert difference.box_px <= 0.25
        assert difference.score <= 0.01
        assert difference.mask <= HALF.mask


# --- What builds again ----------------------------------------------------------------------------------------------


def test_two_processes_build_one_engine(
    model: Path,
    fp32: Path,
    machine: Machine,
    timing_cache: Path,
    oracle: Detector,
    images: list,
    tmp_path: Path,
) -> None:
    """Both find a truncated engine; one builds, the other waits and takes what it built."""
    engine = copy_engine(model, fp32, tmp_path)
    truncate(tmp_path, "maskrcnn")
    arguments = build_arguments(tmp_path / "maskrcnn.onnx", engine, timing_cache, "--precision", "fp32")
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "runtime.build", *arguments],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        logs = [process.communicate(timeout=COMMAND_SECONDS)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], logs[0][-1000:] + logs[1][-1000:]
    lines = [line for log in logs for line in log.splitlines() if line.startswith("building")]
    assert len(lines) == 1
    assert "truncated" in lines[0]
    check_engine(engine, machine)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "maskrcnn.engine",
        "maskrcnn.engine.json",
        "maskrcnn.engine.lock",
        "maskrcnn.onnx",
    ]
    with Detector(engine) as opened:
        assert violations(oracle(images[:1]), opened(images[:1]), Tolerance()) == []


def test_an_onnx_gets_its_engine_on_first_use(
    model: Path, oracle: Detector, images: list, tmp_path: Path
) -> None:
    copy = Path(shutil.copy(model, tmp_path / "maskrcnn.onnx"))
    config = EngineConfig(batch=(1, 1, 2), precision="fp32", tactic_sources=tactic_sources())
    notes: list = []
    with Detector(copy, "tensorrt", config=config, notify=notes.append) as opened:
        assert violations(oracle(images[:2]), opened(images[:2]), Tolerance()) == []
    assert len(notes) == 1
    assert "there is none yet" in notes[0]
    with Detector(copy, "tensorrt", rebuild="never", notify=notes.append) as opened:
        opened(images[:1])
    assert len(notes) == 1


def test_layers_part_nowhere_before_nms(
    model: Path, fp32: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    report = tmp_path / "layers.json"
    image = EXAMPLES / "single.jpg"
    options = ("--layers", "--backend-a", "onnxruntime", "--images", str(image), "--json", str(report))
    status = compare_main([str(model), str(fp32), *options])
    assert status in (0, 1), "".join(capsys.readouterr())[-2000:]
    content = json.loads(report.read_text())
    before_nms = [error for error in content["measured"] if not error["ordered_by"]]
    assert before_nms
    # NaN and infinity are null.
    differing = [
        e["name"] for e in before_nms if e["relative"] is None or e["relative"] > content["tolerance"]
    ]
    assert differing == []
    assert content["first"] is None or content["first"]["ordered_by"]


# The last two: minutes.
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_library_without_the_fused_operators_builds_their_bodies(
    precision: str, model: Path, machine: Machine, timing_cache: Path, oracle: Detector, images: list
) -> None:
    """As with a library of an earlier release: the three become TensorRT's own layers."""
    older = dataclasses.replace(machine.plugins, ops=machine.plugins.ops - FUSED)
    config = EngineConfig(batch=(1, 1, 2), precision=precision, tactic_sources=tactic_sources())
    engine = model.with_name(f"unfused_{precision}.engine")
    request = EngineRequest(model, engine, config, timing_cache=timing_cache)
    ensure_engine(request, Machine(machine.library, machine.cuda, older))
    found = []
    with open_session(engine, machine) as session:
        for several in (images[:1], images[1:3]):
            batch = prepare(several, oracle.metadata)
            outputs = session.run({"images": batch.images, "image_sizes": batch.image_sizes})
            found.extend(detections_from_outputs(outputs, batch, oracle.metadata))
    expected = oracle(images[:3])
    if precision == "fp32":
        assert violations(expected, found, Tolerance()) == []
    else:
        assert half_disagreement(arrays_of(expected), arrays_of(found)) <= HALF_SHARE


# The shapes inside depend on the data.
@pytest.mark.xfail(
    reason="8.5.3.1 takes the numbers of RoIs on each level, which only the data knows, for half of all RoIs, and "
    "refuses MultiLevelRoiAlign's body for it"
)
def test_without_the_plugin_library_fp32_equals_onnxruntime(
    model: Path, machine: Machine, timing_cache: Path, oracle: Detector, images: list
) -> None:
    config = EngineConfig(batch=(1, 1, 2), precision="fp32", tactic_sources=tactic_sources())
    engine = model.with_name("inlined.engine")
    bare = Machine(machine.library, machine.cuda, plugins=None)
    ensure_engine(EngineRequest(model, engine, config, timing_cache=timing_cache), bare)
    with open_session(engine, machine) as session:
        for several in (images[:1], images[1:3]):
            batch = prepare(several, oracle.metadata)
            outputs = session.run({"images": batch.images, "image_sizes": batch.image_sizes})
            found = detections_from_outputs(outputs, batch, oracle.metadata)
            assert violations(oracle(several), found, Tolerance()) == []
