"""``python -m runtime.serve`` as a process: how it begins, and how it ends."""

import json
import re
import signal
import socket
import subprocess
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from examples import IMAGES_DIR
from runtime.serve import named_models
from tests.runtime.processes import ended, first_line, run, start
from tests.runtime.serving.servers import SECONDS, png, wait_until

IMAGE = (IMAGES_DIR / "square.jpg").read_bytes()
MODULE = "runtime.serve"
OPTIONS = ("--backend", "onnxruntime", "--threads", 1, "--port", 0)


@contextmanager
def serving(*arguments: object, **options: Any) -> Iterator[tuple[subprocess.Popen, str]]:
    """Start the command; yields the process and where it is."""
    process = start(MODULE, *arguments, *OPTIONS, **options)
    try:
        line = first_line(process).decode()
        found = re.search(r"http://[\d.:\[\]]+", line)
        assert found, (line, process.stderr.read())
        yield process, found[0]
    finally:
        process.kill()
        process.wait(SECONDS)
        process.stdout.close()
        process.stderr.close()


def ending(process: subprocess.Popen) -> tuple[int, str, str]:
    """Return how it ended; the pipes stay for the context to close."""
    status = process.wait(SECONDS)
    return status, process.stdout.read().decode(), process.stderr.read().decode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_a_signal_and_answers_what_it_took(fake_model: Path, number: signal.Signals) -> None:
    # One image waits for others for half a minute, or for the end.
    with serving(fake_model, f"two={fake_model}", "--max-delay-ms", 30_000) as (process, url):
        with ThreadPoolExecutor(2) as pool:
            answers = [
                pool.submit(
                    httpx.post, f"{url}/detect", params={"model": name}, content=IMAGE, timeout=SECONDS
                )
                for name in ("fake", "two")
            ]
            wait_until(lambda: httpx.get(f"{url}/metrics").text.count("_queue_images{") == 2)
            wait_until(lambda: 'queue_images{model="two"} 1.0' in httpx.get(f"{url}/metrics").text)
            wait_until(lambda: 'queue_images{model="fake"} 1.0' in httpx.get(f"{url}/metrics").text)
            process.send_signal(number)
            assert [answer.result().status_code for answer in answers] == [200, 200]
        status, printed, complaints = ending(process)
    assert status == 0
    assert complaints == ""
    assert len(re.findall(r" 127\.0\.0\.1 POST /detect 200 [\d.]+ ms", printed)) == 2


def test_a_second_signal_ends_it_at_once(fake_model: Path) -> None:
    options = ("--max-delay-ms", 60_000, "--drain-delay-s", 60, "--log", "none")
    with serving(fake_model, *options) as (process, url):
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: httpx.get(f"{url}/v2/health/ready").status_code == 503)
        wait_until(lambda: process.poll() is not None or process.send_signal(signal.SIGTERM))
        status, _, complaints = ending(process)
    assert status == 143
    assert "ended at once" in complaints


def test_lines_of_json(fake_model: Path) -> None:
    with serving(fake_model, "--log", "json") as (process, url):
        httpx.get(f"{url}/v2/health/live")
        process.send_signal(signal.SIGTERM)
        _, printed, _ = ending(process)
    assert json.loads(printed)["path"] == "/v2/health/live"


def test_nobody_reads_what_it_prints(fake_model: Path) -> None:
    """The pipe is full after 64 KiB; requests are answered nevertheless."""
    with serving(fake_model) as (process, url), httpx.Client(base_url=url, timeout=SECONDS) as client:
        path = "/" + "x" * 150
        for _ in range(600):
            assert client.get(path).status_code == 404
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0


@pytest.mark.parametrize("processes", [1, 2])
def test_nobody_reads_what_libraries_print(fake_model: Path, processes: int) -> None:
    """libpng writes a line for each chunk that it does not like, without Python."""
    good = png(200, 32, 48)
    chunk = (b"\0\0\0\x04", b"gAMA\0\0\xb1\x8f")
    gamma = chunk[0] + chunk[1] + zlib.crc32(chunk[1]).to_bytes(4, "big")
    noisy = good[:33] + gamma * 500 + good[33:]
    with serving(fake_model, "--log", "none", "--processes", processes) as (process, url):
        expected = httpx.post(f"{url}/detect", content=good, timeout=SECONDS).content
        for _ in range(10):  # 16 KiB of lines each
            assert httpx.post(f"{url}/detect", content=noisy, timeout=SECONDS).content == expected
            assert httpx.post(f"{url}/detect", content=noisy[:-60], timeout=SECONDS).status_code == 400
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0
        said = process.stderr.read()
    assert said.count(b"libpng warning") > 500
    assert b"imdecode" not in said  # of OpenCV's there is an answer


