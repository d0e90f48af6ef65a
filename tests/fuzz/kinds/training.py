"""What the exporter reads: checkpoints and configs."""

import contextlib
import io
import json
import os
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from export.api import export_model
from export.checkpoint import read_checkpoint
from export.config import load_config
from export.dataset import class_names, test_pipeline
from export.metadata import metadata_from_model
from export.model import load_model
from tests.fuzz.mutations import MISSING, VALUES, damaged_bytes, damaged_json, damaged_text, mutated, pick
from tests.fuzz.trial import Trial
from tests.models import NUM_CLASSES, tiny_config

# A config is a program: what it asks for is built, however large. Its numbers stay small.
LARGEST = 64
OPCODES = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]


class _Payload:
    """Unpickled as Python's own ``pickle`` does it, makes a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple]:
        return os.mkdir, (str(self._path),)


def checkpoints(folder: Path, random: np.random.Generator) -> Trial:
    """Damage a checkpoint, and read its weights; no code of it may run."""
    path = folder / "damaged.pth"
    said, data = pick(random, CHANGES)(random, folder)
    path.write_bytes(data)
    return Trial(said, lambda: read_checkpoint(path), (str(path),))


def configs(folder: Path, random: np.random.Generator) -> Trial:
    """Damage a config, and read of it what the exporter does, up to building its model."""
    content = _config()
    kind = int(random.integers(10))
    path = folder / pick(random, ("damaged.json", "damaged.py", "damaged.yaml"))
    if kind < 6:
        said, content = mutated(content, random)
        data = _written(path, _tamed(content))
    elif path.suffix == ".json":
        said, data = damaged_json(content, random)
    else:
        said, data = pick(
            random,
            (damaged_bytes(_written(path, content), random), damaged_text(json.dumps(content), random)),
        )
    path.write_bytes(data)
    if kind < 3:
        return Trial(f"built: {said}", lambda: _built(path), _PLACES)
    if kind == 3:
        out = folder / "out"
        return Trial(f"exported: {said}", lambda: _exported(path, out / "m.onnx"), _PLACES, outputs=out)
    return Trial(said, lambda: _read(path), _PLACES)


# A config's values are said with the part that they stand in.
_PLACES = ("config", "test_cfg", "test pipeline", "model", "data_preprocessor", "checkpoint", "--", "steps")


def _read(path: Path) -> None:
    config = load_config(str(path))
    test_pipeline(config)
    class_names(config, None, NUM_CLASSES)


def _built(path: Path) -> None:
    metadata_from_model(load_model(str(path), None), size=None)


class _Enough(ValueError):
    """Ends an export before it takes seconds."""


def _exported(path: Path, output: Path) -> None:
    def step(title: str) -> Any:
        if not title.startswith(("load", "compare pixels")):
            raise _Enough("expected the beginning of an export, found its end: config")
        return contextlib.nullcontext(_Silent())

    export_model(str(path), Path("none"), output, steps=step, verify=False)


class _Silent:
    def note(self, text: str) -> None:
        """Show nothing."""


@cache
def _config() -> dict[str, Any]:
    config = json.loads(json.dumps(tiny_config().to_dict()))
    config["metainfo"] = {"classes": ["a", "b", "c", "d", "e"]}
    config["model"]["roi_head"]["mask_head"]["num_convs"] = 1
    return config


def _tamed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tamed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_tamed(item) for item in value]
    is_large = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) > LARGEST
    return value if not is_large or value != value or value in (192, 128, 200, 100) else LARGEST


def _written(path: Path, content: dict[str, Any]) -> bytes:
    if path.suffix == ".py":
        text = "nan, inf = float('nan'), float('inf')\n" + "".join(
            f"{k} = {v!r}\n" for k, v in content.items() if k
        )
        return text.encode("utf-8", "backslashreplace")
    return json.dumps(content).encode()


@cache
def _state_dict() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return OrderedDict(
        (f"backbone.layer{i}.conv.weight", torch.randn(4, 3, 3, 3, generator=generator).to(kind))
        for i, kind in enumerate((torch.float32, torch.float16, torch.float64, torch.bfloat16))
    )


@cache
def _saved(form: str) -> bytes:
    content = {
        "meta": {"dataset_meta": {"CLASSES": ("a", "b")}, "epoch": 12},
        "state_dict": {**_state_dict(), "bn.num_batches_tracked": torch.tensor(3)},
        "optimizer": {
            "state": {0: {"momentum_buffer": torch.ones(3)}},
            "param_groups": [{"lr": 0.1, "params": [0]}],
        },
        "message_hub": {"log_scalars": {"loss": np.arange(3.0)}},
    }
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=form == "zip")
    return file.getvalue()


def _flipped(random: np.random.Generator, folder: Path) -> tuple[str, bytes]:
    form = pick(random, ("zip", "legacy"))
    said, data = damaged_bytes(_saved(form), random)
    return f"{form}: {said}", data


def _beginning(random: np.random.Generator, folder: Path) -> tuple[str, bytes]:
    """Flip bytes where the pickle is."""
    form = pick(random, ("zip", "legacy"))
    data = bytearray(_saved(form))
    for _ in range(int(random.integers(1, 6))):
        data[int(random.integers(min(1500, len(data))))] = pick(random, (0, 255, *random.bytes(2)))
    return f"{form}: beginning", bytes(data)


def _packed(pickled: bytes, **others: bytes) -> bytes:
    """Return the zip archive with another pickle in it."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(_saved("zip"))) as source, zipfile.ZipFile(file, "w") as target:
        for name in source.namelist():
            is_pickle = name.endswith("/data.pkl")
            target.writestr(name, pickled if is_pickle else source.read(name))
    return file.getvalue()


