import json

import numpy as np
import pytest

from runtime.metadata import ModelMetadata
from runtime.transforms import (
    CenterCrop,
    Fit,
    FixShapeResize,
    Load,
    Normalize,
    Pad,
    Resize,
    ResizeShortestEdge,
    Step,
    applied,
    final_size,
)
from tests.runtime import fakes


def test_json_brings_back_the_same_metadata() -> None:
    for facts in (fakes.metadata(), fakes.metadata(size=None, masks="none", versions={"torch": "2.4"})):
        assert ModelMetadata.from_json(facts.to_json()) == facts


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 99}, "expected format 1 or 2, found 99; export the model again"),
        ({"masks": "polygons"}, "masks: expected one of crop, full, grid, none, found 'polygons'"),
        ({"color_order": "grb"}, "color_order: expected rgb or bgr, found 'grb'"),
        ({"mean": [1.0, 2.0]}, r"mean, std: expected as many numbers of each, 1 to 4, found \(1.0, 2.0\)"),
        ({"size": [64]}, r"size: expected 2 numbers of 1 or more, up to 65536, found \(64,\)"),
        ({"size_divisor": 0}, "size_divisor: expected at least 1, up to 65536, found 0"),
        ({"mean": [1.0, float("nan"), 2.0]}, "mean, std: expected finite numbers"),
        ({"std": [1.0, 0, 2.0]}, "std: expected numbers other than 0"),
        ({"mean": [1.0], "std": [1.0]}, "color_order: expected bgr of 1 channels, found rgb"),
        ({"pad_value": "grey"}, "pad_value: expected a finite number, found 'grey'"),
        ({"mask_threshold": 1.5}, "mask_threshold: expected 0 to 1, found 1.5"),
        ({"mask_threshold": float("nan")}, "mask_threshold: expected 0 to 1, found nan"),
        ({"score_threshold": None}, "score_threshold: expected a finite number, found None"),
        ({"max_per_img": 0}, "max_per_img: expected at least 1, up to 1048576, found 0"),
        ({"steps": {}}, "steps: expected a list, found dict"),
        ({"steps": [{"step": "blur"}]}, r"steps\[0\]: expected one of the steps resize, .* found 'blur'"),
        ({"steps": [3]}, r"steps\[0\]: expected one of the steps .* found 3"),
        ({"steps": [{"step": "fit", "box": [0, 1]}]}, r"steps\[0\], fit: box: expected two positive numbers"),
        (
            {"steps": [{"step": "fit"}]},
            r"steps\[0\], fit: expected the fields box, found none of them\); export",
        ),
        ({"steps": [{"step": "resize"}]}, r"steps\[0\], resize: .*expected either a scale or factors"),
        (
            {"steps": [{"step": "resize", "scale": [9, 9], "backend": "pillow", "interpolation": "area"}]},
            "interpolation: expected one of nearest, .* found 'area'",
        ),
        ({"load": {"color_type": "sepia"}}, "load: color_type: expected one of color, .* found 'sepia'"),
        ({"load": []}, r"malformed field \(load: expected an object, found \[\]\)"),
        ({"load": {"colour": 1}}, r"load: expected the fields color_type, .*, found \['colour'\]"),
        ({"steps": [{"step": []}]}, r"steps\[0\]: expected one of the steps .*, found \[\]"),
        (
            {"steps": [{"step": "center_crop", "crop": [9, 9], "pad": 1}]},
            "pad: expected a pad or none, found 1",
        ),
        (
            {"steps": [{"step": "center_crop", "crop": [9.5, 9]}]},
            r"crop: expected two whole numbers, found \[9.5, 9\]",
        ),
        (
            {"steps": [{"step": "resize_shortest_edge", "scale": None}]},
            "scale: expected 1 or more, found None",
        ),
        (
            {"steps": [{"step": "normalize", "mean": [1], "std": [1, 2]}]},
            "mean, std: expected as many numbers of each",
        ),
        ({"mean": None}, "mean: expected a list, found NoneType"),
        ({"pad_value": 10**400}, "pad_value: expected a finite number, found 1000"),
        ({"size": [64, 10**6]}, r"size: expected 2 numbers of 1 or more, up to 65536, found \(64, 1000000\)"),
        ({"classes": 5}, "malformed field .*export the model again"),
    ],
)
def test_malformed_metadata_is_refused(changes: dict, message: str) -> None:
    data = {**json.loads(fakes.metadata().to_json()), **changes}
    with pytest.raises(ValueError, match=message):
        ModelMetadata.from_json(json.dumps(data))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{not json", "under 'maskrcnn': expected JSON, found '{not json'"),
        ("[1]", "expected format 1 or 2, found list"),
        ('{"format": 1}', "expected the fields resize"),
        ('{"format": 2}', "expected the fields .*classes.*size"),
    ],
)
def test_what_is_not_metadata_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelMetadata.from_json(text)


