"""Requests that are none, to a running service: ``python -m tests.fuzz.hostile MODEL.onnx --requests 10000``.

Truncated and damaged images, other files, decompression bombs, hostile JSON, forms, tensors, headers and paths, and
sockets that are closed half, at once or never. Each is made from a seed and a number. The service has to answer each
with a status that fits and, where it refuses, with ``{"error": reason}``; good requests between them get what they got
before; memory, threads and file descriptors do not grow; and it ends with status 0 and without a traceback.
"""

import argparse
import base64
import json
import re
import socket
import struct
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np

from benchmarks.serve_process import Resources, ServiceProcess
from examples import IMAGES_DIR

SECONDS = 20.0
THREADS = 8
# Of what a service holds after the first tenth of the requests.
MOST_GROWTH = 0.05
MOST_MORE = 4
_SLACK_MIB = 24
_CLIENT_TIMEOUT = 2
_MOST_SETTLING = 10
_GOOD_EVERY = 50
_TOLD = 20
_PNG_HEADER = b"\x89PNG\r\n\x1a\n"

Random = np.random.Generator


@dataclass(frozen=True)
class Case:
    """A request in bytes.

    Attributes:
        kind: of damage.
        parts: of the request, one packet each.
        end: ``read`` (the answer), ``half`` (close one side first), ``reset`` (the connection) or ``leave``.
        allowed: statuses of answers; an answer may be missing where ``end`` is not ``read``.
    """

    kind: str
    parts: tuple[bytes, ...]
    end: str = "read"
    allowed: tuple[int, ...] = (400,)


@dataclass
class Outcome:
    """What came of all of them."""

    statuses: Counter = field(default_factory=Counter)
    kinds: Counter = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


