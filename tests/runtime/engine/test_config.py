import json
import re

import pytest

from runtime.engine.config import EngineConfig

FULL = EngineConfig(
    batch=(1, 4, 8),
    height=(320, 800, 1344),
    width=(320, 1216, 1344),
    shapes=(("x", ((1, 3), (2, 3), (8, 3))), ("mask", ((1,), (1,), (1,)))),
    precision="tf32",
    workspace_mib=4096,
    tactic_sources=("cublas", "cudnn"),
)


@pytest.mark.parametrize("config", [EngineConfig(), FULL, EngineConfig(tactic_sources=())])
def test_json_holds_a_config(config: EngineConfig) -> None:
    assert EngineConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_fields_of_a_later_version_are_left_out() -> None:
    assert EngineConfig.from_dict({**FULL.to_dict(), "dla_core": 1}) == FULL


def test_two_ways_to_write_the_same_are_equal() -> None:
    """Whether an engine is stale is decided by comparing configs."""
    assert EngineConfig(tactic_sources=("CUDNN", "cublas")) == EngineConfig(
        tactic_sources=("cublas", "cudnn")
    )
    assert EngineConfig(batch=[1, 2, 4]) == EngineConfig(batch=(1, 2, 4))
    assert EngineConfig(shapes=[["x", [[1], [2], [3]]]]) == EngineConfig(shapes=(("x", ((1,), (2,), (3,))),))


def test_no_tactic_source_is_not_tensorrts_choice() -> None:
    assert EngineConfig(tactic_sources=()) != EngineConfig()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int4"}, "--precision: expected one of fp32, tf32, fp16, int8, found 'int4'"),
        (
            {"batch": (0, 1, 2)},
            "batch: expected three numbers of at least 1, MIN <= OPT <= MAX, found 0 1 2",
        ),
        ({"batch": (1, 4, 2)}, "batch: .* found 1 4 2"),
        ({"batch": (1, 2)}, "batch: .* found 1 2"),
        ({"height": (64, 32, 96)}, "height: .* found 64 32 96"),
        ({"width": (1, 2, 3, 4)}, "width: .* found 1 2 3 4"),
        ({"workspace_mib": 0}, "--workspace: expected 1 to 1048576 MiB, found 0"),
        (
            {"shapes": (("x", ((1, 3), (2, 3), (1, 3))),)},
            re.escape(
                "--shape x: expected MIN <= OPT <= MAX in every dimension, found (1, 3), (2, 3), (1, 3)"
            ),
        ),
        ({"shapes": (("x", ((1, 3), (2, 3), (4, 3, 3))),)}, "--shape x: expected MIN <= OPT <= MAX"),
        ({"shapes": (("x", ((1, 3), (2, 3))),)}, "--shape x: expected three shapes"),
    ],
)
def test_what_no_engine_can_be_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EngineConfig(**options)


@pytest.mark.parametrize(
    ("batch", "profiles"),
    [
        ((1, 2, 8), ((1, 1, 1), (2, 2, 8))),
        ((1, 1, 8), ((1, 1, 1), (2, 2, 8))),
        ((1, 8, 8), ((1, 1, 1), (2, 8, 8))),
        ((1, 1, 1), ((1, 1, 1),)),
        ((2, 4, 8), ((2, 4, 8),)),
    ],
)
def test_one_image_alone_has_its_own_profile(batch: tuple, profiles: tuple) -> None:
    assert EngineConfig(batch=batch).profiles == profiles


def test_profiles_that_are_named_make_the_range() -> None:
    config = EngineConfig(profiles=[(1, 1, 2), (3, 4, 4), (5, 8, 16)])
    assert config.batch == (1, 8, 16)
    assert EngineConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_shapes_that_are_named_have_one_profile() -> None:
    shapes = (("x", ((1, 4), (2, 4), (8, 4))),)
    assert EngineConfig(shapes=shapes).profiles == ((1, 8, 8),)


def test_an_engine_that_was_built_before_there_were_profiles_has_one() -> None:
    data = EngineConfig(batch=(1, 2, 8)).to_dict()
    del data["profiles"]
    assert EngineConfig.from_dict(data).profiles == ((1, 2, 8),)
    assert EngineConfig.from_dict(data) != EngineConfig(batch=(1, 2, 8))


@pytest.mark.parametrize(
    "profiles", [(), ((1, 1, 1), (3, 4, 8)), ((1, 2, 4), (4, 5, 8)), ((2, 2, 4), (1, 1, 1))]
)
def test_profiles_with_a_gap_are_refused(profiles: tuple) -> None:
    with pytest.raises(
        ValueError, match="--profiles: expected ranges of batches that follow each other without a gap"
    ):
        EngineConfig(profiles=profiles)
