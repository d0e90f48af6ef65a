"""A service with front ends in processes of their own: ``python -m runtime.serve --processes``."""

import asyncio
import errno
import json
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Optional

import httpx
import pytest

from benchmarks.serve_load import Load, closed_loop, requests_of
from benchmarks.serve_process import ServiceProcess
from examples import IMAGES_DIR
from runtime import Detector
from runtime.serving import ServingOptions, front_ends
from runtime.serving.front_end import share_of
from runtime.serving.front_ends import FrontEnds, check_processes
from runtime.serving.server import reserved_socket
from tests.runtime import fakes
from tests.runtime.serving import front_end_targets
from tests.runtime.serving.servers import FakeDetector, FakeRunner, png, served, wait_until

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="Linux alone divides connections"),
]
SECONDS = 30
IMAGES = sorted(IMAGES_DIR.glob("*.jpg"))
COMMAND = ("--backend", "onnxruntime", "--threads", 1)
SHARED = "maskrcnn-images"


# Processes, as the system sees them.


def children(process: int) -> set[int]:
    """Return the front ends that a process has started."""
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            if not entry.name.isdigit() or b"spawn_main" not in (entry / "cmdline").read_bytes():
                continue
            if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == process:
                found.add(int(entry.name))
        except OSError:  # it has ended
            continue
    return found


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def num_sockets(process: int) -> int:
    links = list(Path(f"/proc/{process}/fd").iterdir())
    return sum(os.readlink(link).startswith("socket:") for link in links)


def shared_files(process: int) -> set[str]:
    """Return the files of images that a process has in its memory, by inode."""
    lines = Path(f"/proc/{process}/maps").read_text().splitlines()
    return {line.split()[4] for line in lines if SHARED in line}


def listens(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, SECONDS).close()
    except ConnectionError:
        return False
    return True


def libraries(process: int) -> str:
    return Path(f"/proc/{process}/maps").read_text()


# A service around a fake model of this process.


@dataclass(eq=False)
class Several:
    """A running service of two front ends.

    Attributes:
        url: where it is.
        runner: its model.
        front_ends: of the service.
    """

    url: str
    runner: FakeRunner
    front_ends: FrontEnds

    @property
    def processes(self) -> list[int]:
        """Those of the front ends that run."""
        return [one.process.pid for one in list(self.front_ends._running.values())]

    def post(self, value: int = 1, **options: Any) -> httpx.Response:
        """Send an image over a connection of its own."""
        return httpx.post(f"{self.url}/detect", **{"content": png(value), "timeout": SECONDS, **options})

    def metrics(self) -> dict[str, float]:
        lines = httpx.get(f"{self.url}/metrics", timeout=SECONDS).text.splitlines()
        samples = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}


@contextmanager
def several(runner: FakeRunner, **options: Any) -> Iterator[Several]:
    over = threading.Event()
    made = FrontEnds(
        {"m": FakeDetector(runner)}, ServingOptions(**options), 2, reserved_socket("127.0.0.1", 0)
    )
    thread = threading.Thread(target=made.run, args=(over.is_set,))
    thread.start()
    try:
        yield Several(made.url, runner, made)
    finally:
        runner.may_run.set()
        over.set()
        thread.join(SECONDS)
        made.close()
        assert not thread.is_alive(), "the service did not end"


@pytest.fixture(scope="module")
def service() -> Iterator[Several]:
    """Two front ends with a queue of eight images each, which wait for others for a short time."""
    with several(FakeRunner(), max_batch=4, max_queue=16, max_delay_ms=200.0) as running:
        yield running