def request(
    body: bytes,
    path: str = "/detect",
    headers: Sequence[str] = (),
    *,
    method: str = "POST",
    length: Optional[object] = None,
) -> bytes:
    """Return a request in bytes."""
    lines = [f"{method} {path} HTTP/1.1", "Host: x", "Connection: close", *headers]
    lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def bomb(width: int, height: int) -> bytes:
    """Return a PNG of so many black pixels, which takes a thousandth of them in bytes."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    packer = zlib.compressobj(9)
    row = bytes(1 + -(-width // 8))
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    return _PNG_HEADER + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _damaged(data: bytes, random: Random) -> bytes:
    array = np.frombuffer(data, np.uint8).copy()
    places = random.integers(0, len(array), int(random.integers(1, 40)))
    array[places] = random.integers(0, 256, len(places))
    return array.tobytes()


def _cut(data: bytes, random: Random) -> bytes:
    return data[: int(random.integers(len(data)))]


def _image(random: Random) -> bytes:
    return GOOD[int(random.integers(len(GOOD)))]


GOOD = [path.read_bytes() for path in sorted(IMAGES_DIR.glob("*.jpg"))][:3]
BOMBS = (
    bomb(60_000, 60_000 // 64),
    _PNG_HEADER + _chunk(b"IHDR", struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0)),
    b"GIF89a" + struct.pack("<HH", 65535, 65535) + bytes(20),
    b"P6 100000 100000 255\n",
    b"P6\n" + b"#\n" * 400 + b"99999999999 9 255\n",
    b"BM" + struct.pack("<IHHIIiiHHI", 100, 0, 0, 54, 40, 2**30, -(2**30), 1, 24, 0) + bytes(60),
    b"II*\0\x08\0\0\0\x02\0\0\1\4\0\1\0\0\0\0\0\2\0\1\1\4\0\1\0\0\0\0\0\2\0\x08\0\0\0",
    b"II*\0\x08\0\0\0" + struct.pack("<H", 65535) + bytes(12) * 65535 + struct.pack("<I", 8),
    b"RIFF\x20\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff" + bytes(20),
)


def _truncated(random: Random) -> Case:
    return Case("truncated images", (request(_cut(_image(random), random)),))


def _flipped(random: Random) -> Case:
    return Case("damaged images", (request(_damaged(_image(random), random)),), allowed=(200, 400, 413))


def _other_files(random: Random) -> Case:
    data = (b"", b"\0" * 1000, b"%PDF-1.7", b"<svg/>", Path(__file__).read_bytes(), random.bytes(3000))
    return Case("other files", (request(data[int(random.integers(len(data)))]),))


def _bombs(random: Random) -> Case:
    return Case("bombs", (request(BOMBS[int(random.integers(len(BOMBS)))]),), allowed=(400, 413))


def _huge(random: Random) -> Case:
    length = int(random.choice([10**8, 10**12, 10**18]))
    return Case(
        "huge bodies", (request(b"x" * int(random.integers(100_000)), length=length),), allowed=(413,)
    )


def _short(random: Random) -> Case:
    end = str(random.choice(["half", "reset", "leave"]))
    body = _image(random)
    return Case("bodies that stop", (request(_cut(body, random), length=len(body)),), end)


def _trickle(random: Random) -> Case:
    return Case("bodies that trickle", (request(b"x", length=5000),), allowed=(408,))


def _chunks(random: Random) -> Case:
    head = b"POST /detect HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    tails = (
        b"zz\r\n",
        b"-1\r\n",
        b"5\r\nabcdefgh\r\n",
        b"fffffffffffffffff\r\n",
        b"1\r\nx\r\n" * 500 + b"0\r\n\r\n",
    )
    return Case("chunks", (head, tails[int(random.integers(len(tails)))]), allowed=(400, 408))


def _json(random: Random) -> Case:
    kind = "Content-Type: application/json"
    text = base64.b64encode(_image(random)).decode()
    bodies = (
        "[" * int(random.integers(1, 200_000)),
        '{"image":' * 50_000,
        '{"image": ' + "9" * 5000 + "}",
        '{"image": NaN, "image": -Infinity}',
        '{"image": "\\ud800"}',
        json.dumps({"images": [text[: int(random.integers(len(text)))]]}),
        json.dumps({"images": [[]] * 16}),
        json.dumps({"image": {"a": [1, {"b": None}]}}),
        '{"image": "' + "A" * int(random.integers(100_000)) + '"}',
        json.dumps({"images": [text, "QUJD"]}),
    )
    return Case(
        "JSON",
        (request(bodies[int(random.integers(len(bodies)))].encode(), headers=[kind]),),
        allowed=(400, 413),
    )


def _form(random: Random) -> Case:
    part = b'--b\r\nContent-Disposition: form-data; name="f"; filename="f.jpg"\r\n\r\n'
    whole = part + _image(random) + b"\r\n--b--\r\n"
    bodies = (
        _cut(whole, random),
        _damaged(whole, random),
        part * 30 + b"--b--",
        b"--b\r\n" + b"X: y\r\n" * 10_000,
        b"--b\r\n" * 10_000,
        b"\r" * 100_000,
        b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--",
        b"--b\r\nContent-Disposition: form-data; name=f; filename=f\r\n"
        b"Content-Transfer-Encoding: base64\r\n\r\n?\r\n--b--",
    )
    boundary = str(random.choice(["b", "b", "b", "", "x" * 300, '"'])) if random.random() < 0.5 else "b"
    kind = f"Content-Type: multipart/form-data; boundary={boundary}"
    return Case(
        "forms",
        (request(bodies[int(random.integers(len(bodies)))], headers=[kind]),),
        allowed=(200, 400, 413),
    )


def _tensors(random: Random) -> Case:
    blob = struct.pack("<I", len(GOOD[0])) + GOOD[0]
    tensor = {
        "name": "image",
        "datatype": "BYTES",
        "shape": [1],
        "parameters": {"binary_data_size": len(blob)},
    }
    header = json.dumps({"inputs": [tensor]}).encode()
    length: object = len(header)
    if random.random() < 0.5:
        header = _damaged(header, random)
    elif random.random() < 0.5:
        blob = _damaged(blob[:4], random) + _cut(blob[4:], random)
    else:
        length = random.choice([-1, 0, 5, 10**20, len(header) + 3])
    headers = [f"Inference-Header-Content-Length: {length}"]
    path = "/v2/models/hostile/infer"
    return Case("tensors", (request(header + blob, path, headers),), allowed=(200, 400, 413))


def _heads(random: Random) -> Case:
    heads = (
        b"\0" * 100,
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 200_000,
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 30_000,
        b"GET / HTTP/1.1\r\nHost: x\r\nbad header\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: \x01\r\n\r\n",
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + random.bytes(200),  # TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        random.bytes(500) + b"\r\n\r\n",
    )
    return Case("heads", (heads[int(random.integers(len(heads)))],), allowed=(200, 400, 404, 405, 505))


def _paths(random: Random) -> Case:
    paths = (
        "/%00",
        "/../../etc/passwd",
        "/static-offline-docs/../../../etc/passwd",
        "/" + "x" * 8000,
        "/v2/models/%2e%2e/infer",
        "/v2/models/hostile/versions/9/infer",
        "/detect?model=%ff",
        "/detect?min_score=1e999",
        "/detect?min_score=nan",
        "/detect?timeout_s=-1",
        "/detect?masks=" + "m" * 5000,
        "/detect?format=%00",
        "/detect?&&&=&=",
        "/docs",
        "/metrics",
    )
    method = str(random.choice(["POST", "GET", "PUT", "DELETE", "OPTIONS", "HEAD", "TRACE", "BREW"]))
    path = paths[int(random.integers(len(paths)))]
    return Case("paths and methods", (request(b"", path, method=method),), allowed=(200, 400, 404, 405))


def _pixels(random: Random) -> Case:
    headers = [f"Content-Encoding: {random.choice(['gzip', 'br', 'x'])}"]
    return Case("compressed bodies", (request(zlib.compress(bytes(10**6)), headers=headers),), allowed=(415,))


def _gone(random: Random) -> Case:
    end = str(random.choice(["half", "reset", "leave"]))
    return Case("clients that go", (request(_image(random)),), end, (200,))


def _pipelined(random: Random) -> Case:
    requests = request(b"?").replace(b"Connection: close\r\n", b"") * int(random.integers(2, 20))
    return Case("many in one go", (requests, request(b"?")), allowed=(400, 429))


KINDS: tuple[tuple[Callable[[Random], Case], int], ...] = (
    (_truncated, 12),
    (_flipped, 12),
    (_other_files, 8),
    (_bombs, 10),
    (_huge, 4),
    (_short, 6),
    (_trickle, 1),
    (_chunks, 6),
    (_json, 12),
    (_form, 10),
    (_tensors, 12),
    (_heads, 10),
    (_paths, 10),
    (_pixels, 4),
    (_gone, 6),
    (_pipelined, 3),
)


def case_of(seed: int, number: int) -> Case:
    """Return one case, always the same for a seed and a number."""
    random = np.random.default_rng((seed, number))
    weights = np.array([weight for _, weight in KINDS], float)
    return KINDS[int(random.choice(len(KINDS), p=weights / weights.sum()))][0](random)


def sent(address: tuple[str, int], case: Case) -> bytes:
    """Send a case; return the answer, nothing where there is none."""
    with socket.create_connection(address, SECONDS) as connection:
        try:
            for part in case.parts:
                connection.sendall(part)
            if case.end == "half":
                connection.shutdown(socket.SHUT_WR)
            if case.end == "reset":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if case.end in ("reset", "leave"):
                return b""
        except (BrokenPipeError, ConnectionResetError):
            pass  # it is answered already, perhaps
        return _received(connection, case)


def _received(connection: socket.socket, case: Case) -> bytes:
    answer = b""
    try:
        while True:
            part = connection.recv(1 << 16)
            answer += part
            if not part or _is_whole(answer, case):
                return answer
    except ConnectionResetError:
        return answer


def _is_whole(answer: bytes, case: Case) -> bool:
    """Return whether an answer is whole; connections that are kept do not end."""
    head, separator, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    return bool(separator and length and len(body) >= int(length[1]) and case.kind != "many in one go")


def problem_of(case: Case, answer: bytes) -> str:
    """Return what is wrong with an answer; empty where nothing is."""
    if not answer:
        return "" if case.end != "read" or case.kind == "huge bodies" else "no answer"
    status = int(answer.split(b" ", 2)[1])
    if status not in case.allowed:
        return f"status {status}, expected {case.allowed}: {answer[-300:]!r}"
    if status < 400 or case.parts[0].startswith(b"HEAD"):
        return ""
    head, _, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    if case.kind == "many in one go":
        return "" if answer.count(b'{"error":') >= 2 else f"expected several answers, found {answer[-300:]!r}"
    try:
        reason = json.loads(body[: int(length[1])])["error"]
    except (ValueError, KeyError, TypeError):
        return f"expected a reason in JSON, found {body[-300:]!r}"
    return "" if len(reason) > 5 and "Traceback" not in reason else f"unclear: {reason!r}"


def run(model: Path, num_requests: int, seed: int, processes: int = 1) -> dict[str, Any]:
    """Start a service, send it everything, and say what came of it."""
    with service_of(model, processes) as service:
        good = good_answer(service)
        outcome, lock = Outcome(), threading.Lock()

        def one(number: int) -> None:
            case = case_of(seed, number)
            try:
                problem, answer = "", sent(service.address, case)
                problem = problem_of(case, answer)
            except (OSError, ValueError, IndexError) as error:
                problem, answer = f"{type(error).__name__}: {error}", b""
            if number % _GOOD_EVERY == 0 and good_answer(service) != good:
                problem = f"{problem}; a good request has another answer than before".lstrip("; ")
            with lock:
                outcome.kinds[case.kind] += 1
                outcome.statuses[answer[9:12].decode() or "none"] += 1
                if problem:
                    outcome.failures.append(f"{number}, {case.kind}: {problem}")

        tenth = max(1, num_requests // 10)
        start = time.monotonic()
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(one, range(tenth)))
            first = settled(service)
            list(pool.map(one, range(tenth, num_requests)))
            last = settled(service)
        seconds = time.monotonic() - start
        ended = service.end()
    failures = [*outcome.failures, *ended, *grown(first, last, processes)]
    return {
        "requests": num_requests,
        "seed": seed,
        "processes": processes,
        "seconds": round(seconds),
        "kinds": dict(sorted(outcome.kinds.items())),
        "statuses": dict(sorted(outcome.statuses.items())),
        "first": vars(first),
        "last": vars(last),
        "num_failures": len(failures),
        "failures": failures[:_TOLD],
    }


def grown(first: Resources, last: Resources, processes: int = 1) -> list[str]:
    """Return what has grown."""
    found = []
    if last.mib > first.mib * (1 + MOST_GROWTH) + _SLACK_MIB * processes:
        found.append(f"memory: {first.mib} MiB at first, {last.mib} MiB at last")
    for name in ("threads", "descriptors"):
        if getattr(last, name) > getattr(first, name) + MOST_MORE * processes:
            found.append(f"{name}: {getattr(first, name)} at first, {getattr(last, name)} at last")
    return found


def service_of(model: Path, processes: int) -> ServiceProcess:
    """Start the command with limits that are met."""
    options = ("--backend", "onnxruntime", "--threads", 1, "--max-images", 8, "--max-body-mb", 4)
    limits = ("--client-timeout-s", _CLIENT_TIMEOUT, "--max-pixels", 4_000_000)
    return ServiceProcess(f"hostile={model}", *options, *limits, "--processes", processes)


def good_answer(service: ServiceProcess) -> list[str]:
    """Return what is found by a good request."""
    body = sent(service.address, Case("good", (request(GOOD[0]),))).partition(b"\r\n\r\n")[2]
    return [one["category"] for one in json.loads(body)["images"][0]["detections"]]


def settled(service: ServiceProcess) -> Resources:
    """Return what the process holds once nothing is under way."""
    before = service.resources()
    for _ in range(_MOST_SETTLING):
        time.sleep(_CLIENT_TIMEOUT)
        now = service.resources()
        if (now.threads, now.descriptors) == (before.threads, before.descriptors):
            break
        before = now
    return now


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Send them; print what came of them, and return 1 if anything failed."""
    args = _parse_arguments(argv)
    found = run(args.model, args.requests, args.seed, args.processes)
    print(json.dumps(found, indent=1))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 1 if found["num_failures"] else 0


def _parse_arguments(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz.hostile", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("model", type=Path, help="an exported model")
    parser.add_argument("--requests", type=int, default=10_000, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--processes", type=int, default=1, help="of the service (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the counts")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
