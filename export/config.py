"""From what a user types to an mmdet config."""

import difflib
from pathlib import Path

import mmdet
from mmengine.config import Config, ConfigDict


def shipped_configs() -> dict[str, Path]:
    """Return every config that the installed mmdet ships, by bare name.

    Source: mmdet's wheels carry ``configs/`` as ``mmdet/.mim/configs``.
    """
    root = Path(mmdet.__file__).parent / ".mim" / "configs"
    return {path.stem: path for path in sorted(root.glob("*/*.py")) if path.parent.name != "_base_"}


def config_path(name: str) -> Path:
    """Return the file that a path or the bare name of a shipped config means.

    Raises:
        FileNotFoundError: neither a file nor a shipped config; the message offers similar names.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = shipped_configs()
    stem = path.name.removesuffix(".py")
    if stem in shipped and path.name == name:
        return shipped[stem]
    similar = difflib.get_close_matches(stem, shipped, n=3)
    hint = f" Did you mean {' or '.join(similar)}?" if similar else ""
    raise FileNotFoundError(
        f"config: expected a file, or the name of a config that mmdet ships, found {name!r}, which is neither.{hint}"
    )


def load_config(name: str) -> Config:
    """Read a config, ready to build its model for inference.

    Returns:
        The config; weights that its backbone would fetch from the network are not asked for, and
        batch normalisation across processes is ordinary batch normalisation.

    Raises:
        FileNotFoundError: see ``config_path``.
        ValueError: the file is not an mmdet config, or has no model.
    """
    path = config_path(name)
    try:
        config = Config.fromfile(str(path))
    except Exception as error:
        raise ValueError(
            f"config {path}: expected an mmdet 3 config, found a file that cannot be read: {error}"
        ) from error
    if "model" not in config:
        raise ValueError(f"config {path}: expected a `model`, found {', '.join(sorted(config)) or 'nothing'}")
    _prepare(config.model)
    return config


def _prepare(node: object) -> None:
    if isinstance(node, list):
        for item in node:
            _prepare(item)
    if not isinstance(node, (dict, ConfigDict)):
        return
    if isinstance(node.get("init_cfg"), (dict, ConfigDict)) and node["init_cfg"].get("type") == "Pretrained":
        node["init_cfg"] = None
    if isinstance(node.get("pretrained"), str):
        node["pretrained"] = None
    if node.get("type") in ("SyncBN", "MMSyncBN", "NaiveSyncBN"):
        node["type"] = "BN"
    for value in node.values():
        _prepare(value)
