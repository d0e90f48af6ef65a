"""What a config says about images and classes: its test pipeline, its test dataset and its class names."""

import patches  # isort: skip  # noqa: F401  makes mmdet importable without mmcv's compiled operators

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from mmdet.registry import DATASETS
from mmengine.config import Config

# In the order of preference, for the pipeline and for the names.
TEST_LOADERS = ("test_dataloader", "val_dataloader")
LOADERS = (*TEST_LOADERS, "train_dataloader")
KEYS = ("classes", "CLASSES")
LIST_SUFFIXES = (".txt", ".names", ".list", ".lst", ".csv", ".json")


@dataclass(frozen=True)
class TestPipeline:
    """The transforms that an image file goes through.

    Attributes:
        steps: the transforms' configs, in order.
        source: where in the config they stand, such as ``test_dataloader.dataset.pipeline``.
    """

    __test__ = False  # for pytest, which collects classes of such a name

    steps: list
    source: str


@dataclass(frozen=True)
class ClassNames:
    """The names of a model's classes.

    Attributes:
        names: one per class.
        source: who gives them; of invented names, why nobody does.
        is_invented: they are ``class_0``, ``class_1`` and so on.
    """

    names: tuple[str, ...]
    source: str
    is_invented: bool


def test_pipeline(config: Config) -> TestPipeline:
    """Return the pipeline that mmdet's ``inference_detector`` applies to an image file.

    That is ``mmdet.utils.get_test_pipeline_cfg``: the outermost pipeline of test_dataloader's dataset. Where there is
    none, it is the one of val_dataloader, then the variable ``test_pipeline``.

    Raises:
        ValueError: there is none, one is not a list, or the dataloaders of a list have different ones.
    """
    for name in TEST_LOADERS:
        found = _loaders_pipeline(config, name)
        if found is not None:
            return found
    steps = config.get("test_pipeline")
    if steps:
        return _checked("test_pipeline", steps)
    raise ValueError(
        "config: expected a test pipeline in test_dataloader.dataset.pipeline, val_dataloader.dataset.pipeline or "
        f"test_pipeline, found none of them among {', '.join(sorted(map(str, config))) or 'no keys'}; "
        "add the test_pipeline that the model was evaluated with, "
        "such as test_pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(1333, 800), "
        "keep_ratio=True), dict(type='PackDetInputs')]"
    )


test_pipeline.__test__ = False


def test_dataset(config: Config) -> Mapping:
    """Return the innermost config of the (first) dataset that the model is tested on; {} if there is none."""
    for name in TEST_LOADERS:
        for dataset in _innermost_datasets(config, name):
            return dataset
    return {}


test_dataset.__test__ = False


def class_names(config: Config, checkpoint_classes: Any, num_classes: int) -> ClassNames:
    """Return as many names as the model has classes.

    They are, as in mmdet's ``init_detector``, the checkpoint's; then those of the metainfo of the config's datasets,
    its variable ``metainfo``, and the dataset classes' own METAINFO. Of these, the first that has the right number.

    Args:
        config: the model's config.
        checkpoint_classes: the classes of the checkpoint's dataset_meta; None if it has none.
        num_classes: of the model.
    """
    problems = []
    for source, classes in _sources(config, checkpoint_classes):
        try:
            names = _names(classes, num_classes, _folders(config))
        except ValueError as error:
            problems.append(f"{source} has {error}")
            continue
        if len(names) == num_classes:
            return ClassNames(tuple(_printable(n, i) for i, n in enumerate(names)), source, False)
        problems.append(f"{source} has {_count(len(names), 'name')}")
    known = problems or ["neither the checkpoint nor the config has names"]
    why = ", ".join([*dict.fromkeys(known), f"the model {_count(num_classes, 'class')}"])
    return ClassNames(tuple(f"class_{i}" for i in range(num_classes)), why, True)


def type_name(kind: Any) -> str:
    """Return the bare name of a ``type``: a class's or a function's own, a registered one's without its scope."""
    if isinstance(kind, str):
        return kind.rpartition(".")[2]
    return getattr(kind, "__name__", type(kind).__name__)


def _loaders_pipeline(config: Config, name: str) -> Optional[TestPipeline]:
    found = []
    for where, loader in _entries(name, config.get(name)):
        pipeline = _dataset_pipeline(f"{where}.dataset", loader.get("dataset"))
        if pipeline is not None:
            found.append(pipeline)
    for other in found[1:]:
        if other.steps != found[0].steps:
            raise ValueError(
                f"config: expected one test pipeline, found that {found[0].source} and {other.source} differ; "
                f"leave in {name} the dataloader whose images the model is for"
            )
    return found[0] if found else None


