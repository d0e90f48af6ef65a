"""Ranges in a file, which knows its model and images, so that a second run need not calibrate again."""

import json
from collections.abc import Collection
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from export.quantization.calibration import Calibration, CalibrationRequest, images_sha256
from export.quantization.placement import Placement
from runtime.console import write_json

FORMAT = 3
_REMEDY = "delete the file, or name another with --cache"
_WORDS = {
    "source_sha256": "the model of SHA-256",
    "activations": "--activations",
    "method": "--method",
    "percentile": "--percentile",
    "batch": "--batch",
    "num_images": "the number of images",
    "images_sha256": "images of SHA-256",
}


def save_cache(path: Path, calibration: Calibration) -> None:
    """Write a calibration, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    write_json(path, {"format": FORMAT, **asdict(calibration)})


def load_cache(
    path: Path,
    placement: Placement,
    request: CalibrationRequest,
    source_sha256: str,
    equalized: Collection[str] = (),
) -> Calibration:
    """Read a calibration, and refuse one of another model, of other images or otherwise made.

    Args:
        path: of the file.
        placement, request, source_sha256: what it has to be of.
        equalized: names of the seams whose channels it has to have the sizes of.

    Raises:
        OSError, ValueError: it cannot be read, is no cache, or another's; names the first difference.
    """
    found = _parsed(path)
    expected = {
        "source_sha256": source_sha256,
        "activations": placement.activations,
        "method": request.method,
        "percentile": request.percentile if request.method == "percentile" else None,
        "batch": request.batch,
        "num_images": len(request.images),
        "images_sha256": images_sha256(request.images),
    }
    for name, value in expected.items():
        if getattr(found, name) != value:
            raise ValueError(
                f"calibration cache {path}: expected {_WORDS[name]} {value}, found {getattr(found, name)}; {_REMEDY}"
            )
    if set(found.channels) != set(equalized):
        raise ValueError(
            f"calibration cache {path}: expected channels of {len(equalized)} places that are equalized, found "
            f"{len(found.channels)}: it was made with another plan, or one of the two runs has --no-equalize; {_REMEDY}"
        )
    missing = [tensor for tensor in placement.tensors if tensor not in found.ranges]
    if missing:
        raise ValueError(
            f"calibration cache {path}: expected a range of {missing[0]} and every other tensor that is quantized, "
            f"found {len(found.ranges)} ranges; {_REMEDY}"
        )
    return found


def _parsed(path: Path) -> Calibration:
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"calibration cache {path}: expected JSON, found {error}; {_REMEDY}") from error
    number = content.get("format") if isinstance(content, dict) else None
    if number != FORMAT:
        raise ValueError(f"calibration cache {path}: expected format {FORMAT}, found {number!r}; {_REMEDY}")
    try:
        values = {field.name: content[field.name] for field in fields(Calibration)}
        values["ranges"] = {t: (float(low), float(high)) for t, (low, high) in content["ranges"].items()}
        values["channels"] = {w: tuple(map(float, sizes)) for w, sizes in content["channels"].items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"calibration cache {path}: expected all of its fields, found others ({error!r}); {_REMEDY}"
        ) from error
    return Calibration(**values)
