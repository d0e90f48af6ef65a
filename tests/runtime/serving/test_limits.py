"""What keeps the service alive: a full queue, deadlines, sizes, slow and vanished clients, failing models, the end."""

import base64
import errno
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import httpx
import pytest

from runtime.serving import ServingOptions, create_app
from runtime.serving.descriptors import Shortage
from tests.runtime.serving.servers import SECONDS, FakeDetector, FakeRunner, Served, png, served, wait_until

QUICK = {"max_batch": 1, "max_delay_ms": 0.0}


@contextmanager
def running(detector: FakeDetector, **options: Any) -> Iterator[Served]:
    with served({"m": detector}, ServingOptions(**{**QUICK, **options})) as service:
        try:
            yield service
        finally:
            detector.runner.may_run.set()


def post(service: Served, value: int = 1, path: str = "/detect", **options: Any) -> httpx.Response:
    with service.client() as client:
        return client.post(path, **{"content": png(value), **options})


@contextmanager
def connected(service: Served) -> Iterator[socket.socket]:
    with closing(socket.create_connection(service.address, SECONDS)) as connection:
        yield connection


def all_of(connection: socket.socket) -> bytes:
    """Return what comes until the other side closes."""
    parts = []
    while True:
        try:
            part = connection.recv(1 << 16)
        except ConnectionResetError:
            part = b""
        if not part:
            return b"".join(parts)
        parts.append(part)


def answer_of(connection: socket.socket) -> tuple[int, str]:
    """Return the status and the reason of the next answer."""
    answer = b""
    while not answer.endswith(b"}"):
        part = connection.recv(1 << 16)
        assert part, answer
        answer += part
    return error_of(answer)


def head(length: int, path: str = "/detect") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode()


def error_of(answer: bytes) -> tuple[int, str]:
    """Return the status and the reason of a raw answer."""
    lines, _, body = answer.partition(b"\r\n\r\n")
    return int(lines.split()[1]), json.loads(body)["error"]


def queued(service: Served) -> int:
    return service.app.state.service.models["m"].batcher.num_queued


def hold_up(service: Served, pool: ThreadPoolExecutor, runner: FakeRunner) -> Any:
    """Have a request in the model, which does not return."""
    runner.may_run.clear()
    first = pool.submit(post, service, 255)
    batcher = service.app.state.service.models["m"].batcher
    wait_until(lambda: runner.num_submitted == 1 and not batcher.num_queued)
    return first


