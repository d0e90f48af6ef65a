"""What the runtime must know of a model, read from its mmdet config."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional

from export.dataset import ClassNames, class_names, test_pipeline
from export.model import LoadedModel
from export.pipeline import (
    ImagePipeline,
    Normalization,
    UnsupportedPipelineError,
    image_pipeline,
    normalization,
    num_channels,
)
from export.versions import installed_versions
from patches.families import Facts, family_of
from runtime.host.preprocess import padded_size, typical_sizes
from runtime.metadata import ModelMetadata
from runtime.transforms import CenterCrop, Fit, FixShapeResize, Pad, Resize, Size, Step, final_size, is_resize

PACKAGES = ("maskrcnn-deploy", "mmdet", "mmengine", "mmcv", "mmcv-lite", "torch", "onnx", "onnxsim")
# Photographs' shapes, (height, width) px, whose price a fixed size is told for.
PORTRAIT, LANDSCAPE = (640, 480), (480, 640)


@dataclass(frozen=True)
class _Read:
    pipeline: ImagePipeline
    normalization: Normalization
    channels: int


def metadata_from_model(
    loaded: LoadedModel, *, size: Optional[tuple[int, int]], dynamic_size: bool = False, masks: str = "crop"
) -> ModelMetadata:
    """Collect a model's metadata.

    Args:
        loaded: the model and its config.
        size: (height, width) of the network's input in px, into which images are fitted; None for the sizes that the
            config's own test pipeline makes: fixed where it makes one alone, else dynamic.
        dynamic_size: any height and width, also where the test pipeline makes one alone.
        masks: ``crop`` or ``full``; a model without a mask head gets ``none``.

    Raises:
        ValueError: the runtime does not repeat the test pipeline or the data preprocessor, or the size is not a
            multiple of what the model pads to.
    """
    read = _read(loaded)
    steps = read.pipeline.steps if size is None else _steps_into(size, read)
    facts = facts_of(loaded)
    metadata = _metadata(
        classes=names_of(loaded).names,
        load=read.pipeline.load,
        steps=steps,
        mean=read.normalization.mean,
        std=read.normalization.std,
        color_order=read.normalization.color_order,
        pad_value=read.normalization.pad_value,
        size=size,
        size_divisor=read.normalization.size_divisor,
        masks=masks if facts.has_masks else "none",
        mask_threshold=facts.mask_threshold,
        score_threshold=facts.score_threshold,
        max_per_img=facts.max_per_img,
        config=loaded.name,
        checkpoint_sha256=None if loaded.checkpoint is None else loaded.checkpoint.sha256,
        versions=installed_versions(PACKAGES),
    )
    if size is not None or dynamic_size:
        return metadata
    return _with_natural_size(metadata)


def _metadata(**values: Any) -> ModelMetadata:
    """Return the metadata; what cannot be one is the config's."""
    try:
        return ModelMetadata(**values)
    except ValueError as error:
        raise ValueError(
            f"config: expected values that an image survives, found {error}; correct it"
        ) from error


def trace_size(metadata: ModelMetadata) -> Size:
    """Return the (height, width) in px that a graph is traced at."""
    if metadata.size is not None:
        return metadata.size
    sizes = typical_sizes(metadata)
    return sizes[1] if sizes else padded_size([LANDSCAPE], metadata)


def price_of_fixed_size(metadata: ModelMetadata, loaded: LoadedModel) -> str:
    """Return in one line what a size of ``--size`` does to images of other shapes; empty where it costs nothing."""
    own = image_pipeline(test_pipeline(loaded.config).steps).steps
    worst, share = None, 1.0
    for shape in (PORTRAIT, LANDSCAPE):
        fixed, free = final_size(*shape, metadata.steps), final_size(*shape, own)
        if fixed[0] / free[0] < share:
            worst, share = (shape, fixed, free), fixed[0] / free[0]
    if worst is None:
        return ""
    (height, width), fixed, free = worst
    kind = "portrait" if height > width else "landscape"
    return (
        f"fixed size: a {kind} photograph of {width}x{height} px (width x height) enters the network at "
        f"{fixed[1]}x{fixed[0]}, where mmdet's own test pipeline makes {free[1]}x{free[0]}: small objects are lost. "
        "Without --size the file takes every image as mmdet does"
    )


