"""Checkpoints as they lie about: 2.x, 3.x, prefixed, averaged, old, broken, of another model."""

import collections
import hashlib
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner, load_checkpoint
from torch import nn
from torch.utils.data import Dataset

from export.checkpoint import load_weights, read_checkpoint

WEIGHTS = {"0.weight": torch.arange(6.0).view(2, 3), "0.bias": torch.tensor([1.0, 2.0])}


class UserState(dict):
    """A subclass of dict, as projects write them."""


class UserNames(list):
    """A subclass of list."""


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


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="checkpoint: expected a file, found nothing at .*gone.pth"):
        read_checkpoint(tmp_path / "gone.pth")


def test_no_weights_inside(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "c.pth")
    with pytest.raises(ValueError, match="expected a state dict, found the keys epoch"):
        read_checkpoint(tmp_path / "c.pth")


OTHER = {k: v + 1 for k, v in WEIGHTS.items()}

# Of two that could be meant, the one that mmdet's init_detector loads.
CHOICES = {
    "the state dict before the model": {"model": OTHER, "state_dict": WEIGHTS},
    "the state dict before the average": {"ema_state_dict": OTHER, "state_dict": WEIGHTS},
    "the model before the average": {"ema_state_dict": OTHER, "model": WEIGHTS},
    "a model's state dict": {"model": {"state_dict": WEIGHTS, "args": {"lr": 1}}},
    "a state dict's state dict": {"state_dict": {"state_dict": WEIGHTS}},
    "a bare key before a prefixed one": {
        "state_dict": {**WEIGHTS, **{f"ema_model.{k}": v for k, v in OTHER.items()}}
    },
    "in either order": {"state_dict": {**{f"ema_model.module.{k}": v for k, v in OTHER.items()}, **WEIGHTS}},
    "module. before ema_model.": {
        "state_dict": {
            **{f"ema_model.{k}": v for k, v in OTHER.items()},
            **{f"module.{k}": v for k, v in WEIGHTS.items()},
        }
    },
    "module. twice": {"state_dict": {f"module.module.{k}": v for k, v in WEIGHTS.items()}},
    "an averaged model's": {"model": {f"ema_model.module.{k}": v for k, v in WEIGHTS.items()}},
    "mmcv 1 buffers of a wrapped model": {
        "state_dict": {
            **{f"module.{k}": v for k, v in WEIGHTS.items()},
            **{f"module.ema_{k.replace('.', '_')}": v for k, v in OTHER.items()},
        }
    },
    "a preprocessor of a wrapped model": {
        "state_dict": {
            **{f"module.{k}": v for k, v in WEIGHTS.items()},
            "module.data_preprocessor.mean": torch.ones(3),
        }
    },
    "a state dict that is no dictionary": {"state_dict": None, "model": WEIGHTS},
    "a model that is a name": {"model": "mask_rcnn", **WEIGHTS},
    "beside numbers": {"state_dict": WEIGHTS, "epoch": 12, "iter": torch.tensor(7), "lr": [0.1]},
    "bare, beside numbers": {**WEIGHTS, "epoch": 12},
    "no tensors in the state dict": {"state_dict": {**WEIGHTS, "x._extra_state": None, "version": 3}},
    "a defaultdict": {"state_dict": collections.defaultdict(list, WEIGHTS)},
    "a dictionary's subclass": {"state_dict": UserState(WEIGHTS)},
    "a dictionary's subclass as the content": UserState({"state_dict": WEIGHTS}),
}


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("legacy", [False, True])
def test_which_weights(tmp_path, name, legacy):
    torch.save(CHOICES[name], tmp_path / "c.pth", _use_new_zipfile_serialization=not legacy)
    weights = read_checkpoint(tmp_path / "c.pth").weights
    assert list(weights) == list(WEIGHTS)
    assert all(torch.equal(weights[k], v) for k, v in WEIGHTS.items())


def test_a_state_dict_that_holds_itself(tmp_path):
    content: dict = {}
    content["model"] = content
    torch.save(content, tmp_path / "c.pth")
    with pytest.raises(ValueError, match=r"c\.pth: expected a state dict, found the keys model"):
        read_checkpoint(tmp_path / "c.pth")


def test_entries_that_are_no_tensors_are_noted(tmp_path):
    torch.save({"state_dict": {**WEIGHTS, "version": 3}}, tmp_path / "c.pth")
    notes = read_checkpoint(tmp_path / "c.pth").notes
    assert notes == ("left out 1 object (no tensor in the state dict): version",)