def test_beyond_the_queue_requests_are_refused_within_moments(
    fake_detector: FakeDetector, runner: FakeRunner
) -> None:
    with running(fake_detector, max_queue=2) as service, ThreadPoolExecutor(4) as pool:
        accepted = [hold_up(service, pool, runner)]
        accepted += [pool.submit(post, service, value) for value in (1, 2)]
        wait_until(lambda: queued(service) == 2)
        with service.client() as client:
            times = []
            for _ in range(40):
                start = time.perf_counter()
                answer = client.post("/detect", content=png(9))
                times.append(time.perf_counter() - start)
                assert answer.status_code == 429
                assert int(answer.headers["Retry-After"]) >= 1
                assert "room in the queue for 1 image, found 2 of 2 waiting" in answer.json()["error"]
            assert (
                sorted(times)[len(times) // 2] < 1
            )  # of a machine that is busy; benchmarks.serve_load measures it
            answer = client.post("/v2/models/m/infer", json={})
            assert answer.status_code == 429
        runner.may_run.set()
        assert [one.result(SECONDS).status_code for one in accepted] == [200] * 3
    assert service.metric("refusals_total", reason="queue_full") == 41
    assert [9] not in runner.batches


@pytest.mark.parametrize(
    "how",
    [{"path": "/detect?timeout_s=0.2"}, {"headers": {"X-Timeout-S": "0.2"}}, {"options": {"timeout_s": 0.2}}],
)
def test_an_answer_comes_by_the_deadline_and_what_expired_does_not_run(
    fake_detector: FakeDetector, runner: FakeRunner, how: dict[str, Any]
) -> None:
    with running(fake_detector, **how.pop("options", {})) as service, ThreadPoolExecutor(1) as pool:
        first = hold_up(service, pool, runner)
        start = time.monotonic()
        answer = post(service, 7, **how)
        assert answer.status_code == 504
        assert "expected an answer within 0.2 s" in answer.json()["error"]
        assert 0.2 <= time.monotonic() - start < 2
        assert queued(service) == 0
        runner.may_run.set()
        first.result(SECONDS)
        assert post(service, 8).status_code == 200
    assert [7] not in runner.batches


def test_the_protocol_s_own_timeout(fake_detector: FakeDetector, runner: FakeRunner) -> None:
    data = [base64.b64encode(png(1)).decode()]
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": data}
    with running(fake_detector) as service, ThreadPoolExecutor(1) as pool:
        hold_up(service, pool, runner)
        answer = post(
            service,
            path="/v2/models/m/infer",
            content=None,
            json={"inputs": [tensor], "parameters": {"timeout": 200_000}},
        )
        assert answer.status_code == 504
        runner.may_run.set()


def test_the_others_of_a_batch_are_answered_where_one_image_spoils_it(
    fake_detector: FakeDetector, runner: FakeRunner
) -> None:
    runner.spoilt[3] = RuntimeError("out of memory")
    with running(fake_detector, max_batch=8) as service, ThreadPoolExecutor(8) as pool:
        hold_up(service, pool, runner)
        requests = {value: pool.submit(post, service, value) for value in range(1, 6)}
        wait_until(lambda: len(service.app.state.service.models["m"].batcher._ready) == 5)
        runner.may_run.set()
        answers = {value: request.result(SECONDS) for value, request in requests.items()}
    assert {value: answer.status_code for value, answer in answers.items()} == {
        1: 200,
        2: 200,
        3: 500,
        4: 200,
        5: 200,
    }
    for value, answer in answers.items():
        if value != 3:
            assert answer.json()["images"][0]["detections"][0]["bbox"][0] == value
    assert answers[3].json()["error"] == "image: the model failed on it: out of memory"


def test_a_vanished_client_s_image_does_not_run(fake_detector: FakeDetector, runner: FakeRunner) -> None:
    with running(fake_detector) as service, ThreadPoolExecutor(1) as pool:
        first = hold_up(service, pool, runner)
        with connected(service) as connection:
            connection.sendall(head(len(png(7))) + png(7))
            wait_until(lambda: queued(service) == 1)
        wait_until(lambda: queued(service) == 0)
        with connected(service) as connection:  # half of it closed
            connection.sendall(head(len(png(8))) + png(8))
            wait_until(lambda: queued(service) == 1)
            connection.shutdown(socket.SHUT_WR)
            wait_until(lambda: queued(service) == 0)
        runner.may_run.set()
        first.result(SECONDS)
    assert runner.batches == [[255]]
    assert service.metric("refusals_total", reason="client_gone") == 2


def test_a_large_body_is_refused_by_its_header_before_it_is_sent(fake_detector: FakeDetector) -> None:
    with running(fake_detector, max_body_bytes=1000) as service, connected(service) as connection:
        connection.sendall(head(10**12))
        status, reason = answer_of(connection)
        assert status == 413
        assert "expected a body of up to 1000 bytes, found 1000000000000" in reason


def test_a_large_body_without_a_length_is_refused_while_it_comes(fake_detector: FakeDetector) -> None:
    with running(fake_detector, max_body_bytes=10_000) as service, connected(service) as connection:
        connection.sendall(b"POST /detect HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(20):
            connection.sendall(b"3e8\r\n" + bytes(1000) + b"\r\n")
        status, reason = answer_of(connection)
        assert status == 413
        assert "found more" in reason
        assert service.app.state.service.memory.held == 0


def test_all_bodies_together_have_a_limit(fake_detector: FakeDetector) -> None:
    options = {"max_body_bytes": 80_000, "max_memory_bytes": 100_000}
    with running(fake_detector, **options) as service:
        memory = service.app.state.service.memory
        with connected(service) as first, connected(service) as second:
            first.sendall(head(70_000) + bytes(60_000))
            wait_until(lambda: memory.held >= 60_000)
            second.sendall(head(70_000) + bytes(60_000))
            status, reason = answer_of(second)
            assert status == 503
            assert "expected room for requests" in reason
        wait_until(lambda: memory.held == 0)
        assert post(service).status_code == 200


def test_connections_that_wait_are_said_in_one_line(capsys: pytest.CaptureFixture) -> None:
    """asyncio would print a traceback for each try, hundreds a second."""
    shortage, loop = Shortage(), FakeLoop()
    for number in (errno.EMFILE, errno.EMFILE, errno.ENFILE):
        shortage(loop, {"message": "accept", "exception": OSError(number, "x")})
    assert capsys.readouterr().err == "connections wait: Too many open files\n"
    others = [{"message": "a"}, {"message": "b", "exception": OSError(errno.EIO, "x")}]
    for context in others:
        shortage(loop, context)
    assert loop.reported == others


class FakeLoop:
    """Takes what asyncio would print."""

    def __init__(self) -> None:
        self.reported: list[dict[str, Any]] = []
        self.default_exception_handler = self.reported.append


@pytest.mark.parametrize(
    "error", [OSError(errno.EMFILE, "Too many open files"), OSError(errno.ENOSPC, "full"), MemoryError()]
)
def test_an_image_for_which_there_is_no_memory_is_for_later(
    fake_detector: FakeDetector, runner: FakeRunner, error: Exception
) -> None:
    def no_room(image: Any) -> Any:
        raise error

    with running(fake_detector) as service:
        runner.stage, stage = no_room, runner.stage
        answer = post(service)
        assert answer.status_code == 503
        assert answer.headers["Retry-After"] == "1"
        assert answer.json()["error"].startswith("image: expected room for its pixels, found none (")
        runner.stage = stage
        assert post(service).status_code == 200
    assert service.metric("refusals_total", reason="no_memory") == 1


def test_many_pixels_are_refused_before_they_are_decoded(
    fake_detector: FakeDetector, runner: FakeRunner
) -> None:
    bomb = png(1)[:16] + (60_000).to_bytes(4, "big") * 2 + png(1)[24:]
    with running(fake_detector) as service:
        answer = post(service, content=bomb)
        assert answer.status_code == 413
        assert "pixels, found 60000x60000 (height x width)" in answer.json()["error"]
    assert not runner.batches


def test_a_body_that_trickles_is_refused_and_the_connection_closed(fake_detector: FakeDetector) -> None:
    with running(fake_detector, client_timeout_s=0.4) as service, connected(service) as connection:
        connection.sendall(head(1000) + b"x")
        start = time.monotonic()
        status, reason = error_of(all_of(connection))
        assert status == 408
        assert "expected the whole request within 0.4 s" in reason
        assert time.monotonic() - start < 10


@pytest.mark.parametrize("start", [b"", b"POST /det", b"POST /detect HTTP/1.1\r\nHost: x\r\nX: "])
def test_a_head_that_does_not_end_is_not_waited_for(fake_detector: FakeDetector, start: bytes) -> None:
    with running(fake_detector, client_timeout_s=0.2) as service, connected(service) as connection:
        connection.sendall(start)
        begun = time.monotonic()
        for _ in range(20):  # a byte now and then changes nothing
            time.sleep(0.05)
            if start:
                connection.sendall(b"x")
        assert all_of(connection) == b""
        assert 1 < time.monotonic() - begun < 10


def test_a_client_that_does_not_read_is_left(fake_detector: FakeDetector) -> None:
    with running(fake_detector, client_timeout_s=0.5) as service, connected(service) as connection:
        request = b"GET /static-offline-docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n"
        connection.sendall(request * 8)
        time.sleep(1.5)
        found = len(all_of(connection))
        with service.client() as client:
            whole = len(client.get("/static-offline-docs/swagger-ui-bundle.js").content)
        assert whole < found < 8 * whole  # what lay in the system's buffers, and then the end


def test_connections_have_a_limit(fake_detector: FakeDetector) -> None:
    with running(fake_detector, max_connections=3) as service:
        connections = [socket.create_connection(service.address, SECONDS) for _ in range(4)]
        status, reason = error_of(all_of(connections[3]))
        assert status == 503
        assert "expected up to 3 connections" in reason
        for connection in connections:
            connection.close()
        wait_until(lambda: _answers(service))


def _answers(service: Served) -> bool:
    try:
        return post(service).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\0\1\2\3\r\n\r\n",
        b"POST /detect HTTP/1.1\r\n\r\n",  # no Host
        b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /detect HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /detect HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 100_000,
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 20_000,
    ],
)
def test_what_is_no_request_gets_an_answer_in_json(service: Served, request_bytes: bytes) -> None:
    with connected(service) as connection:
        connection.sendall(request_bytes)
        status, reason = error_of(all_of(connection))
    assert status == 400
    assert reason


