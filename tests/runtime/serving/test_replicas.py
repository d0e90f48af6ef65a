"""The service in replicas of a real Ray on this machine: answers, refusals, updates under load, models that fail."""

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from examples import IMAGES_DIR
from runtime import Detector
from runtime.images import read_image
from runtime.ray_serve import build, deployment
from runtime.serving import ServingOptions, replicas
from runtime.serving.answers import image_answer
from tests.runtime import fakes
from tests.runtime.processes import ended, first_line, start
from tests.runtime.serving import failing

ray = pytest.importorskip("ray", reason="ray, of the extra `ray`, is not installed")
serve = pytest.importorskip("ray.serve", reason="ray[serve], of the extra `ray`, is not installed")
SECONDS = 90
IMAGE = (IMAGES_DIR / "square.jpg").read_bytes()
OPTIONS = {"backend": "onnxruntime", "threads": 1}
COMMAND = ("--backend", "onnxruntime", "--ray", "--cpus", 0.5)
pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]


@pytest.fixture(scope="module")
def failing_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the number of the process stands whose model fails."""
    return tmp_path_factory.mktemp("failing") / "process"


@pytest.fixture(scope="module")
def url(failing_file: Path) -> Iterator[str]:
    """Ray with two CPUs, and Serve in it."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    environment = {
        "worker_process_setup_hook": failing.install,
        "env_vars": {failing.VARIABLE: str(failing_file)},
    }
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    ray.init(num_cpus=2, runtime_env=environment, **quiet)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()


def served(model: Path, num: int = 1, *, surge: bool = False, **options: Any) -> None:
    """Run the model, or update what runs."""
    serving = ServingOptions(max_batch=4, max_delay_ms=0, **options)
    files = {"m": replicas.ModelFile(str(model), "onnxruntime", {"threads": 1})}
    target = replicas.application(files, serving, replicas.Replicas(num, num, cpus=0.5, has_surge=surge))
    replicas.run(target)