@pytest.fixture(autouse=True)
def runs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Have the shared fake be as it was."""
    yield
    if "service" in request.fixturenames:
        runner = request.getfixturevalue("service").runner
        runner.spoilt.clear()
        runner.unclear.clear()
        runner.may_run.set()


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own for what is temporary, in this process and in those that it starts."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_all_requests_are_counted_whoever_answers(service: Several) -> None:
    name = 'maskrcnn_requests_total{endpoint="/detect",status="%d"}'
    before = service.metrics()
    with ThreadPoolExecutor(8) as pool:
        values = list(range(1, 33))
        answers = list(pool.map(service.post, values))
        bad = list(pool.map(lambda _: service.post(content=b"?"), range(8)))
    assert {answer.status_code for answer in answers} == {200}
    assert [a.json()["images"][0]["detections"][0]["bbox"][0] for a in answers] == values
    assert {(answer.status_code, answer.json()["error"][:7]) for answer in bad} == {(400, "image: ")}
    for _ in range(6):  # by either of them
        after = service.metrics()
        for key, number in (
            (name % 200, 32),
            (name % 400, 8),
            ('maskrcnn_images_total{model="m"}', 32),
            ('maskrcnn_refusals_total{reason="bad_image"}', 8),
            ('maskrcnn_batch_images_sum{model="m"}', 32),
            ('maskrcnn_request_seconds_count{endpoint="/detect"}', 40),
        ):
            assert after[key] - before.get(key, 0) == number, key
        assert after["maskrcnn_ready"] == 1
    assert after["process_resident_memory_bytes"] > 1e7


def allocated(folder: Path) -> dict[str, int]:
    """Return how many bytes of each file have their place in the file system."""
    return {path.name: path.stat().st_blocks * 512 for path in folder.iterdir()}


def test_figures_have_their_place_from_the_start_and_are_gone_on_with(
    temporary: Path, capsys: pytest.CaptureFixture
) -> None:
    """A page that first finds its place when it is written to ends the process, where the disk is full by then."""
    with several(FakeRunner()) as service:
        (folder,) = temporary.iterdir()
        files = allocated(folder)
        assert len(files) == 8
        assert all(size >= (folder / name).stat().st_size > 0 for name, size in files.items())
        for value in range(1, 17):
            assert service.post(value).status_code == 200
        answered = 'maskrcnn_requests_total{endpoint="/detect",status="200"}'
        wait_until(lambda: service.metrics()[answered] == 16)
        for victim in service.processes:
            os.kill(victim, signal.SIGKILL)
            wait_until(partial(capsys_has, capsys, f"front end {victim} ended by SIGKILL"))
        wait_until(lambda: answers_of_both(service))
        assert allocated(folder).keys() == files.keys()
        assert all(size >= files[name] for name, size in allocated(folder).items())
        assert service.post(17).status_code == 200
        wait_until(lambda: service.metrics()[answered] == 17)
        counted = service.metrics()
        assert counted['maskrcnn_images_total{model="m"}'] == 17
        assert counted["maskrcnn_ready"] == 1


def capsys_has(capsys: pytest.CaptureFixture, text: str) -> bool:
    return text in capsys.readouterr().err


def answers_of_both(service: Several) -> bool:
    """Return whether both front ends listen again."""
    return all(one.peer.is_listening for one in list(service.front_ends._running.values())) and (
        len(service.front_ends._running) == 2
    )


def test_no_room_for_figures_is_said(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with (
        pytest.raises(
            RuntimeError, match=r"maskrcnn-metrics-\w+: expected room for 8 MiB of metrics, found: No sp"
        ),
        reserved_socket("127.0.0.1", 0) as reserved,
    ):
        FrontEnds({"m": FakeDetector(FakeRunner())}, ServingOptions(), 2, reserved)
    assert not list(temporary.iterdir())


def test_a_front_end_that_is_silent_is_replaced(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(front_ends, "MOST_SILENT_SECONDS", 2.5)
    with several(FakeRunner()) as service:
        victim, other = service.processes
        os.kill(victim, signal.SIGSTOP)
        wait_until(lambda: victim not in service.processes)
        wait_until(lambda: answers_of_both(service))
        assert other in service.processes
        assert {service.post(value).status_code for value in range(1, 9)} == {200}
    said = capsys.readouterr().err
    assert said == f"front end {victim} was not heard of for 2.5 s; another one takes its place\n"


def test_the_others_of_a_batch_are_answered_where_one_image_spoils_it(service: Several) -> None:
    service.runner.spoilt = {3: RuntimeError("out of memory"), 4: ValueError("no such size")}
    service.runner.unclear = {5}
    with ThreadPoolExecutor(8) as pool:
        values = [1, 2, 3, 4, 5, 6, 7, 8]
        answers = dict(zip(values, pool.map(service.post, values)))
    statuses = {value: answer.status_code for value, answer in answers.items()}
    assert statuses == {1: 200, 2: 200, 3: 500, 4: 400, 5: 500, 6: 200, 7: 200, 8: 200}
    assert answers[3].json()["error"] == "image: the model failed on it: out of memory"
    assert answers[4].json()["error"] == "image: no such size"
    assert answers[5].json()["error"] == "image: the model's output is not a result: NaN"


def test_the_queue_is_bounded_and_its_length_the_sum(service: Several) -> None:
    service.runner.may_run.clear()
    with ThreadPoolExecutor(80) as pool:
        requests = [pool.submit(service.post, value) for value in range(1, 81)]
        # What does not run or wait is refused while the model stands still.
        wait_until(lambda: sum(request.done() for request in requests) >= 20)
        refused = [request.result(SECONDS) for request in requests if request.done()]
        wait_until(lambda: service.metrics()['maskrcnn_queue_images{model="m"}'] == 16)
        service.runner.may_run.set()
        statuses = Counter(request.result(SECONDS).status_code for request in requests)
    assert {answer.status_code for answer in refused} == {429}
    assert all("found 8 of 8 waiting" in answer.json()["error"] for answer in refused)
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)
    assert set(statuses) == {200, 429}
    assert statuses[200] >= 16
    wait_until(lambda: service.metrics()['maskrcnn_queue_images{model="m"}'] == 0)


def test_front_ends_that_do_not_start_end_the_service(temporary: Path, capsys: pytest.CaptureFixture) -> None:
    def started(target: Any) -> None:
        detectors = {"m": FakeDetector(FakeRunner())}
        FrontEnds(detectors, ServingOptions(), 2, reserved_socket("127.0.0.1", 0), target=target)

    with pytest.raises(
        RuntimeError, match="front end: expected it to start, found that it ended with status 7, 3 t"
    ):
        started(front_end_targets.ends_at_once)
    assert "another one takes its place" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match=f"ended with status 7: {front_end_targets.REASON}$"):
        started(front_end_targets.cannot_begin)
    assert capsys.readouterr().err == ""
    assert not list(temporary.iterdir())


# The command.


@pytest.fixture(scope="module")
def models(fake_model: Path, points_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of cropped masks, one of whole ones, and one without any."""
    full = fakes.save(tmp_path_factory.mktemp("full") / "full.onnx", fakes.metadata(masks="full"))
    return {"fake": fake_model, "full": full, "boxes": points_model}