# --- class names ---------------------------------------------------------------------------------------------------

AB = ("a", "b")
CLASSES = {
    "mmdet 3": ({"dataset_meta": {"classes": AB}}, AB),
    "mmdet 3 in upper case": ({"dataset_meta": {"CLASSES": AB}}, AB),
    "in any case": ({"dataset_meta": {"Classes": AB}}, AB),
    "mmdet 2": ({"CLASSES": AB}, AB),
    "both": ({"dataset_meta": {"classes": AB}, "CLASSES": ("c",)}, AB),
    "a list": ({"CLASSES": ["a", "b"]}, AB),
    "one name as text": ({"dataset_meta": {"classes": "person"}}, ("person",)),
    "one name as mmdet 2's text": ({"CLASSES": "person"}, ("person",)),
    "a NumPy array": ({"CLASSES": np.array(["a", "b"])}, AB),
    "a NumPy array, big-endian": ({"CLASSES": np.array(["a", "bü"], ">U3")}, ("a", "bü")),
    "a NumPy array of objects": ({"CLASSES": np.array(["a", "b"], dtype=object)}, AB),
    "NumPy text": ({"CLASSES": [np.str_("a"), np.str_("b")]}, AB),
    "a list's subclass": ({"CLASSES": UserNames(["a", "b"])}, AB),
    "a dictionary's subclass as meta": (UserState(dataset_meta=UserState(classes=AB)), AB),
    "an OrderedDict": (collections.OrderedDict(CLASSES=AB), AB),
    "Chinese": ({"CLASSES": ("盒子",)}, ("盒子",)),
    "None": ({"CLASSES": None}, None),
    "a data set's None": ({"dataset_meta": {"classes": None}}, None),
    "none at all": ({"CLASSES": ()}, None),
    "no data set": ({"dataset_meta": None, "CLASSES": AB}, AB),
    "no meta": (None, None),
    "meta of text": ("3.3.0", None),
    "a data set of text": ({"dataset_meta": "coco", "CLASSES": AB}, AB),
    "keys of numbers": ({"dataset_meta": {1: 2, "classes": AB}}, AB),
}
NO_NAMES = {
    "numbers": (1, 2),
    "a number": 3,
    "names and numbers": ("a", 1),
    "names and None": ("a", None),
    "a dictionary": {0: "a"},
    "a list of lists": (("a", "b"),),
    "an array of numbers": np.arange(3),
    "an object": UserNames,
    "a set": {"a", "b"},
    "half a surrogate pair": ("a\ud800",),
    "bytes": b"ab",
    "a tensor": torch.ones(2),
}


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("name", CLASSES)
def test_class_names(tmp_path, name, protocol):
    meta, classes = CLASSES[name]
    torch.save({"meta": meta, "state_dict": WEIGHTS}, tmp_path / "c.pth", pickle_protocol=protocol)
    checkpoint = read_checkpoint(tmp_path / "c.pth")
    assert checkpoint.classes == classes
    assert all(type(n) is str for n in checkpoint.classes or ())
    assert not [n for n in checkpoint.notes if "class names" in n]


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("name", NO_NAMES)
def test_class_names_that_are_none_are_ignored(tmp_path, name, protocol):
    content = {"meta": {"dataset_meta": {"classes": NO_NAMES[name]}}, "state_dict": WEIGHTS}
    torch.save(content, tmp_path / "c.pth", pickle_protocol=protocol)
    checkpoint = read_checkpoint(tmp_path / "c.pth")
    assert checkpoint.classes is None
    assert "class names that the checkpoint carries are no list of names" in checkpoint.notes[-1]


# --- values --------------------------------------------------------------------------------------------------------

