"""``python -m export.convert MODEL --for TARGET -o DIR``: the files that another program wants, and its command.

Targets are ``onnx`` (standard operators alone), ``openvino`` (an IR), ``triton`` (a model repository), ``trtexec`` and
``deepstream``. What can be run here is compared with the model. The exit status is 0, or 2 where something was refused
or differs.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from runtime.cli import EXIT_OK, CommandParser, batch, command, positive, run_as_program
from runtime.interrupts import loading

if TYPE_CHECKING:
    from export.convert.api import Conversion

# As `export.convert.api.TARGETS`, which loads onnx.
TARGETS = ("triton", "trtexec", "openvino", "deepstream", "onnx")


@command
def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command; return its exit status."""
    args = _parser().parse_args(argv)
    with loading():
        from export.convert.api import LAYOUTS, convert

    made = convert(
        args.model,
        args.target,
        args.output,
        input=LAYOUTS[args.layout] if args.input == "uint8" else "float32",
        images=args.images or (),
        check=args.verify,
        **_options(args),
    )
    _print(made)
    return EXIT_OK


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the other fields of ``export.convert.source.Options``."""
    from runtime.engine.plugins import FILE_NAME, find_plugins
    from runtime.engine.shape_options import size_ranges

    if args.input != "uint8" and args.layout != "nchw":
        raise ValueError("--layout: expected --input uint8 with it, found none; give both")
    height, width = size_ranges(args.size)
    return {
        "name": args.name,
        "batch": tuple(args.batch),
        "height": height,
        "width": width,
        "tensorrt": args.tensorrt,
        "precision": args.precision,
        # It may be on another machine alone.
        "plugins": args.plugins or find_plugins() or Path("/path/to") / FILE_NAME,
        "instances": args.instances,
    }


def _print(made: "Conversion") -> None:
    for name, what in made.made.files.items():
        print(f"{made.folder / name}  {(made.folder / name).stat().st_size / 1e6:.1f} MB, {what}")
    if made.num_compared is not None:
        print(f"{made.num_compared} detections found again")
    print("\n".join(("", *made.made.commands)))
    for note in made.made.notes:
        print(f"note: {note}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m export.convert", doc=__doc__)
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help="an ONNX of this tool; for triton also an engine")
    add("--for", dest="target", required=True, choices=TARGETS, help="what reads the files")
    add("-o", "--output", type=Path, required=True, metavar="DIR", help="the folder")
    add(
        "--input",
        choices=("float32", "uint8"),
        default="float32",
        help="uint8: the graph takes pixels, and normalises them (default: %(default)s)",
    )
    add("--layout", choices=("nchw", "nhwc"), default="nchw", help="of uint8 pixels (default: %(default)s)")
    add("--name", default="maskrcnn", help="of the model in triton (default: %(default)s)")
    add(
        "--batch",
        nargs=3,
        type=batch,
        metavar=("MIN", "OPT", "MAX"),
        default=(1, 2, 8),
        help="images at once (default: 1 2 8)",
    )
    add(
        "--size",
        nargs="+",
        metavar="HxW",
        help="MIN OPT MAX, or one, for a model of any size (default: what its resize rule needs)",
    )
    add("--tensorrt", default="10.3", metavar="RELEASE", help="that reads the ONNX (default: %(default)s)")
    add(
        "--precision",
        choices=("fp32", "fp16"),
        default="fp32",
        help="of trtexec and deepstream; fp16 from TensorRT 10.12 on (default: %(default)s)",
    )
    add("--plugins", type=Path, help="the plugin library there (default: where it is here)")
    add("--instances", type=positive, default=1, help="of the model in triton (default: %(default)s)")
    add("--images", nargs="+", metavar="SOURCE", help="to compare with: files, folders, patterns")
    add("--no-verify", dest="verify", action="store_false", help="do not compare")
    return parser


if __name__ == "__main__":
    run_as_program(main)
