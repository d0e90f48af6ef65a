"""Detect objects in images and videos: ``python -m runtime.infer [SOURCE ...]``.

Prints a table, and writes overlays (PNG), a line of JSON for each image as it is done (``detections.jsonl``) and at the
end COCO results (JSON; see ``runtime.coco_writer``). Of a video there is a line for each frame, and a video that is
drawn on. With ``-`` as source, images come as lines of JSON on standard input and are answered on standard output.

The exit status is 0, 1 if images were skipped because they cannot be read, 2 if nothing could be done or an error ended
the run, or 130 or 143 after SIGINT or SIGTERM; what was finished by then is written.
"""

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from runtime.backends import BACKENDS
from runtime.cli import (
    DEFAULT_IMAGES,
    CommandParser,
    add_host,
    add_openvino,
    batch,
    command,
    given_options,
    not_negative,
    positive,
    run_as_program,
    score,
    threads,
)
from runtime.engine.config import REBUILD
from runtime.interrupts import PATIENCE_SECONDS, held, loading, released
from runtime.messages import printable

if TYPE_CHECKING:
    from runtime.detector import Detector
    from runtime.inference.options import InferenceOptions
    from runtime.inference.run import Own
    from runtime.pipeline import Source

DEFAULT_MODEL = Path("out") / "maskrcnn.onnx"


@command
def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command; return its exit status."""
    args = _parser().parse_args(argv)
    # Only now: signals are handled, and the arguments are known to be good.
    with loading():
        from runtime.inference.sources import listed_sources, select_sources

    names = [*args.sources, *(listed_sources(args.list) if args.list else ())]
    if not names:
        _note(f"no source is named; the images that come with the package are taken, {DEFAULT_IMAGES}")
    sources = select_sources(names or [str(DEFAULT_IMAGES)], recursive=args.recursive)
    for line in sources.ignored:
        print(printable(line), file=sys.stderr, flush=True)
    if sources.from_stdin:
        return _answer(args)
    return _videos(sources.videos, args) if sources.videos else _images(sources.images, args)


def _images(paths: "Sequence[Source]", args: argparse.Namespace) -> int:
    with loading():
        from runtime.inference.report import print_report
        from runtime.inference.run import check_outputs, detect_and_write

    _refuse(args, ("stride", "max_fps", "track"), "videos", "images")
    paths, own = _with_own_ids(paths, args.annotations)
    inputs = [args.model, *(path for path in paths if isinstance(path, Path))]
    check_outputs(args.out, inputs if args.annotations is None else [args.annotations, *inputs])
    options = _options(args)
    with held(), _detector(args) as detector:
        _note_on_keypoints(detector, options)
        _note_score(detector, ("score", "json_score"), args)
        report = detect_and_write(paths, detector, options, own)
        print_report(report, options)
        return report.exit_status


def _note_on_keypoints(detector: "Detector", options: "InferenceOptions") -> None:
    """Say on standard error what YOLO's labels leave out."""
    number = len(detector.metadata.keypoints)
    if number and "yolo" in options.formats:
        message = f"note: --format yolo: boxes, or outlines; the model's {number} key points are left out of its labels"
        print(message, file=sys.stderr, flush=True)


def _videos(sources: Sequence[str], args: argparse.Namespace) -> int:
    with loading():
        from runtime.inference.run import check_outputs
        from runtime.inference.videos import detect_videos, print_video_report

    _refuse(args, ("annotations", "format", "crops"), "images", "videos")
    check_outputs(args.out, [args.model, *map(Path, sources)])
    options = _options(args)
    with held(), _detector(args) as detector:
        _note_score(detector, ("score", "json_score"), args)
        report = detect_videos(sources, detector, options)
        print_video_report(report, options)
        return report.exit_status


def _answer(args: argparse.Namespace) -> int:
    with loading():
        from runtime.inference.requests import answer_requests

    names = ("annotations", "format", "crops", "resume", "stride", "max_fps", "track")
    _refuse(args, names, "files", "standard input")
    if sys.stdin is None:
        raise ValueError("sources: expected JSON lines on standard input, found it closed; pipe them in")
    with held(), _detector(args) as detector:
        _note_score(detector, ("json_score",), args)
        return answer_requests(sys.stdin.buffer, detector, _options(args)).exit_status


def _refuse(args: argparse.Namespace, names: Sequence[str], expected: str, found: str) -> None:
    """Refuse options that mean nothing for what is detected in."""
    given = next((name for name in names if getattr(args, name)), None)
    if given is not None:
        raise ValueError(
            f"--{given.replace('_', '-')}: expected {expected} as sources, found {found}; leave it out"
        )