def limited(soft: int, hard: int) -> Any:
    """Return what gives a process so many descriptors."""
    resource = pytest.importorskip("resource")
    return partial(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("processes", [1, 2])
def test_fewer_descriptors_than_connections(fake_model: Path, processes: int) -> None:
    arguments = (fake_model, "--processes", processes, "--log", "none")
    with serving(*arguments, preexec_fn=limited(80, 80)) as (process, url):
        host, _, port = url.rpartition("/")[2].rpartition(":")
        connections = [socket.create_connection((host, int(port)), SECONDS) for _ in range(300)]
        refused = 0
        for connection in connections[::-1]:
            connection.settimeout(0.02 if refused > 100 else SECONDS)
            with suppress(TimeoutError, ConnectionError):
                refused += connection.recv(100).startswith(b"HTTP/1.1 503 ")
        assert refused > 150
        # Those that are taken are answered.
        request = b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(IMAGE) + IMAGE
        connections[0].settimeout(SECONDS)
        connections[0].sendall(request)
        assert connections[0].recv(100).startswith(b"HTTP/1.1 200 ")
        for connection in connections:
            connection.close()
        wait_until(lambda: httpx.post(f"{url}/detect", content=IMAGE, timeout=SECONDS).status_code == 200)
        process.send_signal(signal.SIGTERM)
        status, _, said = ending(process)
    assert status == 0
    assert said.count("\n") == 1
    assert "--max-connections: expected descriptors for 1000, found them for" in said


def test_as_many_descriptors_as_the_system_gives(fake_model: Path) -> None:
    with serving(fake_model, "--log", "none", preexec_fn=limited(64, 4096)) as (process, url):
        host, _, port = url.rpartition("/")[2].rpartition(":")
        connections = [socket.create_connection((host, int(port)), SECONDS) for _ in range(200)]
        for connection in connections:
            connection.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n\r\n")
        assert {connection.recv(13) for connection in connections} == {b"HTTP/1.1 200 "}
        for connection in connections:
            connection.close()
        process.send_signal(signal.SIGTERM)
        status, _, said = ending(process)
    assert (status, said) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.onnx"], "none.onnx: expected"),
        (["a=b=c.onnx"], "b=c.onnx"),
        (["x/y =z.onnx"], "expected a name of letters, digits"),
        (["one.onnx", "other/one.onnx"], "expected another name than 'one', which one.onnx has"),
        (["m.onnx", "--timeout-s", "0"], "timeout_s: expected a number from 0.001 to 1e+09, found 0"),
        (
            ["m.onnx", "--ray", "--log", "json"],
            "--log: expected an option of Ray's, found one of a service without it",
        ),
        (
            ["m.onnx", "--ray", "--processes", "2"],
            "--processes: expected an option of Ray's, found one of a ser",
        ),
        (["m.onnx", "--processes", "0"], "--processes: expected a whole number from 1 to 64, found '0'"),
        (["none.onnx", "--processes", "2"], "none.onnx: expected"),
        (
            ["m.onnx", "--processes", "2", "--timeout-s", "0"],
            "timeout_s: expected a number from 0.001 to 1e+09, found 0",
        ),
        (["m.onnx", "--gpus", "1"], "--gpus: expected --ray with it, found none; add --ray"),
        (["m.onnx", "--surge"], "--surge: expected --ray with it"),
        (["m.onnx", "--port", "65536"], "expected a whole number from 0 to 65535"),
    ],
)
def test_what_it_cannot_serve_it_says(tmp_path: Path, arguments: list[str], message: str) -> None:
    status, printed, complaints = run(MODULE, *arguments)
    assert status == 2
    assert printed == ""
    assert message in complaints
    assert "Traceback" not in complaints


def test_a_port_that_is_taken_and_an_address_that_is_not_here(fake_model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for options in (
            ["--port", taken.getsockname()[1]],
            ["--address", "192.0.2.1"],
            ["--address", "no.such.invalid"],
        ):
            status, _, complaints = ended(start(MODULE, fake_model, "--backend", "onnxruntime", *options))
            assert status == 2
            assert "expected an address of this machine and a free port, found" in complaints
            assert "Traceback" not in complaints


def test_ipv6(fake_model: Path) -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    with serving(fake_model, "--address", "::1") as (_, url):
        assert url.startswith("http://[::1]:")
        assert httpx.get(f"{url}/v2/health/ready").status_code == 200


def test_names_of_models(tmp_path: Path) -> None:
    odd = tmp_path / "a=b.onnx"
    odd.touch()
    assert named_models(["x/one.onnx", "two=y/three.engine"]) == {
        "one": Path("x/one.onnx"),
        "two": Path("y/three.engine"),
    }
    with pytest.raises(ValueError, match="expected a name of letters"):
        named_models([str(odd)])
    assert named_models([f"ab={odd}"]) == {"ab": odd}


def test_without_the_extra_it_says_what_to_install(fake_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from runtime.serving import create_app

    monkeypatch.setitem(sys.modules, "fastapi_offline", None)
    with pytest.raises(
        RuntimeError, match=r"serving: expected the package fastapi_offline.*pip install '.\[serve\]'"
    ):
        create_app({"m": None})


def test_what_is_given_up_leaves_no_complaints(fake_model: Path) -> None:
    """Neither a deadline nor a client that goes is worth a line on standard error."""
    options = ("--max-delay-ms", 2_000, "--timeout-s", 0.1, "--log", "none")
    with serving(fake_model, *options) as (process, url):
        assert httpx.post(f"{url}/detect", content=IMAGE).status_code == 504
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/detect", content=IMAGE, timeout=httpx.Timeout(SECONDS, read=0.01))
        process.send_signal(signal.SIGTERM)
        assert ending(process) == (0, "", "")
