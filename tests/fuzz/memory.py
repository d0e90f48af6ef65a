"""Whether a detector's memory grows: ``python -m tests.fuzz.memory MODEL.onnx --calls 5000``."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import numpy as np

from examples import IMAGES_DIR
from runtime.cli import CommandParser
from runtime.detector import Detector
from runtime.images import read_image

# Until then allocators and onnxruntime's arena have seen the largest sizes.
WARM_UP = 200
MOST_GROWTH = 0.02
_SIDES = (48, 700)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Call the detector, print the memory, and return 1 where it has grown."""
    args = _parse_arguments(argv)
    found = growth(args.model, args.calls, args.seed)
    print(json.dumps(found, indent=1))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 1 if found["growth"] >= MOST_GROWTH else 0


def growth(model: Path, num_calls: int, seed: int) -> dict:
    """Call a detector with one to three images of mixed sizes, again and again.

    Returns:
        ``growth``, by how much of itself the resident memory was larger in the last tenth of the calls than in the
        first after the warm-up (medians), and what was measured.
    """
    random = np.random.default_rng(seed)
    images = [read_image(path) for path in sorted(IMAGES_DIR.glob("*.jpg"))]
    sizes, num_detections = [], 0
    with Detector(model, "onnxruntime", threads=1) as detector:
        for number in range(WARM_UP + num_calls):
            batch = [
                _part(images[int(random.integers(len(images)))], random) for _ in range(random.integers(1, 4))
            ]
            for detections in detector(batch):
                num_detections += len(detections.rle())
            if number >= WARM_UP:
                sizes.append(_resident_bytes())
    tenth = max(1, num_calls // 10)
    first, last = (float(np.median(part)) for part in (sizes[:tenth], sizes[-tenth:]))
    return {
        "calls": num_calls,
        "warm_up": WARM_UP,
        "seed": seed,
        "detections": num_detections,
        "first_mib": round(first / 2**20, 1),
        "last_mib": round(last / 2**20, 1),
        "most_mib": round(max(sizes) / 2**20, 1),
        "growth": round(last / first - 1, 4),
    }


def _part(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return a part of an image, of any size."""
    height, width = (min(int(random.integers(*_SIDES)), side) for side in image.shape[:2])
    top, left = (int(random.integers(n - m + 1)) for n, m in zip(image.shape, (height, width)))
    return image[top : top + height, left : left + width]


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _parse_arguments(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = CommandParser(prog="python -m tests.fuzz.memory", doc=__doc__)
    parser.add_argument("model", type=Path, help="an exported model")
    parser.add_argument("--calls", type=int, default=5000, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
