"""``python -m export.reference [CONFIG CHECKPOINT]``: record what the unpatched PyTorch model finds in images.

The ``.npz`` (``runtime.comparison.recording``) is what ``runtime.compare`` and ``runtime.evaluate`` hold a model
against on a box that has no mmdet.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape

from export.api import check_device
from export.metadata import metadata_from_model
from export.model import LoadedModel, load_model
from export.verify import MmdetInference
from runtime.cli import add_images, positive
from runtime.comparison.recording import RecordingWriter
from runtime.comparison.sources import batches
from runtime.console import tracked
from runtime.detections import Detections
from runtime.embedded import CHECKPOINT_PATH, CONFIG_PATH
from runtime.image_files import find_images
from runtime.masks import MaskCrop
from runtime.metadata import ModelMetadata

DEFAULT_OUTPUT = Path("out/reference.npz")
EXIT_REFUSED = 2


@dataclass(frozen=True, eq=False)
class WholeMasks:
    """Masks as mmdet returns them, (n, H, W) bool at original resolution; a ``MaskSource``."""

    masks: np.ndarray

    def crop(self, index: int) -> MaskCrop:
        """Return mask ``index``, all of it."""
        return MaskCrop(self.masks[index], 0, 0)

    def select(self, keep: np.ndarray) -> "WholeMasks":
        """Return the masks at ``keep`` ((n,) bool or indices)."""
        return WholeMasks(self.masks[keep])


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Record, and return 0, or 2 for refused input."""
    args = _parser().parse_args(argv)
    console = Console()
    try:
        _check_arguments(args)
        images = find_images(args.images)
        loaded = _load(args)
        metadata = metadata_from_model(loaded, size=args.size, dynamic_size=args.dynamic_size, masks="crop")
        summary = record_reference(loaded, metadata, images, args.output, batch_size=args.batch)
    except (OSError, ValueError, RuntimeError) as error:
        console.print(f"[bold red]error[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        return EXIT_REFUSED
    console.print(escape(f"{args.output}: {summary}"), highlight=False, soft_wrap=True)
    return 0


def record_reference(
    loaded: LoadedModel, metadata: ModelMetadata, images: Sequence[Path], output: Path, *, batch_size: int
) -> str:
    """Take images through mmdet's own test pipeline and model, in float32, and write an ``.npz``.

    Args:
        loaded: the unpatched model.
        metadata: of the file that it is a reference for; with a size of its own, mmdet resizes into that.
        images: the files.
        output: the ``.npz``.
        batch_size: images that run at once.

    Returns:
        What was recorded, in words.

    Raises:
        OSError, ValueError: an image cannot be read or does not fit into the size.
    """
    device = next(loaded.model.parameters()).device
    made_with = {**metadata.versions, "device": str(device), "batch": batch_size}
    source = f"PyTorch {torch.__version__}, {loaded.name}, {device}"
    num_detections, start = 0, time.perf_counter()
    with RecordingWriter(output, metadata, source=source, made_with=made_with) as writer:
        results = _results(loaded, metadata, images, batch_size)
        for path, detections in tracked(results, len(images), "recording"):
            writer.add(path, detections)
            num_detections += len(detections)
    seconds = time.perf_counter() - start
    size = "x".join(map(str, metadata.size)) if metadata.size else "dynamic"
    return (
        f"{num_detections} detections in {len(images)} images, {source}, size {size}, "
        f"{len(images) / seconds:.2f} images/s"
    )


def _results(
    loaded: LoadedModel, metadata: ModelMetadata, images: Sequence[Path], batch_size: int
) -> Iterator[tuple[Path, Detections]]:
    mmdet = MmdetInference(loaded, metadata)
    for paths in batches(images, batch_size):
        prepared = mmdet.prepare(paths)
        for index, (path, arrays) in enumerate(zip(paths, mmdet.detect(prepared))):
            masks = None if arrays.masks is None else WholeMasks(arrays.masks)
            labels = arrays.labels.astype(np.int32)
            size = prepared.geometry(index)[0]
            yield path, Detections(arrays.boxes, arrays.scores, labels, size, metadata.classes, masks)


def _load(args: argparse.Namespace) -> LoadedModel:
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


def _check_arguments(args: argparse.Namespace) -> None:
    if args.config is not None and args.checkpoint is None:
        raise ValueError(
            f"expected CONFIG and CHECKPOINT, found only {args.config}; "
            "give the checkpoint, or `none` for random weights"
        )
    if args.size is not None and args.dynamic_size:
        raise ValueError("--size, --dynamic-size: expected one of them, found both")
    check_device(args.device)
    args.size = None if args.size is None else tuple(args.size)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m export.reference", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "config", nargs="?", help="an mmdet config: a file, or the bare name of one that mmdet ships"
    )
    parser.add_argument(
        "checkpoint", nargs="?", type=Path, help="its weights (.pth); `none` for random weights"
    )
    add_images(parser)
    parser.add_argument("-o", "--output", type=Path, default=DEFAULT_OUTPUT, help="default: %(default)s")
    parser.add_argument(
        "--size",
        nargs=2,
        type=int,
        metavar=("H", "W"),
        help="the network's fixed input size, px, of a file exported with it; default: the config's own test pipeline",
    )
    parser.add_argument(
        "--dynamic-size",
        action="store_true",
        help="as in export.maskrcnn; needed where the test pipeline makes one size alone",
    )
    parser.add_argument(
        "--max-per-img", type=int, metavar="K", help="most detections per image; default: the config's"
    )
    parser.add_argument("--device", default="cpu", help="where PyTorch runs; default: %(default)s")
    parser.add_argument("--batch", type=positive, default=1, help="images at once; default: %(default)s")
    parser.add_argument(
        "--trust-checkpoint", action="store_true", help="let an old checkpoint's pickle run code"
    )
    parser.add_argument(
        "--allow-mismatch", action="store_true", help="record although checkpoint and model keys differ"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
