import json

import pytest

from runtime.metadata import ModelMetadata, ResizeRule
from tests.runtime import fakes


def test_json_brings_back_the_same_metadata() -> None:
    for facts in (fakes.metadata(), fakes.metadata(size=None, masks="none", versions={"torch": "2.4"})):
        assert ModelMetadata.from_json(facts.to_json()) == facts


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 99}, "expected format 1, found 99; export the model again"),
        ({"masks": "polygons"}, "masks: expected one of crop, full, none, found 'polygons'"),
        ({"color_order": "grb"}, "color_order: expected rgb or bgr, found 'grb'"),
        ({"mean": [1.0, 2.0]}, r"mean: expected 3 numbers, found \(1.0, 2.0\)"),
        ({"size": [64]}, r"size: expected 2 numbers, found \(64,\)"),
        ({"size_divisor": 0}, "size_divisor: expected at least 1, found 0"),
        ({"resize": {"rule": "crop", "size": [1, 1]}}, "resize rule: expected one of .* found 'crop'"),
        ({"resize": {"rule": "fit", "size": [0, 1]}}, "resize size: expected two positive ints"),
        ({"resize": {"size": [1, 1]}}, "malformed field .*export the model again"),
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
        ("{not json", "expected JSON under 'maskrcnn', found '{not json'"),
        ("[1]", "expected format 1, found list"),
        ('{"format": 1}', "missing .*classes.*size"),
    ],
)
def test_what_is_not_metadata_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelMetadata.from_json(text)


def test_the_resize_rules_size_becomes_ints() -> None:
    assert ResizeRule("fit", [64.0, 96]).size == (64, 96)
