"""COCO annotations and recordings, as ``runtime.evaluate`` reads them."""

import json
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np

from runtime.comparison.average_precision import read_dataset
from runtime.comparison.recording import read_recording
from runtime.evaluate import main as evaluate
from tests.fuzz import materials
from tests.fuzz.mutations import damaged_bytes, damaged_json, damaged_word, pick
from tests.fuzz.trial import Trial

DTYPES = (
    "float64",
    "float16",
    "int8",
    "uint64",
    ">i8",
    ">f4",
    "bool",
    "S3",
    "U2",
    "complex64",
    "M8[s]",
    "V4",
    "O",
)
FILLS = (0, 1, -1, 127, 255, 2**31 - 1, 2**62, float("nan"), float("inf"), -3.4e38)


def annotations(folder: Path, random: np.random.Generator) -> Trial:
    """Damage annotations, which a good recording is evaluated by."""
    materials.write_images(folder)
    good, damaged = folder / "good.npz", folder / "damaged.json"
    good.write_bytes(materials.recording())
    said, data = _damaged_annotations(random)
    damaged.write_bytes(data)
    if random.random() < 0.5:
        return Trial(said, lambda: read_dataset(damaged, folder), (str(damaged),))
    return _evaluated(said, good, damaged, str(damaged))


def recordings(folder: Path, random: np.random.Generator) -> Trial:
    """Damage a recording."""
    materials.write_images(folder)
    truth, damaged = folder / "annotations.json", folder / "damaged.npz"
    truth.write_text(json.dumps(materials.truth()))
    said, data = _damaged_recording(random)
    damaged.write_bytes(data)
    if random.random() < 0.5:
        return Trial(said, lambda: read_recording(damaged), (str(damaged),))
    return _evaluated(said, damaged, truth, str(damaged))


def _evaluated(said: str, recording: Path, truth: Path, named: str) -> Trial:
    report = recording.parent / "report.json"
    arguments = [
        str(recording),
        "--images",
        str(truth.parent),
        "--annotations",
        str(truth),
        "--json",
        str(report),
    ]

    def check() -> str:
        content = json.loads(report.read_text())
        return "" if content["artifacts"] and content["num_images"] else f"no figures: {content}"

    return Trial(said, lambda: evaluate(arguments), (named,), True, check, truth.parent, (report,))


def _damaged_annotations(random: np.random.Generator) -> tuple[str, bytes]:
    kind = int(random.integers(8))
    truth = json.loads(json.dumps(materials.truth()))
    entry = pick(random, truth["annotations"])
    if kind == 0:  # the string of run lengths: a character more or less
        lengths = truth["annotations"][1]["segmentation"]
        for _ in range(int(random.integers(1, 4))):
            lengths["counts"] = damaged_word(lengths["counts"], random)
        return f"counts {lengths['counts']!r}", json.dumps(truth).encode()
    if kind == 1:  # run lengths as numbers
        counts = [int(v) for v in random.integers(-2, 2500, int(random.integers(6)))]
        entry["segmentation"] = {
            "size": pick(random, ([40, 60], [60, 40], [0, 0], [40.0, 60], [1, 2400])),
            "counts": counts,
        }
        return f"counts {counts}", json.dumps(truth).encode()
    if kind == 2:  # polygons
        scale = pick(random, (1, 50, 1e4, 1e8, 1e18, 1e300))
        numbers = (random.normal(size=int(random.integers(12))) * scale).tolist()
        entry["segmentation"] = [numbers] * int(random.integers(1, 4))
        return f"a polygon of {len(numbers)} numbers, {scale:g} px", json.dumps(truth).encode()
    if kind == 3:  # images of other sizes, or of none that is said
        image = pick(random, truth["images"])
        image["height"], image["width"] = (
            pick(random, (None, 0, 1, 40, 61, 1e9, 2**29, "40")) for _ in range(2)
        )
        return f"size {image['height']} {image['width']}", json.dumps(truth).encode()
    return damaged_json(truth, random)


