"""mmdet's test pipeline and data preprocessor -> what ``runtime`` does to an image.

Every transform is built by mmdet and read from the object: its arguments have gone through mmdet's own checks and
defaults. A transform, or an argument, that the runtime does not repeat exactly is refused by name.
"""

import patches  # isort: skip  # noqa: F401  makes mmdet importable without mmcv's compiled operators

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Number
from typing import Any, Optional, Union

import mmcv.transforms
import mmdet.datasets.transforms as mmdet_transforms
from mmcv.transforms import TRANSFORMS as MMCV_TRANSFORMS
from mmcv.transforms import BaseTransform
from mmdet.models.data_preprocessors import DetDataPreprocessor, MultiBranchDataPreprocessor
from mmdet.registry import TRANSFORMS
from mmengine.model import BaseDataPreprocessor
from torch import nn

from runtime.transforms import (
    COLOR_TYPES,
    DECODERS,
    INTERPOLATIONS,
    CenterCrop,
    FixShapeResize,
    Load,
    Normalize,
    Pad,
    Resize,
    ResizeShortestEdge,
    Step,
    check_normalisation,
)

LOCAL_STORAGE = ("local", "disk", "LocalBackend", "HardDiskBackend")
# Without these mmdet's heads cannot bring results back to the image.
NEEDED_META_KEYS = ("ori_shape", "img_shape", "scale_factor")


class UnsupportedPipelineError(ValueError):
    """A step, or an argument, of the test pipeline or the data preprocessor that the runtime does not repeat."""


@dataclass(frozen=True)
class ImagePipeline:
    """What happens to an image file.

    Attributes:
        load: how it is decoded.
        steps: of the test pipeline.
    """

    load: Load
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Normalization:
    """What the data preprocessor does to the pixels: see ``runtime.metadata.ModelMetadata``."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    color_order: str
    pad_value: float
    size_divisor: int


@dataclass(frozen=True)
class _Place:
    """A transform's place, for messages."""

    index: int
    count: int
    name: str

    def refused(self, expected: str, found: str, remedy: str) -> UnsupportedPipelineError:
        """Return the error that names the place."""
        return UnsupportedPipelineError(
            f"test pipeline, step {self.index + 1} of {self.count}, {self.name}: expected {expected}, found {found}; "
            f"{remedy}"
        )


def image_pipeline(steps: Sequence[Any]) -> ImagePipeline:
    """Read a test pipeline.

    Args:
        steps: the transforms' configs, as ``export.dataset.test_pipeline`` finds them.

    Raises:
        UnsupportedPipelineError: mmdet cannot build a step, or the runtime does not repeat it.
    """
    transforms = built(steps)
    places = [_Place(i, len(transforms), type(t).__name__) for i, t in enumerate(transforms)]
    if not transforms or type(transforms[0]) is not mmcv.transforms.LoadImageFromFile:
        found = f"{_origin(transforms[0])} first" if transforms else "no step"
        raise UnsupportedPipelineError(
            f"test pipeline: expected LoadImageFromFile as its first step, found {found}; start it with "
            "dict(type='LoadImageFromFile')"
        )
    if type(transforms[-1]) is not mmdet_transforms.PackDetInputs:
        raise UnsupportedPipelineError(
            f"test pipeline: expected PackDetInputs as its last step, found {_origin(transforms[-1])}; end it with "
            "dict(type='PackDetInputs')"
        )
    load = _load(transforms[0], places[0])
    read: list[Step] = []
    for transform, place in zip(transforms[1:-1], places[1:-1]):
        read += _steps_of(transform, place, load)
    _check_packing(transforms[-1], places[-1])
    return ImagePipeline(load, tuple(read))


def _origin(transform: Any) -> str:
    """Return a transform's class, with its module: a name of mmdet's may be registered for another class."""
    kind = type(transform)
    return f"{kind.__module__}.{kind.__qualname__}"