@cache
def _pickled() -> bytes:
    with zipfile.ZipFile(io.BytesIO(_saved("zip"))) as source:
        return source.read(next(n for n in source.namelist() if n.endswith("/data.pkl")))


def _damaged_pickle(random: np.random.Generator, folder: Path) -> tuple[str, bytes]:
    said, data = damaged_bytes(_pickled(), random)
    return f"pickle: {said}", _packed(data)


def _opcodes(random: np.random.Generator, folder: Path) -> tuple[str, bytes]:
    """Put opcodes where they were not meant, or make a pickle of nothing else."""
    if random.random() < 0.5:
        data = bytearray(_pickled())
        for _ in range(int(random.integers(1, 4))):
            data[int(random.integers(2, len(data)))] = pick(random, OPCODES)[0]
        return "pickle: other opcodes", _packed(bytes(data))
    simple = [code for code in OPCODES if code not in (b"F", b"I", b"L", b"S", b"V", b"c", b"i", b"p", b"g")]
    body = b"".join(pick(random, simple) + random.bytes(int(random.integers(0, 5))) for _ in range(200))
    return "pickle: opcodes alone", _packed(b"\x80\x02" + body + b".")


def _hostile(random: np.random.Generator, folder: Path) -> tuple[str, bytes]:
    """A pickle that runs code, declares gigabytes, or holds itself."""
    lists: list = []
    lists.append(lists)
    deep: Any = 1
    for _ in range(300):
        deep = [deep]
    content = pick(
        random,
        (
            _Payload(folder / "owned"),
            {"state_dict": _Payload(folder / "owned")},
            {"state_dict": {"w": _Payload(folder / "owned")}},
            lists,
            deep,
            {"state_dict": {"w": 1}},
            {"state_dict": []},
            {1: 2, None: 3, (1,): 4},
            {"state_dict": {b"bytes": np.ones(3)}},
        ),
    )
    pickled = pick(random, (pickle.dumps(content, protocol=2), pickle.dumps(content, protocol=5)))
    if random.random() < 0.3:
        pickled = pick(
            random,
            (
                b"\x80\x02" + b"(" * 300_000 + b".",
                b"\x80\x02" + b"]" + b"2" * 100_000 + b".",
                b"\x80\x05\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.",
                b"\x80\x05\x96\x00\x00\x00\x00\x01\x00\x00\x00.",
                b"\x80\x02" + b"]" * 1000 + b"a" * 999 + b".",
                b"\x80\x02K\x02" + b"\x8a\xff" + b"\xff" * 255 + b".",
                b"\x80\x02X\x01\x00\x00\x00a" + b"2" * 30 + b"t" * 30 + b".",
                b"\x80\x02(" + b"K\x01" * 1000 + b"d.",
                b"\x80\x02}(" + b"NK\x01" * 1000 + b"u.",
            ),
        )
    form = int(random.integers(3))
    return f"a hostile pickle of {type(content).__name__}", _packed(pickled) if form else pickled


def _values(random: np.random.Generator, folder: Path) -> tuple[str, bytes]:
    """Weights and names of other types, saved as they should be."""
    content: Any = {"meta": {"dataset_meta": {"classes": ["a", "b"]}}, "state_dict": {"a.w": 1.0, "b.w": 2.0}}
    said, content = mutated(content, random)
    tensor = pick(
        random,
        (
            torch.full((3,), float("nan")),
            torch.zeros(3),
            torch.ones(3, dtype=torch.complex64),
            torch.ones(3).to_sparse(),
            torch.ones(1).expand(1000, 1000),
            torch.empty(0),
            torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
            torch.nn.Parameter(torch.ones(3)),
            torch.ones(3, dtype=torch.int64),
            np.ones(3),
            pick(random, [v for v in VALUES if v is not MISSING]),
        ),
    )
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content["state_dict"][pick(random, ("a.w", "", "module.a.w", "ema_a_w", "\0"))] = tensor
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=random.random() < 0.7)
    return f"{said}; {type(tensor).__name__}", file.getvalue()


def _other_file(random: np.random.Generator, folder: Path) -> tuple[str, bytes]:
    """Something else, in form or in name."""
    data = pick(
        random,
        (
            b"",
            b"\0" * 5000,
            b"PK\x05\x06" + b"\0" * 18,
            b"PK\x03\x04",
            b"version https://git-lfs.github.com/spec/v1\n",
            b"<html><title>x",
            b"sys_info\0" + b"\0" * 600,
            b"\xff\xfe" + "text".encode("utf-16-le"),
            random.bytes(3000),
        ),
    )
    return f"bytes {data[:8]!r}", data


CHANGES = (
    *(_flipped,) * 3,
    *(_beginning,) * 3,
    *(_damaged_pickle,) * 3,
    *(_opcodes,) * 3,
    *(_hostile,) * 2,
    *(_values,) * 3,
    _other_file,
)
