"""Random weights are the seed's alone."""

import pytest
import torch

from tests.families import family_model


@pytest.mark.parametrize("name", ["cascade", "double_head", "swin", "dcn", "attention", "group_norm"])
def test_the_seed_says_everything(name):
    """mmdet draws some layers' weights where it builds them, and never again."""
    made = []
    for state in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(state)
            made.append(family_model(name).state_dict())
    different = [key for key, value in made[0].items() if not torch.equal(value, made[1][key])]
    assert different == []
