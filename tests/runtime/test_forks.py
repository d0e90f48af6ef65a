"""A Detector that was made before ``fork()``, as under ``gunicorn --preload``, works in the child."""

import _thread
import gc
import hashlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest

from runtime import Detector, forks
from runtime.backends import openvino as backend_module
from runtime.backends.onnxruntime import OnnxRuntimeBackend
from runtime.forks import LibraryCalls, check_process, wait_for_rest
from runtime.graphs import session as session_module
from runtime.images import read_image
from tests.runtime import fakes

SECONDS = 60
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
    return request.param


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
    monkeypatch.setattr(session_module, "check_cudnn", lambda onnxruntime: None)
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


def test_what_openvino_keeps_of_a_closed_network_is_not_the_childs(fake_model: Path, image: Path) -> None:
    """It keeps idle threads for the next network with the same options, and the child has not got them."""
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    pixels, core = read_image(image), openvino.Core()
    with Detector(fake_model, "openvino", threads=2) as detector:
        expected = _boxes(detector([pixels]))
        config = backend_module._config(detector.backend.options)
        core.compile_model(backend_module.read_onnx(onnx.load(fake_model)), "CPU", config)
        assert _in_child(lambda: _boxes(detector([pixels]))) == expected
        assert _boxes(detector([pixels])) == expected


@pytest.mark.parametrize("threads", [2, None])
def test_openvino_works_in_children_that_are_forked_right_after_it_ran(
    threads: Any, fake_model: Path, image: Path
) -> None:
    """Its threads are still on their way to sleep then, with locks that the child would wait for without end."""
    pytest.importorskip("openvino", reason="openvino is not installed")
    pixels = read_image(image)
    for _ in range(10):
        with (
            Detector(fake_model, "openvino", threads=threads) as detector,
            Detector(fake_model, "openvino", threads=1) as other,
        ):
            expected = _boxes(detector([pixels] * 3))
            other([pixels])
            other.close()
            assert _in_child(lambda: _boxes(detector([pixels] * 3))) == expected


class _Library:
    """Calls that take until they are let go."""

    def __init__(self) -> None:
        self.num_tidied = 0
        self.calls = LibraryCalls("library", self._tidy)
        self.is_inside, self.may_end = threading.Event(), threading.Event()

    def _tidy(self) -> None:
        self.num_tidied += 1

    def call(self) -> None:
        with self.calls.under_way(), self.calls.under_way():
            self.is_inside.set()
            assert self.may_end.wait(SECONDS)


@pytest.fixture
def library() -> Iterator[_Library]:
    """One of which nobody knows after the test: what is registered for forks stays, and has nothing to wait for."""
    library = _Library()
    yield library
    library.may_end.set()


def _checked(library: _Library) -> str:
    library.calls.check()
    with library.calls.under_way():
        return "works"


def test_a_fork_waits_for_calls_and_calls_for_a_fork(library: _Library) -> None:
    order: list[str] = []
    library._tidy = library.calls._tidy = lambda: order.append("forked")  # type: ignore[method-assign]
    first = threading.Thread(target=lambda: (library.call(), order.append("ended")))
    first.start()
    assert library.is_inside.wait(SECONDS)

    def late() -> None:
        while not library.calls._num_forks:
            time.sleep(1e-3)
        threading.Timer(0.1, library.may_end.set).start()
        with library.calls.under_way():
            order.append("late")

    second = threading.Thread(target=late)
    second.start()
    assert _in_child(lambda: _checked(library)) == "works"
    first.join(SECONDS)
    second.join(SECONDS)
    assert sorted(order[:2]) == ["ended", "forked"]
    assert order[2:] == ["late"]
    assert _checked(library) == "works"


def test_a_child_refuses_what_might_not_end(library: _Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "CALL_SECONDS", 0.2)
    thread = threading.Thread(target=library.call)
    thread.start()
    assert library.is_inside.wait(SECONDS)
    expected = (
        f"RuntimeError: library: expected no call under way when process {os.getpid()} was forked, found one that had "
        "not ended after 0 s; fork while no Detector runs, or start the process anew (`spawn`)"
    )
    assert _in_child(lambda: _checked(library)) == expected
    assert _in_child(lambda: _in_child(lambda: _checked(library))) == expected  # its child too
    assert library.num_tidied == 0
    library.may_end.set()
    thread.join(SECONDS)
    assert _in_child(lambda: _checked(library)) == "works"
    assert library.num_tidied == 1


def test_a_call_that_forks_does_not_wait_for_itself(library: _Library) -> None:
    start = time.monotonic()
    with library.calls.under_way():
        assert _in_child(lambda: (_checked(library), _in_child(lambda: _checked(library)))) == (
            "works",
            "works",
        )
    assert time.monotonic() - start < forks.CALL_SECONDS / 2
    assert _checked(library) == "works"


def test_a_child_refuses_where_idle_threads_are_left(library: _Library, capfd: pytest.CaptureFixture) -> None:
    """At the end of an interpreter, for example, where OpenVINO's telemetry forks; and nothing is printed."""

    def tidy() -> None:
        raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    library.calls._tidy = tidy  # type: ignore[method-assign]
    assert _checked(library) == "works"
    said = _in_child(lambda: _checked(library))
    assert "library: expected no idle threads when process" in said
    assert (
        "found some that could not be ended (cannot schedule new futures after interpreter shutdown); fork"
        in said
    )
    assert capfd.readouterr().err == ""


def test_a_detector_is_closed_where_it_is_refused(
    fake_model: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    pixels = read_image(image)
    with Detector(fake_model, "openvino", threads=1) as detector:
        monkeypatch.setattr(backend_module._CALLS, "_refusal", "OpenVINO: expected another process")
        for use in (lambda: detector([pixels]), lambda: Detector(fake_model, "openvino", threads=1)):
            with pytest.raises(RuntimeError, match="OpenVINO: expected another process"):
                use()


def test_a_library_that_was_never_called_costs_no_fork_anything(library: _Library) -> None:
    assert _in_child(lambda: _checked(library)) == "works"
    assert library.num_tidied == 0


def test_threads_that_are_not_pythons_are_waited_for() -> None:
    if not Path("/proc/self/task").is_dir():
        pytest.skip("the system does not say which threads sleep")
    wait_for_rest(SECONDS)  # those of other tests
    start = time.monotonic()
    wait_for_rest(SECONDS)
    assert time.monotonic() - start < 1
    ends: list[float] = []

    def work() -> None:
        hashlib.pbkdf2_hmac("sha256", b"", b"", 400_000)  # it needs no lock of Python's
        ends.append(time.monotonic())

    _thread.start_new_thread(work, ())  # of which `threading` does not know
    time.sleep(0.02)
    wait_for_rest(SECONDS)
    assert ends
    _thread.start_new_thread(work, ())
    time.sleep(0.02)
    wait_for_rest(0.01)
    assert len(ends) == 1
    while len(ends) == 1:
        time.sleep(0.01)


def test_threads_of_python_are_not_waited_for() -> None:
    thread = threading.Thread(target=hashlib.pbkdf2_hmac, args=("sha256", b"", b"", 4_000_000))
    thread.start()
    wait_for_rest(0.5)
    assert thread.is_alive()
    thread.join(SECONDS)
