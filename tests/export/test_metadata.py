"""What is read from a model and its config for the runtime: sizes, normalisation, thresholds, names."""

import pytest

from export.metadata import metadata_from_model, names_of, price_of_fixed_size, trace_size
from export.model import LoadedModel
from runtime.metadata import ModelMetadata
from runtime.transforms import Fit, FixShapeResize, Pad, Resize
from tests.models import tiny_config, tiny_model

OWN = Resize(scale=(192, 128), keep_ratio=True)


def loaded(*steps: dict, **preprocessor: object) -> LoadedModel:
    """A tiny model with a test pipeline of its own."""
    config = tiny_config()
    if steps:
        pipeline = config.test_dataloader.dataset.pipeline
        config.test_dataloader.dataset.pipeline = [pipeline[0], *steps, pipeline[-1]]
    config.model.data_preprocessor.update(preprocessor)
    return LoadedModel(tiny_model(), config, "tiny", None)


KEEP = {"type": "Resize", "scale": (192, 128), "keep_ratio": True}
STRETCH = {"type": "Resize", "scale": (192, 128), "interpolation": "area"}
SIZES = {
    "as the test pipeline does": ((), None, False, None, (OWN,)),
    "given": ((), (160, 96), False, (160, 96), (Fit((160, 96)),)),
    "one size alone": (
        (STRETCH,),
        None,
        False,
        (128, 192),
        (Resize(scale=(192, 128), interpolation="area"),),
    ),
    "one size alone, dynamic": (
        (STRETCH,),
        None,
        True,
        None,
        (Resize(scale=(192, 128), interpolation="area"),),
    ),
    "a stretch into another size": (
        (STRETCH,),
        (64, 96),
        False,
        (64, 96),
        (FixShapeResize((96, 64), interpolation="area"),),
    ),
    "padded to one size": (
        (KEEP, {"type": "Pad", "size": (192, 192)}),
        None,
        False,
        (192, 192),
        (OWN, Pad(shape=(192, 192), value=(0, 0, 0))),
    ),
    "padded to one size that some images exceed": (
        (KEEP, {"type": "Pad", "size": (160, 160)}),
        None,
        False,
        None,
        (OWN, Pad(shape=(160, 160), value=(0, 0, 0))),
    ),
    "never resized": (({"type": "RandomFlip", "prob": 0.0},), None, False, None, ()),
    "never resized, fixed": (({"type": "RandomFlip", "prob": 0.0},), (64, 96), False, (64, 96), ()),
}


@pytest.mark.parametrize("name", SIZES)
def test_size_and_steps(name: str) -> None:
    steps, size, dynamic, expected_size, expected_steps = SIZES[name]
    metadata = metadata_from_model(loaded(*steps), size=size, dynamic_size=dynamic)
    assert (metadata.size, metadata.steps) == (expected_size, expected_steps)
    assert all(edge % 32 == 0 for edge in trace_size(metadata))


REFUSED = {
    "no multiple": (
        (),
        (800, 1210),
        "expected multiples of 32, .*found 800 1210; the next larger is 800 1216",
    ),
    "smaller than the padding": (
        (KEEP, {"type": "Pad", "size": (192, 192)}),
        (64, 96),
        "--size: expected a size that holds what the test pipeline makes, found 64 96, where its padding makes 192 192",
    ),
    "two resizes": (
        (KEEP, STRETCH),
        (64, 96),
        "--size: expected at most one resize in the test pipeline, found 2",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_size_that_cannot_be_is_refused(name: str) -> None:
    steps, size, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        metadata_from_model(loaded(*steps), size=size)


def test_metadata_of_a_model() -> None:
    metadata = metadata_from_model(loaded(), size=None)
    assert metadata.classes == ("a", "b", "c", "d", "e")
    assert metadata.mean == pytest.approx((123.675, 116.28, 103.53))
    assert (metadata.color_order, metadata.size_divisor, metadata.pad_value) == ("rgb", 32, 0.0)
    assert (metadata.score_threshold, metadata.mask_threshold, metadata.max_per_img) == (0.05, 0.5, 100)
    assert ModelMetadata.from_json(metadata.to_json()) == metadata


def test_names_that_do_not_fit_the_model_are_not_used() -> None:
    model = loaded()
    model.config.test_dataloader.dataset.metainfo.classes = ("one", "two")
    names = names_of(model)
    assert names.names == tuple(f"class_{i}" for i in range(5))
    assert names.is_invented


def test_a_fixed_size_tells_its_price() -> None:
    model = loaded()
    price = price_of_fixed_size(metadata_from_model(model, size=(128, 192)), model)
    assert "a portrait photograph of 480x640 px (width x height) enters the network at 96x128" in price
    assert "where mmdet's own test pipeline makes 128x171" in price
    square = loaded({"type": "Resize", "scale": (128, 128), "keep_ratio": True})
    assert price_of_fixed_size(metadata_from_model(square, size=(128, 128)), square) == ""
