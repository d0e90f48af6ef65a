"""Which configs there are, which of them are the same model, and which code measures them."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from mmengine.config import Config

from export.config import load_config, shipped_configs
from export.dataset import test_pipeline

ROOT = Path(__file__).parents[2]
# The rule: every config that mmdet ships whose bare name has this in it.
NAME_PART = "rcnn"
# What a model does in inference does not depend on these: where weights come from, and how it is trained.
IGNORED = frozenset(
    {
        "pretrained",
        "init_cfg",
        "train_cfg",
        "frozen_stages",
        "norm_eval",
        "with_cp",
        "requires_grad",
        "batch_augments",
    }
)
KEY_LENGTH = 12


@dataclass(frozen=True)
class ZooConfig:
    """A shipped config.

    Attributes:
        name: its bare name.
        folder: where mmdet keeps it.
        key: of its model; None if the config cannot be read.
        problem: why it cannot be read, in one line; None if it can.
        cost: of measuring it, compared with others; a guess.
    """

    name: str
    folder: str
    key: Optional[str] = None
    problem: Optional[str] = None
    cost: float = 0.0


def zoo_configs(paths: Optional[Mapping[str, Path]] = None) -> list[ZooConfig]:
    """Read the configs, by default every shipped one with ``rcnn`` in its name."""
    if paths is None:
        paths = {name: path for name, path in shipped_configs().items() if NAME_PART in name}
    return [_read(name, path) for name, path in paths.items()]


def model_key(config: Config) -> str:
    """Return the hash of what decides a config's results: its resolved model but for ``IGNORED``, and its pipeline."""
    try:
        pipeline: Any = _resolved(test_pipeline(config).steps)
    except ValueError as error:
        pipeline = str(error)
    text = json.dumps([_resolved(config.model), pipeline], sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


def code_fingerprint(root: Path = ROOT) -> str:
    """Return the hash of the sources that results depend on.

    ``patches/``, ``export/`` with what checks one config, and of ``runtime/`` what reads, prepares, runs in onnxruntime
    and compares; the CPU reference of the operators that mmdet runs with.
    """
    zoo = root / "export" / "zoo"
    paths = [*root.glob("patches/**/*.py"), *root.glob("export/**/*.py"), *root.glob("runtime/*.py")]
    paths += [path for name in ("host", "comparison", "graphs") for path in root.glob(f"runtime/{name}/*.py")]
    paths += [root / "runtime" / "backends" / name for name in ("__init__.py", "onnxruntime.py")]
    paths += [
        *root.glob("plugins/*/*_reference.h"),
        *root.glob("plugins/*/*_math.h"),
        *root.glob("plugins/common/*.h"),
    ]
    paths = [p for p in paths if p.is_file()]
    digest = hashlib.sha256()
    for path in sorted(p for p in paths if zoo not in p.parents or p.name == "check.py"):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:KEY_LENGTH]


def representatives(configs: Iterable[ZooConfig]) -> list[ZooConfig]:
    """Return the first config of every model: folders in turn, and cheap ones before dear ones."""
    first: dict[str, ZooConfig] = {}
    for config in configs:
        if config.key is not None:
            first.setdefault(config.key, config)
    turns: dict[str, int] = {}
    order = {}
    for config in sorted(first.values(), key=lambda c: (c.cost, c.name)):
        order[config.name] = turns[config.folder] = turns.get(config.folder, -1) + 1
    return sorted(first.values(), key=lambda c: (order[c.name], c.cost, c.name))


def one_line(error: BaseException, limit: int = 300) -> str:
    """Return an error's message in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 4] + " ..."


def _read(name: str, path: Path) -> ZooConfig:
    folder = path.parent.name
    try:
        config = load_config(str(path))
    except ValueError as error:
        # The cause alone: the message around it repeats the path, which is another on every machine.
        text = one_line(error.__cause__ or error, 1000).replace(f"{path.parent.parent}/", "")
        return ZooConfig(name, folder, problem=text.split(", the current sys.path")[0])
    return ZooConfig(name, folder, key=model_key(config), cost=_cost(config))


def _resolved(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _resolved(value) for key, value in node.items() if key not in IGNORED}
    if isinstance(node, (list, tuple)):
        return [_resolved(value) for value in node]
    return node


def _cost(config: Config) -> float:
    """Return the backbone's depth, or what another network's seconds would be on that scale."""
    backbone = config.model.get("detector", config.model).get("backbone", {})
    depth = backbone.get("depth", 60)
    return depth if isinstance(depth, (int, float)) else 60