BN = {"bn.weight": torch.ones(2), "bn.running_mean": torch.zeros(2), "bn.running_var": torch.ones(2)}
NAN, INF = float("nan"), float("inf")
NOT_FINITE = {
    "NaN": ({"0.bias": torch.tensor([1.0, NAN])}, r"in 1 of 2 tensors: 0\.bias\. Training diverged"),
    "infinity": ({"0.bias": torch.tensor([1.0, INF])}, r"in 1 of 2 tensors: 0\.bias"),
    "minus infinity": ({"0.bias": torch.tensor([1.0, -INF])}, r"in 1 of 2 tensors: 0\.bias"),
    "all of them": ({k: v * NAN for k, v in WEIGHTS.items()}, r"in 2 of 2 tensors: 0\.weight, 0\.bias"),
    "a statistic": (
        {**BN, "bn.running_var": torch.tensor([1.0, INF])},
        r"in 1 of 5 tensors: bn\.running_var",
    ),
    "half precision": ({"0.bias": torch.tensor([1.0, NAN]).half()}, "in 1 of 2 tensors"),
    "bfloat16": ({"0.bias": torch.tensor([1.0, NAN]).bfloat16()}, "in 1 of 2 tensors"),
    "double precision": ({"0.bias": torch.tensor([1.0, NAN]).double()}, "in 1 of 2 tensors"),
    "beyond single precision": (
        {"0.bias": torch.tensor([1.0, 1e300], dtype=torch.float64)},
        "in 1 of 2 tensors",
    ),
    "a scalar": ({"x": torch.tensor(NAN)}, r"in 1 of 3 tensors: x"),
    "many": ({f"x.{i}": torch.tensor([NAN]) for i in range(20)}, "in 20 of 22 tensors: .*, and 12 more"),
}
ZERO = {
    "all of them": {k: v * 0 for k, v in WEIGHTS.items()},
    "minus zero": {k: v * -0.0 for k, v in WEIGHTS.items()},
    "half precision": {k: v.half() * 0 for k, v in WEIGHTS.items()},
    "but counters": {**{k: v * 0 for k, v in WEIGHTS.items()}, "bn.num_batches_tracked": torch.tensor(7)},
    "but statistics as they begin": {
        **{k: v * 0 for k, v in {**WEIGHTS, **BN}.items()},
        "bn.running_var": torch.ones(2),
    },
    "an empty tensor": {"x": torch.zeros(0)},
}


@pytest.mark.parametrize("name", NOT_FINITE)
@pytest.mark.parametrize("trust", [False, True])
def test_weights_that_are_not_finite(tmp_path, name, trust):
    changed, words = NOT_FINITE[name]
    torch.save({"state_dict": {**WEIGHTS, **changed}}, tmp_path / "c.pth")
    with pytest.raises(ValueError, match=rf"c\.pth: expected finite weights, found NaN or infinity {words}"):
        read_checkpoint(tmp_path / "c.pth", trust_pickle=trust)


def test_what_is_not_a_weight_may_be_not_finite(tmp_path):
    content = {
        "state_dict": {
            **WEIGHTS,
            "data_preprocessor.mean": torch.tensor([NAN]),
            "ema_x": torch.tensor([NAN]),
        },
        "optimizer": {"x": torch.tensor([NAN])},
        "ema_state_dict": {k: v * NAN for k, v in WEIGHTS.items()},
    }
    torch.save(content, tmp_path / "c.pth")
    assert list(read_checkpoint(tmp_path / "c.pth").weights) == list(WEIGHTS)


@pytest.mark.parametrize("name", ZERO)
def test_weights_that_are_all_zero(tmp_path, name):
    torch.save({"state_dict": ZERO[name]}, tmp_path / "c.pth")
    with pytest.raises(
        ValueError, match=r"c\.pth: expected trained weights, found all \d+ floating-point tensors zero"
    ):
        read_checkpoint(tmp_path / "c.pth")


def test_weights_without_fractions(tmp_path):
    torch.save({"state_dict": {"x": torch.tensor([3])}}, tmp_path / "c.pth")
    with pytest.raises(ValueError, match="expected trained weights, found none of floating point"):
        read_checkpoint(tmp_path / "c.pth")


def test_some_zero_weights_are_fine(tmp_path):
    torch.save({**WEIGHTS, "0.bias": torch.zeros(2)}, tmp_path / "c.pth")
    assert not read_checkpoint(tmp_path / "c.pth").weights["0.bias"].any()


# --- mmengine's own files ------------------------------------------------------------------------------------------


