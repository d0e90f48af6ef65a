"""Random test pipelines and data preprocessors: mmdet's own objects on image files, and the runtime's steps.

The pixels of the network's input bit for bit, img_shape, ori_shape and scale_factor exactly, in batches of unlike
images. mmdet's side is ``Compose``, ``DetDataPreprocessor`` and nothing of this project.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from mmcv.transforms import Compose
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.utils import register_all_modules
from PIL import Image

from export.pipeline import image_pipeline, normalization, num_channels
from plugins import _reference
from runtime.host.preprocess import device_plan, final_size, padded_size, prepare
from runtime.images import read_image
from runtime.metadata import ModelMetadata
from runtime.transforms import applied
from tests.runtime import fakes

register_all_modules(init_default_scope=True)
ORIENTATION = 0x0112
EDGES = st.integers(1, 90)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> "dict[str, Path]":
    """Images of every kind that a folder may hold, small."""
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    noise = {
        size: Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        for size in [(40, 60), (61, 37), (33, 33), (5, 80), (64, 48)]
    }
    grey = noise[40, 60].convert("L")
    alpha = noise[61, 37].convert("RGBA")
    alpha.putalpha(noise[61, 37].convert("L"))
    saved = {
        "wide.jpg": noise[40, 60],
        "tall.png": noise[61, 37],
        "square.bmp": noise[33, 33],
        "thin.png": noise[5, 80],
        "grey.jpg": grey,
        "grey.png": grey,
        "grey_alpha.png": alpha.convert("LA"),
        "alpha.png": alpha,
        "palette.png": noise[64, 48].convert("P"),
        "one_bit.png": grey.convert("1"),
        "cmyk.jpg": noise[64, 48].convert("CMYK"),
    }
    for name, image in saved.items():
        image.save(folder / name)
    for value in range(2, 9):
        exif = Image.Exif()
        exif[ORIENTATION] = value
        noise[64, 48].save(folder / f"turned{value}.jpg", exif=exif)
    return {path.name: path for path in sorted(folder.iterdir())}


def pairs(values: st.SearchStrategy) -> st.SearchStrategy:
    return st.tuples(values, values)


RESAMPLING = st.one_of(
    st.just({}),
    st.fixed_dictionaries(
        {"interpolation": st.sampled_from(["nearest", "bilinear", "bicubic", "area", "lanczos"])},
        optional={"backend": st.just("cv2")},
    ),
    st.fixed_dictionaries(
        {
            "backend": st.just("pillow"),
            "interpolation": st.sampled_from(["nearest", "bilinear", "bicubic", "box", "lanczos", "hamming"]),
        }
    ),
)
KEEP = st.fixed_dictionaries({}, optional={"keep_ratio": st.booleans()})
FACTORS = st.floats(0.3, 2.5)


def step(name: str, **fields: st.SearchStrategy) -> st.SearchStrategy:
    return st.fixed_dictionaries({"type": st.sampled_from([name]), **fields})


def merged(*parts: st.SearchStrategy) -> st.SearchStrategy:
    return st.tuples(*parts).map(lambda dicts: {k: v for d in dicts for k, v in d.items()})


RESIZES = st.one_of(
    merged(step("Resize", scale=st.one_of(EDGES, pairs(EDGES))), KEEP, RESAMPLING),
    merged(step("Resize", scale_factor=st.one_of(FACTORS, pairs(FACTORS))), KEEP, RESAMPLING),
    merged(step("mmcv.Resize", scale=pairs(EDGES)), KEEP, RESAMPLING),
    merged(step("FixScaleResize", scale=pairs(EDGES)), KEEP, RESAMPLING),
    merged(step("FixShapeResize", width=EDGES, height=EDGES), KEEP, RESAMPLING),
    merged(
        step(
            "ResizeShortestEdge",
            scale=st.one_of(EDGES, pairs(EDGES)),
            max_size=st.one_of(st.none(), st.integers(20, 120)),
            resize_type=st.sampled_from(["Resize", "FixScaleResize"]),
        ),
        KEEP,
        RESAMPLING,
    ),
)
BYTES = st.integers(0, 255)


def pad_values(grey: bool) -> st.SearchStrategy:
    colour = st.just(()) if grey else st.tuples(BYTES, BYTES, BYTES).map(lambda c: {"img": c})
    options = [
        BYTES,
        st.fixed_dictionaries({"img": BYTES}),
        st.fixed_dictionaries({"img": st.floats(0, 255)}),
    ]
    return st.fixed_dictionaries({"pad_val": st.one_of(*options, *([] if grey else [colour]))})


def pads(grey: bool) -> st.SearchStrategy:
    mode = st.fixed_dictionaries(
        {}, optional={"padding_mode": st.sampled_from(["constant", "edge", "reflect", "symmetric"])}
    )
    value = st.one_of(st.just({}), pad_values(grey))
    return st.one_of(
        merged(step("Pad", size=pairs(st.integers(1, 130))), value, mode),
        merged(step("Pad", size_divisor=st.integers(1, 40)), value, mode),
        merged(step("mmcv.Pad", size_divisor=st.just(32)), value, mode),
        merged(step("Pad", pad_to_square=st.just(True)), value, mode),
        merged(step("Pad", pad_to_square=st.just(True), size_divisor=st.integers(1, 40)), value, mode),
    )


MEANS = st.floats(0, 200, width=32)
STDS = st.floats(0.5, 300, width=32)


def normalizes(grey: bool) -> st.SearchStrategy:
    count = 1 if grey else 3
    return step(
        "Normalize",
        mean=st.lists(MEANS, min_size=count, max_size=count),
        std=st.lists(STDS, min_size=count, max_size=count),
        to_rgb=st.just(False) if grey else st.booleans(),
    )


def crops(grey: bool) -> st.SearchStrategy:
    pad = merged(st.just({"type": "Pad"}), st.one_of(st.just({}), pad_values(grey)))
    return st.one_of(
        step("CenterCrop", crop_size=st.one_of(EDGES, pairs(EDGES))),
        step("CenterCrop", crop_size=pairs(EDGES), auto_pad=st.just(True), pad_cfg=pad),
    )


HARMLESS = st.sampled_from(
    [
        {"type": "RandomFlip", "prob": 0.0},
        {"type": "LoadAnnotations", "with_bbox": True},
        {"type": "LoadAnnotations", "with_bbox": True, "with_mask": True, "poly2mask": False},
    ]
)
LOADS = st.fixed_dictionaries(
    {"type": st.sampled_from(["LoadImageFromFile", "mmcv.LoadImageFromFile"])},
    optional={
        "color_type": st.sampled_from(
            ["color", "grayscale", "color_ignore_orientation", "grayscale_ignore_orientation"]
        ),
        "imdecode_backend": st.sampled_from(["cv2", "pillow"]),
        "to_float32": st.booleans(),
        "backend_args": st.sampled_from([None, {"backend": "local"}]),
        "ignore_empty": st.booleans(),
    },
)


@st.composite
def pipelines(draw: st.DrawFn) -> "tuple[list, dict]":
    """Return a test pipeline and a data preprocessor."""
    load = draw(LOADS)
    grey = load.get("color_type", "color").startswith("gray")
    middle = st.one_of(RESIZES, pads(grey), normalizes(grey), crops(grey), HARMLESS)
    steps = draw(st.lists(middle, max_size=4))
    count = draw(st.sampled_from([1] if grey else [1, 3]))
    settings_ = {
        "pad_size_divisor": draw(st.integers(1, 40)),
        "pad_value": draw(st.one_of(st.just(0), BYTES, st.floats(-5, 5, width=32))),
    }
    if draw(st.booleans()):
        settings_["mean"] = draw(st.lists(MEANS, min_size=count, max_size=count))
        settings_["std"] = draw(st.lists(STDS, min_size=count, max_size=count))
    if not grey:
        settings_[draw(st.sampled_from(["bgr_to_rgb", "rgb_to_bgr"]))] = draw(st.booleans())
    return [load, *steps, {"type": "PackDetInputs"}], settings_


def by_mmdet(
    steps: list, preprocessor: DetDataPreprocessor, paths: "list[Path]"
) -> "tuple[np.ndarray, list]":
    pipeline = Compose([dict(s) for s in steps])
    items = [pipeline({"img_path": str(path), "img_id": 0}) for path in paths]
    data = {"inputs": [i["inputs"] for i in items], "data_samples": [i["data_samples"] for i in items]}
    with torch.no_grad():
        done = preprocessor(data, False)
    return done["inputs"].numpy(), done["data_samples"]


def facts_of(steps: list, preprocessor: DetDataPreprocessor) -> ModelMetadata:
    read = image_pipeline(steps)
    found = normalization(preprocessor, num_channels(read.load, None))
    return fakes.metadata(load=read.load, steps=read.steps, size=None, **vars(found))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much])
@given(st.data())
def test_the_runtime_makes_mmdets_pixels(files: "dict[str, Path]", data: st.DataObject) -> None:
    steps, arguments = data.draw(pipelines())
    names = data.draw(st.lists(st.sampled_from(sorted(files)), min_size=1, max_size=3))
    paths = [files[name] for name in names]
    preprocessor = DetDataPreprocessor(**arguments)
    try:
        expected, samples = by_mmdet(steps, preprocessor, paths)
    except Exception as error:
        event(f"mmdet refuses: {type(error).__name__}")
        assume(False)
    facts = ModelMetadata.from_json(facts_of(steps, preprocessor).to_json())
    images = [read_image(path, facts.load) for path in paths]

    batch = prepare(images, facts)

    event(f"{len(steps) - 2} steps")
    np.testing.assert_array_equal(batch.images, expected)
    for index, sample in enumerate(samples):
        assert tuple(batch.image_sizes[index]) == tuple(sample.img_shape)
        assert batch.original_sizes[index] == tuple(sample.ori_shape)
        assert tuple(batch.scale_factors[index]) == tuple(sample.get("scale_factor", (1.0, 1.0)))
    check_device(images, facts, expected)


def check_device(images: "list[np.ndarray]", facts: ModelMetadata, expected: np.ndarray) -> None:
    """The device's part of the way, by the CPU reference of its kernel."""
    plan = device_plan(facts)
    if isinstance(plan, str):
        event("on the host alone")
        return
    event("kernel resizes" if plan.resize else "host resizes")
    pixels = [np.ascontiguousarray(applied(image, plan.host_steps)) for image in images]
    sizes = [final_size(*image.shape[:2], facts.steps) for image in images]
    contents = [plan.content_size(*image.shape[:2]) for image in images]
    found = _reference.prepare_images(
        pixels, contents, *padded_size(sizes, facts), plan.tables, plan.reverse_channels, facts.pad_value
    )
    np.testing.assert_array_equal(found, expected)
