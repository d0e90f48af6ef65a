import re
from typing import Optional

import pytest

from runtime.engine.config import EngineConfig
from runtime.engine.profiles import profile_shapes, with_default_sizes
from runtime.transforms import Resize
from tests.runtime import fakes

BATCH = (1, 2, 8)
SIZES = EngineConfig(height=(64, 800, 1344), width=(96, 1216, 1344))


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("images", (-1, 3, 800, 1216), ((1, 3, 800, 1216), (2, 3, 800, 1216), (8, 3, 800, 1216))),
        ("images", (-1, 3, -1, -1), ((1, 3, 64, 96), (2, 3, 800, 1216), (8, 3, 1344, 1344))),
        ("images", (-1, 3, 800, -1), ((1, 3, 800, 96), (2, 3, 800, 1216), (8, 3, 800, 1344))),
        ("image_sizes", (-1, 2), ((1, 2), (2, 2), (8, 2))),
        ("x", (2, 3), ((2, 3),) * 3),
        ("scalar", (), ((),) * 3),
    ],
)
def test_free_dimensions_get_the_ranges(name: str, shape: tuple, expected: tuple) -> None:
    assert profile_shapes(name, shape, SIZES, BATCH) == expected


def test_a_given_shape_is_taken_as_it_is() -> None:
    given = ((2, 5), (3, 6), (4, 7))
    config = EngineConfig(shapes=(("tokens", given),))
    assert profile_shapes("tokens", (-1, -1), config, BATCH) == given
    # Inputs that are not named still follow the batch.
    assert profile_shapes("images", (-1, 3), config, BATCH) == ((1, 3), (2, 3), (8, 3))


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        (
            (-1, 3, -1, 640),
            {},
            "input x: expected a range for the free dimension 2 of ?x3x?x640, found none; give --size",
        ),
        ((-1, -1), {}, "dimension 1 of ?x?, found none; give --shape x=MIN,OPT,MAX"),
        ((-1, 3, -1), {}, "dimension 2 of ?x3x?, found none; give --shape x=MIN,OPT,MAX"),
        (
            (-1, 3),
            {"shapes": (("x", ((1, 4), (2, 4), (8, 4))),)},
            "--shape x: expected shapes like ?x3, found 1x4",
        ),
        (
            (-1, 3),
            {"shapes": (("x", ((1, 3, 1), (2, 3, 1), (8, 3, 1))),)},
            "--shape x: expected shapes like ?x3, found 1x3x1",
        ),
    ],
)
def test_what_does_not_fit_is_refused(shape: tuple, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        profile_shapes("x", shape, EngineConfig(**options), BATCH)


@pytest.mark.parametrize(
    ("resize", "height", "width"),
    [
        (Resize(scale=(1333, 800), keep_ratio=True), (64, 800, 1344), (64, 1344, 1344)),
        (Resize(scale=(800, 1333), keep_ratio=True), (64, 800, 1344), (64, 1344, 1344)),
        (Resize(scale=(192, 128), keep_ratio=True), (64, 128, 192), (64, 192, 192)),
    ],
)
def test_a_dynamic_model_gets_the_sizes_of_its_own_rule(resize: Resize, height: tuple, width: tuple) -> None:
    facts = fakes.metadata(size=None, steps=(resize,))
    config = with_default_sizes(EngineConfig(batch=(1, 1, 1)), facts)
    assert (config.batch, config.height, config.width) == ((1, 1, 1), height, width)


@pytest.mark.parametrize("size", [(64, 96), None])
@pytest.mark.parametrize("height", [(32, 32, 64), None])
def test_given_and_fixed_sizes_stay(size: Optional[tuple], height: Optional[tuple]) -> None:
    facts = fakes.metadata(size=size, steps=(Resize(scale=(96, 64), keep_ratio=True),))
    config = EngineConfig(height=height, width=height)
    if size is None and height is None:
        config = EngineConfig(shapes=(("images", ((1, 3, 32, 32),) * 3),))
    assert with_default_sizes(config, facts) == config