class Tiny(BaseModel):
    """One layer with a normalization, whose loss is its output's square."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Linear(1, 2)
        self.bn = nn.BatchNorm1d(2)

    def forward(self, inputs, data_samples=None, mode: str = "tensor"):
        return {"loss": (self.bn(self.w(torch.stack(list(inputs)))) + self.w.weight.sum()).square().mean()}


class Ones(Dataset):
    metainfo = {"classes": ("a", "b")}

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict:
        return {"inputs": torch.ones(1) * index}


OPTIMIZERS = {
    "SGD": {"optimizer": {"type": "SGD", "lr": 0.1, "momentum": 0.9}},
    "Adam": {"optimizer": {"type": "AdamW", "lr": 0.1}},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_mmengines_runner_saves(tmp_path, monkeypatch, optimizer, ema):
    runner = Runner(
        Tiny(),
        str(tmp_path),
        experiment_name=f"{optimizer}_{ema}",
        train_dataloader={
            "batch_size": 2,
            "dataset": Ones(),
            "sampler": {"type": "DefaultSampler", "shuffle": False},
        },
        train_cfg={"by_epoch": True, "max_epochs": 2},
        optim_wrapper=OPTIMIZERS[optimizer],
        param_scheduler={"type": "LinearLR", "start_factor": 0.1, "by_epoch": False, "end": 3},
        custom_hooks=[{"type": "EMAHook", "momentum": 0.3}] if ema else [],
        default_hooks={"logger": {"type": "LoggerHook", "interval": 1}},
        default_scope="mmengine",
        log_level="ERROR",
    )
    runner.train()
    path = tmp_path / "epoch_2.pth"
    checkpoint = read_checkpoint(path)
    mine, theirs = Tiny(), Tiny()
    load_weights(mine, checkpoint)
    monkeypatch.setattr(torch, "load", partial(torch.load, weights_only=False))  # as mmengine means it
    load_checkpoint(theirs, str(path), map_location="cpu")
    for key, value in theirs.state_dict().items():
        assert torch.equal(mine.state_dict()[key], value), key
    assert checkpoint.classes == ("a", "b")
    assert checkpoint.notes == ()
    with pytest.raises(
        ValueError, match=r"last_checkpoint: .*a text that names a checkpoint.*Give that file: .*epoch_2\.pth"
    ):
        read_checkpoint(tmp_path / "last_checkpoint")


# --- loading -------------------------------------------------------------------------------------------------------

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


class Refusing(nn.Linear):
    """A layer whose hook cannot take what it gets."""

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        state_dict[prefix + "of_old"].view(-1)


def test_a_layer_that_cannot_take_the_weights(tmp_path):
    torch.save(WEIGHTS, tmp_path / "c.pth")
    with pytest.raises(
        ValueError, match=r"weights that the config's model can take, found: '0\.of_old'\. Give the config"
    ):
        load_weights(nn.Sequential(Refusing(3, 2)), read_checkpoint(tmp_path / "c.pth"), allow_mismatch=True)


PREFIXES = {
    "Lightning": ("model.", "", r"2 keys would be the model's without the prefix model\."),
    "a student": ("student.", "", r"2 keys would be the model's without the prefix student\."),
    "a semi-supervised model": ("", "teacher.", r"2 keys would be the model's with the prefix teacher\."),
}


@pytest.mark.parametrize("name", PREFIXES)
def test_a_prefix_is_named(tmp_path, name):
    theirs, ours, words = PREFIXES[name]
    torch.save({"state_dict": {f"{theirs}{k}": v for k, v in WEIGHTS.items()}}, tmp_path / "c.pth")
    target = nn.ModuleDict({ours[:-1]: model()}) if ours else model()
    with pytest.raises(ValueError, match=f"2 missing in the checkpoint(?s:.*){words}"):
        load_weights(target, read_checkpoint(tmp_path / "c.pth"))


def test_a_scalar_of_one_dimension_is_taken(tmp_path):
    """PyTorch < 0.4 saved it so."""
    target = nn.Module()
    target.scale = nn.Parameter(torch.tensor(0.0))
    torch.save({"scale": torch.tensor([3.0])}, tmp_path / "c.pth")
    load_weights(target, read_checkpoint(tmp_path / "c.pth"))
    assert target.scale.item() == 3


def test_keys_are_shown_as_one_line_each(tmp_path):
    torch.save({**WEIGHTS, "a\n\x1b[31m\ud800": torch.ones(1)}, tmp_path / "c.pth")
    with pytest.raises(ValueError, match="1 not in the model: ") as caught:
        load_weights(model(), read_checkpoint(tmp_path / "c.pth"))
    assert "a\\n\\x1b[31m\\ud800" in str(caught.value)
