"""Evaluate damaged files, one after the other, in a process of its own: ``python -m tests.runtime.damaged_files``.

Prints a line of JSON per case: its name, the exit status (or the exception), what was said, and the seconds.
The test beside it starts this, so that a loop without an end or a crash of C code is seen from outside.
"""

import contextlib
import copy
import hashlib
import io
import json
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from runtime.evaluate import main as evaluate_main
from tests.runtime import fakes

SEED = 20
NUM_ANNOTATIONS, NUM_HEADERS, NUM_BYTES = 450, 150, 100
SIZE = (40, 60)
MISSING = object()
VALUES = (
    None,
    "x",
    "1",
    "",
    float("nan"),
    float("inf"),
    10**30,
    2**31,
    -1,
    0,
    1.5,
    True,
    [],
    {},
    [[]],
    ["x"],
    [None],
    {"counts": "1", "size": [1, 1]},
    MISSING,
)


def main(folder: Path) -> None:
    """Make a good dataset and a good recording of it in a folder, and evaluate damaged copies of both."""
    truth, arrays = _truth(folder), _arrays(folder)
    good, annotations = folder / "good.npz", folder / "annotations.json"
    np.savez(good, **arrays)
    annotations.write_text(json.dumps(truth))
    _evaluate("good", good, annotations)
    generator = np.random.default_rng(SEED)
    damaged = folder / "damaged.json"
    for name, content in _sample(list(_mutations(truth)), NUM_ANNOTATIONS, generator):
        damaged.write_text(json.dumps(content))
        _evaluate(f"annotations {name}", good, damaged)
    recording = folder / "damaged.npz"
    for name, content in _recordings(arrays, generator):
        np.savez(recording, **content)
        _evaluate(f"recording {name}", recording, annotations)
    data = good.read_bytes()
    for number in range(NUM_BYTES):
        changed = bytearray(data)
        for _ in range(1 + number % 3):
            changed[generator.integers(len(data))] ^= int(generator.integers(1, 256))
        recording.write_bytes(bytes(changed[: generator.integers(len(data))] if number % 5 == 4 else changed))
        _evaluate(f"recording bytes {number}", recording, annotations)


def _evaluate(name: str, recording: Path, annotations: Path) -> None:
    arguments = [str(recording), "--images", str(recording.parent), "--annotations", str(annotations)]
    start, said = time.perf_counter(), io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            status: Any = evaluate_main(arguments)
        except BaseException:
            status = traceback.format_exc()[-1500:]
    seconds = time.perf_counter() - start
    print(
        json.dumps({"name": name, "status": status, "said": said.getvalue(), "seconds": seconds}), flush=True
    )


def _truth(folder: Path) -> dict:
    """Return two images, their objects with masks of every form, one without."""
    polygon = [5.0, 5.0, 30, 5, 30, 30, 5, 30]
    lengths = coco_mask.merge(coco_mask.frPyObjects([polygon], *SIZE))
    forms = ([polygon, [1, 1, 9, 1, 9, 9]], {"size": list(SIZE), "counts": lengths["counts"].decode()})
    runs = {"size": list(SIZE), "counts": [300, 20, SIZE[0] * SIZE[1] - 320]}
    images = [{"id": i, "file_name": f"{i}.png", "height": SIZE[0], "width": SIZE[1]} for i in (1, 2)]
    for number, image in enumerate(images):
        pixels = fakes.random_image(*SIZE, number)
        (folder / image["file_name"]).write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    common = {"iscrowd": 0, "area": 625.0, "bbox": [5, 5, 25, 25]}
    return {
        "images": images,
        "categories": [{"id": i, "name": name} for i, name in enumerate(fakes.CLASSES, 1)],
        "annotations": [
            {"id": i, "image_id": 1 + i % 2, "category_id": 1 + i % 3, "segmentation": form, **common}
            for i, form in enumerate((*forms, runs, *forms), 1)
        ],
    }


def _arrays(folder: Path) -> dict[str, np.ndarray]:
    """Return a recording's arrays: three detections in either image."""
    mask = np.zeros(SIZE, np.uint8, order="F")
    mask[5:30, 5:30] = 1
    counts = coco_mask.encode(mask)["counts"]
    digests = {i: hashlib.sha256((folder / f"{i}.png").read_bytes()).hexdigest() for i in (1, 2)}
    header = {
        "format": 1,
        "model": json.loads(fakes.metadata().to_json()),
        "source": "a test",
        "made_with": {},
        "images": [
            {"name": f"{i}.png", "sha256": digest, "height": SIZE[0], "width": SIZE[1]}
            for i, digest in digests.items()
        ],
    }
    return {
        "header": _bytes(json.dumps(header)),
        "num_detections": np.array([3, 3]),
        "boxes": np.tile(np.array([[5, 5, 30, 30]], np.float32), (6, 1)),
        "scores": np.linspace(0.9, 0.4, 6, dtype=np.float32),
        "labels": np.array([0, 1, 2] * 2, np.int32),
        "mask_bytes": np.full(6, len(counts)),
        "masks": np.frombuffer(counts * 6, np.uint8),
    }


def _bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)


def _mutations(content: Any) -> Iterator[tuple[str, Any]]:
    """Yield copies in which one value, at any depth, is another one or missing."""
    for place in _places(content):
        for value in VALUES:
            changed = copy.deepcopy(content)
            owner = changed
            for key in place[:-1]:
                owner = owner[key]
            if value is MISSING:
                del owner[place[-1]]
            else:
                owner[place[-1]] = value
            shown = "missing" if value is MISSING else value
            yield f"{'.'.join(map(str, place))} = {shown}", changed


def _places(content: Any, above: tuple = ()) -> Iterator[tuple]:
    items = (
        enumerate(content)
        if isinstance(content, list)
        else content.items()
        if isinstance(content, dict)
        else ()
    )
    for key, value in items:
        yield (*above, key)
        yield from _places(value, (*above, key))


def _sample(cases: list, number: int, generator: np.random.Generator) -> list:
    return [cases[i] for i in generator.choice(len(cases), min(number, len(cases)), replace=False)]


def _recordings(
    arrays: dict[str, np.ndarray], generator: np.random.Generator
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    header = json.loads(arrays["header"].tobytes())
    for name, content in _sample(list(_mutations(header)), NUM_HEADERS, generator):
        yield f"header {name}", {**arrays, "header": _bytes(json.dumps(content))}
    for text in (
        "",
        "[]",
        "null",
        "{",
        "[" * 100_000,
        "\udc80".encode("utf-8", "surrogateescape").decode("latin-1"),
    ):
        yield f"header {text[:5]}", {**arrays, "header": _bytes(text)}
    for name, array in arrays.items():
        for other in ("float64", "int8", "uint64", ">i8", "bool", "S3", "complex64"):
            yield f"{name} as {other}", {**arrays, name: array.astype(other)}
        for shaped in (array[:0], array[:-1], array[None], np.concatenate((array, array)), array.ravel()[0]):
            yield f"{name} of shape {np.shape(shaped)}", {**arrays, name: np.asarray(shaped)}
        yield f"{name} missing", {n: a for n, a in arrays.items() if n != name}
        for value in (0, 1, -1, 127, 255, 2**31 - 1, 2**62, float("nan"), float("inf"), -3.4e38):
            changed = array.copy()
            with np.errstate(all="ignore"), contextlib.suppress(OverflowError, ValueError):
                changed[generator.integers(len(changed))] = value
            yield f"{name} with {value}", {**arrays, name: changed}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
