"""One config: its own test pipeline, random weights, and mmdet on the same image files at batch 1 and 2."""

import patches  # isort: skip  # noqa: F401  makes mmdet importable without mmcv's compiled operators

import contextlib
import io
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import torch
from mmengine.config import Config
from PIL import Image
from torch import nn

from export.dataset import test_pipeline
from export.graph import GraphOptions, num_nodes, onnx_from_model, simplified, with_metadata
from export.metadata import metadata_from_model, trace_size
from export.model import LoadedModel, ModelBuildError, load_model
from export.pipeline import UnsupportedPipelineError
from export.random_weights import structured_photos
from export.verify import Case, MmdetInference, pixel_difference, verify
from export.zoo.models import one_line
from export.zoo.verdicts import EXACT, FAILED, REFUSED, UNBUILDABLE, WRONG
from patches.families import UnsupportedModelError, family_of
from patches.mmcv_ops import MissingOperatorError
from runtime.comparison.difference import Difference, Tolerance, compare
from runtime.files import working_folder

SIZE = (256, 384)  # the edges of the config's scale are reduced to at most these
IMAGE_SIZES = (
    (300, 450),
    (200, 400),
    (256, 384),
)  # landscape; portrait (once turned) and landscape in one batch
EXIF_ORIENTATION, TURNED_RIGHT = 0x0112, 6
# Fewer than configs ask for (1000 and 100): both cuts still cut, and the heads take most of the time.
MAX_PROPOSALS = 300
MAX_PER_IMG = 50
# Masks of random weights are noise: contours run between all cells, so that many more pixels than a trained model's
# lie within rounding of the threshold.
TOLERANCE = Tolerance(mask=1e-3)
# An overlap of two boxes in float32 is exact to about this, where their corners are to 1e-4 px.
IOU_ROUNDING = 2e-6

# ``export.verify.verify`` with threads and a backend.
Verify = Callable[..., list[Case]]


@dataclass
class Measured:
    """What became of a config.

    Attributes:
        result: ``exact``; ``refused``: the exporter named what it does not cover, before it traced;
            ``unbuildable``: mmdet cannot build or run it here; ``wrong``: the results differ; ``failed``: an error,
            or nothing to compare.
        reason: in one line; empty for ``exact``.
        stage: how far it came: ``load``, ``trace``, ``simplify``, ``verify``.
        figures: differences, detections and nodes, as far as it came; for ``wrong`` also ``rounding``, and
            ``close_decisions`` where an image agrees at a moved threshold only; ``ordered_ties``: images that agree
            where PyTorch sorts equal scores by index.
    """

    result: str
    reason: str = ""
    stage: str = "load"
    figures: dict[str, Any] = field(default_factory=dict)


def measure(name: str, threads: int, backend: str = "onnxruntime") -> dict[str, Any]:
    """Return what became of a config, as plain values; what mmdet prints goes nowhere."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    start = time.perf_counter()
    with working_folder() as folder, contextlib.redirect_stdout(io.StringIO()):
        measured = check_config(name, Path(folder) / "model.onnx", threads, backend)
    return {
        "result": measured.result,
        "reason": measured.reason,
        "stage": measured.stage,
        **measured.figures,
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(time.process_time(), 1),
    }


def check_config(name: str, path: Path, threads: int, backend: str = "onnxruntime") -> Measured:
    """Export one config with random weights to ``path`` and compare it with PyTorch at batch 1 and 2."""
    measured = Measured(FAILED)
    try:
        loaded = load_model(name, None, max_per_img=MAX_PER_IMG, max_proposals=MAX_PROPOSALS)
        _export_and_compare(loaded, path, partial(verify, threads=threads, backend=backend), measured)
    except Exception as error:
        measured.result = _kind(error, measured.stage)
        measured.reason = one_line(error).replace(f"{path.parent}/", "")  # another folder each time
        if measured.result == FAILED:
            # PyTorch's exporter asks for pull requests in every message.
            words = measured.reason.split(". Please feel free")[0]
            measured.reason = f"{measured.stage}: {type(error).__name__}: {words}"
    return measured


def _export_and_compare(loaded: LoadedModel, path: Path, verify: Verify, measured: Measured) -> None:
    files = image_files(path.parent)
    own = metadata_from_model(loaded, size=None)
    words, _ = pixel_difference(MmdetInference(loaded, own), files, own)
    if words:
        measured.result, measured.reason = WRONG, f"pixels: {words}"
        return
    reduce_scale(loaded.config)
    metadata = metadata_from_model(loaded, size=None)
    mmdet = MmdetInference(loaded, metadata)
    measured.stage = "trace"
    options = GraphOptions(
        size=trace_size(metadata),
        dynamic_size=metadata.size is None,
        masks=metadata.masks,
        channels=metadata.channels,
    )
    graph = onnx_from_model(loaded.model, options)
    measured.stage = "simplify"
    graph = simplified(graph)
    measured.figures["nodes"] = num_nodes(graph)
    onnx.save(with_metadata(graph, metadata), str(path))
    measured.stage = "verify"
    batches = [files[:1], files[1:]]
    cases = verify(path, mmdet, batches, tolerance=TOLERANCE)
    measured.result, measured.reason = _verdict(cases)
    if measured.result == WRONG:
        explained = close_decisions(path, mmdet, loaded.model, batches, cases, verify)
        if explained:
            measured.figures["close_decisions"] = sorted(set(explained.values()))
            cases = list(explained)
            measured.result, measured.reason = _verdict(cases)
    measured.figures.update(_figures([case.difference for case in cases]))
    if any(case.ordered_ties for case in cases):
        measured.figures["ordered_ties"] = sum(case.ordered_ties for case in cases)
    if measured.result == WRONG:
        measured.figures["rounding"] = _figures(rounding(loaded.model, mmdet, batches))


def image_files(folder: Path) -> list[Path]:
    """Write the files that models are compared on: a landscape, a portrait that EXIF turns, a landscape as PNG."""
    landscape, turned, other = structured_photos(*IMAGE_SIZES)
    paths = [folder / name for name in ("landscape.jpg", "turned.jpg", "other.png")]
    for path, photo in zip(paths, (landscape, turned, other)):
        cv2.imwrite(str(path), photo)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = TURNED_RIGHT
    with Image.open(paths[1]) as image:
        image.load()
    image.save(paths[1], exif=exif, quality=95)
    return paths


def reduce_scale(config: Config) -> None:
    """Let the config's own test pipeline make small images: a whole one would take the zoo a day."""
    for step in test_pipeline(config).steps:
        scale = step.get("scale")
        if scale is not None:
            edges = (scale, scale) if isinstance(scale, int) else tuple(scale)
            share = max(SIZE) / max(edges)
            step["scale"] = tuple(max(32, round(edge * share)) for edge in edges)