def built(steps: Sequence[Any]) -> list[Any]:
    """Return the transforms as mmdet builds them.

    Raises:
        UnsupportedPipelineError: mmdet cannot build one; says what it says.
    """
    transforms = []
    for index, step in enumerate(steps):
        if not hasattr(step, "get") or "type" not in step:
            name = getattr(step, "__name__", type(step).__name__)
            place = _Place(index, len(steps), str(name))
            raise place.refused(
                "a dict with a type", f"a {type(step).__name__}", "write the transform as dict(type=...)"
            )
        kind = step["type"]
        place = _Place(
            index, len(steps), str(kind if isinstance(kind, str) else getattr(kind, "__name__", kind))
        )
        try:
            transforms.append(TRANSFORMS.build(step))
        except Exception as error:
            raise place.refused(
                "a transform that mmdet can build",
                " ".join(str(error).split()),
                "correct the step in the config, or install what it needs",
            ) from error
    return transforms


def _steps_of(transform: Any, place: _Place, load: Load) -> list[Step]:
    reader = _READERS.get(type(transform))
    if reader is None:
        raise place.refused(
            f"one of {', '.join(sorted({kind.__name__ for kind in _READERS}))}",
            _origin(transform),
            "leave it out of the test pipeline and do it to the images beforehand, or write it with these",
        )
    try:
        return reader(transform, place, load)
    except UnsupportedPipelineError:
        raise
    except ValueError as error:
        raise place.refused(
            "arguments that mmdet takes", str(error), "correct the step in the config"
        ) from error


def _load(transform: Any, place: _Place) -> Load:
    decoder, color_type = transform.imdecode_backend, transform.color_type
    if decoder not in DECODERS:
        raise place.refused(
            f"imdecode_backend {' or '.join(DECODERS)}",
            repr(decoder),
            "evaluate the model with one of them (their pixels differ a little) and export that config",
        )
    if color_type not in COLOR_TYPES:
        raise place.refused(
            f"color_type of {', '.join(COLOR_TYPES)}", repr(color_type), "correct it in the config"
        )
    for name in ("file_client_args", "backend_args"):
        storage = (getattr(transform, name) or {}).get("backend", "local")
        if storage not in LOCAL_STORAGE:
            raise place.refused(
                f"{name} of local files",
                repr(storage),
                f"set {name}=None: the runtime reads files of this machine",
            )
    return Load(color_type, decoder, bool(transform.to_float32))


def _resize(transform: Any, place: _Place, load: Load) -> list[Step]:
    _check_interpolation(transform, place)
    if transform.backend == "pillow" and load.to_float32:
        raise place.refused(
            "backend='cv2' for float32 images", "'pillow'", "set backend='cv2', or to_float32=False"
        )
    common = {
        "keep_ratio": bool(transform.keep_ratio),
        "floor": type(transform) is mmdet_transforms.FixScaleResize,
        "interpolation": transform.interpolation,
        "backend": transform.backend,
    }
    if transform.scale:
        _check_tuple("scale", transform.scale, place, whole=not transform.keep_ratio)
        return [Resize(scale=transform.scale, **common)]
    if transform.scale_factor is None:
        raise place.refused("a scale or a scale_factor", repr(transform.scale), "give one in the config")
    return [Resize(factors=transform.scale_factor, **common)]


def _shortest_edge(transform: Any, place: _Place, load: Load) -> list[Step]:
    inner = transform.resize
    if type(inner) not in _PLAIN_RESIZES:
        raise place.refused(
            "resize_type Resize or FixScaleResize", type(inner).__name__, "correct it in the config"
        )
    _check_interpolation(inner, place)
    scale = transform.scale
    if isinstance(scale, tuple):
        scale = min(scale)
    if not isinstance(scale, int) or isinstance(scale, bool):
        raise place.refused(
            "scale to be an int or a tuple", repr(transform.scale), "correct it in the config"
        )
    return [
        ResizeShortestEdge(
            scale=scale,
            max_size=transform.max_size,
            keep_ratio=bool(inner.keep_ratio),
            floor=type(inner) is mmdet_transforms.FixScaleResize,
            interpolation=inner.interpolation,
            backend=inner.backend,
        )
    ]


def _fix_shape(transform: Any, place: _Place, load: Load) -> list[Step]:
    _check_interpolation(transform, place)
    step = FixShapeResize(
        scale=(transform.width, transform.height),
        keep_ratio=bool(transform.keep_ratio),
        interpolation=transform.interpolation,
        backend=transform.backend,
    )
    return [step, *_pad(transform.pad_transform, place, load)] if transform.keep_ratio else [step]


