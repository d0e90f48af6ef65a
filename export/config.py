"""From what a user types to an mmdet config."""

import patches  # isort: skip  # noqa: F401  makes mmdet importable without mmcv's compiled operators

import ast
import difflib
import inspect
import json
import re
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Optional

import mmcv.ops
import mmdet
import torch
import yaml
from mmdet.registry import TRANSFORMS
from mmengine.config import Config
from mmengine.config import config as mmengine_config
from mmengine.config.lazy import LazyAttr, LazyObject
from mmengine.config.utils import ConfigParsingError

from export.dataset import LOADERS, test_pipeline, type_name

SUFFIXES = (".py", ".json", ".yaml", ".yml")
CHECKPOINT_SUFFIXES = (".pth", ".pt", ".ckpt", ".pkl", ".bin", ".safetensors")
MODEL_SUFFIXES = (".onnx", ".engine", ".plan", ".trt")
# What the export reads of a config. The rest is training's, and may name what is not installed here.
KEYS_READ = ("model", "metainfo", "data_root", "test_pipeline", *LOADERS)
SYNC_BATCH_NORMS = ("SyncBN", "MMSyncBN", "NaiveSyncBN", "SyncBatchNorm")
PRETRAINED = ("Pretrained", "PretrainedInit")
# Of a name in a message, characters.
NAME_LENGTH = 200
# Settings of mmdet 2.x that 3.x has under other names.
TRAINING_2X = (
    "img_norm_cfg",
    "checkpoint_config",
    "optimizer_config",
    "lr_config",
    "evaluation",
    "total_epochs",
)
TRANSFORMS_2X = ("DefaultFormatBundle", "Collect")


def shipped_configs() -> dict[str, Path]:
    """Return every config that the installed mmdet ships, by bare name.

    Source: mmdet's wheels carry ``configs/`` as ``mmdet/.mim/configs``.
    """
    root = _shipped_root()
    return {path.stem: path for path in sorted(root.glob("*/*.py")) if path.parent.name != "_base_"}


def config_path(name: str) -> Path:
    """Return the file that a path or the name of a shipped config means.

    A shipped config's name is bare, with its folder (``mask_rcnn/mask-rcnn_r50_fpn_2x_coco.py``, with ``configs/``
    before it as in mmdet's documentation), in mmengine's notation (``mmdet::mask_rcnn/...``) or, of one in pure
    Python, its module (``mmdet.configs.mask_rcnn.mask_rcnn_r50_fpn_1x_coco``, where mmdet is installed with them).

    Raises:
        FileNotFoundError: neither a file nor a shipped config; the message says what it is, and offers similar names.
    """
    path = _expanded(name)
    if _is(path, "is_file"):
        return path
    shipped = _shipped_path(name)
    if shipped is not None:
        return shipped
    raise FileNotFoundError(
        f"config: expected a file, or the name of a config that mmdet ships, found {_what_it_is(name, path)}"
    )


def load_config(name: str) -> Config:
    """Read a config, ready to build its model for inference.

    Returns:
        The config; weights that its backbone would fetch from the network are not asked for, and
        batch normalisation across processes is ordinary batch normalisation. Of a pure-Python config, what stands
        under ``KEYS_READ`` are the classes themselves.

    Raises:
        FileNotFoundError: see ``config_path``.
        ValueError: the file is not an mmdet 3 config, or has no model.
    """
    path = config_path(name)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"config {path}: expected a .py, .json or .yaml file, found {_other_file(path)}")
    _check_bases(path)
    try:
        config = Config.fromfile(str(path))
        _resolve_imports(config)
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"config {path}: expected an mmdet 3 config, found a file that cannot be read: {_reason(error, path)}"
        ) from error
    _check_model(config, path)
    config.model = _prepared(config.model)
    if path.suffix != ".py":
        for key in ("test_pipeline", *LOADERS):
            if key in config:
                config[key] = _with_tuples(config[key])
    return config


# Names


