"""The TensorRT backend without a GPU, on fakes of CUDA, TensorRT 8.5 and the plugins, under AddressSanitizer.

Slots, profiles, CUDA graphs, streams and run lengths of any number are the library's own; what a stream is given is
done as late as its waits allow, or at once. The engine's answers follow from an image's first value.
"""

import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest

from runtime.cuda.binding import CudaPython
from runtime.engine.config import EngineConfig
from runtime.engine.files import EngineRequest, Machine, engine_path, ensure_engine
from runtime.engine.plugins import PluginLibrary
from runtime.engine.sidecar import sidecar_path
from runtime.files import sha256_of
from runtime.host.postprocess import detections_from_outputs
from runtime.host.preprocess import batch_geometry
from runtime.metadata import ModelMetadata
from runtime.transforms import Fit, Pad
from tests.cpp import fake_gpu
from tests.plugins.test_headers import cuda_include, releases
from tests.runtime import fakes as models
from tests.runtime.engine import fake_cuda, fakes

SANITIZERS = ("address,undefined", "thread")
FLAGS = ("-O1", "-g1", "-fno-sanitize-recover=undefined")
# The functions of TensorRT's classes are checked by their library's types, which a fake has not got.
NO_TYPES = "-fno-sanitize=vptr"
NUM_ROWS, CLASSES = 4, 3
SIZE = (64, 96)


def _headers() -> Path:
    found = [release for release in releases() if release.name.endswith("8.5")]
    if not found:
        pytest.skip(
            "no headers of TensorRT 8.5 in MASKRCNN_TENSORRT_HEADERS: see tests/plugins/test_headers.py"
        )
    if not shutil.which("c++") or not Path("/usr/include/openssl/evp.h").is_file():
        pytest.skip("no c++, or no libcrypto with its headers: apt-get install g++ libssl-dev")
    if importlib.util.find_spec("nlohmann_json") is None:
        pytest.skip("no nlohmann/json.hpp: pip install nlohmann-json")
    return found[0]


@pytest.fixture(scope="module", params=SANITIZERS)
def programs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    headers = _headers()
    json_include = Path(importlib.util.find_spec("nlohmann_json").origin).parent / "include"
    folder = tmp_path_factory.mktemp("fake_gpu")
    fake_gpu.build(
        folder, headers, cuda_include(), json_include, (*FLAGS, f"-fsanitize={request.param}", NO_TYPES)
    )
    return folder


def engine_of(programs: Path, facts: ModelMetadata) -> Path:
    """An engine of a model with these facts, whose sidecar is of this machine and these plugins."""
    model = models.save(programs / f"{len(list(programs.glob('*.onnx')))}.onnx", facts)
    device = fake_cuda.Device("Fake GPU", (9, 0))
    plugins = PluginLibrary(Path("p.so"), sha256_of(programs / fake_gpu.PLUGINS), frozenset())
    machine = Machine(fakes.library(fakes.V8_5), CudaPython(fake_cuda.Cudart(device)), plugins)
    request = EngineRequest(model, engine_path(model), EngineConfig(batch=(1, 8, 8)))
    ensure_engine(request, machine)
    request.engine.write_bytes(fake_gpu.ENGINE)
    path = sidecar_path(request.engine)
    sidecar = json.loads(path.read_text())
    path.write_text(json.dumps({**sidecar, "engine_sha256": sha256_of(request.engine)}))
    return request.engine


@pytest.fixture(scope="module")
def engine(programs: Path) -> Path:
    return engine_of(programs, models.metadata())


def image_files(folder: Path, values: list[int]) -> list[Path]:
    """Images of the network's own size, which begin with a value."""
    files = []
    for i, value in enumerate(values):
        files.append(folder / f"{i}.ppm")
        pixels = np.full((*SIZE, 3), 7, np.uint8)
        pixels[0, 0, 0] = value
        assert cv2.imwrite(str(files[-1]), pixels)
    return files