def _pad(transform: Any, place: _Place, load: Load) -> list[Step]:
    value = transform.pad_val.get("img", 0)
    if isinstance(value, list):
        raise place.refused(
            "pad_val['img'] to be a number or a tuple", repr(value), "mmcv takes no list; write (…)"
        )
    if isinstance(value, int) and not load.is_grey:
        if load.color_type == "unchanged":
            raise place.refused(
                "images of a known number of channels",
                "color_type='unchanged'",
                "read them with color_type='color'",
            )
        value = (int(value),) * 3
    if isinstance(value, tuple) and len(value) != (1 if load.is_grey else 3):
        raise place.refused(
            f"pad_val['img'] of {1 if load.is_grey else 3} numbers", repr(value), "correct it in the config"
        )
    return [
        Pad(
            shape=transform.size,
            size_divisor=transform.size_divisor,
            to_square=bool(transform.pad_to_square),
            value=value,
            mode=transform.padding_mode,
        )
    ]


def _normalize(transform: Any, place: _Place, load: Load) -> list[Step]:
    mean, std = _floats(transform.mean), _floats(transform.std)
    return [Normalize(mean=mean, std=std, to_rgb=bool(transform.to_rgb))]


def _center_crop(transform: Any, place: _Place, load: Load) -> list[Step]:
    if not transform.auto_pad:
        return [CenterCrop(transform.crop_size)]
    settings = {**transform.pad_cfg, "size": transform.crop_size}
    try:
        pad = MMCV_TRANSFORMS.build(settings)
    except Exception as error:
        raise place.refused(
            "a pad_cfg that mmcv can build", str(error), "correct it in the config"
        ) from error
    if type(pad) not in _PADS:
        raise place.refused("a pad_cfg of type Pad", type(pad).__name__, "correct it in the config")
    (step,) = _pad(pad, place, load)
    return [CenterCrop(transform.crop_size, pad=step)]


def _flip(transform: Any, place: _Place, load: Load) -> list[Step]:
    probabilities = transform.prob if isinstance(transform.prob, list) else [transform.prob]
    if any(probabilities):
        raise place.refused(
            "prob=0",
            f"prob={transform.prob}",
            "leave the step out: results of a flipped image lie in the flipped image",
        )
    return []


def _annotations(transform: Any, place: _Place, load: Load) -> list[Step]:
    return []


def _check_packing(transform: Any, place: _Place) -> None:
    missing = [key for key in NEEDED_META_KEYS if key not in transform.meta_keys]
    if missing:
        raise place.refused(
            f"meta_keys with {', '.join(NEEDED_META_KEYS)}",
            f"none of {', '.join(missing)}",
            "add them: without them mmdet cannot bring results back to the image",
        )


def _check_interpolation(transform: Any, place: _Place) -> None:
    backend, interpolation = transform.backend, transform.interpolation
    if backend not in INTERPOLATIONS:
        raise place.refused(
            f"backend {' or '.join(INTERPOLATIONS)}", repr(backend), "correct it in the config"
        )
    if interpolation not in INTERPOLATIONS[backend]:
        raise place.refused(
            f"interpolation of {', '.join(INTERPOLATIONS[backend])} with backend {backend}",
            repr(interpolation),
            "correct it in the config",
        )


def _check_tuple(name: str, value: Any, place: _Place, *, whole: bool) -> None:
    numbers = (
        isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(v, Number) for v in value)
    )
    if not numbers or (not whole and not isinstance(value, tuple)):
        raise place.refused(
            f"{name} to be a tuple of two numbers",
            repr(value),
            "mmcv takes no list here: write it as (width, height)",
        )
    if whole and not all(isinstance(v, int) for v in value):
        raise place.refused(f"{name} to be two ints", repr(value), "without keep_ratio OpenCV takes whole px")


def _floats(values: Any) -> tuple[float, ...]:
    return tuple(float(v) for v in values.flatten())


