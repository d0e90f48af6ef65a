"""Whether a run's results are whole, one run's, and JSON that any reader takes."""

import json
import math
from pathlib import Path
from typing import Any

from runtime.coco_writer import IMAGES, RESULTS


def wrong_results(folder: Path) -> str:
    """Return what is wrong with the results of ``runtime.infer``; empty if nothing is."""
    try:
        results, images = (
            json.loads((folder / name).read_bytes(), parse_constant=_refuse) for name in (RESULTS, IMAGES)
        )
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    known = {image["id"]: image for image in images["images"]}
    for result in results:
        image = known.get(result["image_id"])
        if image is None or image["file_name"] != result["file_name"]:
            return f"a result of another run's image: {result['file_name']}, {known}"
        wrong = _wrong_result(result, image, {category["id"] for category in images["categories"]})
        if wrong:
            return f"{wrong}: {result}"
    return ""


def _wrong_result(result: dict[str, Any], image: dict[str, Any], categories: set[int]) -> str:
    if result["category_id"] not in categories:
        return "a category that is not there"
    if not all(math.isfinite(value) for value in (*result["bbox"], result["score"])):
        return "a number that is none"
    size = result.get("segmentation", {}).get("size", [image["height"], image["width"]])
    return "" if size == [image["height"], image["width"]] else "a mask of another size"


def _refuse(name: str) -> None:
    raise ValueError(f"{name}, which JSON has not")
