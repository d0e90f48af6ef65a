"""``python -m benchmarks.pipeline_parts MODEL IMAGES``: what limits images per second, from files to run lengths.

Reading and decoding alone, by threads; the whole way, by streams and threads; and the device with its share of Python
alone, on images that are decoded and in page-locked memory. Each pipeline is full while it is timed.
"""

import sys
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from itertools import cycle
from pathlib import Path
from typing import Any, Optional

from benchmarks.cpu_case import processor
from benchmarks.throughput import full_pipeline
from runtime.cli import CommandParser
from runtime.console import write_json
from runtime.detector import Detector
from runtime.image_files import find_images
from runtime.images import read_image
from runtime.pipeline import in_threads, run_batches

WARM_SECONDS = 1.0


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Measure, print each row, write the JSON, return 0."""
    args = _parser().parse_args(argv)
    paths = [Path(path) for path in find_images([args.images])]
    rows: list[dict[str, Any]] = []

    def add(**row: Any) -> None:
        rows.append(row)
        print(row, flush=True)

    for threads in args.threads:
        images = in_threads(read_image, cycle(paths), threads, 2 * threads)
        add(part="files to pixels", threads=threads, **_rate(images, args.seconds))
    for streams in args.streams:
        with Detector(args.model, args.backend, batch_size=args.batch, streams=streams) as detector:
            for threads in args.threads:
                spent: dict[str, float] = {}
                cpu = time.process_time()
                begin = time.monotonic()
                found = full_pipeline(
                    detector, paths, args.seconds, WARM_SECONDS, threads=threads, timings=spent
                )
                passed = time.monotonic() - begin
                number = found.images_per_s * passed
                add(
                    part="files to run lengths",
                    streams=streams,
                    threads=threads,
                    images_per_s=found.images_per_s,
                    cores_busy=(time.process_time() - cpu) / passed,
                    ms_per_image={name: value / number for name, value in spent.items()},
                )
            staged = _staged(detector, paths, args.batch)
            add(part="staged to run lengths", streams=streams, **_rate(staged, args.seconds))
    write_json(
        args.output,
        {**processor(), "model": args.model.name, "images": len(paths), "batch": args.batch, "rows": rows},
    )
    return 0


def _staged(detector: Detector, paths: Sequence[Path], batch: int) -> Generator[Any, None, None]:
    """Yield detections of images that lie decoded in page-locked memory, with their run lengths made."""
    frames = [detector.runner.stage(read_image(path)) for path in paths]
    groups = cycle([frames[i : i + batch] for i in range(0, len(frames) - batch + 1, batch)])
    for _, found in run_batches(detector.runner, ((None, group) for group in groups)):
        for detections in found:
            detections.rle()
            yield detections


def _rate(items: Generator[Any, None, None], seconds: float) -> dict[str, float]:
    with closing(items):
        for timed in (WARM_SECONDS, seconds):
            begin, cpu, number = time.monotonic(), time.process_time(), 0
            while time.monotonic() - begin < timed:
                next(items)
                number += 1
            passed = time.monotonic() - begin
    return {"images_per_s": number / passed, "cores_busy": (time.process_time() - cpu) / passed}


def _parser() -> CommandParser:
    parser = CommandParser(prog="python -m benchmarks.pipeline_parts", doc=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path, help="folder")
    parser.add_argument("--backend", default="tensorrt", help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 2], help="default: 1 2")
    parser.add_argument("--threads", type=int, nargs="+", default=[16, 14, 8], help="default: 16 14 8")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each row; default: %(default)s")
    parser.add_argument("--output", type=Path, required=True)
    return parser


if __name__ == "__main__":
    sys.exit(main())