def facts_of(loaded: LoadedModel) -> Facts:
    """Return what the model's family says of it."""
    return family_of(loaded.model).facts(loaded.model)


def names_of(loaded: LoadedModel) -> ClassNames:
    """Return the names of the model's classes."""
    return class_names(
        loaded.config, loaded.checkpoint.classes if loaded.checkpoint else None, facts_of(loaded).num_classes
    )


def _read(loaded: LoadedModel) -> _Read:
    pipeline = image_pipeline(test_pipeline(loaded.config).steps)
    channels = num_channels(pipeline.load, loaded.in_channels)
    found = normalization(loaded.preprocessor, channels)
    if len(found.mean) != loaded.in_channels:
        raise UnsupportedPipelineError(
            f"test pipeline: expected images of the {loaded.in_channels} channel(s) that the backbone takes "
            f"(in_channels), found {len(found.mean)} with color_type={pipeline.load.color_type!r}; correct either"
        )
    return _Read(pipeline, found, channels)


def _with_natural_size(metadata: ModelMetadata) -> ModelMetadata:
    """Fix the size where the test pipeline makes one alone, whatever the image."""
    sizes = typical_sizes(metadata)
    if sizes is None or sizes[0][0] != sizes[0][1]:
        return metadata
    return ModelMetadata(**{**vars(metadata), "size": sizes[1]})


def _steps_into(size: tuple[int, int], read: _Read) -> tuple[Step, ...]:
    """Return the steps with the size in the place of the resize."""
    _check_size(size, read.normalization.size_divisor)
    steps = read.pipeline.steps
    places = [i for i, step in enumerate(steps) if is_resize(step)]
    if len(places) > 1:
        raise UnsupportedPipelineError(
            f"--size: expected at most one resize in the test pipeline, found {len(places)}; leave --size out, which "
            "repeats them all"
        )
    found = [_into(step, size) if is_resize(step) else step for step in steps]
    _check_fits(found, size, bool(places))
    return tuple(found)


def _into(step: Step, size: tuple[int, int]) -> Step:
    """Return what fits images into a size; a resize that does not keep the aspect ratio fills it."""
    fills = isinstance(step, FixShapeResize) or (isinstance(step, Resize) and step.scale is not None)
    if fills and not step.keep_ratio:
        return FixShapeResize(size[::-1], False, step.interpolation, step.backend)
    return Fit(size, step.interpolation, step.backend)


def _check_fits(steps: Sequence[Step], size: tuple[int, int], resizes: bool) -> None:
    if not resizes and not any(isinstance(step, (Pad, CenterCrop)) for step in steps):
        return  # images of any size, of which those that fit are taken
    largest = final_size(*(size if resizes else (1, 1)), steps)
    if largest[0] > size[0] or largest[1] > size[1]:
        raise UnsupportedPipelineError(
            f"--size: expected a size that holds what the test pipeline makes, found {size[0]} {size[1]}, where its "
            f"padding makes {largest[0]} {largest[1]}; give that size, or leave --size out"
        )


def _check_size(size: tuple[int, int], divisor: int) -> None:
    if any(v < 1 or v % divisor for v in size):
        nearest = " ".join(str(_round_up(max(v, 1), divisor)) for v in size)
        raise ValueError(
            f"--size: expected multiples of {divisor}, which this model pads to, found {size[0]} {size[1]}; "
            f"the next larger is {nearest}"
        )


def _round_up(value: int, divisor: int) -> int:
    return -(-value // divisor) * divisor
