"""What an exported file says of itself, and what its graph puts out."""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from runtime.detector import Detector
from runtime.infer import main as infer
from runtime.metadata import KEY, ModelMetadata
from runtime.transforms import CenterCrop, FixShapeResize, Normalize, Pad, Resize, ResizeShortestEdge
from tests.fuzz import materials
from tests.fuzz.mutations import damaged_json, pick
from tests.fuzz.results import wrong_results
from tests.fuzz.trial import Trial
from tests.runtime import fakes

STEPS = (
    Resize(scale=(96, 64), keep_ratio=True),
    Resize(factors=(0.5, 2.0), floor=True, backend="pillow", interpolation="hamming"),
    ResizeShortestEdge(scale=64, max_size=96),
    FixShapeResize(scale=(96, 64), keep_ratio=True),
    Pad(shape=(96, 64), value=(1, 2, 3)),
    Pad(size_divisor=32, mode="reflect"),
    CenterCrop(crop=(96, 64), pad=Pad(shape=(96, 64))),
    Normalize(mean=(1.0, 2.0, 3.0), std=(1.0, 2.0, 3.0)),
)
SPECIAL = (float("nan"), float("inf"), float("-inf"), 0.0, -1.0, 1e30, -1e30, 3.4e38, 1e-40, 0.5)


def metadata(folder: Path, random: np.random.Generator) -> Trial:
    """Damage a field of the metadata, and use a model that has it where it is taken."""
    size = None if random.random() < 0.5 else (64, 96)
    steps = tuple(pick(random, STEPS) for _ in range(int(random.integers(1, 3))))
    facts = fakes.metadata(size=size, steps=steps if size is None else fakes.metadata().steps)
    said, data = damaged_json(json.loads(facts.to_json()), random)
    text = data.decode("utf-8", "replace")
    if random.random() < 0.4:
        return Trial(said, lambda: _read(text), ())
    model = fakes.model(facts)
    onnx.helper.set_model_props(model, {KEY: text})
    path = folder / "damaged.onnx"
    path.write_bytes(model.SerializeToString())
    image = fakes.random_image(*materials.SIZE)

    def run() -> None:
        with Detector(path, threads=1) as detector:
            for detections in detector([image, image.transpose(1, 0, 2)]):
                list(detections.rle())

    return Trial(said, run, (str(path), "images[", "image of", "steps", "Pillow", "model output"))


def _read(text: str) -> None:
    """Read it, and what it writes again."""
    facts = ModelMetadata.from_json(text)
    assert ModelMetadata.from_json(facts.to_json()) == facts


def outputs(folder: Path, random: np.random.Generator) -> Trial:
    """Have a model put out numbers that are no detections; its results stay valid JSON, or it is refused."""
    materials.write_images(folder)
    model = fakes.model(fakes.metadata(masks=pick(random, ("crop", "full", "none"))))
    tensor = pick(random, list(model.graph.initializer))
    values = numpy_helper.to_array(tensor).copy()
    value = pick(random, SPECIAL) if values.dtype == np.float32 else pick(random, (-1, 3, 1000, 2**31 - 1))
    flat = values.reshape(-1)
    flat[random.integers(len(flat), size=int(random.integers(1, 9)))] = value
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    path, out = folder / "damaged.onnx", folder / "out"
    path.write_bytes(model.SerializeToString())
    images = [str(folder / name) for name in materials.NAMES]
    arguments = [
        *images,
        "--model",
        str(path),
        "--out",
        str(out),
        "--threads",
        "1",
        "--backend",
        "onnxruntime",
    ]
    if random.random() < 0.7:
        arguments.append("--no-overlays")
    return Trial(
        f"{tensor.name} with {value}",
        lambda: infer(arguments),
        (str(path), "model output", *images),
        True,
        lambda: wrong_results(out),
        out,
    )
