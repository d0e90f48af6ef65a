"""What an export is asked for, and what of it can be refused before PyTorch is loaded, which takes seconds."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from runtime.cli import count

DEFAULT_OUTPUT = Path("out/maskrcnn.onnx")
SUFFIX = ".onnx"
# Their own tools read no local functions.
INLINING_BACKENDS = ("openvino",)
MIN_OPSET = 16
MAX_OPSET = 20
# Rows of the outputs. 3000 masks of 28x28 take 9 MB an image, and the mask head's features 8 GB.
MAX_PER_IMG = 3000
# Of --size, px. A feature map of that size squared takes gigabytes.
MAX_SIZE = 8192
_DEVICE = re.compile(r"cpu|cuda(:\d{1,3})?")


def check_request(
    config: Any,
    checkpoint: Any,
    *,
    size: Optional[Sequence[int]],
    dynamic_size: bool,
    opset: int,
    max_per_img: Optional[int],
    device: str,
    images: Any = None,
    verify: bool = True,
    for_backend: Optional[str] = None,
) -> None:
    """Refuse what no export can be.

    Raises:
        ValueError: names the option as the command line has it.
    """
    if config is not None and checkpoint is None:
        raise ValueError(
            f"expected CONFIG and CHECKPOINT, found only {config}; "
            "give the checkpoint, or `none` for random weights"
        )
    if size is not None and dynamic_size:
        raise ValueError(
            f"--size, --dynamic-size: expected one of them, found both; --size {size[0]} {size[1]} fixes the size, "
            "without it images have the size that mmdet gives them"
        )
    if size is not None and not 1 <= min(size) <= max(size) <= MAX_SIZE:
        raise ValueError(
            f"--size: expected at most {MAX_SIZE} px, and 1 at least, found {size[0]} {size[1]}; give another size"
        )
    if max_per_img is not None and not 1 <= max_per_img <= MAX_PER_IMG:
        raise ValueError(f"--max-per-img: expected 1 to {MAX_PER_IMG}, found {max_per_img}")
    if images is not None and not verify:
        raise ValueError("--images, --no-verify: expected one of them, found both; leave either out")
    if for_backend not in (None, *INLINING_BACKENDS):
        raise ValueError(
            f"--for: expected one of {', '.join(INLINING_BACKENDS)}, found {for_backend}; leave it out"
        )
    check_opset(opset)
    check_device_name(device)


def check_opset(opset: int) -> None:
    """Refuse an opset that the graph cannot have.

    Raises:
        ValueError: names the range, and why.
    """
    if not MIN_OPSET <= opset <= MAX_OPSET:
        raise ValueError(
            f"--opset: expected {MIN_OPSET} to {MAX_OPSET}, found {opset}: RoiAlign's half_pixel mode begins "
            f"at opset {MIN_OPSET}, and PyTorch's TorchScript exporter ends at {MAX_OPSET}"
        )


def check_device_name(device: str) -> None:
    """Refuse what cannot be a device.

    Raises:
        ValueError: it is not.
    """
    if not _DEVICE.fullmatch(str(device)):
        raise ValueError(
            f"--device: expected a device that PyTorch sees, found {device}; give cpu, cuda or cuda:0, or leave it out"
        )


def check_output(output: Path) -> None:
    """Refuse a name that no ONNX file can have.

    Raises:
        ValueError: a folder, or another suffix.
    """
    if output.is_dir():
        raise ValueError(
            f"-o {output}: expected the name of a file, found a folder; give {output / 'model.onnx'}"
        )
    if output.exists() and not output.is_file():
        raise ValueError(
            f"-o {output}: expected a regular file or a new name, found a device or pipe; name another"
        )
    if output.suffix.lower() != SUFFIX:
        raise ValueError(
            f"-o {output}: expected a name that ends in {SUFFIX}, found {output.suffix or 'no suffix'!r}; "
            f"give {output.with_name((output.stem or 'model') + SUFFIX)}"
        )


def failed_path(output: Path) -> Path:
    """Return where a file is kept that finds something else than it should."""
    return output.with_name(f"{output.stem}.failed{SUFFIX}")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add config, checkpoint, and how both are read."""
    parser.add_argument(
        "config", nargs="?", help="an mmdet config: a file, or the bare name of one that mmdet ships"
    )
    parser.add_argument(
        "checkpoint", nargs="?", type=Path, help="its weights (.pth); `none` for random weights"
    )
    parser.add_argument("--device", default="cpu", help="where PyTorch runs; default: %(default)s")
    parser.add_argument("--trust-checkpoint", action="store_true", help="let a checkpoint's pickle run code")
    parser.add_argument(
        "--allow-mismatch", action="store_true", help="go on although checkpoint and model keys differ"
    )


def add_shape(parser: Any) -> None:
    """Add the input size, and the rows of the outputs."""
    parser.add_argument(
        "--size",
        nargs=2,
        type=count(MAX_SIZE),
        metavar=("H", "W"),
        help="fixed, px; images are fitted into it. Default: images have the sizes that the config's test pipeline "
        "gives them",
    )
    parser.add_argument(
        "--dynamic-size",
        action="store_true",
        help="any height and width, also where the test pipeline makes one size alone",
    )
    parser.add_argument(
        "--max-per-img",
        type=count(MAX_PER_IMG),
        metavar="K",
        help="rows in the outputs; default: the config's",
    )