def close_decisions(
    path: Path,
    mmdet: MmdetInference,
    model: nn.Module,
    batches: Sequence[Sequence[Path]],
    cases: Sequence[Case],
    verify: Verify,
) -> dict[Case, str]:
    """Compare with PyTorch at thresholds of NMS that are moved by less than what rounding moves an overlap.

    Two boxes whose IoU is 0.6999995 may be kept or not, with a threshold of 0.7: that is no difference of the graph's.
    A graph that computes something else agrees at neither threshold.

    Returns:
        A case within tolerance for every image, with the words for how the threshold was moved, empty where it did not
        have to be; nothing if an image agrees at none.
    """
    agreed = {i: (case, "") for i, case in enumerate(cases) if case.within(TOLERANCE)}
    for part, cfg in family_of(model).nms_settings(model).items():
        threshold = cfg.nms.iou_threshold
        for delta in (-IOU_ROUNDING, IOU_ROUNDING):
            cfg.nms.iou_threshold = threshold + delta
            try:
                moved = verify(path, mmdet, batches, tolerance=TOLERANCE)
            finally:
                cfg.nms.iou_threshold = threshold
            words = f"{part} IoU threshold {delta:+.0e}"
            for i, case in enumerate(moved):
                if case.within(TOLERANCE):
                    agreed.setdefault(i, (case, words))
    if len(agreed) < len(cases):
        return {}
    return {agreed[i][0]: agreed[i][1] for i in range(len(cases))}


def rounding(model: nn.Module, mmdet: MmdetInference, batches: Sequence[Sequence[Path]]) -> list[Difference]:
    """Return how PyTorch's own results change, per image, when every weight moves by one unit in the last place.

    Random weights may be such that rounding alone moves results: then this is as large as what it is set beside. The
    model keeps the moved weights.
    """
    prepared = [mmdet.prepare(paths) for paths in batches]
    before = [mmdet.detect(batch) for batch in prepared]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            up = torch.rand(weight.shape, generator=generator) < 0.5
            weight.copy_(torch.nextafter(weight, torch.where(up, torch.inf, -torch.inf)))
    after = [mmdet.detect(batch) for batch in prepared]
    return [difference for a, b in zip(before, after) for difference in compare(a, b)]


def _figures(differences: Sequence[Difference]) -> dict[str, Any]:
    return {
        "detections": [d.expected for d in differences],
        "found": [d.found for d in differences],
        "matched": [d.matched for d in differences],
        "box_px": max(d.box_px for d in differences),
        "score": max(d.score for d in differences),
        "mask": max(d.mask or 0.0 for d in differences),
        "mask_of_all_pixels": max(d.mask_px / max(d.mask_size_px, 1) for d in differences),
    }


def _verdict(cases: list[Case]) -> tuple[str, str]:
    for case in cases:
        if not case.within(TOLERANCE):
            d = case.difference
            words = (
                d.worst_missing
                or d.worst_extra
                or f"box {d.box_px:.1e} px, score {d.score:.1e}, mask {d.mask or 0:.1e} of pixels"
            )
            return (
                WRONG,
                f"batch {case.batch}, image {case.image}, {d.matched} of {d.expected} matched: {words}",
            )
    fewest = min(case.difference.expected for case in cases)
    return (EXACT, "") if fewest else (FAILED, "verify: random weights give no detections to compare")


def _kind(error: Exception, stage: str) -> str:
    if isinstance(error, (UnsupportedModelError, UnsupportedPipelineError)) and stage == "load":
        return REFUSED
    if isinstance(error, (ModelBuildError, MissingOperatorError)):
        return UNBUILDABLE
    return FAILED