def _shipped_root() -> Path:
    return Path(mmdet.__file__).parent / ".mim" / "configs"


def _expanded(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:  # the home of a user who does not exist
        return Path(name)


def _is(path: Path, kind: str) -> bool:
    """Say whether a path is_file, is_dir and so on; False for what cannot be a path."""
    try:
        return getattr(path, kind)()
    except (OSError, ValueError):  # too long, a folder closed to us, or a null character
        return False


def _shipped_path(name: str) -> Optional[Path]:
    """Return the shipped config of this name, or None."""
    if name.startswith("mmdet.configs."):
        name = name.replace(".", "/")
    for prefix in ("./", "mmdetection/"):
        name = name.removeprefix(prefix)
    if name.startswith("mmdet/configs/"):
        path = Path(mmdet.__file__).parents[1] / (name.removesuffix(".py") + ".py")
        return path if _is(path, "is_file") else None
    bare = name.removeprefix("mmdet::").removeprefix("configs/").removesuffix(".py")
    folder, _, stem = bare.rpartition("/")
    path = shipped_configs().get(stem)
    return path if path is not None and folder in ("", path.parent.name) else None


def _what_it_is(name: str, path: Path) -> str:
    """Complete "found": what a name that names no config is, and what to do."""
    if not name.strip():
        return "an empty name; give a file, or a name such as mask-rcnn_r50_fpn_2x_coco"
    if re.match(r"\w{2,}://", name):
        return f"the URL {name}; download the config with its _base_ files{_hint(name)}"
    if _is(path, "is_dir"):
        return f"the folder {name}; give one file in it{_listed(path)}"
    if _is(path, "exists"):
        return f"{name}, which is not a regular file; copy its content into one that ends in .py"
    if _is(path, "is_symlink"):
        return f"the link {name}, whose target is not there; give the config itself"
    if path.suffix in (*CHECKPOINT_SUFFIXES, *MODEL_SUFFIXES):
        return f"{name!r}, which is neither; the config is the first argument, the checkpoint the second"
    if "\\" in name:
        return f"{name!r}, which is neither; a path is written with / here{_hint(name)}"
    now = _shipped_of_2x(path.stem)
    if now:
        return f"{name!r}, which is neither: a name of mmdet 2.x, which mmdet 3.x calls {now}; give {now}"
    return f"{name[:NAME_LENGTH]!r}, which is neither{_hint(name)}"


def _hint(name: str) -> str:
    """Return similar names of shipped configs."""
    stem = re.split(r"[/\\.]", name.removesuffix(".py"))[-1][:NAME_LENGTH]
    now = _shipped_of_2x(stem)
    similar = [now] if now else difflib.get_close_matches(stem.lower(), shipped_configs(), n=3)
    return f". Did you mean {' or '.join(similar)}?" if similar else ""


def _listed(folder: Path, limit: int = 3) -> str:
    try:
        names = sorted(p.name for p in folder.iterdir() if p.suffix in SUFFIXES)
    except OSError:
        return ""
    return f", such as {' or '.join(names[:limit])}" if names else ""


def _shipped_of_2x(stem: str) -> Optional[str]:
    """Return the name that the shipped config has in mmdet 3.x, of its name in 2.x; None if there is none such."""
    wanted = _normalized(stem)
    for name in shipped_configs():
        if name.lower() != stem.lower() and _normalized(name) == wanted:
            return name
    return None


def _normalized(stem: str) -> str:
    """Return a name without what 3.x changed in names.

    Source: mmdet's migration guide: ``-`` joins what belongs to one part, ``mstrain`` is ``ms``, ``8x2`` is ``8xb2``.
    """
    name = re.sub(r"[-+]", "_", stem.lower()).replace("mstrain", "ms")
    return re.sub(r"(?<=_)(\d+)x(\d+)(?=_)", r"\1xb\2", name)


def _other_file(path: Path) -> str:
    """Complete "found": what a file that no config can be is, and what to do."""
    if path.suffix in CHECKPOINT_SUFFIXES:
        return "a checkpoint; the config is the first argument, the checkpoint the second"
    if path.suffix in MODEL_SUFFIXES:
        return "an exported model; give the config that it was trained with"
    if path.suffix.lower() in SUFFIXES:
        return f"the suffix {path.suffix}; write it in lower case"
    return f"{'the suffix ' + path.suffix if path.suffix else 'no suffix'}; rename the file if it is a config"


# Reading


def _check_bases(path: Path, above: tuple[Path, ...] = ()) -> None:
    """Refuse a base that mmengine would wait for; what else is wrong with one, mmengine says."""
    above = (*above, path.resolve())
    for base in _bases(path):
        if not isinstance(base, str):
            raise ValueError(
                f"config {path}: expected _base_ to be a file name or a list of them, found {base!r}; mend the config"
            )
        file = path.parent / base
        if _is(file, "exists") and not _is(file, "is_file"):
            raise ValueError(
                f"config {path}: expected _base_ to name files, found {base}, which is not a regular one"
            )
        if file.resolve() in above:
            raise ValueError(
                f"config {path}: expected _base_ files that end, found {base}, which includes this one; end the circle"
            )
        if _is(file, "is_file"):
            _check_bases(file, above)


def _bases(path: Path) -> list:
    """Return a Python config's ``_base_`` if it is written out; none of a file that cannot be parsed."""
    try:
        statements = ast.parse(path.read_bytes()).body if path.suffix == ".py" else []
        for statement in statements:
            if isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", None) == "_base_":
                bases = ast.literal_eval(statement.value)
                return bases if isinstance(bases, list) else [bases]
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    return []


def _resolve_imports(config: Config) -> None:
    """Put the classes and functions themselves in place of a pure-Python config's names of them.

    mmengine does so when a value is read from a dictionary, not from a list, and not when a dictionary is copied.
    """
    raw = config._cfg_dict
    for key, value in list(dict.items(raw)):
        if key in KEYS_READ:
            dict.__setitem__(raw, key, _resolved(value, strict=key == "model"))
        elif isinstance(value, (LazyObject, LazyAttr)):
            dict.pop(raw, key)  # an import, not a setting


def _resolved(node: Any, strict: bool) -> Any:
    """Return a node with imported things in place of their names; if not strict, what cannot be imported is a name."""
    if isinstance(node, dict):
        for key, value in list(dict.items(node)):
            dict.__setitem__(node, key, _resolved(value, strict))
        return node
    if type(node) in (list, tuple):
        return type(node)(_resolved(item, strict) for item in node)
    if not isinstance(node, (LazyObject, LazyAttr)):
        return node
    try:
        return node.build()
    except Exception:  # An import raises anything.
        if strict:
            raise
        return f"{node.module}.{node}"


def _check_model(config: Config, path: Path) -> None:
    traits = _traits_of_2x(config)
    if traits:
        raise ValueError(
            f"config {path}: expected an mmdet 3 config, found one of mmdet 2.x ({', '.join(traits)}); give the 3.x "
            f"config of the same model{_similar_3x(path)}. The checkpoint can stay as it is"
        )
    if "model" not in config:
        raise ValueError(
            f"config {path}: expected a `model`, found {', '.join(sorted(map(str, config))) or 'nothing'}; "
            "give a whole config"
        )
    model = config.model
    if not isinstance(model, Mapping) or not model.get("type"):
        found = (
            ", ".join(map(str, model)) or "an empty one"
            if isinstance(model, Mapping)
            else type(model).__name__
        )
        raise ValueError(
            f"config {path}: expected a `model` with a type, as in model = dict(type='MaskRCNN', ...), found {found}; "
            "give a whole config, with the _base_ files that it changes"
        )


def _traits_of_2x(config: Config) -> list[str]:
    """Return what shows that a config is one of mmdet 2.x; empty for one of 3.x."""
    traits = []
    data = config.get("data")
    if isinstance(data, Mapping) and not any(config.get(loader) for loader in LOADERS):
        traits += [f"data.{key}" for key in ("train", "val", "test", "samples_per_gpu") if key in data]
    traits += [f"{name} in the test pipeline" for name in _transforms_of_2x(config)]
    model = config.get("model")
    if isinstance(model, Mapping) and not any(key == "data_preprocessor" for key in _keys(model)):
        settings = [key for key in TRAINING_2X if key in config]
        traits += [f"{', '.join(settings)} and no model.data_preprocessor"] if settings else []
    return traits


def _transforms_of_2x(config: Config) -> list[str]:
    try:
        steps = test_pipeline(config).steps
    except ValueError:
        return []
    found = []
    for step in _mappings(steps):
        kind = step.get("type")
        if kind in TRANSFORMS_2X and TRANSFORMS.get(kind) is None:
            found.append(kind)
        if kind == "MultiScaleFlipAug" and "img_scale" in step:
            found.append("MultiScaleFlipAug's img_scale")
    return found


def _mappings(node: Any) -> Iterator[Mapping]:
    if isinstance(node, Mapping):
        yield node
    children = node.values() if isinstance(node, Mapping) else node if isinstance(node, (list, tuple)) else ()
    for child in children:
        yield from _mappings(child)


def _keys(node: Any) -> Iterator[str]:
    for mapping in _mappings(node):
        yield from mapping


def _similar_3x(path: Path) -> str:
    name = path.stem if path.stem in shipped_configs() else _shipped_of_2x(path.stem)
    similar = (
        [name] if name else difflib.get_close_matches(path.stem.replace("_", "-"), shipped_configs(), n=1)
    )
    return f", such as {similar[0]}, which mmdet ships, with your changes" if similar else ""


# Reasons


def _reason(error: BaseException, path: Path) -> str:
    """Say why a config cannot be read, where, and what to do."""
    where = _line(error, path)
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, SystemExit):
        return f"its Python ends the program{where}; take the call of sys.exit out"
    if isinstance(error, RecursionError) or isinstance(error.__context__, RecursionError):
        return "its _base_ files include each other, or its Python calls itself without end; end the circle"
    if isinstance(error, UnicodeError) or "null bytes" in text:
        return "it is not UTF-8 text; give the config's source, saved as UTF-8"
    if isinstance(error, SyntaxError):
        return _syntax_reason(error, path)
    if isinstance(error, ImportError):
        return _import_reason(error)
    if isinstance(error, (json.JSONDecodeError, yaml.YAMLError)):
        return f"{text}; mend the {path.suffix[1:].upper()}"
    if isinstance(error, (FileNotFoundError, ConfigParsingError)):
        return f"{text}{where}{_base_remedy(text)}"
    if isinstance(error, RuntimeError) and not str(error):
        return (
            f"it calls something that it imports{where}, and a pure-Python config may only name what it imports; "
            "write the value itself"
        )
    if path.suffix != ".py" and isinstance(error, (AttributeError, TypeError)):
        return f"{text}; a {path.suffix[1:].upper()} config is a mapping with the key model"
    return f"{type(error).__name__}: {text}{where}; mend the config"