def run(programs: Path, program: str, *arguments: object, eager: bool = False) -> subprocess.CompletedProcess:
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(programs),
        "MASKRCNN_PLUGINS": str(programs / fake_gpu.PLUGINS),
        **({"FAKE_CUDA_EAGER": "1"} if eager else {}),
    }
    command = [str(part) for part in (programs / f"maskrcnn_{program}", *arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


def expected(image_id: int, file: Path, value: int) -> list[dict]:
    """What the fake network and its kernels make of an image."""
    return [
        {
            "image_id": image_id,
            "category_id": row % CLASSES + 1,
            "bbox": [row, row, 10 + value % 7, 12],
            "score": pytest.approx(0.9 - 0.1 * row, abs=1e-6),
            "file_name": str(file),
            "segmentation": {"size": list(SIZE), "counts": chr(ord("a") + row) * (31 * value + row)},
        }
        for row in range(1 + value % NUM_ROWS)
    ]


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_every_batch_in_every_slot_has_its_own_results(
    programs: Path, engine: Path, tmp_path: Path, batch: int, eager: bool
) -> None:
    """Several times as many batches as slots, so that graphs are launched; strings that outgrow what was expected."""
    values = [3, 7, 0, 2, 255, 1, 250, 11, 4, 5, 6, 254, 8, 9] * 3
    files = image_files(tmp_path, values)
    out = tmp_path / "results.json"
    done = run(
        programs, "detect", engine, *files, "--min-score", 0, "--batch", batch, "--out", out, eager=eager
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(out.read_text())
    wanted = [r for i, (file, value) in enumerate(zip(files, values), 1) for r in expected(i, file, value)]
    assert found == wanted


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_images_that_the_host_prepares(programs: Path, tmp_path: Path, batch: int, eager: bool) -> None:
    """A step beside the resize: the network's input is made on the host, and masks are pasted there, as in Python."""
    facts = models.metadata(
        mean=(0, 0, 0), std=(1, 1, 1), color_order="bgr", steps=(Fit(SIZE), Pad(size_divisor=32))
    )
    engine = engine_of(programs, facts)
    values = [3, 7, 0, 2, 255, 1, 250, 11, 4, 5] * 3
    out = tmp_path / "results.json"
    files = image_files(tmp_path, values)
    done = run(
        programs, "detect", engine, *files, "--min-score", 0, "--batch", batch, "--out", out, eager=eager
    )
    assert done.returncode == 0, done.stderr[-3000:]
    geometry = batch_geometry([SIZE] * len(values), facts)
    python = detections_from_outputs(network_outputs(values), geometry, facts)
    found = json.loads(out.read_text())
    wanted = [
        (image_id, label + 1, rle["counts"])
        for image_id, detections in enumerate(python, 1)
        for label, rle in zip(detections.labels.tolist(), detections.rle())
    ]
    assert [(r["image_id"], r["category_id"], r["segmentation"]["counts"]) for r in found] == wanted
    assert len(wanted) == sum(1 + value % NUM_ROWS for value in values)
    edges = [[row, row, 10 + value % 7, 12] for value in values for row in range(1 + value % NUM_ROWS)]
    assert [r["bbox"] for r in found] == edges
    assert len({counts for _, _, counts in wanted}) > NUM_ROWS


def network_outputs(values: list[int]) -> dict[str, np.ndarray]:
    """What the fake network finds in images that begin with these values."""
    rows = np.arange(NUM_ROWS, dtype=np.float32)
    dets = np.zeros((len(values), NUM_ROWS, 5), np.float32)
    dets[..., :2], dets[..., 4] = rows[None, :, None], 0.9 - 0.1 * rows
    dets[..., 2] = rows + np.array([[10 + value % 7] for value in values], np.float32)
    dets[..., 3] = rows + 12
    masks = np.zeros((len(values), NUM_ROWS, 28, 28), np.float32)
    masks[..., 0, 0] = 31 * np.array(values, np.float32)[:, None] + rows
    return {
        "num_dets": np.array([1 + value % NUM_ROWS for value in values], np.int32),
        "dets": dets,
        "labels": np.tile(np.arange(NUM_ROWS, dtype=np.int32) % CLASSES, (len(values), 1)),
        "masks": masks,
    }


def test_loops_and_detectors_side_by_side(programs: Path, engine: Path, tmp_path: Path) -> None:
    files = image_files(tmp_path, [3, 255, 0, 17])
    out = tmp_path / "out.json"
    options = ["--batch", 8, "--runs", 5, "--calls", 200, "--detectors", 3, "--json", out]
    done = run(programs, "benchmark", engine, *files, *options)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(out.read_text())
    assert found["backend"] == "TensorRT 8.5.3"
    assert [latency["num_masks"] for latency in found["latency"]] == [4, 2 * (4 + 4 + 1 + 2)]
    assert found["endurance"]["unlike"] == 0
    first, last = found["endurance"]["figures"][0], found["endurance"]["figures"][-1]
    assert (first["threads"], first["file_descriptors"]) == (last["threads"], last["file_descriptors"])
    assert found["company"] == {"detectors": 3, "results": 3 * 5 * 4 * (1 + 8), "unlike": 0}


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("memory", ["device", "pinned"])
def test_memory_that_ran_out_fails_one_batch(programs: Path, engine: Path, memory: str, eager: bool) -> None:
    done = run(programs, "recovery", engine, memory, eager=eager)
    assert done.returncode == 0, done.stderr[-3000:]
    before, failed, *after = done.stdout.splitlines()
    assert failed.startswith("error: CUDA: expected to get memory ")
    for line, value in zip([before, *after], [3, 3, 255, 7, 255], strict=True):
        assert line.split() == [r["segmentation"]["counts"] for r in expected(1, Path(), value)]


def test_an_engine_that_tensorrt_cannot_read(programs: Path, engine: Path, tmp_path: Path) -> None:
    copy = tmp_path / engine.name
    copy.write_bytes(fake_gpu.ENGINE + b"!")
    sidecar = json.loads(sidecar_path(engine).read_text())
    sidecar_path(copy).write_text(json.dumps({**sidecar, "engine_sha256": sha256_of(copy)}))
    shutil.copy(engine.with_suffix(".onnx"), tmp_path)
    done = run(programs, "detect", copy, *image_files(tmp_path, [1]))
    assert done.returncode == 2
    assert done.stderr == (
        "detect: error: engine: expected one that TensorRT 8.5.3 reads, found: magic tag does not match; build it "
        "again on this machine with `python -m runtime.build`\n"
    )