STEPS = (
    Resize(scale=(1333, 800), keep_ratio=True, interpolation="area"),
    Resize(factors=(0.5, 2.0), floor=True, backend="pillow", interpolation="hamming"),
    ResizeShortestEdge(scale=800, max_size=1333),
    FixShapeResize(scale=(64, 96), keep_ratio=True),
    Fit((64, 96)),
    Pad(size_divisor=32, value=(1, 2, 3), mode="reflect"),
    Normalize(mean=(1.5, 2.5, 3.5), std=(1.0, 2.0, 4.0)),
    CenterCrop((50, 60), pad=Pad(shape=(1, 1), value=114.5)),
)


def test_every_step_survives_json() -> None:
    facts = fakes.metadata(steps=STEPS, load=Load("grayscale", "pillow", True), pad_value=-1.5, size=None)
    assert ModelMetadata.from_json(facts.to_json()) == facts


@pytest.mark.parametrize(
    ("rule", "size", "step"),
    [
        ("fit", [64, 96], Fit((64, 96))),
        ("keep_ratio", [800, 1333], Resize(scale=(1333, 800), keep_ratio=True)),
        ("stretch", [64, 96], Resize(scale=(96, 64))),
    ],
)
def test_a_file_of_format_1_is_read(rule: str, size: list, step: Step) -> None:
    """As exporters wrote it before the steps were in it."""
    facts = fakes.metadata(steps=(step,))
    data = json.loads(facts.to_json())
    for name in ("steps", "load", "pad_value"):
        del data[name]
    old = {**data, "format": 1, "resize": {"rule": rule, "size": size}}
    assert ModelMetadata.from_json(json.dumps(old)) == facts
    assert facts.resize == step


@pytest.mark.parametrize(
    "resize", [{"rule": "crop", "size": [1, 1]}, {"rule": "fit", "size": [0, 1]}, {"size": [1, 1]}, 5]
)
def test_a_malformed_rule_of_format_1_is_refused(resize: object) -> None:
    data = {**json.loads(fakes.metadata().to_json()), "format": 1, "resize": resize}
    with pytest.raises(ValueError, match="malformed field .*resize.*export the model again"):
        ModelMetadata.from_json(json.dumps(data))


def test_a_step_that_would_take_all_memory_is_refused() -> None:
    steps = (Resize(factors=(1e5, 1e5)),)
    message = (
        "steps, resize: expected up to 268435456 pixels, found 1000000x2000000 made of an image of 10x20 px"
    )
    with pytest.raises(ValueError, match=message):
        final_size(10, 20, steps)


def test_normalize_takes_an_array_in_any_layout() -> None:
    image = fakes.random_image(20, 30)
    step = Normalize(mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0))
    turned = step.apply(image.transpose(1, 0, 2))
    np.testing.assert_array_equal(turned, step.apply(np.ascontiguousarray(image.transpose(1, 0, 2))))


def test_what_opencv_refuses_names_the_step() -> None:
    image = fakes.random_image(20, 30)
    with pytest.raises(
        ValueError, match=r"steps, normalize: expected an image that OpenCV takes, found shape \(20, 30, 3\)"
    ):
        applied(image, [Normalize(mean=(1.0, 2.0), std=(4.0, 5.0))])
