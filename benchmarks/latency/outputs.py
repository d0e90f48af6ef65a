"""Whether a variant found what PyTorch found: its results are recorded, matched with the reference, and evaluated."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from runtime.comparison.average_precision import CocoDataset
from runtime.comparison.detections import compare_artifacts
from runtime.comparison.difference import Tolerance
from runtime.comparison.evaluation import evaluate_artifact as evaluate
from runtime.comparison.recording import RecordingWriter
from runtime.comparison.sources import open_artifact
from runtime.detections import Detections
from runtime.metadata import ModelMetadata


def record_detections(
    found: Iterable[tuple[Path, Detections]], output: Path, metadata: ModelMetadata, source: str
) -> None:
    """Write detections, made while they are asked for, to an ``.npz``."""
    with RecordingWriter(output, metadata, source=source, made_with=dict(metadata.versions)) as writer:
        for path, detections in found:
            writer.add(path, detections)


def compared_outputs(recording: Path, reference: Path, dataset: CocoDataset) -> dict[str, Any]:
    """Return AP, and how the recording differs from the reference.

    Returns:
        ``average_precision`` (box and mask); ``minus_reference``, the same as differences; ``expected``, ``found`` and
        ``matched`` detections, pairs of a class whose corners are within 10 px; ``matched_share`` of the expected;
        ``box_px`` and ``score`` differences of the matched; ``mask_share_of_union``, of the worst image.

    Raises:
        FileNotFoundError: there is no reference yet.
        ValueError: the reference was recorded at another size of the network's input.
    """
    if not reference.is_file():
        raise FileNotFoundError(
            f"reference {reference}: expected what PyTorch found in FP32, found nothing; run the case "
            "pytorch/fp32/outputs first, see --pytorch-python"
        )
    with open_artifact(recording) as found, open_artifact(reference) as expected:
        if found.metadata.size != expected.metadata.size:
            raise ValueError(
                f"--size: expected that of the model, {found.metadata.size}, found a reference recorded at "
                f"{expected.metadata.size}; name the model's size and measure into another --out"
            )
        evaluation, target = evaluate(found, dataset), evaluate(expected, dataset)
        paths = [image.path for image in dataset.images]
        differences = [c.difference for c in compare_artifacts(expected, found, paths, Tolerance())]
    boxes = np.concatenate([np.zeros(0), *(d.boxes_px for d in differences)])
    num_expected = sum(d.expected for d in differences)
    num_matched = sum(d.matched for d in differences)
    return {
        "average_precision": evaluation.average_precision,
        "minus_reference": evaluation.minus(target),
        "expected": num_expected,
        "found": sum(d.found for d in differences),
        "matched": num_matched,
        "matched_share": num_matched / num_expected if num_expected else None,
        "box_px": {
            "median": float(np.median(boxes)) if len(boxes) else None,
            "p99": float(np.percentile(boxes, 99)) if len(boxes) else None,
            "max": float(boxes.max(initial=0.0)),
        },
        "score": max((d.score for d in differences), default=0.0),
        "mask_share_of_union": max((d.mask for d in differences if d.mask is not None), default=None),
        "best_unmatched_score": max((s for d in differences for s in (*d.missing, *d.extra)), default=0.0),
    }
