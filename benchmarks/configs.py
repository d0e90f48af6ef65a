"""``python -m benchmarks.configs``: export every config of a folder that mmdet ships, and compare with PyTorch.

Weights are random (``export.random_weights``), the size is small, batches of 1 and 2. Results go to
``results/configs.json`` after each config, so that a run that was stopped goes on where it was.
"""

import argparse
import contextlib
import io
import json
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import onnx
from rich.console import Console

from export.config import shipped_configs
from export.graph import GraphOptions, num_nodes, onnx_from_model, simplified, with_metadata
from export.metadata import metadata_from_model
from export.model import load_model
from export.random_weights import structured_photos
from export.verify import verify
from runtime.difference import Tolerance

RESULTS = Path(__file__).parent / "results" / "configs.json"
SIZE = (256, 384)
IMAGE_SIZES = ((300, 450), (400, 200), (256, 384))  # landscape and portrait
# Masks of random weights are noise: contours run between all cells, so that many more pixels than a trained model's
# lie within rounding of the threshold.
TOLERANCE = Tolerance(mask=1e-3)


def config_names(folder: str) -> list[str]:
    """Return the bare names of a folder's configs; those with a C4 backbone (no FPN) are another family."""
    return [
        name for name, path in shipped_configs().items() if path.parent.name == folder and "-c4" not in name
    ]


def check_config(name: str, path: Path) -> dict:
    """Export one config with random weights to ``path`` and compare it with PyTorch at batch 1 and 2.

    Returns:
        ``result`` (``exact`` or ``differs``), the worst differences, the number of detections and of nodes, seconds.
    """
    start = time.perf_counter()
    # Building a model prints what is deprecated in its config.
    with contextlib.redirect_stdout(io.StringIO()):
        loaded = load_model(name, None)
    metadata = metadata_from_model(loaded, size=SIZE, dynamic_size=False, masks="crop")
    graph = simplified(onnx_from_model(loaded.model, GraphOptions(size=SIZE, masks=metadata.masks)))
    onnx.save(with_metadata(graph, metadata), str(path))
    images = structured_photos(*IMAGE_SIZES)
    differences = [case.difference for case in verify(path, loaded.model, [images[:1], images[1:]])]
    return {
        "config": name,
        "result": "exact" if all(d.within(TOLERANCE) for d in differences) else "differs",
        "detections": [d.found for d in differences],
        "matched": [d.matched for d in differences],
        "box_px": max(d.box_px for d in differences),
        "score": max(d.score for d in differences),
        "mask": max(d.mask or 0.0 for d in differences),
        "mask_of_all_pixels": max(d.mask_px / max(d.mask_size_px, 1) for d in differences),
        "nodes": num_nodes(graph),
        "seconds": round(time.perf_counter() - start, 1),
    }


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Check what has no result yet, and return 1 if anything differs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.configs", description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", default="mask_rcnn")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    console = Console()
    results = json.loads(args.output.read_text()) if args.output.is_file() else []
    done = {result["config"] for result in results}
    for name in config_names(args.folder):
        if name in done:
            continue
        with tempfile.TemporaryDirectory() as folder:
            results.append(check_config(name, Path(folder) / "model.onnx"))
        text = json.dumps(results, indent=1)
        args.output.write_text(re.sub(r"\n {3,}|\n  (?=\])", " ", text) + "\n")
        console.print(results[-1], soft_wrap=True)
    return int(any(result["result"] != "exact" for result in results))


if __name__ == "__main__":
    raise SystemExit(main())