def _damaged_recording(random: np.random.Generator) -> tuple[str, bytes]:
    kind = int(random.integers(10))
    if kind < 3:
        said, data = damaged_json(materials.header(), random)
        header = np.frombuffer(data, np.uint8)
        return f"header: {said}", materials.npz({**materials.arrays(), "header": header})
    if kind < 6:
        return _damaged_arrays(random)
    if kind == 6:
        return _tricked(random)
    data = materials.npz(materials.arrays(), compress=True) if kind == 7 else materials.recording()
    return damaged_bytes(data, random)


def _damaged_arrays(random: np.random.Generator) -> tuple[str, bytes]:
    arrays = dict(materials.arrays())
    name = pick(random, list(arrays))
    array, kind = arrays[name], int(random.integers(5))
    if kind == 0:
        dtype = pick(random, DTYPES)
        arrays[name] = array.astype(object) if dtype == "O" else _cast(array, dtype)
        return f"{name} as {dtype}", materials.npz(arrays)
    if kind == 1:
        other = pick(
            random, (array[:0], array[:-1], array[None], np.concatenate((array, array)), array.ravel()[0])
        )
        arrays[name] = np.asfortranarray(other) if random.random() < 0.3 else np.asarray(other)
        return f"{name} of shape {np.shape(other)}", materials.npz(arrays)
    if kind == 2:
        del arrays[name]
        return f"{name} missing", materials.npz(arrays)
    changed = array.copy()
    value = pick(random, FILLS)
    with np.errstate(all="ignore"):
        filled = np.array(value, np.float64).astype(array.dtype)
    if kind == 3:
        changed[int(random.integers(len(changed)))] = filled
    else:
        changed[...] = filled
    arrays[name] = changed
    return f"{name} with {value}", materials.npz(arrays)


def _cast(array: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "V4":
        return np.zeros(array.shape, "V4")
    with np.errstate(all="ignore"):
        return array.astype(dtype)


def _tricked(random: np.random.Generator) -> tuple[str, bytes]:
    """Return an archive whose directory or whose arrays' headers declare what is not there."""
    file = BytesIO()
    name, kind = pick(random, list(materials.arrays())), int(random.integers(6))
    method = pick(random, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    with zipfile.ZipFile(file, "w", method) as archive:
        for key, array in materials.arrays().items():
            content = BytesIO()
            np.lib.format.write_array(content, array)
            data = content.getvalue()
            if key == name and kind == 0:  # far more than there is
                shape = pick(
                    random, ("(1000000000000,)", "(-1,)", "(3000000000, 4)", "(True,)", "(1e3,)", "((1,),)")
                )
                data = data.replace(str(array.shape).encode(), shape.encode())
            if key == name and kind == 1:  # a bomb: zeros that pack well
                data += b"\0" * pick(random, (1 << 20, 1 << 26))
            if key == name and kind == 2:
                data = pick(
                    random,
                    (
                        b"",
                        b"\x93NUMPY",
                        b"\x93NUMPY\x01\x00\xff\xff{",
                        data[:11],
                        b"\x93NUMPY\x09\x09" + data[8:],
                    ),
                )
            archive.writestr(f"{key}.npy", data)
        if kind == 3:
            archive.writestr(f"{name}.npy", b"a second one of the name")
        if kind == 4:
            archive.writestr(
                pick(random, ("../../evil.npy", "/etc/passwd", "x" * 60000, "\ud7ff.npy")), b"other"
            )
    data = bytearray(file.getvalue())
    if kind == 5:  # the sizes in the directory
        at = data.rfind(b"PK\1\2")
        data[at + 20 : at + 28] = pick(random, (b"\xff" * 8, b"\0" * 8, random.bytes(8)))
    return f"archive {kind}, {name}, method {method}", bytes(data)
