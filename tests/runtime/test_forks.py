"""A Detector that was made before ``fork()``, as under ``gunicorn --preload``, works in the child."""

import gc
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable

import cv2
import numpy as np
import onnxruntime
import pytest

from runtime import Detector
from runtime.backends.onnxruntime import OnnxRuntimeBackend
from runtime.forks import check_process
from runtime.images import read_image
from tests.runtime import fakes

SECONDS = 60
ALONE = "MASKRCNN_TEST_FORKS_ALONE"
FORK = multiprocessing.get_context("fork")

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


def _in_child(function: Callable[[], Any]) -> Any:
    """Return what a function returns in a forked process; what it raises comes as text."""

    def run(connection: Any) -> None:
        try:
            connection.send(function())
        except Exception as error:
            connection.send(f"{type(error).__name__}: {error}")

    ours, theirs = FORK.Pipe()
    child = FORK.Process(target=run, args=(theirs,))
    child.start()
    try:
        assert ours.poll(SECONDS), "the child hangs"
        return ours.recv()
    finally:
        child.join(1)
        child.kill()
        child.join(SECONDS)


@pytest.fixture(params=["onnxruntime", "openvino"])
def backend(request: pytest.FixtureRequest) -> str:
    """Those that run on the CPU."""
    pytest.importorskip(request.param, reason=f"{request.param} is not installed")
    if request.param == "openvino" and ALONE not in os.environ:
        pytest.skip("in a process of its own: see test_openvino_in_a_process_of_its_own")
    return request.param


def test_openvino_in_a_process_of_its_own() -> None:
    """Once, after many other tests with OpenVINO in the same process, a child did not end: what is left of them."""
    pytest.importorskip("openvino", reason="openvino is not installed")
    if ALONE in os.environ:
        pytest.skip("this is that process")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "openvino", __file__]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    done = subprocess.run(
        command,
        cwd=Path(__file__).parents[2],
        env={**environment, ALONE: "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "failed" not in done.stdout


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    path.write_bytes(cv2.imencode(".png", fakes.random_image(300, 400))[1].tobytes())
    return path


def _boxes(detections: list) -> list:
    return [found.boxes.tolist() for found in detections]


@pytest.mark.parametrize("threads", [1, 2, 4, None])
@pytest.mark.parametrize("is_used", [True, False])
def test_a_detector_works_in_the_child(
    backend: str, is_used: bool, threads: Any, fake_model: Path, image: Path
) -> None:
    pixels = read_image(image)
    with Detector(fake_model, backend, threads=threads) as fresh:
        expected = _boxes(fresh([pixels] * 3))
    with Detector(fake_model, backend, threads=threads, batch_size=1) as detector:
        if is_used:
            detector([pixels])
            list(detector.detect_files([image]))
        assert _in_child(lambda: _boxes(detector([pixels] * 3))) == expected
        files = [image] * 3
        assert _in_child(lambda: _boxes([f.detections for f in detector.detect_files(files)])) == expected
        # A child of the child, and the parent as before.
        assert (
            _in_child(lambda: (detector([pixels]), _in_child(lambda: _boxes(detector([pixels]))))[1])
            == expected[:1]
        )
        assert _boxes(detector([pixels] * 3)) == expected


def test_a_detector_can_be_closed_in_the_child(backend: str, fake_model: Path, image: Path) -> None:
    pixels = read_image(image)
    with Detector(fake_model, backend, threads=2) as detector:
        detector([pixels])

        def close() -> str:
            detector.close()
            detector([pixels])
            return "not closed"

        assert _in_child(close).startswith("RuntimeError: model: expected an open one, found it closed")
        assert len(detector([pixels])) == 1


def test_a_batch_under_way_is_not_the_childs(backend: str, fake_model: Path, image: Path) -> None:
    with Detector(fake_model, backend, threads=1) as detector:
        runner = detector._runner
        pending = runner.submit([runner.stage(read_image(image))])
        said = _in_child(lambda: pending.result())
        assert said.startswith("RuntimeError: batch: expected to be used in process")
        assert said.endswith("make the Detector after the fork")
        assert len(pending.result()) == 1


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("is_used", [True, False])
def test_the_child_ends(backend: str, is_used: bool, threads: int, fake_model: Path, image: Path) -> None:
    """With ``sys.exit``, as gunicorn's workers do: the interpreter then frees what is left, threads or not."""
    script = f"""
import os, sys
from runtime import Detector
from runtime.images import read_image
detector = Detector({str(fake_model)!r}, {backend!r}, threads={threads})
image = read_image({str(image)!r})
detector([image])
child = os.fork()
if child == 0:
    if {is_used}:
        detector([image])
    sys.exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert _printed(script) == "7"


def _printed(script: str) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    ) as process:
        try:
            return process.communicate(timeout=SECONDS)[0].strip()
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise


def test_a_model_that_changed_meanwhile_is_refused(
    backend: str, fake_model: Path, image: Path, tmp_path: Path
) -> None:
    model = shutil.copy(fake_model, tmp_path / "model.onnx")
    pixels = read_image(image)
    with Detector(model, backend, threads=2) as detector:
        detector([pixels])
        time.sleep(0.02)
        fakes.save(model, fakes.metadata(score_threshold=0.7))
        said = _in_child(lambda: detector([pixels]))
        assert "expected the file that was loaded before this process was forked, found another" in said
        assert said.endswith("make the Detector after the fork")
        model.unlink()
        said = _in_child(lambda: detector([pixels]))
        assert "found nothing" in said


def test_a_relative_path_is_found_from_another_folder(
    backend: str, fake_model: Path, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = read_image(image)
    monkeypatch.chdir(fake_model.parent)
    with Detector(fake_model.name, backend, threads=2) as detector:

        def elsewhere() -> int:
            os.chdir(tmp_path)
            return len(detector([pixels]))

        assert _in_child(elsewhere) == 1


def test_other_providers_do_not_survive(fake_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    session = onnxruntime.InferenceSession

    class WithCuda:
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self._session = session(*arguments, providers=["CPUExecutionProvider"])

        def __getattr__(self, name: str) -> Any:
            return getattr(self._session, name)

        def get_providers(self) -> list:
            return ["CUDAExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "InferenceSession", WithCuda)
    backend = OnnxRuntimeBackend(fake_model, device="cuda", threads=1)
    images, sizes = np.zeros((1, 3, 64, 96), np.float32), np.array([[64, 96]], np.float32)
    assert len(backend.run(images, sizes)) == 4
    said = _in_child(lambda: backend.run(images, sizes))
    assert said.startswith("RuntimeError: CUDAExecutionProvider: expected to be used in process")


def test_closed_backends_are_forgotten(fake_model: Path) -> None:
    from runtime import loaded as module

    gc.collect()  # what other tests left
    before = len(module._models)
    backend = OnnxRuntimeBackend(fake_model, threads=2)
    assert len(module._models) == before + 1
    del backend
    gc.collect()
    assert len(module._models) == before


def test_the_check() -> None:
    check_process(os.getpid(), "engine")
    with pytest.raises(
        RuntimeError, match=rf"engine: expected to be used in process 1, .*process {os.getpid()}"
    ):
        check_process(1, "engine")