def replica_processes() -> set[int]:
    """Return the processes of replicas."""
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and b"ServeReplica" in (entry / "cmdline").read_bytes():
                found.add(int(entry.name))
        except OSError:
            continue
    return found


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@contextmanager
def load(url: str, num_clients: int = 4) -> Iterator[list[tuple[int, str]]]:
    """Ask without a pause while the block runs; yields the statuses and the first category of each answer."""
    answers: list[tuple[int, str]] = []
    over = threading.Event()

    def client() -> None:
        with httpx.Client(timeout=SECONDS) as http:
            while not over.is_set():
                answer = http.post(f"{url}/detect", params={"masks": "none"}, content=IMAGE)
                found = answer.json()["images"][0]["detections"] if answer.status_code == 200 else []
                answers.append((answer.status_code, found[0]["category"] if found else answer.text))

    with ThreadPoolExecutor(num_clients) as threads:
        waiting = [threads.submit(client) for _ in range(num_clients)]
        try:
            yield answers
        finally:
            over.set()
        for one in waiting:
            one.result()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models that name what they find differently."""
    folder = tmp_path_factory.mktemp("models")
    old, new = (
        fakes.save(folder / f"{name}.onnx", fakes.metadata(classes=(f"{name}-0", f"{name}-1", f"{name}-2")))
        for name in ("old", "new")
    )
    return old, new


def test_answers_of_all_paths(url: str, embedded_path: Path) -> None:
    path = IMAGES_DIR / "portrait.jpg"
    with Detector(embedded_path, **OPTIONS) as detector:
        (expected,) = detector([read_image(path)])
    replicas.run(deployment(embedded_path, **OPTIONS, cpus=0.5, batch_size=4, min_score=0.1))
    with httpx.Client(base_url=url, timeout=SECONDS) as client:
        found = client.post("/detect", content=path.read_bytes())
        line = client.post("/", content=path.read_bytes())
        assert found.json() == {"model": "maskrcnn", "images": [image_answer(expected.filter(0.05))]}
        assert line.json() == image_answer(expected.filter(0.1))
        assert 10 < len(line.json()["detections"]) < len(found.json()["images"][0]["detections"])
        assert client.get("/v2/models/maskrcnn").json()["outputs"][0]["name"] == "num_dets"
        assert client.get("/v2/health/ready").status_code == 200
        assert client.get("/-/healthz").status_code == 200
        for place in ("/detect", "/"):
            bad = client.post(place, content=b"abc")
            assert bad.status_code == 400
            assert "expected an image file (JPEG" in bad.json()["error"]


def test_what_is_beyond_the_queue_is_refused(url: str, embedded_path: Path) -> None:
    served(embedded_path, max_queue=2)
    with ThreadPoolExecutor(40) as threads:
        found = list(
            threads.map(lambda _: httpx.post(f"{url}/detect", content=IMAGE, timeout=SECONDS), range(40))
        )
    assert {answer.status_code for answer in found} == {200, 429}
    assert {a.headers["retry-after"] for a in found if a.status_code == 429} == {"1"}


@pytest.mark.parametrize(("num", "surge"), [(2, False), (1, True), (1, False)])
def test_an_update_under_load_loses_no_request(
    url: str, models: tuple[Path, Path], num: int, surge: bool
) -> None:
    served(models[0], num)
    before = replica_processes()
    with load(url) as answers:
        wait_until(lambda: len(answers) > 20)
        served(models[1], num, surge=surge)
        during = len(answers)
        wait_until(lambda: len(answers) > during + 20)
    assert {status for status, _ in answers} == {200}
    names = [name for _, name in answers]
    assert set(names) == {"old-1", "new-1"}
    assert set(names[:20]) == {"old-1"}
    assert set(names[-20:]) == {"new-1"}
    wait_until(lambda: len(replica_processes()) == num)
    assert not before & replica_processes()


def test_a_replica_whose_model_fails_is_replaced(
    url: str, models: tuple[Path, Path], failing_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replicas, "HEALTH_PERIOD_S", 0.5)
    served(models[0])
    wait_until(lambda: len(replica_processes()) == 1)
    (first,) = replica_processes()
    failing_file.write_text(str(first))
    failed = httpx.post(f"{url}/detect", content=IMAGE, timeout=SECONDS)
    assert failed.status_code == 500
    assert "the device was lost" in failed.json()["error"]
    wait_until(lambda: first not in replica_processes())
    wait_until(lambda: httpx.post(f"{url}/detect", content=IMAGE, timeout=SECONDS).status_code == 200)
    assert first not in replica_processes()


def test_a_model_that_cannot_be_opened_is_named_and_the_old_one_stays(
    url: str, models: tuple[Path, Path], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"no model")
    served(models[0])
    with load(url) as answers:
        with pytest.raises(
            RuntimeError, match=r"expected the application maskrcnn to start, found: .*bad\.onnx"
        ):
            served(bad, surge=True)
        during = len(answers)
        wait_until(lambda: len(answers) > during + 20)
    assert set(answers) == {(200, "old-1")}
    served(models[1])
    answer = httpx.post(f"{url}/detect", content=IMAGE, timeout=SECONDS)
    assert answer.json()["images"][0]["detections"][0]["category"] == "new-1"


def test_the_command_on_a_cluster_deploys_and_updates(url: str, models: tuple[Path, Path]) -> None:
    address = ray.get_runtime_context().gcs_address
    for model, name in zip(models, ("old-1", "new-1")):
        status, printed, complaints = ended(
            start("runtime.serve", f"m={model}", *COMMAND, "--ray-address", address)
        )
        assert status == 0, complaints
        assert printed == (
            "m in Ray at the address of the cluster's Serve; it goes on, the same command again updates it, "
            "`serve shutdown` ends it\n"
        )
        answer = httpx.post(f"{url}/detect", params={"model": "m"}, content=IMAGE, timeout=SECONDS)
        assert answer.json()["images"][0]["detections"][0]["category"] == name


def test_the_command_here_answers_what_it_took(embedded_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    process = start("runtime.serve", embedded_path, *COMMAND, "--port", 0, env=environment)
    try:
        found = re.fullmatch(
            r"embedded in Ray at (http://127\.0\.0\.1:\d+); Ctrl-C ends it\n", first_line(process).decode()
        )
        assert found, process.stderr.read()
        with ThreadPoolExecutor(8) as threads:
            waiting = [
                threads.submit(httpx.post, f"{found[1]}/detect", content=IMAGE, timeout=SECONDS)
                for _ in range(8)
            ]
            wait_until(lambda: any(answer.done() for answer in waiting))
            process.send_signal(signal.SIGTERM)
            assert [answer.result().status_code for answer in waiting] == [200] * 8
        assert ended(process) == (0, "", "")
    finally:
        process.kill()
        process.wait(SECONDS)


def test_words_of_serve_run(embedded_path: Path) -> None:
    assert build({"model": str(embedded_path), "batch_size": "4", "max_replicas": "3", "gpus": "0.5"})
    with pytest.raises(ValueError, match="batch_size: expected a number, found 'many'"):
        build({"model": str(embedded_path), "batch_size": "many"})
    with pytest.raises(ValueError, match="speed: expected one of"):
        build({"model": str(embedded_path), "speed": "9"})
    with pytest.raises(ValueError, match="model: expected model=FILE"):
        build({})
