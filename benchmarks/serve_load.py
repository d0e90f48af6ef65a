"""``python -m benchmarks.serve_load``: what a service does under load, up to ten times what it can do.

Three parts, each with ``runtime.serve`` in a process of its own, and this one as its clients:

- ``capacity``: 1 to 64 clients, each with its next request when it has the answer to its last; batching on and off.
- ``overload``: requests at random times (Poisson), 2 and 10 times as many as were answered at best, whether or not
  there are answers. Every request has to get one, a refusal soon.
- ``endurance``: 100 000 requests for a model of a few operators: what is measured is the service. Memory, threads and
  file descriptors do not grow.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Optional

import cv2
import numpy as np

from benchmarks.cpu_case import RESULTS, processor
from benchmarks.serve_process import ServiceProcess
from examples import IMAGES_DIR
from export.maskrcnn import main as export
from runtime.console import say, write_json
from runtime.pipeline import num_cores
from tests.runtime import fakes

OUTPUT = RESULTS / "serve_load.json"
CLIENTS = (1, 4, 16, 64)
BATCHING = {"on": ("--max-batch", 8), "off": ("--max-batch", 1, "--max-delay-ms", 0)}
TIMES = (2, 10)
OVERLOAD_QUEUE = 16
PARTS = ("capacity", "overload", "endurance")
# An answer takes no longer: the service's own limit is 30 s.
PATIENCE_SECONDS = 60.0
REFUSED = 429
ENDURANCE_CLIENTS = 8
WARM_UP = 0.1
_NO_ANSWER = 0


@dataclass
class Load:
    """What came of many requests: statuses, and the ms of each by status."""

    statuses: Counter = field(default_factory=Counter)
    milliseconds: dict[int, list[float]] = field(default_factory=dict)
    seconds: float = 0.0

    def add(self, status: int, milliseconds: float) -> None:
        self.statuses[status] += 1
        self.milliseconds.setdefault(status, []).append(milliseconds)

    def spread(self, status: int) -> Optional[dict[str, float]]:
        """Return median, 99th percentile and maximum, ms; None where no answer has the status."""
        values = self.milliseconds.get(status)
        if not values:
            return None
        p50, p99 = np.percentile(values, (50, 99))
        return {"p50": round(float(p50), 1), "p99": round(float(p99), 1), "max": round(max(values), 1)}


class Connection:
    """One connection of a client, opened again where it was closed."""

    def __init__(self, address: tuple[str, int], requests: Sequence[bytes]) -> None:
        self._address, self._requests, self._next = address, requests, 0
        self._streams: Optional[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = None

    async def post(self, load: Load) -> None:
        """Send the next request, and add what comes of it; status 0 where nothing does."""
        start, status = time.perf_counter(), _NO_ANSWER
        try:
            status = await asyncio.wait_for(self._posted(), PATIENCE_SECONDS)
        except (OSError, asyncio.TimeoutError, asyncio.IncompleteReadError):
            self.close()
        load.add(status, (time.perf_counter() - start) * 1e3)

    async def _posted(self) -> int:
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._address, limit=1 << 20)
        reader, writer = self._streams
        writer.write(self._requests[self._next % len(self._requests)])
        self._next += 1
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
        if b"connection: close" in head:
            self.close()
        return int(head[9:12])

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def requests_of(images: Sequence[bytes]) -> list[bytes]:
    """Return a request for each image."""
    head = "POST /detect HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: {}\r\n\r\n"
    return [head.format(len(data)).encode() + data for data in images]


async def closed_loop(
    address: tuple[str, int],
    requests: Sequence[bytes],
    clients: int,
    *,
    seconds: float = 1e9,
    number: float = 1e12,
) -> Load:
    """Have clients send their next request when they have an answer, for so long or so many."""
    load, start = Load(), time.perf_counter()
    left = number

    async def client() -> None:
        nonlocal left
        connection = Connection(address, requests)
        while left > 0 and time.perf_counter() - start < seconds:
            left -= 1
            await connection.post(load)
        connection.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    load.seconds = time.perf_counter() - start
    return load


async def open_loop(
    address: tuple[str, int], requests: Sequence[bytes], *, per_second: float, seconds: float, seed: int = 1
) -> Load:
    """Send requests at random times, whatever has become of those before; wait for every answer."""
    load, randomly, idle = Load(), random.Random(seed), []  # type: Load, random.Random, list[Connection]
    tasks: set[asyncio.Task] = set()

    async def one() -> None:
        connection = idle.pop() if idle else Connection(address, requests)
        await connection.post(load)
        idle.append(connection)

    start = due = time.perf_counter()
    while due < start + seconds:
        due += randomly.expovariate(per_second)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        task = asyncio.ensure_future(one())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    load.seconds = time.perf_counter() - start
    for connection in idle:
        connection.close()
    return load


def capacity(model: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure closed loops of every number of clients, with and without batching."""
    requests, rows = requests_of(_photos()), []
    for batching, options in BATCHING.items():
        with ServiceProcess(model, *_options(args), *options) as service:
            asyncio.run(closed_loop(service.address, requests, 4, seconds=args.seconds / 4))
            for clients in CLIENTS:
                load = asyncio.run(closed_loop(service.address, requests, clients, seconds=args.seconds))
                good = load.statuses[200]
                row = {"batching": batching, "clients": clients, "answers": _statuses(load)}
                rows.append({**row, "per_second": round(good / load.seconds, 2), "ms": load.spread(200)})
                say(f"capacity: {rows[-1]}")
            _checked(service.end())
    return rows


