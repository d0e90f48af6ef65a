"""Detect objects in image files: ``python -m runtime.infer [SOURCE ...]``.

Prints a table, and writes overlays (PNG), a line of JSON for each image as it is done (``detections.jsonl``) and at the
end COCO results (JSON; see ``runtime.coco_writer``). The exit status is 0, 1 if images were skipped because they cannot
be read, 2 if nothing could be done or an error ended the run, or 130 or 143 after SIGINT or SIGTERM; what was finished
by then is written.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from runtime.backends import BACKENDS, backend_name, supported_options
from runtime.cli import (
    DEFAULT_IMAGES,
    CommandParser,
    add_host,
    add_openvino,
    batch,
    command,
    run_as_program,
    score,
    selected_images,
    threads,
)
from runtime.engine.config import REBUILD
from runtime.interrupts import PATIENCE_SECONDS, held, loading, released

DEFAULT_MODEL = Path("out") / "maskrcnn.onnx"


@command
def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command; return its exit status."""
    args = _parser().parse_args(argv)
    # Only now: signals are handled, and the arguments are known to be good.
    with loading():
        from runtime.console import status
        from runtime.detector import Detector
        from runtime.inference.options import InferenceOptions
        from runtime.inference.report import print_report
        from runtime.inference.run import check_outputs, detect_and_write

    paths = selected_images(args.sources or [str(DEFAULT_IMAGES)])
    check_outputs(args.out, [args.model, *paths])
    options = InferenceOptions(args.out, args.score, args.json_score, args.overlays)
    with held():
        with released(PATIENCE_SECONDS), status(f"loading {args.model}"):
            detector = Detector(args.model, args.backend, batch_size=args.batch, **_backend_options(args))
        with detector:
            report = detect_and_write(paths, detector, options)
        print_report(report, options)
        return report.exit_status


def _backend_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options that were given; the backend refuses those that it has not got."""
    names = ("device", "host", "threads", "precision", "streams", "plugins", "rebuild")
    options = {name: getattr(args, name) for name in names}
    name = backend_name(args.model, args.backend, args.device)
    return {
        **options,
        **supported_options(name, {"notify": lambda line: print(line, file=sys.stderr, flush=True)}),
    }


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m runtime.infer", doc=__doc__)
    parser.add_argument(
        "sources",
        nargs="*",
        metavar="SOURCE",
        help="image files, folders and glob patterns (default: the embedded examples/images)",
    )
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
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder (default: %(default)s)")
    parser.add_argument("--no-overlays", dest="overlays", action="store_false", help="write no PNGs")
    return parser


if __name__ == "__main__":
    run_as_program(main)