def _dataset_pipeline(where: str, dataset: Any) -> Optional[TestPipeline]:
    for place, entry in _entries(where, dataset):
        if entry.get("pipeline"):
            return _checked(f"{place}.pipeline", entry["pipeline"])
        for key in ("dataset", "datasets"):
            found = _dataset_pipeline(f"{place}.{key}", entry.get(key))
            if found is not None:
                return found
    return None


def _checked(source: str, steps: Any) -> TestPipeline:
    if not isinstance(steps, (list, tuple)) or not steps:
        found = "an empty list" if isinstance(steps, (list, tuple)) else type(steps).__name__
        raise ValueError(
            f"config: expected {source} to be a list of transforms, found {found}; write it as [dict(type=...), ...]"
        )
    return TestPipeline(list(steps), source)


def _entries(where: str, value: Any) -> Iterator[tuple[str, Mapping]]:
    """Yield a mapping, or the mappings of a list, each with its place."""
    if isinstance(value, Mapping):
        yield where, value
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _entries(f"{where}[{index}]", item)


def _innermost_datasets(config: Config, loader: str) -> Iterator[Mapping]:
    for _, entry in _entries(loader, config.get(loader)):
        yield from _unwrapped(entry.get("dataset"))


def _unwrapped(dataset: Any) -> Iterator[Mapping]:
    for _, entry in _entries("", dataset):
        inner = [d for key in ("dataset", "datasets") for d in _unwrapped(entry.get(key))]
        yield from inner or [entry]


def _sources(config: Config, checkpoint_classes: Any) -> Iterator[tuple[str, Any]]:
    if checkpoint_classes is not None:
        # A string is a name here, also where a file is called so: what training read from a file is a list.
        lone = isinstance(checkpoint_classes, str)
        yield "the checkpoint", (checkpoint_classes,) if lone else checkpoint_classes
    for loader in LOADERS:
        for dataset in _innermost_datasets(config, loader):
            yield from _classes_of(f"{loader}'s metainfo", dataset.get("metainfo"))
    yield from _classes_of("the config's metainfo", config.get("metainfo"))
    for loader in LOADERS:
        for dataset in _innermost_datasets(config, loader):
            kind = _dataset_class(dataset.get("type"))
            yield from _classes_of(f"the dataset class {type_name(kind)}", getattr(kind, "METAINFO", None))


def _classes_of(source: str, metainfo: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(metainfo, Mapping):
        return
    for key in KEYS:
        if metainfo.get(key) is not None:
            yield source, metainfo[key]


def _dataset_class(kind: Any) -> Any:
    if not isinstance(kind, str):
        return kind
    try:
        return DATASETS.get(kind)
    except Exception:  # A scope is a package that mmengine imports, whatever that raises.
        return None


def _names(classes: Any, num_classes: int, folders: Iterable[Path]) -> list:
    """Return the names that an entry ``classes`` stands for.

    Source: mmengine's ``BaseDataset._load_metainfo`` for strings: a file of one name per line, else a name.

    Raises:
        ValueError: none; the message completes "the config's metainfo has".
    """
    if isinstance(classes, str):
        return _names_of_text(classes, num_classes, folders)
    if isinstance(classes, Mapping):
        if set(classes) != set(range(len(classes))):
            raise ValueError("a mapping in place of a list of names")
        return [classes[i] for i in range(len(classes))]
    if isinstance(classes, (set, frozenset)):
        raise ValueError("a set, which has no order, in place of a list of names")
    if hasattr(classes, "tolist"):
        classes = classes.tolist()
    if not isinstance(classes, Iterable):
        raise ValueError(f"{type(classes).__name__} {classes!r} in place of a list of names")
    return list(classes)


def _names_of_text(text: str, num_classes: int, folders: Iterable[Path]) -> list[str]:
    for folder in folders:
        path = folder / text
        if _is_file(path):
            return _names_from_file(path, num_classes)
    if text.lower().endswith(LIST_SUFFIXES):
        raise ValueError(f"the file {text!r}, which is not there")
    return [text]


def _names_from_file(path: Path, num_classes: int) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the file {str(path)!r}, which cannot be read ({error})") from error
    if lines[-1] == "":
        lines.pop()
    return lines if len(lines) == num_classes else [line for line in lines if line.strip()]


def _folders(config: Config) -> list[Path]:
    """Return where a file of names may lie: mmengine looks in the working directory only."""
    folders = [Path()]
    filename = getattr(config, "filename", None) if isinstance(config, Config) else None
    if filename:
        folders.append(Path(filename).parent)
    roots = (config.get("data_root"), test_dataset(config).get("data_root"))
    return [*folders, *(Path(root) for root in roots if isinstance(root, str))]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long for a file name, or with a null character
        return False


def _printable(name: Any, index: int) -> str:
    """Return a name as one line of printable text."""
    text = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
    words = "".join(c if c.isprintable() else " " for c in text).split()
    return " ".join(words) or f"class_{index}"


def _count(number: int, noun: str) -> str:
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{number} {noun if number == 1 else plural}"
