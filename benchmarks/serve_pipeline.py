"""``python -m benchmarks.serve_pipeline MODEL IMAGES``: images per second over HTTP, next to the same model without.

Without HTTP it is the runtime's pipeline, image files to COCO run lengths, once it is full. Over HTTP it is
``runtime.serve`` in a process of its own, or in several, and clients in others, which send the files' bytes and read
JSON with run lengths. Both run images of one size in the network's input together.
"""

import argparse
import asyncio
import json
import multiprocessing
import re
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Optional

from benchmarks.cpu_case import RESULTS, processor
from benchmarks.serve_load import closed_loop, requests_of
from benchmarks.serve_process import ServiceProcess
from benchmarks.throughput import full_pipeline
from runtime.cli import CommandParser, positive
from runtime.console import say, write_json
from runtime.detector import Detector
from runtime.image_files import find_images

_OK = 200
_WARM_SECONDS = 3.0
_JOIN_SECONDS = 120.0


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Measure both, and write the JSON."""
    args = _parser().parse_args(argv)
    paths = find_images([str(args.images)])
    found: dict[str, Any] = {
        **processor(),
        "model": args.model.name,
        "backend": args.backend,
        "batch": args.batch,
        "images": len(paths),
        "clients": [args.processes, args.connections],
        "server_processes": args.server_processes,
        "pipeline_per_s": _pipeline(args, paths),
    }
    say(f"pipeline: {found['pipeline_per_s']:.1f} images/s")
    found |= _over_http(args, [path.read_bytes() for path in paths])
    found["share"] = found["http_per_s"] / found["pipeline_per_s"]
    write_json(args.output, found)
    say(json.dumps(found))
    return int(set(found["answers"]) != {str(_OK)})


def _pipeline(args: argparse.Namespace, paths: Sequence[Path]) -> float:
    """Return images per second of a pipeline that is full: it is neither filled nor drained while it is timed."""
    with Detector(args.model, args.backend, batch_size=args.batch) as detector:
        return full_pipeline(detector, paths, args.seconds, _WARM_SECONDS).images_per_s


def _over_http(args: argparse.Namespace, images: Sequence[bytes]) -> dict[str, Any]:
    options = ["--backend", args.backend, "--max-batch", args.batch, "--max-queue", args.queue]
    options += ["--processes", args.server_processes]
    with ServiceProcess(args.model, *options) as service:
        _clients(service.address, images, args, _WARM_SECONDS)
        answers, rate = _clients(service.address, images, args, args.seconds)
        mean_batch = _mean_batch(service.address)
        problems = service.end()
    if problems:
        raise RuntimeError(f"the service: {'; '.join(problems)}")
    numbers = {str(status): number for status, number in answers.items()}
    return {"http_per_s": rate, "mean_batch": mean_batch, "answers": numbers}


def _mean_batch(address: tuple[str, int]) -> float:
    """Return how many images a batch of the service had."""
    with urllib.request.urlopen("http://{}:{}/metrics".format(*address), timeout=_JOIN_SECONDS) as answer:
        text = answer.read().decode()
    total, number = (
        float(re.search(rf"^maskrcnn_batch_images_{name}{{.*}} (\S+)", text, re.MULTILINE)[1])
        for name in ("sum", "count")
    )
    return total / number


def _clients(
    address: tuple[str, int], images: Sequence[bytes], args: argparse.Namespace, seconds: float
) -> tuple[Counter, float]:
    """Return what became of requests of many clients, and answers per second, of all of them together."""
    context = multiprocessing.get_context("spawn")
    results, together = context.Queue(), context.Barrier(args.processes)
    parts = [
        context.Process(target=_client, args=(address, images, args.connections, seconds, together, results))
        for _ in range(args.processes)
    ]
    for part in parts:
        part.start()
    found = [results.get(timeout=seconds + _JOIN_SECONDS) for _ in parts]
    for part in parts:
        part.join(_JOIN_SECONDS)
    statuses: Counter = sum((statuses for statuses, _ in found), Counter())
    return statuses, statuses[_OK] / in_all(times for _, times in found)


def in_all(times: Iterable[tuple[float, float]]) -> float:
    """Return the seconds from the first begin to the last end; rates of parts that overlap do not add up."""
    begins, ends = zip(*times)
    return max(ends) - min(begins)


def _client(
    address: tuple[str, int],
    images: Sequence[bytes],
    connections: int,
    seconds: float,
    together: Any,
    results: Any,
) -> None:
    requests = requests_of(images)
    together.wait(_JOIN_SECONDS)
    begin = time.monotonic()
    load = asyncio.run(closed_loop(address, requests, connections, seconds=seconds))
    results.put((load.statuses, (begin, time.monotonic())))


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m benchmarks.serve_pipeline", doc=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--backend", default="auto", help="default: %(default)s")
    parser.add_argument("--batch", type=positive, default=8, help="default: %(default)s")
    parser.add_argument("--queue", type=positive, default=256, help="of the service; default: %(default)s")
    parser.add_argument(
        "--server-processes", type=positive, default=1, help="of the service; default: %(default)s"
    )
    parser.add_argument("--processes", type=positive, default=4, help="of clients; default: %(default)s")
    parser.add_argument("--connections", type=positive, default=16, help="of each; default: %(default)s")
    parser.add_argument("--seconds", type=float, default=8.0, help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=RESULTS / "serve_pipeline.json")
    return parser


if __name__ == "__main__":
    sys.exit(main())
