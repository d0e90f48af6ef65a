"""``python -m export.reference [CONFIG CHECKPOINT]``: record what the unpatched PyTorch model finds in images.

The ``.npz`` (``runtime.comparison.recording``) is what ``runtime.compare`` and ``runtime.evaluate`` hold a model
against on a box that has no mmdet.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from export.arguments import MIN_OPSET, add_model, add_shape, check_request
from runtime.cli import (
    EXIT_OK,
    CommandParser,
    add_images,
    batch,
    command,
    run_as_program,
    selected_images,
)
from runtime.files import refuse_inputs
from runtime.interrupts import loading
from runtime.messages import printable

if TYPE_CHECKING:
    from export.model import LoadedModel

DEFAULT_OUTPUT = Path("out/reference.npz")


@command
def main(argv: Optional[Sequence[str]] = None) -> int:
    """Record, and return 0, or 2 for refused input."""
    args = _parser().parse_args(argv)
    args.size = None if args.size is None else tuple(args.size)
    check_request(
        args.config,
        args.checkpoint,
        size=args.size,
        dynamic_size=args.dynamic_size,
        opset=MIN_OPSET,
        max_per_img=args.max_per_img,
        device=args.device,
    )
    images = selected_images(args.images)
    refuse_inputs(args.output, [p for p in (args.config, args.checkpoint, *images) if p is not None])
    # Only now: signals are handled, and the arguments are known to be good.
    with loading():
        from export.api import check_device
        from export.metadata import metadata_from_model
        from export.recorded import record_reference

    check_device(args.device)
    loaded = _load(args)
    metadata = metadata_from_model(loaded, size=args.size, dynamic_size=args.dynamic_size, masks="crop")
    summary = record_reference(loaded, metadata, images, args.output, batch_size=args.batch)
    print(printable(f"{args.output}: {summary}"))
    return EXIT_OK


def _load(args: argparse.Namespace) -> "LoadedModel":
    from export.model import load_model
    from runtime.embedded import CHECKPOINT_PATH, CONFIG_PATH

    config, checkpoint = args.config, args.checkpoint
    if config is None:
        config, checkpoint = str(CONFIG_PATH), CHECKPOINT_PATH
    return load_model(
        config,
        None if str(checkpoint) == "none" else checkpoint,
        device=args.device,
        max_per_img=args.max_per_img,
        trust_pickle=args.trust_checkpoint,
        allow_mismatch=args.allow_mismatch,
    )


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m export.reference", doc=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=DEFAULT_OUTPUT, help="default: %(default)s")
    add_model(parser)
    add_images(parser)
    add_shape(parser)
    parser.add_argument("--batch", type=batch, default=1, help="images at once; default: %(default)s")
    return parser


if __name__ == "__main__":
    run_as_program(main)