def overload(model: Path, args: argparse.Namespace, best: float) -> list[dict[str, Any]]:
    """Measure open loops of several times the load that can be answered."""
    requests, rows = requests_of(_photos()), []
    queue = ("--max-queue", OVERLOAD_QUEUE)  # soon full
    with ServiceProcess(model, *_options(args), *BATCHING["on"], *queue) as service:
        asyncio.run(closed_loop(service.address, requests, 4, seconds=args.seconds / 4))
        for times in TIMES:
            rate = times * best
            load = asyncio.run(
                open_loop(service.address, requests, per_second=rate, seconds=2 * args.seconds)
            )
            rows.append(
                {
                    "times": times,
                    "offered_per_second": round(rate, 1),
                    "requests": sum(load.statuses.values()),
                    "answers": _statuses(load),
                    "unanswered": load.statuses[_NO_ANSWER],
                    "answered_per_second": round(load.statuses[200] / load.seconds, 2),
                    "ms": load.spread(200),
                    "refused_ms": load.spread(REFUSED),
                    "refused_after_50_ms": sum(ms > 50 for ms in load.milliseconds.get(REFUSED, [])),
                }
            )
            say(f"overload: {rows[-1]}")
        _checked(service.end())
    return rows


def endurance(model: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Send very many requests; return what the process held after the first tenth, and at the end."""
    requests = requests_of(_crops())
    with ServiceProcess(model, *_options(args), *BATCHING["on"]) as service:
        warm_up, samples = int(args.requests * WARM_UP), []
        asyncio.run(closed_loop(service.address, requests, ENDURANCE_CLIENTS, number=warm_up))
        first, parts = service.resources(), []
        for _ in range(9):
            part = closed_loop(service.address, requests, ENDURANCE_CLIENTS, number=warm_up)
            parts.append(asyncio.run(part))
            samples.append(service.resources())
            say(f"endurance: {len(parts)} of 9: {samples[-1]}")
        _checked(service.end())
    seconds = sum(part.seconds for part in parts)
    statuses: Counter = sum((part.statuses for part in parts), Counter())
    return {
        "requests": args.requests,
        "clients": ENDURANCE_CLIENTS,
        "answers": {str(status): number for status, number in sorted(statuses.items())},
        "per_second": round(sum(statuses.values()) / seconds, 1),
        "first": vars(first),
        "last": vars(samples[-1]),
        "most_mib": max(sample.mib for sample in samples),
        "growth": round(samples[-1].mib / first.mib - 1, 4),
    }


def _options(args: argparse.Namespace) -> tuple[object, ...]:
    return ("--backend", args.backend, "--threads", args.threads)


def _photos() -> list[bytes]:
    return [path.read_bytes() for path in sorted(IMAGES_DIR.glob("*.jpg"))]


def _crops() -> list[bytes]:
    """Return small parts of the embedded images."""
    images = [cv2.imread(str(path)) for path in sorted(IMAGES_DIR.glob("*.jpg"))]
    return [cv2.imencode(".jpg", image[100:196, 100:228])[1].tobytes() for image in images]


def _statuses(load: Load) -> dict[str, int]:
    return {str(status): number for status, number in sorted(load.statuses.items())}


def _checked(problems: list[str]) -> None:
    if problems:
        raise RuntimeError(f"the service: {'; '.join(problems)}")


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Measure, and write the parts that were measured beside those that were not."""
    args = _parser().parse_args(argv)
    before = json.loads(args.output.read_text()) if args.output.is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        model, small = args.model or Path(folder) / "embedded.onnx", args.small or Path(folder) / "small.onnx"
        if args.model is None:
            export(["--size", "448", "640", "--no-verify", "-o", str(model)])
        if args.small is None:
            fakes.save(small)
        found: dict[str, Any] = {**before, **_circumstances(args)}
        if "capacity" in args.parts:
            found["capacity"] = capacity(model, args)
        if "overload" in args.parts:
            best = max(row["per_second"] for row in found["capacity"] if row["batching"] == "on")
            found["overload"] = overload(model, args, best)
        if "endurance" in args.parts:
            found["endurance"] = endurance(small, args)
    write_json(args.output, found)
    return 0


def _circumstances(args: argparse.Namespace) -> dict[str, Any]:
    packages = ("uvicorn", "fastapi", "onnxruntime")
    return {
        **processor(),
        "cores": num_cores(),
        "backend": args.backend,
        "threads": args.threads,
        "seconds": args.seconds,
        "load_average": round(os.getloadavg()[0], 1),
        "versions": {"python": sys.version.split()[0], **{name: version(name) for name in packages}},
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serve_load", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    parser.add_argument("--model", type=Path, help="default: the embedded one, exported at 448x640")
    parser.add_argument("--small", type=Path, help="of the endurance (default: one of a few operators)")
    parser.add_argument("--backend", default="onnxruntime", help="default: %(default)s")
    parser.add_argument(
        "--threads", type=int, default=num_cores(), help="of the model (default: %(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="of a row (default: %(default)s)")
    parser.add_argument(
        "--requests", type=int, default=100_000, help="of the endurance (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, help="default: %(default)s")
    return parser


if __name__ == "__main__":
    sys.exit(main())
