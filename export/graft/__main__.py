"""``python -m export.graft MODEL.onnx --head HEAD -o out.onnx``: a detector's ONNX that returns detections.

Decoding, selection and NMS are appended to the graph; the batch, and where that is asked for the size, is freed. Then
the file is held against a decoder in NumPy on image files. The exit status is 0 where both find the same, 1 where they
differ, 2 where something was refused: without --head, which head the file fits.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from export.graft.arguments import looks_like_path
from runtime.cli import EXIT_DIFFERENT, EXIT_OK, CommandParser, command, positive, run_as_program, score


@command
def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command; return its exit status."""
    args = _parser().parse_args(argv)
    # Here, so that --help loads no onnx.
    from export.graft.command import DifferentError, graft

    try:
        made, verification = graft(
            args.network,
            args.head,
            args.output,
            images=args.images or (),
            check=args.verify,
            size=args.size and tuple(args.size),
            dynamic_size=args.dynamic_size,
            classes=_classes(args.classes),
            score_threshold=args.score,
            iou_threshold=args.iou,
            max_per_img=args.max_per_img,
            pre_nms=args.pre_nms,
            resize_with=args.resize_with,
        )
    except DifferentError as error:
        _print_cases(error.verification)
        print(f"error: {error}", file=sys.stderr)
        return EXIT_DIFFERENT
    notes = list(made.notes)
    if verification is not None:
        _print_cases(verification)
        notes += verification.notes
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    print(_summary(made, args.output))
    return EXIT_OK


def _print_cases(verification: "object") -> None:
    from rich.table import Table
    from rich.text import Text

    from runtime.console import table_console

    table = Table(title=f"the file beside a decoder in NumPy, at score {verification.score_threshold:.3g}")
    for heading in ("image", "batch", "found", "box px", "score", "masks"):
        table.add_column(
            heading, justify="left" if heading == "image" else "right", no_wrap=heading != "image"
        )
    for case in verification.cases:
        masks = "-" if case.mask is None else f"{case.mask:.1e}"
        counts = f"{case.found} of {case.expected}"
        table.add_row(
            Text(case.image, overflow="fold"),
            str(case.batch),
            counts,
            f"{case.box_px:.1e}",
            f"{case.score:.1e}",
            masks,
        )
    table_console().print(table)


def _summary(made: "object", path: Path) -> str:
    facts = made.metadata
    size = "size dynamic" if facts.size is None else f"{facts.size[0]}x{facts.size[1]}"
    parts = [f"head {made.head.name}", "batch dynamic", size, f"{len(facts.classes)} classes"]
    if facts.keypoints:
        parts.append(f"{len(facts.keypoints)} key points")
    if facts.masks != "none":
        parts.append(f"masks {facts.masks}")
    return f"{path}  {path.stat().st_size / 1e6:.1f} MB, {', '.join(parts)}"


def _classes(value: Optional[str]) -> Optional[list[str]]:
    """Return the names of a comma-separated list, or of a file with one a line.

    Raises:
        ValueError: one value means a file, and there is none.
    """
    if value is None:
        return None
    path = Path(value)
    if not path.is_file() and "," not in value and looks_like_path(value, ".txt"):
        found = "a folder" if path.is_dir() else "no such file"
        raise ValueError(
            f"--classes {value}: expected a file with one name a line, found {found}; check the path"
        )
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else value.split(",")
    return [line.strip() for line in lines if line.strip()]


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m export.graft",
        # None under `python -OO`.
        description=(__doc__ or "").replace("``", ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("network", type=Path, metavar="MODEL", help="an ONNX without decoding and NMS")
    parser.add_argument(
        "--head",
        metavar="HEAD",
        help="a name from docs/detectors.md, or a JSON file; left out: says which fits",
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("out/grafted.onnx"), help="default: %(default)s"
    )
    parser.add_argument("--size", type=positive, nargs=2, metavar=("H", "W"), help="of the input, px")
    parser.add_argument("--dynamic-size", action="store_true", help="any height and width")
    parser.add_argument("--classes", metavar="NAMES", help="comma-separated, or a file with one a line")
    parser.add_argument("--score", type=score, metavar="S", help="leave out detections at or below it")
    parser.add_argument("--iou", type=score, metavar="T", help="of the NMS")
    parser.add_argument("--max-per-img", type=positive, metavar="K", help="most detections of an image")
    parser.add_argument("--pre-nms", type=positive, metavar="N", help="most candidates that reach the NMS")
    parser.add_argument(
        "--resize-with", choices=("cv2", "pillow"), help="of the images; default: the head's, mostly OpenCV"
    )
    parser.add_argument(
        "--images", nargs="+", metavar="SOURCE", help="to verify with: files, folders, patterns"
    )
    parser.add_argument("--no-verify", dest="verify", action="store_false", help="do not compare with NumPy")
    return parser


if __name__ == "__main__":
    run_as_program(main)