def _line(error: BaseException, path: Path) -> str:
    """Return the line of a config's own Python that an error comes from."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.name == "<module>"]
    if not frames:
        return ""
    frame = frames[-1]
    same = Path(frame.filename).name == path.name
    return f" in line {frame.lineno}" if same else f" in {frame.filename}, line {frame.lineno}"


def _syntax_reason(error: SyntaxError, path: Path) -> str:
    """mmengine parses a config without giving the parser its file name; the frame that parses it knows it."""
    file = path
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_filename == mmengine_config.__file__:
            file = frame.f_locals.get("filename", file)
    head = Path(file).read_bytes()[:200].lstrip().lower() if _is(Path(file), "is_file") else b""
    if head.startswith((b"<!doctype", b"<html")):
        return f"{file} is a web page; download the raw file"
    if head.startswith(b"\xef\xbb\xbf"):
        return f"{file} begins with a byte order mark; save it as UTF-8 without one"
    where = "" if Path(file).name == path.name else f" of {file}"
    line = f"line {error.lineno}{where}: {error.msg}" if error.lineno else str(error)
    return f"{line}; mend the Python there"


def _import_reason(error: ImportError) -> str:
    cause = error.__cause__ or error
    detail = cause.__context__ or cause
    custom = f"{cause}, which custom_imports names" if "custom modules" in str(error) else str(cause)
    missing = f" ({detail})" if str(detail) not in custom else ""
    return (
        f"{' '.join(custom.split())}{' '.join(missing.split(chr(10)))}; put the folder that holds the module on "
        "PYTHONPATH, or install the package"
    )


def _base_remedy(text: str) -> str:
    """Say what to do about a base that is not there."""
    match = re.search(r'(?<=")[^"]+(?=")|\S+\.py', text)
    if match is None:
        return "; write `with read_base():` for `if '_base_':`" if "outside the `if base:`" in text else ""
    missing = Path(match.group())
    if "mmdet/configs/" in missing.as_posix():
        return "; mmdet's wheel has no configs in pure Python: install mmdet from its source, or give a resolved config"
    for shipped in sorted(_shipped_root().rglob("*.py")):
        if shipped.parts[-2:] == missing.parts[-2:]:
            relative = shipped.relative_to(_shipped_root()).as_posix()
            return (
                f"; write it as mmdet::{relative}, which mmdet ships, or give the config that training dumped"
            )
        if shipped.parent.name == missing.parent.name and _normalized(shipped.stem) == _normalized(
            missing.stem
        ):
            return f"; mmdet 3.x calls it {shipped.name}: give a config of mmdet 3.x"
    return "; put it there, or give the resolved config that training left in its work directory"


# Preparation


def _prepared(node: Any) -> Any:
    """Return the model's config without pretrained weights and synchronised batch normalisation.

    A function of mmcv's operators is its name, which mmdet takes as well; an operator's path, as the dump of a
    pure-Python config has it, is the operator, as mmdet looks its layers up by name alone.
    """
    if type(node) in (list, tuple):
        return type(node)(_prepared(item) for item in node if not _is_pretrained(item))
    if isinstance(node, Mapping):
        for key, value in list(node.items()):
            node[key] = _prepared_value(key, value)
    return node


def _with_tuples(node: Any) -> Any:
    """Return a node of a pipeline with tuples for pairs of numbers: JSON has none, and ``Resize`` takes no list."""
    if isinstance(node, Mapping):
        for key, value in list(node.items()):
            node[key] = _with_tuples(value)
    if type(node) is not list:
        return node
    if len(node) == 2 and all(type(item) in (int, float) for item in node):
        return tuple(node)
    return [_with_tuples(item) for item in node]


def _prepared_value(key: str, value: Any) -> Any:
    if key == "init_cfg" and _is_pretrained(value):
        return None
    if key == "pretrained" and isinstance(value, (str, bool)):
        return None if isinstance(value, str) else False
    if key == "type":
        return _prepared_type(value)
    return _prepared(value)


def _is_pretrained(node: Any) -> bool:
    return isinstance(node, Mapping) and type_name(node.get("type")) in PRETRAINED


def _prepared_type(kind: Any) -> Any:
    if type_name(kind) in SYNC_BATCH_NORMS:
        return "BN"
    if isinstance(kind, str) and kind.startswith("mmcv.ops."):
        kind = getattr(mmcv.ops, type_name(kind), kind)
    if inspect.isclass(kind) and issubclass(kind, torch.nn.SyncBatchNorm):
        return "BN"
    if inspect.isfunction(kind) and getattr(mmcv.ops, kind.__name__, None) is kind:
        return kind.__name__
    return kind