_PLAIN_RESIZES = (mmcv.transforms.Resize, mmdet_transforms.Resize, mmdet_transforms.FixScaleResize)
# Every transform that resizes.
RESIZES = (*_PLAIN_RESIZES, mmdet_transforms.FixShapeResize, mmdet_transforms.ResizeShortestEdge)
_PADS = (mmcv.transforms.Pad, mmdet_transforms.Pad)
_READERS: dict[type[BaseTransform], Callable[[Any, _Place, Load], list[Step]]] = {
    **dict.fromkeys(_PLAIN_RESIZES, _resize),
    mmdet_transforms.FixShapeResize: _fix_shape,
    mmdet_transforms.ResizeShortestEdge: _shortest_edge,
    **dict.fromkeys(_PADS, _pad),
    mmcv.transforms.Normalize: _normalize,
    mmcv.transforms.CenterCrop: _center_crop,
    mmcv.transforms.RandomFlip: _flip,
    mmdet_transforms.RandomFlip: _flip,
    # There are none at inference: mmdet adds empty boxes, and pixels stay.
    mmcv.transforms.LoadAnnotations: _annotations,
    mmdet_transforms.LoadAnnotations: _annotations,
}


def normalization(preprocessor: nn.Module, channels: int) -> Normalization:
    """Read a data preprocessor.

    Args:
        preprocessor: of the model that mmdet runs.
        channels: of what the test pipeline leaves.

    Raises:
        UnsupportedPipelineError: of another class, or with values that no image survives.
    """
    if type(preprocessor) is MultiBranchDataPreprocessor:
        preprocessor = preprocessor.data_preprocessor  # what it does to images that are not for training
    _check_preprocessor(preprocessor)
    swaps = bool(preprocessor._channel_conversion)
    if swaps and channels == 1:
        raise _refused_preprocessor("bgr_to_rgb=False of grey images", "True", "set bgr_to_rgb=False")
    channels = 3 if swaps else channels
    mean, std = (0.0,), (1.0,)
    if preprocessor._enable_normalize:
        mean, std = _floats(preprocessor.mean), _floats(preprocessor.std)
        try:
            check_normalisation(mean, std)
        except ValueError as error:
            raise _refused_preprocessor(
                "finite mean and std, std not 0", str(error), "correct them"
            ) from error
    if len(mean) not in (1, channels) or len(std) not in (1, channels):
        raise _refused_preprocessor(
            f"mean and std of 1 or {channels} numbers, as the images have {channels} channel(s)",
            f"{len(mean)} and {len(std)}",
            "correct them, or the color_type that images are read with",
        )
    if not isinstance(preprocessor.pad_value, Number):
        raise _refused_preprocessor("pad_value to be a number", repr(preprocessor.pad_value), "correct it")
    divisor = preprocessor.pad_size_divisor
    if not isinstance(divisor, int) or divisor < 1:
        raise _refused_preprocessor("pad_size_divisor of 1 or more", repr(divisor), "correct it")
    return Normalization(
        mean=mean * channels if len(mean) == 1 else mean,
        std=std * channels if len(std) == 1 else std,
        color_order="rgb" if swaps else "bgr",
        pad_value=float(preprocessor.pad_value),
        size_divisor=divisor,
    )


def _check_preprocessor(preprocessor: nn.Module) -> None:
    kind = type(preprocessor)
    if kind is BaseDataPreprocessor:
        raise _refused_preprocessor(
            "DetDataPreprocessor",
            "none (a model without one gets mmengine's BaseDataPreprocessor, which cannot batch images)",
            "give the model data_preprocessor=dict(type='DetDataPreprocessor', mean=..., std=..., bgr_to_rgb=...)",
        )
    own: Union[set[str], bool] = False
    if issubclass(kind, DetDataPreprocessor):
        classes = kind.__mro__[: kind.__mro__.index(DetDataPreprocessor)]
        own = {
            name for c in classes for name in vars(c) if name not in ("__module__", "__doc__", "__qualname__")
        }
        own -= {"__firstlineno__", "__static_attributes__", "__annotations__"}
    if own or own is False:
        changed = f", which has its own {', '.join(sorted(own))}" if own else ""
        raise _refused_preprocessor(
            "DetDataPreprocessor itself",
            f"{kind.__module__}.{kind.__qualname__}{changed}",
            "the runtime cannot repeat what it does: do that to the images beforehand, and use DetDataPreprocessor",
        )


def _refused_preprocessor(expected: str, found: str, remedy: str) -> UnsupportedPipelineError:
    return UnsupportedPipelineError(f"data_preprocessor: expected {expected}, found {found}; {remedy}")


def num_channels(load: Load, in_channels: Optional[int]) -> int:
    """Return the channels of what the test pipeline leaves; of files read as they are, what the model takes."""
    if load.is_grey:
        return 1
    return (in_channels or 3) if load.color_type == "unchanged" else 3