@contextmanager
def command(*arguments: object) -> Iterator[tuple[ServiceProcess, str]]:
    with ServiceProcess(*arguments, *COMMAND, "--processes", 2) as service:
        yield service, "http://{}:{}".format(*service.address)


def questions(names: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield paths and what is sent to them."""
    for name in names:
        for image in IMAGES[:2]:
            for wish in ("masks=rle", "masks=polygon", "masks=none", "format=overlay&min_score=0.5"):
                yield f"/detect?model={name}&{wish}", {"content": image.read_bytes()}
        yield f"/detect?model={name}", {"content": b"no image"}
        yield f"/detect?model={name}", {"content": IMAGES[0].read_bytes()[:3000]}
        files = [("files", (path.name, path.read_bytes())) for path in IMAGES[:3]]
        yield f"/detect?model={name}", {"files": files}
        tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 0}}
        data = IMAGES[0].read_bytes()
        tensor["parameters"]["binary_data_size"] = len(data) + 4
        header = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
        yield (
            f"/v2/models/{name}/infer",
            {
                "content": header + len(data).to_bytes(4, "little") + data,
                "headers": {"Inference-Header-Content-Length": str(len(header))},
            },
        )
    yield "/detect?model=other", {"content": IMAGES[0].read_bytes()}


def answers(url: str, names: list[str]) -> dict[tuple, tuple[int, bytes]]:
    """Return statuses and bodies; each question comes over a connection of its own."""
    found = {}
    for index, (path, options) in enumerate(questions(names)):
        answer = httpx.post(url + path, timeout=SECONDS, **options)
        found[index, path] = answer.status_code, answer.content
    for path in (
        "/v2",
        "/v2/models",
        *(f"/v2/models/{name}" for name in names),
        "/v2/health/live",
        "/openapi.json",
    ):
        answer = httpx.get(url + path, timeout=SECONDS)
        found[-1, path] = answer.status_code, answer.content
    return found


def test_answers_are_those_of_one_process_and_the_model_is_in_one(models: dict[str, Path]) -> None:
    with ExitStack() as stack:
        opened = {n: stack.enter_context(Detector(p, "onnxruntime", threads=1)) for n, p in models.items()}
        with served(opened) as alone:
            expected = answers(alone.url, list(models))
    before = set(os.listdir("/dev/shm"))
    with command(*(f"{name}={path}" for name, path in models.items())) as (service, url):
        for _ in range(2):
            assert answers(url, list(models)) == expected
        both = children(service.pid)
        assert len(both) == 2
        assert "onnxruntime" in libraries(service.pid)
        for process in both:
            assert "cv2" in libraries(process)
            assert "onnxruntime" not in libraries(process)
        # Of one question after the other, of three images at most.
        assert 1 <= len(shared_files(service.pid)) <= 2 * 3
        assert not {name for name in os.listdir("/dev/shm") if name not in before and SHARED in name}
        assert service.end() == []
    assert Counter(status for status, _ in expected.values())[200] > 20
    assert not any(is_running(process) for process in both)


def test_connections_are_spread_and_a_front_end_that_is_killed_comes_again(
    fake_model: Path, temporary: Path
) -> None:
    requests = requests_of([path.read_bytes() for path in IMAGES])
    before = set(os.listdir("/dev/shm"))
    with command(fake_model) as (service, url):
        both = children(service.pid)
        idle = {process: num_sockets(process) for process in both}
        connections = [socket.create_connection(service.address, SECONDS) for _ in range(64)]
        wait_until(lambda: sum(num_sockets(process) - idle[process] for process in both) >= 64)
        assert min(num_sockets(process) - idle[process] for process in both) >= 14
        for connection in connections:
            connection.close()

        loads: list[Load] = []
        load = threading.Thread(
            target=lambda: loads.append(asyncio.run(closed_loop(service.address, requests, 12, seconds=6.0)))
        )
        load.start()
        wait_until(lambda: len(shared_files(service.pid)) > 2)
        victim = min(both)
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: len(children(service.pid) - {victim}) == 2)
        load.join(SECONDS)
        (found,) = loads
        # Those that were connected to it connect again; at that moment one may find it listening still.
        assert set(found.statuses) <= {0, 200}
        assert found.statuses[0] <= 2 * 12
        assert found.statuses[200] > 50
        assert max(found.milliseconds[200]) < 5000

        (new,) = children(service.pid) - both
        wait_until(lambda: num_sockets(new) >= min(idle.values()))
        statuses = [httpx.get(f"{url}/v2/health/ready", timeout=SECONDS).status_code for _ in range(20)]
        assert statuses == [200] * 20
        counted = httpx.get(f"{url}/metrics", timeout=SECONDS).text
        assert float(counted.partition('images_total{model="fake"} ')[2].split()[0]) >= found.statuses[200]
        # What is left in the model's memory is what the two share with it that run.
        kept = set().union(*(shared_files(process) for process in children(service.pid)))
        wait_until(lambda: shared_files(service.pid) <= kept)
        assert service.end() == []
        said = "".join(service._said)
    assert said.count("\n") == 1
    assert f"front end {victim} ended by SIGKILL; another one takes its place" in said
    assert not list(temporary.iterdir())
    assert not {name for name in os.listdir("/dev/shm") if name not in before and SHARED in name}


def test_without_the_model_s_process_front_ends_end(fake_model: Path, temporary: Path) -> None:
    with command(fake_model) as (service, url):
        both = children(service.pid)
        assert len(both) == 2
        assert len(list(temporary.glob("maskrcnn-metrics-*"))) == 1
        os.kill(service.pid, signal.SIGSTOP)
        ready = f"{url}/v2/health/ready"
        wait_until(lambda: httpx.get(ready, timeout=SECONDS).status_code == 503)
        assert httpx.get(f"{url}/v2/health/live", timeout=SECONDS).status_code == 200
        os.kill(service.pid, signal.SIGCONT)
        wait_until(lambda: [httpx.get(ready, timeout=SECONDS).status_code for _ in range(8)] == [200] * 8)
        os.kill(service.pid, signal.SIGKILL)
        start = time.monotonic()
        wait_until(lambda: not any(is_running(process) for process in both))
        wait_until(lambda: not listens(service.address))
        assert time.monotonic() - start < 10
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_was_taken_is_answered_at_the_end(fake_model: Path, number: signal.Signals) -> None:
    # Images wait for others for half a minute, or for the end.
    options = ("--max-delay-ms", 30_000, "--max-batch", 64, "--drain-delay-s", 0.5)
    with command(fake_model, *options) as (service, url), ThreadPoolExecutor(16) as pool:
        both = children(service.pid)
        image = IMAGES[0].read_bytes()
        requests = [
            pool.submit(httpx.post, f"{url}/detect", content=image, timeout=SECONDS) for _ in range(16)
        ]
        gauge = 'queue_images{model="fake"} 16.0'
        wait_until(lambda: gauge in httpx.get(f"{url}/metrics", timeout=SECONDS).text)
        for process in (service.pid, *both):  # as a terminal does, and a supervisor
            os.kill(process, number)
        wait_until(lambda: httpx.get(f"{url}/v2/health/ready", timeout=SECONDS).status_code == 503)
        assert [request.result(SECONDS).status_code for request in requests] == [200] * 16
        assert service._process.wait(SECONDS) == 0
        service._reader.join(SECONDS)
    assert service._said == []
    assert not any(is_running(process) for process in both)


def test_a_second_signal_ends_all_at_once(fake_model: Path) -> None:
    with command(fake_model, "--drain-delay-s", 60) as (service, url):
        both = children(service.pid)
        os.kill(service.pid, signal.SIGTERM)
        wait_until(lambda: httpx.get(f"{url}/v2/health/ready", timeout=SECONDS).status_code == 503)
        time.sleep(1.1)  # two that come together are one
        os.kill(service.pid, signal.SIGTERM)
        assert service._process.wait(SECONDS) == 143
        wait_until(lambda: not any(is_running(process) for process in both))


def test_a_port_that_is_taken(fake_model: Path) -> None:
    with command(fake_model) as (service, _):
        with pytest.raises(ValueError, match="expected an address of this machine and a free port"):
            reserved_socket(*service.address)
        assert service.end() == []
    reserved_socket(*service.address).close()


# Their limits.


@pytest.mark.parametrize(
    ("given", "shares"),
    [
        ({"max_queue": 64}, {"max_queue": [22, 21, 21], "max_images": [16, 16, 16]}),
        ({"max_queue": 2}, {"max_queue": [1, 1, 1], "max_images": [1, 1, 1]}),
        ({"max_connections": 100}, {"max_connections": [34, 33, 33]}),
        ({"max_memory_bytes": 3000}, {"max_memory_bytes": [1000] * 3, "max_body_bytes": [1000] * 3}),
        (
            {"max_memory_bytes": 3000, "max_body_bytes": 10},
            {"max_memory_bytes": [1000] * 3, "max_body_bytes": [10] * 3},
        ),
        ({"max_batch": 5, "timeout_s": 2.0}, {"max_batch": [5] * 3, "timeout_s": [2.0] * 3}),
    ],
)
def test_limits_are_those_of_the_service(given: dict[str, Any], shares: dict[str, list]) -> None:
    parts = [share_of(ServingOptions(**given), index, 3) for index in range(3)]
    assert {name: [getattr(part, name) for part in parts] for name in shares} == shares


@pytest.mark.parametrize(
    ("platform", "number", "message"),
    [("darwin", 2, "expected 1 on darwin, found 2"), ("darwin", 1, None), ("linux", 2, None)],
)
def test_several_processes_take_linux(
    monkeypatch: pytest.MonkeyPatch, platform: str, number: int, message: Optional[str]
) -> None:
    monkeypatch.setattr("sys.platform", platform)
    if message is None:
        check_processes(number)
        return
    with pytest.raises(ValueError, match=message):
        check_processes(number)