def test_several_requests_in_one_go_are_answered_in_order(service: Served) -> None:
    requests = b"".join(head(len(data)) + data for data in (png(40, 8, 9), b"?", png(90, 7, 5)))
    with connected(service) as connection:
        connection.sendall(requests)
        answers = b""
        while answers.count(b"HTTP/1.1") < 3 or not answers.endswith(b"}"):
            answers += connection.recv(1 << 16)
    statuses = [int(part.split()[0]) for part in answers.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [200, 400, 200]
    assert answers.index(b'"width": 9') < answers.index(b'"error"') < answers.index(b'"width": 5')


def test_the_end_finishes_what_was_taken_and_says_so_before(
    fake_detector: FakeDetector, runner: FakeRunner
) -> None:
    threads_before = {thread.name for thread in threading.enumerate()}
    with ThreadPoolExecutor(4) as pool:
        with running(fake_detector, drain_delay_s=0.5) as service:
            requests = [hold_up(service, pool, runner)]
            requests += [pool.submit(post, service, value) for value in (1, 2)]
            wait_until(lambda: queued(service) == 2)
            watching = pool.submit(_watch_the_end, service, runner)
        assert [request.result(SECONDS).status_code for request in requests] == [200] * 3
        seen = watching.result(SECONDS)
    assert seen == ["not ready", "refused"]
    with pytest.raises(httpx.ConnectError):
        post(service)
    left = {thread.name for thread in threading.enumerate()} - threads_before
    assert not [name for name in left if name.startswith(("batches", "stage", "answers"))]


def test_clients_are_told_to_connect_elsewhere_before_the_end(fake_detector: FakeDetector) -> None:
    """A connection that is kept would be closed while its next request is on its way."""
    with ThreadPoolExecutor(1) as pool:
        with running(fake_detector, drain_delay_s=1.0) as service:
            client = service.client()
            assert "connection" not in client.post("/detect", content=png(1)).headers
            ending = pool.submit(_answer_while_it_ends, service, client)
        answer = ending.result(SECONDS)
        client.close()
    assert answer.status_code == 200
    assert answer.headers["connection"] == "close"


def _answer_while_it_ends(service: Served, client: httpx.Client) -> httpx.Response:
    wait_until(lambda: service.app.state.service.is_draining)
    return client.post("/detect", content=png(2))


def _watch_the_end(service: Served, runner: FakeRunner) -> list[str]:
    """Say what a watcher sees when the service ends."""
    seen: list[str] = []
    with service.client() as client:
        wait_until(lambda: client.get("/v2/health/ready").status_code == 503)
        assert client.get("/v2/models/m/ready").status_code == 503
        assert client.get("/v2/health/live").status_code == 200
        seen.append("not ready")
    wait_until(lambda: not _connects(service))
    runner.may_run.set()
    return [*seen, "refused"]


def _connects(service: Served) -> bool:
    try:
        socket.create_connection(service.address, SECONDS).close()
    except OSError:
        return False
    return True


def test_it_is_an_app_that_can_be_mounted(fake_detector: FakeDetector) -> None:
    from fastapi import FastAPI
    from starlette.testclient import TestClient

    app = create_app({"m": fake_detector}, ServingOptions(**QUICK))
    outer = FastAPI()
    outer.mount("/vision", app)
    try:
        client = TestClient(outer)
        answer = client.post("/vision/detect", content=png(5))
        assert answer.json()["images"][0]["detections"][0]["bbox"][0] == 5
        assert client.get("/vision/v2/health/ready").status_code == 200
        assert "/vision" in client.get("/vision/docs").text
    finally:
        app.state.service.close()
    with pytest.raises(ValueError, match="models: expected one or more, found none"):
        create_app({})


def test_metrics_and_the_log(fake_detector: FakeDetector, runner: FakeRunner) -> None:
    with running(fake_detector, log="json", max_batch=4) as service, service.client() as client:
        client.post("/detect", content=png(5))
        client.post("/detect", content=b"?")
        client.get("/nothing/at/all")
        text = client.get("/metrics").text
        wait_until(lambda: len(service.lines) == 4)
    for line in (
        'maskrcnn_requests_total{endpoint="/detect",status="200"} 1.0',
        'maskrcnn_requests_total{endpoint="/detect",status="400"} 1.0',
        'maskrcnn_requests_total{endpoint="other",status="404"} 1.0',
        'maskrcnn_refusals_total{reason="bad_image"} 1.0',
        'maskrcnn_images_total{model="m"} 1.0',
        'maskrcnn_batch_images_bucket{le="1.0",model="m"} 1.0',
        'maskrcnn_queue_images{model="m"} 0.0',
        'maskrcnn_request_seconds_count{endpoint="/detect"} 2.0',
        "maskrcnn_ready 1.0",
    ):
        assert line in text, line
    lines = [json.loads(line) for line in service.lines]
    assert [(line["method"], line["path"], line["status"]) for line in lines] == [
        ("POST", "/detect", 200),
        ("POST", "/detect", 400),
        ("GET", "/nothing/at/all", 404),
        ("GET", "/metrics", 200),
    ]


def test_two_services_do_not_share_their_figures(fake_detector: FakeDetector, service: Served) -> None:
    before = service.metric("requests_total", endpoint="/detect", status="200")
    with running(fake_detector) as other:
        post(other)
    assert service.metric("requests_total", endpoint="/detect", status="200") == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_batch": 0}, "max_batch: expected a whole number from 1 to 1024, found 0"),
        ({"max_queue": 1.5}, "max_queue: expected a whole number from 1"),
        ({"timeout_s": 0}, "timeout_s: expected a number from 0.001 to 1e.09, found 0"),
        ({"max_delay_ms": float("nan")}, "max_delay_ms: expected a number from 0 to 1e.09, found nan"),
        ({"timeout_s": float("inf")}, "timeout_s: expected a number from 0.001 to 1e.09, found inf"),
        ({"drain_delay_s": 1e10}, "drain_delay_s: expected a number from 0 to 1e.09, found 10000000000.0"),
        ({"log": "xml"}, "log: expected one of none, plain, json, found 'xml'"),
    ],
)
def test_options_have_ranges(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ServingOptions(**changes)