def _note_score(detector: "Detector", names: Sequence[str], args: argparse.Namespace) -> None:
    """Say that scores of these options are less than the least that the model's file gives."""
    least = detector.metadata.score_threshold
    lower = [
        f"--{name.replace('_', '-')} {getattr(args, name):g}" for name in names if getattr(args, name) < least
    ]
    if lower:
        _note(
            f"{', '.join(lower)}: the model itself leaves out what is at or below {least:g}; for more, make its file "
            "again with a lower threshold: `python -m export.graft` with --score, `python -m export.maskrcnn` with "
            "score_thr in the config's test_cfg"
        )


def _note(text: str) -> None:
    print(printable(f"note: {text}"), file=sys.stderr, flush=True)


def _with_own_ids(
    paths: "Sequence[Source]", annotations: Optional[Path]
) -> "tuple[Sequence[Source], Optional[Own]]":
    """Return the images that the annotations list, and their ids."""
    if annotations is None:
        return paths, None
    with loading():
        from runtime.inference.own_ids import match_images, read_own_dataset
        from runtime.inference.run import Own

    dataset = read_own_dataset(annotations)
    matched = match_images(dataset, paths)
    for note in matched.notes:
        _note(note)
    return matched.paths, Own(dataset, matched.entries)


@contextmanager
def _detector(args: argparse.Namespace) -> "Iterator[Detector]":
    with loading():
        from runtime.console import status
        from runtime.detector import Detector
    with released(PATIENCE_SECONDS), status(f"loading {args.model}"):
        detector = Detector(
            args.model, args.backend, batch_size=args.batch, **given_options(args.model, args)
        )
    with detector:
        yield detector


def _options(args: argparse.Namespace) -> "InferenceOptions":
    from runtime.inference.options import InferenceOptions

    return InferenceOptions(
        out=args.out,
        score=args.score,
        json_score=args.json_score,
        overlays=args.overlays,
        classes=tuple(args.classes),
        formats=tuple(args.format),
        crops=args.crops,
        resume=args.resume,
        by_size=args.by_size,
        stride=args.stride or 1,
        max_fps=args.max_fps,
        track=args.track,
    )


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m runtime.infer", doc=__doc__)
    parser.add_argument(
        "sources",
        nargs="*",
        metavar="SOURCE",
        help="image files, folders, glob patterns and http(s) addresses; or video files, rtsp:// and camera:0; or -, "
        "JSON lines from standard input (default: the embedded examples/images)",
    )
    parser.add_argument("--list", type=Path, metavar="FILE", help="a text file with a source in each line")
    parser.add_argument("--recursive", action="store_true", help="folders with those within them")
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="default: %(default)s")
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default="auto",
        help="auto (default): TensorRT where it, the plugin library and a GPU are there, otherwise OpenVINO where it "
        "is installed, otherwise onnxruntime",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="cuda: of onnxruntime (default: cpu)")
    parser.add_argument(
        "--plugins", type=Path, help="plugin library of TensorRT (default: where it is built)"
    )
    parser.add_argument(
        "--rebuild",
        choices=REBUILD,
        help="what to do about an ONNX without a good engine (default: auto, build it)",
    )
    parser.add_argument(
        "--threads", type=threads, help="CPU threads of the model (default: as many as there are cores)"
    )
    add_openvino(parser)
    parser.add_argument("--batch", type=batch, default=1, help="images at once (default: %(default)s)")
    add_host(parser)
    parser.add_argument(
        "--score", type=score, default=0.3, help="least score in table and overlays (default: %(default)s)"
    )
    parser.add_argument(
        "--json-score", type=score, default=0.05, help="least score in the JSON files (default: %(default)s)"
    )
    parser.add_argument("--classes", nargs="+", default=(), metavar="NAME", help="write only these classes")
    parser.add_argument(
        "--annotations", type=Path, metavar="JSON", help="write the ids of this data set in COCO's format"
    )
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder (default: %(default)s)")
    parser.add_argument(
        "--no-overlays", dest="overlays", action="store_false", help="write no PNGs, and no videos"
    )
    parser.add_argument(
        "--format",
        nargs="+",
        default=(),
        choices=("coco", "labelme", "yolo"),
        help="labels of each image too; COCO's results are written in any case",
    )
    parser.add_argument(
        "--crops",
        choices=("box", "mask"),
        help="cut out each object: its box, or with its mask as transparency",
    )
    parser.add_argument(
        "--by-size",
        action="store_true",
        help="of a model for any size: images of one size run together, none padded to another's",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on where an interrupted run into --out ended"
    )
    _add_video_options(parser)
    return parser


def _add_video_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("videos")
    group.add_argument("--stride", type=positive, metavar="N", help="every Nth frame (default: 1)")
    group.add_argument("--max-fps", type=frame_rate, metavar="F", help="at most F frames of a second")
    group.add_argument("--track", action="store_true", help="follow objects from frame to frame")


def frame_rate(text: str) -> float:
    """Parse frames per second, more than 0."""
    value = not_negative(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected more than 0, found {text[:40]!r}")
    return value


if __name__ == "__main__":
    run_as_program(main)
