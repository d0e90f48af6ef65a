"""Images behind addresses: a local server that answers, errs, redirects, drips, and sends too much."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest

from runtime import infer
from runtime.remote import RemoteImage, fetch
from tests.runtime import fakes
from tests.runtime.processes import lines_of

PNG = cv2.imencode(".png", fakes.random_image(64, 96))[1].tobytes()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        answer = getattr(self, "_" + self.path.strip("/").partition("/")[0].partition(".")[0], None)
        if answer is None:
            self.send_error(404, "Not Found")
            return
        with contextlib.suppress(OSError):
            answer()

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _send(self, data: bytes, length: int | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        self.wfile.write(data)

    def _image(self) -> None:
        self._send(PNG)

    def _text(self) -> None:
        self._send(b"<html>")

    def _large(self) -> None:
        self._send(PNG * 1000)

    def _cut(self) -> None:
        self._send(PNG[:100], len(PNG))

    def _redirect(self) -> None:
        self._to("/image.png")

    def _circle(self) -> None:
        self._to("/circle")

    def _file(self) -> None:
        self._to("file:///etc/passwd")

    def _ftp(self) -> None:
        self._to("ftp://127.0.0.1/a.png")

    def _to(self, where: str) -> None:
        self.send_response(302)
        self.send_header("Location", where)
        self.end_headers()

    def _drip(self) -> None:
        self.send_response(200)
        self.end_headers()
        for _ in range(200):
            self.wfile.write(b"x")
            self.wfile.flush()
            time.sleep(0.05)

    def _headers(self) -> None:
        for _ in range(200):
            self.wfile.write(b"H")
            self.wfile.flush()
            time.sleep(0.05)

    def _silent(self) -> None:
        time.sleep(10)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as running:
        running.daemon_threads, running.block_on_close = True, False
        thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_address[1]}"
        finally:
            running.shutdown()
            thread.join(5)


@pytest.mark.parametrize("path", ["image.png", "redirect", "image/a%20b.png?x=1"])
def test_an_image_is_read(path: str, server: str) -> None:
    np.testing.assert_array_equal(RemoteImage(f"{server}/{path}").read(), fakes.random_image(64, 96))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("none.png", "expected an image, found HTTP status 404 Not Found"),
        ("circle", "expected an image, found HTTP status 302"),
        ("file", "found HTTP status 302 .*'file:///etc/passwd' is not allowed"),
        ("ftp", "found no answer: a redirect to 'ftp://127.0.0.1/a.png', which is not http or https"),
        ("cut", "found no answer: the connection ended .* bytes early"),
    ],
)
def test_what_the_server_errs_in_is_said(path: str, message: str, server: str) -> None:
    with pytest.raises(OSError, match=f"^{server}/{path}: .*{message}"):
        fetch(f"{server}/{path}")


@pytest.mark.parametrize("path", ["drip", "headers", "silent"])
def test_what_takes_too_long_is_given_up(path: str, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKRCNN_URL_SECONDS", "1")
    start = time.monotonic()
    with pytest.raises(OSError, match=r"expected an image( within 1 s|, found no answer: timed out|.*time)"):
        fetch(f"{server}/{path}")
    assert time.monotonic() - start < 4


def test_what_is_too_large_is_not_read_to_its_end(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKRCNN_MAX_IMAGE_BYTES", str(len(PNG)))
    assert fetch(f"{server}/image") == PNG
    with pytest.raises(
        ValueError, match=f"expected an image, found more than {len(PNG)} bytes; .*MAX_IMAGE_BYTES"
    ):
        fetch(f"{server}/large")


def test_nobody_there_is_said() -> None:
    with pytest.raises(
        OSError, match="http://127.0.0.1:9/a.png: expected an image, found no answer: .*refused"
    ):
        fetch("http://127.0.0.1:9/a.png")


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://h/a/b.png?x", "b.png"),
        ("https://host", "host"),
        ("http://h/a%2Fb%00.jpg", "b\0.jpg"),
        ("http://h/..", ".."),
    ],
)
def test_an_address_has_a_name(url: str, name: str) -> None:
    assert RemoteImage(url).name == name


@pytest.mark.parametrize("url", ["http://[::1/a.png", "https:///a.png", "http://"])
def test_what_is_no_address_is_refused(
    url: str, fake_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert infer.main([url, "--model", str(fake_model), "--out", str(tmp_path / "out")]) == 2
    assert f"error: {url}: expected an http or https address, found" in capsys.readouterr().err


def test_addresses_and_files_run_together(
    server: str, fake_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "image.png").write_bytes(PNG)
    out = tmp_path / "out"
    sources = [f"{server}/image.png", str(tmp_path / "image.png"), f"{server}/text", f"{server}/image/%2e%2e"]
    assert infer.main([*sources, "--model", str(fake_model), "--out", str(out), "--format", "labelme"]) == 1
    lines = lines_of(out)
    assert [line["file_name"] for line in lines] == [*sources[:1], *[lines[1]["file_name"]], *sources[2:]]
    assert [len(line.get("detections", [])) for line in lines] == [3, 3, 0, 3]
    said = capsys.readouterr().err
    assert f"skipped: {server}/text: expected an image, found 6 bytes that cv2 cannot decode" in said
    names = sorted(p.name for p in out.glob("*.png"))
    assert len(names) == 3
    assert "image.png" in names
    paths = [json.loads(p.read_text())["imagePath"] for p in sorted((out / "labelme").iterdir())]
    assert sources[0] in paths
