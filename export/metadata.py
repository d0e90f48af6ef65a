"""What the runtime must know of a model, read from its mmdet config."""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Optional

from mmdet.registry import DATASETS
from mmengine.config import Config

from export.model import LoadedModel
from patches.cascade_roi_head import stages
from runtime.metadata import ModelMetadata, ResizeRule

PACKAGES = ("maskrcnn-deploy", "mmdet", "mmengine", "mmcv", "mmcv-lite", "torch", "onnx", "onnxsim")


def metadata_from_model(
    loaded: LoadedModel, *, size: Optional[tuple[int, int]], dynamic_size: bool, masks: str
) -> ModelMetadata:
    """Collect a model's metadata.

    Args:
        loaded: the model and its config.
        size: (height, width) of the network's input in px; None takes the config's own test size.
        dynamic_size: the graph takes any height and width.
        masks: ``crop`` or ``full``; a model without a mask head gets ``none``.

    Raises:
        ValueError: the size is not a multiple of what the model pads to, or the config's pipeline has no Resize.
    """
    model = loaded.model
    preprocessor = model.data_preprocessor
    divisor = max(1, getattr(preprocessor, "pad_size_divisor", 1))
    rule = resize_rule(loaded.config)
    fixed = None if dynamic_size else _fixed_size(size, rule, divisor)
    normalize = getattr(preprocessor, "_enable_normalize", False)
    rcnn = model.test_cfg.rcnn
    return ModelMetadata(
        classes=class_names(loaded),
        mean=_floats(preprocessor.mean) if normalize else (0.0, 0.0, 0.0),
        std=_floats(preprocessor.std) if normalize else (1.0, 1.0, 1.0),
        color_order="rgb" if getattr(preprocessor, "_channel_conversion", False) else "bgr",
        resize=_rule_for(rule, size, dynamic_size, fixed),
        size=fixed,
        size_divisor=divisor,
        masks=masks if model.roi_head.with_mask else "none",
        mask_threshold=float(rcnn.get("mask_thr_binary", 0.5)),
        score_threshold=float(rcnn.score_thr),
        max_per_img=int(rcnn.max_per_img),
        config=loaded.name,
        checkpoint_sha256=None if loaded.checkpoint is None else loaded.checkpoint.sha256,
        versions=_versions(),
    )


def resize_rule(config: Config) -> ResizeRule:
    """Return the Resize of the config's test pipeline; (height, width) order for a stretch.

    Raises:
        ValueError: the pipeline has no Resize with a scale.
    """
    for step in _steps(_test_pipeline(config)):
        scale = step.get("scale")
        if step.get("type") in ("Resize", "FixScaleResize") and scale is not None:
            width, height = (scale, scale) if isinstance(scale, int) else scale
            return ResizeRule("keep_ratio" if step.get("keep_ratio", False) else "stretch", (height, width))
    raise ValueError(
        "config: expected a Resize with a scale in the test pipeline, found none; give --size HEIGHT WIDTH"
    )


def class_names(loaded: LoadedModel) -> tuple[str, ...]:
    """Return as many names as the model has classes: the checkpoint's, the config's, its dataset's, or numbers."""
    count = stages(loaded.model.roi_head.bbox_head)[-1].num_classes
    candidates = [loaded.checkpoint.classes if loaded.checkpoint else None, *_config_classes(loaded.config)]
    for names in candidates:
        if names is not None and len(names) == count:
            return tuple(names)
    return tuple(f"class_{i}" for i in range(count))


def _config_classes(config: Config) -> Iterable[Optional[tuple[str, ...]]]:
    dataset = _dataset(config)
    for source in (config.get("metainfo"), dataset.get("metainfo")):
        if source:
            yield source.get("classes")
    kind = DATASETS.get(dataset.get("type", "CocoDataset"))
    yield getattr(kind, "METAINFO", {}).get("classes")


def _dataset(config: Config) -> dict:
    dataset = config.get("test_dataloader", {}).get("dataset", {})
    while "dataset" in dataset:  # wrappers such as RepeatDataset
        dataset = dataset["dataset"]
    return dataset


def _test_pipeline(config: Config) -> list:
    return _dataset(config).get("pipeline") or config.get("test_pipeline") or []


def _steps(pipeline: Iterable[Any]) -> Iterable[dict]:
    for step in pipeline:
        if isinstance(step, (list, tuple)):
            yield from _steps(step)
            continue
        yield step
        yield from _steps(step.get("transforms", []))


def _rule_for(rule: ResizeRule, size: Optional[tuple[int, int]], dynamic: bool, fixed: Any) -> ResizeRule:
    """With a fixed input an image must fit into it whichever way up it is; mmdet's own rule lets a portrait grow."""
    if rule.rule == "stretch":
        return ResizeRule("stretch", size or rule.size)
    if dynamic:
        return ResizeRule("keep_ratio", size or rule.size)
    return ResizeRule("fit", size or _landscape(rule, fixed))


def _landscape(rule: ResizeRule, fixed: tuple[int, int]) -> tuple[int, int]:
    return min(min(rule.size), fixed[0]), min(max(rule.size), fixed[1])


def _fixed_size(size: Optional[tuple[int, int]], rule: ResizeRule, divisor: int) -> tuple[int, int]:
    if size is None:
        natural = rule.size if rule.rule == "stretch" else (min(rule.size), max(rule.size))
        return tuple(_round_up(v, divisor) for v in natural)
    if any(v < 1 or v % divisor for v in size):
        nearest = " ".join(str(_round_up(max(v, 1), divisor)) for v in size)
        raise ValueError(
            f"--size: expected multiples of {divisor}, which this model pads to, found {size[0]} {size[1]}; "
            f"the next larger is {nearest}"
        )
    return size


def _round_up(value: int, divisor: int) -> int:
    return -(-value // divisor) * divisor


def _floats(values: Any) -> tuple[float, float, float]:
    flat = [float(v) for v in values.flatten()]
    return tuple(flat * 3 if len(flat) == 1 else flat)


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
