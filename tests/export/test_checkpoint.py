"""Checkpoints as they lie about: 2.x, 3.x, prefixed, averaged, old, broken, of another model."""

import hashlib
import pickle

import pytest
import torch
from torch import nn

from export.checkpoint import load_weights, read_checkpoint

WEIGHTS = {"0.weight": torch.arange(6.0).view(2, 3), "0.bias": torch.tensor([1.0, 2.0])}


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2))


LAYOUTS = {
    "mmdet 3": {"state_dict": WEIGHTS, "meta": {"dataset_meta": {"classes": ("a", "b")}}},
    "mmdet 2": {"state_dict": WEIGHTS, "meta": {"CLASSES": ("a", "b")}, "optimizer": {}},
    "bare": WEIGHTS,
    "detectron style": {"model": WEIGHTS},
    "DistributedDataParallel": {"state_dict": {f"module.{k}": v for k, v in WEIGHTS.items()}},
    "averaged model alone": {
        "ema_state_dict": {"steps": torch.tensor(7), **{f"module.{k}": v for k, v in WEIGHTS.items()}}
    },
    "mmengine EMA: state_dict holds the average": {
        "state_dict": WEIGHTS,
        "ema_state_dict": {f"module.{k}": v * 0 for k, v in WEIGHTS.items()},
    },
    "mmcv 1 EMA buffers": {
        "state_dict": {**WEIGHTS, **{f"ema_{k.replace('.', '_')}": v * 0 for k, v in WEIGHTS.items()}}
    },
    "with the preprocessor's buffers": {"state_dict": {**WEIGHTS, "data_preprocessor.mean": torch.ones(3)}},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path, layout):
    path = tmp_path / "c.pth"
    torch.save(LAYOUTS[layout], path)
    checkpoint = read_checkpoint(path)
    target = model()
    load_weights(target, checkpoint)
    assert torch.equal(target[0].weight, WEIGHTS["0.weight"])
    assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert checkpoint.classes == (("a", "b") if layout.startswith("mmdet") else None)


def test_half_precision_becomes_float(tmp_path):
    torch.save({k: v.half() for k, v in WEIGHTS.items()}, tmp_path / "c.pth")
    target = model()
    load_weights(target, read_checkpoint(tmp_path / "c.pth"))
    assert target[0].weight.dtype == torch.float32


class Runs:
    """A pickle of this runs code."""

    def __reduce__(self) -> tuple:
        return (dict, ((("state_dict", WEIGHTS),),))


def test_a_pickle_that_runs_code_needs_trust(tmp_path):
    path = tmp_path / "c.pth"
    torch.save({"state_dict": WEIGHTS, "meta": {"hook": Runs()}}, path)
    # dict is allowed by torch; a class of ours is not.
    torch.save({"state_dict": WEIGHTS, "meta": {"hook": Trusted()}}, path)
    with pytest.raises(ValueError, match="found a pickle that wants to run code.*--trust-checkpoint"):
        read_checkpoint(path)
    assert set(read_checkpoint(path, trust_pickle=True).weights) == set(WEIGHTS)


class Trusted:
    """A class that torch does not know."""


BROKEN = {
    "no checkpoint at all": b"<html>not found</html>",
    "empty": b"",
    "a pickle of something else": pickle.dumps(3),
}


@pytest.mark.parametrize("name", BROKEN)
def test_an_unreadable_file(tmp_path, name):
    path = tmp_path / "c.pth"
    path.write_bytes(BROKEN[name])
    with pytest.raises(ValueError, match=r"checkpoint .*c\.pth: expected"):
        read_checkpoint(path)


def test_a_truncated_file(tmp_path):
    path = tmp_path / "c.pth"
    torch.save(WEIGHTS, path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="expected a PyTorch checkpoint, found a file that cannot be read"):
        read_checkpoint(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="checkpoint: expected a file, found nothing at .*gone.pth"):
        read_checkpoint(tmp_path / "gone.pth")


def test_no_weights_inside(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "c.pth")
    with pytest.raises(ValueError, match="expected a state dict, found the keys epoch"):
        read_checkpoint(tmp_path / "c.pth")


MISMATCHES = {
    "missing": ({"0.weight": WEIGHTS["0.weight"]}, "1 missing in the checkpoint: 0.bias"),
    "unexpected": ({**WEIGHTS, "1.weight": torch.ones(1)}, "1 not in the model: 1.weight"),
    "shape": ({**WEIGHTS, "0.bias": torch.ones(9)}, r"0.bias \(model \(2,\), checkpoint \(9,\)\)"),
}


@pytest.mark.parametrize("name", MISMATCHES)
def test_mismatched_keys_are_listed_and_refused(tmp_path, name):
    weights, message = MISMATCHES[name]
    torch.save(weights, tmp_path / "c.pth")
    checkpoint = read_checkpoint(tmp_path / "c.pth")
    with pytest.raises(ValueError, match=message):
        load_weights(model(), checkpoint)
    load_weights(model(), checkpoint, allow_mismatch=True)


def test_a_long_list_is_cut(tmp_path):
    torch.save({**WEIGHTS, **{f"x.{i}": torch.ones(1) for i in range(20)}}, tmp_path / "c.pth")
    with pytest.raises(ValueError, match="20 not in the model: .*, and 12 more"):
        load_weights(model(), read_checkpoint(tmp_path / "c.pth"))
