"""What happens to an image between its file and the network: the steps of an mmdet test pipeline, on the host.

Each step is what a transform of mmdet or mmcv does to the pixels, with the same OpenCV or Pillow call, so that the
result is the same to the last bit. Images are (H, W, 3), or (H, W) where they are grey, uint8 or float32. A step knows
the size that it makes without having pixels.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Callable, Optional, Union

import cv2
import numpy as np

from runtime.messages import shown
from runtime.values import check_bool, check_choice, is_number, numbers, pair, whole_pair

COLOR_TYPES = ("color", "grayscale", "unchanged", "color_ignore_orientation", "grayscale_ignore_orientation")
DECODERS = ("cv2", "pillow")
CV2_INTERPOLATIONS = {
    "nearest": cv2.INTER_NEAREST,
    "bilinear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,
    "lanczos": cv2.INTER_LANCZOS4,
}
PILLOW_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "lanczos", "hamming")
INTERPOLATIONS = {"cv2": tuple(CV2_INTERPOLATIONS), "pillow": PILLOW_INTERPOLATIONS}
PADDING_MODES = {
    "constant": cv2.BORDER_CONSTANT,
    "edge": cv2.BORDER_REPLICATE,
    "reflect": cv2.BORDER_REFLECT_101,
    "symmetric": cv2.BORDER_REFLECT,
}
# Of an image on its way to the network: 3 GB as float32.
MAX_PIXELS = 1 << 28
# Of edges to whole px: mmdet's, Python's round, and what int() leaves.
ROUNDINGS: dict[str, Callable[[float], int]] = {
    "half_up": lambda edge: int(edge + 0.5),
    "half_even": round,
    "floor": int,
}
# (height, width), px.
Size = tuple[int, int]


@dataclass(frozen=True)
class Load:
    """How an image file is decoded: mmcv's ``LoadImageFromFile``.

    Attributes:
        color_type: one of ``COLOR_TYPES``; the last two, and ``unchanged``, leave an image as it lies in the file,
            whatever its EXIF orientation says.
        decoder: ``cv2`` or ``pillow``; the two make different pixels of a JPEG.
        to_float32: the steps that follow work on float32.
    """

    color_type: str = "color"
    decoder: str = "cv2"
    to_float32: bool = False

    def __post_init__(self) -> None:
        check_choice("color_type", self.color_type, COLOR_TYPES)
        check_choice("decoder", self.decoder, DECODERS)
        check_bool("to_float32", self.to_float32)

    @property
    def is_grey(self) -> bool:
        """Whether images have one channel."""
        return self.color_type.startswith("grayscale")


class Step:
    """What a step can do; the defaults are those of one that leaves size and scale alone."""

    def size(self, height: int, width: int) -> Size:
        """Return the (height, width) in px of an image of that size after the step."""
        return height, width

    def scale_factor(self, height: int, width: int) -> Optional[tuple[float, float]]:
        """Return mmdet's ``scale_factor``, (width, height), of a step that resizes; else None."""
        return None

    def offset(self, height: int, width: int) -> tuple[int, int]:
        """Return where the first pixel of an image of that size lies after the step: (x, y) px."""
        return 0, 0

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Return the image after the step; the argument is left as it is."""
        raise NotImplementedError


class _ResizeStep(Step):
    """A step that resizes to ``size``; its fields ``interpolation`` and ``backend`` say how."""

    interpolation: str
    backend: str

    def __post_init__(self) -> None:
        check_choice("backend", self.backend, tuple(INTERPOLATIONS))
        check_choice("interpolation", self.interpolation, INTERPOLATIONS[self.backend])

    def scale_factor(self, height: int, width: int) -> Optional[tuple[float, float]]:
        """Return (new width / width, new height / height)."""
        new_height, new_width = self.size(height, width)
        return new_width / width, new_height / height

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Resize."""
        height, width = self.size(*image.shape[:2])
        return resized(image, height, width, self.interpolation, self.backend)


@dataclass(frozen=True)
class Resize(_ResizeStep):
    """mmdet's ``Resize`` and, with ``floor``, its ``FixScaleResize``.

    Attributes:
        scale: (width, height) px; with ``keep_ratio`` the long edge stays within the larger and the short edge within
            the smaller of the two. None where ``factors`` are given.
        factors: (x, y) by which the image's own size makes the scale.
        keep_ratio: keep the aspect ratio.
        floor: edges are cut to whole px, where ``Resize`` rounds them.
        interpolation, backend: see ``INTERPOLATIONS``.
    """

    scale: Optional[tuple[float, float]] = None
    factors: Optional[tuple[float, float]] = None
    keep_ratio: bool = False
    floor: bool = False
    interpolation: str = "bilinear"
    backend: str = "cv2"

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.scale is None) == (self.factors is None):
            raise ValueError("resize: expected either a scale or factors")
        for name in ("scale", "factors"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, pair(name, getattr(self, name)))
        check_bool("keep_ratio", self.keep_ratio)
        check_bool("floor", self.floor)

    def size(self, height: int, width: int) -> Size:
        """Return the (height, width) in px after the step."""
        scale = self.scale
        if scale is None:
            x, y = self.factors
            scale = (int(width * float(x) + 0.5), int(height * float(y) + 0.5))
        if self.keep_ratio:
            return rescaled_size(height, width, scale, self.floor)
        return max(1, int(scale[1])), max(1, int(scale[0]))


@dataclass(frozen=True)
class ResizeShortestEdge(_ResizeStep):
    """mmdet's ``ResizeShortestEdge``.

    Attributes:
        scale: of the shorter edge, px.
        max_size: of the longer edge, px; None for any.
        keep_ratio, floor: of the resize inside: see ``Resize``.
        interpolation, backend: see ``INTERPOLATIONS``.
    """

    scale: int
    max_size: Optional[int] = None
    keep_ratio: bool = False
    floor: bool = False
    interpolation: str = "bilinear"
    backend: str = "cv2"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("scale", "max_size"):
            value = getattr(self, name)
            is_left_out = value is None and name == "max_size"
            if not is_left_out and (not is_number(value) or value < 1):
                raise ValueError(f"{name}: expected 1 or more, found {shown(value)}")
        check_bool("keep_ratio", self.keep_ratio)
        check_bool("floor", self.floor)

    def size(self, height: int, width: int) -> Size:
        """Return the (height, width) in px after the step."""
        edge = self.scale * 1.0
        scale = edge / min(height, width)
        new_height, new_width = (edge, scale * width) if height < width else (scale * height, edge)
        if self.max_size and max(new_height, new_width) > self.max_size:
            scale = self.max_size * 1.0 / max(new_height, new_width)
            new_height, new_width = new_height * scale, new_width * scale
        rounded = int(new_height + 0.5), int(new_width + 0.5)
        if self.keep_ratio:
            return rescaled_size(height, width, rounded[::-1], self.floor)
        return max(1, rounded[0]), max(1, rounded[1])


@dataclass(frozen=True)
class FixShapeResize(_ResizeStep):
    """The resize of mmdet's ``FixShapeResize``; with ``keep_ratio`` a ``Pad`` to the same size follows it.

    Attributes:
        scale: (width, height) px.
        keep_ratio: fit into the size instead of filling it.
        interpolation, backend: see ``INTERPOLATIONS``.
    """

    scale: tuple[int, int]
    keep_ratio: bool = False
    interpolation: str = "bilinear"
    backend: str = "cv2"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "scale", whole_pair("scale", self.scale))
        check_bool("keep_ratio", self.keep_ratio)

    def size(self, height: int, width: int) -> Size:
        """Return the (height, width) in px after the step."""
        if not self.keep_ratio:
            return self.scale[1], self.scale[0]
        factor = self._factor(height, width)
        return rescaled_size(height, width, (int(width * factor + 0.5), int(height * factor + 0.5)), False)

    def scale_factor(self, height: int, width: int) -> Optional[tuple[float, float]]:
        """Return mmdet's (x, y): with ``keep_ratio`` what it was before the edges were rounded."""
        factor = self._factor(height, width)
        return (factor, factor) if self.keep_ratio else super().scale_factor(height, width)

    def _factor(self, height: int, width: int) -> float:
        return min(self.scale[0] / width, self.scale[1] / height)


@dataclass(frozen=True)
class Fit(_ResizeStep):
    """Into a fixed size, the largest of the same aspect ratio, orientation included: the resize of ``--size H W``.

    Attributes:
        box: (height, width) px.
        interpolation, backend: see ``INTERPOLATIONS``.
        rounding: of the edges, one of ``ROUNDINGS``.
    """

    box: Size
    interpolation: str = "bilinear"
    backend: str = "cv2"
    rounding: str = "half_up"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "box", whole_pair("box", self.box))
        check_choice("rounding", self.rounding, tuple(ROUNDINGS))

    def size(self, height: int, width: int) -> Size:
        """Return the (height, width) in px after the step: rounded, but never over the box."""
        scale = min(self.box[0] / height, self.box[1] / width)
        rounded = ROUNDINGS[self.rounding]
        return (
            min(self.box[0], max(1, rounded(height * scale))),
            min(self.box[1], max(1, rounded(width * scale))),
        )


@dataclass(frozen=True)
class Pad(Step):
    """mmdet's ``Pad``: at the bottom and right; what it adds counts as image (``img_shape``).

    Attributes:
        shape: (width, height) px to pad to at least, or None.
        size_divisor: pad to multiples of it, or None.
        to_square: pad to the longer edge first.
        value: of a pixel, in the channels' order at this place: OpenCV's scalar of up to four numbers, or one number,
            which OpenCV takes for the first channel alone.
        mode: one of ``PADDING_MODES``.
    """

    shape: Optional[tuple[int, int]] = None
    size_divisor: Optional[int] = None
    to_square: bool = False
    value: Union[float, tuple[float, ...]] = 0
    mode: str = "constant"

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, tuple(PADDING_MODES))
        check_bool("to_square", self.to_square)
        if self.shape is not None:
            object.__setattr__(self, "shape", whole_pair("shape", self.shape))
        if self.size_divisor is not None and (not is_number(self.size_divisor) or self.size_divisor < 1):
            raise ValueError(f"size_divisor: expected 1 or more, found {self.size_divisor!r}")
        if self.shape is None and self.size_divisor is None and not self.to_square:
            raise ValueError("pad: expected a shape, a divisor or a square")
        object.__setattr__(self, "value", _pixel_value(self.value))

    def size(self, height: int, width: int) -> Size:
        """Return the (height, width) in px after the step."""
        target: tuple[int, ...] = (max(height, width),) * 2 if self.to_square else (height, width)
        if self.size_divisor is not None:
            target = tuple(-(-v // self.size_divisor) * self.size_divisor for v in target)
        elif self.shape is not None:
            target = self.shape[::-1]
        return max(height, int(target[0])), max(width, int(target[1]))

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Pad."""
        height, width = self.size(*image.shape[:2])
        bottom, right = height - image.shape[0], width - image.shape[1]
        return cv2.copyMakeBorder(image, 0, bottom, 0, right, PADDING_MODES[self.mode], value=self.value)


@dataclass(frozen=True)
class CenterPad(Step):
    """Pad on all sides to a fixed size: with ``Fit`` before it, the letterbox of the YOLO detectors.

    What it adds counts as image. Where the rest is odd, the larger half lies at the bottom and right: YOLOv5 and
    Ultralytics take ``round(rest / 2 - 0.1)`` at the top and left.

    Attributes:
        box: (height, width) px.
        value: of a pixel; see ``Pad``.
    """

    box: Size
    value: Union[float, tuple[float, ...]] = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "box", whole_pair("box", self.box))
        object.__setattr__(self, "value", _pixel_value(self.value))

    def size(self, height: int, width: int) -> Size:
        """Return the (height, width) in px after the step; an image that is larger stays so."""
        return max(height, self.box[0]), max(width, self.box[1])

    def offset(self, height: int, width: int) -> tuple[int, int]:
        """Return what lies left of the image and above it, px."""
        target = self.size(height, width)
        return (target[1] - width) // 2, (target[0] - height) // 2

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Pad."""
        height, width = image.shape[:2]
        target = self.size(height, width)
        left, top = self.offset(height, width)
        bottom, right = target[0] - height - top, target[1] - width - left
        return cv2.copyMakeBorder(image, top, bottom, left, right, cv2.BORDER_CONSTANT, value=self.value)


@dataclass(frozen=True)
class Normalize(Step):
    """mmcv's ``Normalize``: float32 from here on, ``(pixel - mean) * (1 / std)``.

    Attributes:
        mean, std: per channel, after the channels were exchanged.
        to_rgb: exchange the first and the third channel.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    to_rgb: bool = True

    def __post_init__(self) -> None:
        check_bool("to_rgb", self.to_rgb)
        for name in ("mean", "std"):
            object.__setattr__(self, name, numbers(name, getattr(self, name)))
        if len(self.mean) != len(self.std):
            raise ValueError(
                f"mean, std: expected as many numbers of each, found {shown(self.mean)} and {shown(self.std)}"
            )
        check_normalisation(self.mean, self.std)

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Normalise."""
        out = image.astype(np.float32, order="C")  # a copy, always; OpenCV takes no other layout to write to
        # mmcv keeps both as float32 and computes the reciprocal in double.
        mean = np.float64(np.array(self.mean, np.float32).reshape(1, -1))
        reciprocal = 1 / np.float64(np.array(self.std, np.float32).reshape(1, -1))
        if self.to_rgb:
            cv2.cvtColor(out, cv2.COLOR_BGR2RGB, out)
        cv2.subtract(out, mean, out)
        cv2.multiply(out, reciprocal, out)
        return out


@dataclass(frozen=True)
class CenterCrop(Step):
    """mmcv's ``CenterCrop``; boxes stay in the crop's own coordinates, as mmdet leaves them.

    Attributes:
        crop: (width, height) px.
        pad: what brings a smaller image up to the crop (its ``shape`` is replaced); None leaves it smaller.
    """

    crop: tuple[int, int]
    pad: Optional[Pad] = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "crop", whole_pair("crop", self.crop))
        if isinstance(self.pad, Mapping):
            object.__setattr__(self, "pad", step_from_dict(self.pad, "pad"))
        if not isinstance(self.pad, (Pad, type(None))):
            raise ValueError(f"pad: expected a pad or none, found {shown(self.pad)}")

    def size(self, height: int, width: int) -> Size:
        """Return the (height, width) in px after the step."""
        _, top, bottom, left, right = self._window(height, width)
        return bottom - top, right - left

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Crop."""
        padded, top, bottom, left, right = self._window(*image.shape[:2])
        if padded is not None:
            image = padded.apply(image)
        return image[top:bottom, left:right]

    def _window(self, height: int, width: int) -> tuple[Optional[Pad], int, int, int, int]:
        crop_width, crop_height = self.crop
        pad = None
        if crop_height > height or crop_width > width:
            if self.pad is not None:
                height, width = max(height, crop_height), max(width, crop_width)
                pad = Pad(shape=(width, height), value=self.pad.value, mode=self.pad.mode)
            else:
                crop_height, crop_width = min(crop_height, height), min(crop_width, width)
        top, left = (max(0, round((a - b) / 2.0)) for a, b in ((height, crop_height), (width, crop_width)))
        return pad, top, min(height, top + crop_height), left, min(width, left + crop_width)


STEPS: dict[str, type] = {
    "resize": Resize,
    "resize_shortest_edge": ResizeShortestEdge,
    "fix_shape_resize": FixShapeResize,
    "fit": Fit,
    "pad": Pad,
    "center_pad": CenterPad,
    "normalize": Normalize,
    "center_crop": CenterCrop,
}
_NAMES = {kind: name for name, kind in STEPS.items()}


def is_resize(step: Step) -> bool:
    """Return whether the step resizes."""
    return isinstance(step, _ResizeStep)


def step_to_dict(step: Any) -> dict[str, Any]:
    """Return the JSON of a ``Step``: its name under ``step``, and its fields."""
    values = {f.name: getattr(step, f.name) for f in fields(step)}
    return {
        "step": _NAMES[type(step)],
        **{k: step_to_dict(v) if isinstance(v, Step) else v for k, v in values.items()},
    }


def step_from_dict(data: Any, place: str) -> Step:
    """Return what ``step_to_dict`` wrote.

    Raises:
        ValueError: another step, a field that is missing, unknown or out of range; ``place`` is named.
    """
    found = data.get("step") if isinstance(data, Mapping) else data
    if not isinstance(data, Mapping) or not isinstance(found, str) or found not in STEPS:
        raise ValueError(f"{place}: expected one of the steps {', '.join(STEPS)}, found {shown(found)}")
    try:
        return _made(STEPS[found], {k: v for k, v in data.items() if k != "step"})
    except ValueError as error:
        raise ValueError(f"{place}, {data['step']}: {error}") from error


def load_from_dict(data: Any) -> Load:
    """Return a ``Load`` from its fields.

    Raises:
        ValueError: a field that is unknown or out of range.
    """
    try:
        if not isinstance(data, Mapping):
            raise ValueError(f"expected an object, found {shown(data)}")
        return _made(Load, data)
    except ValueError as error:
        raise ValueError(f"load: {error}") from error


def _made(kind: type, values: Mapping[str, Any]) -> Any:
    """Return a dataclass of these fields; those that it has not got, or needs, are named."""
    unknown = sorted(set(values) - {f.name for f in fields(kind)})
    missing = [f.name for f in fields(kind) if f.default is MISSING and f.name not in values]
    if unknown:
        raise ValueError(
            f"expected the fields {', '.join(f.name for f in fields(kind))}, found {shown(unknown)}"
        )
    if missing:
        raise ValueError(f"expected the fields {', '.join(missing)}, found none of them")
    return kind(**values)


def load_to_dict(load: Load) -> dict[str, Any]:
    """Return the JSON of a ``Load``."""
    return asdict(load)


def final_size(height: int, width: int, steps: Iterable[Step]) -> Size:
    """Return the (height, width) in px of an image after all steps: mmdet's ``img_shape``.

    Raises:
        ValueError: a step makes more pixels than memory is to be taken for.
    """
    for step in steps:
        before = height, width
        height, width = step.size(height, width)
        if height * width > MAX_PIXELS:
            name, (before_height, before_width) = _NAMES[type(step)], before
            raise ValueError(
                f"steps, {name}: expected up to {MAX_PIXELS} pixels, found {height}x{width} made of an image of "
                f"{before_height}x{before_width} px (height x width); use a smaller image, or correct the test pipeline"
            )
    return height, width


def final_scale_factor(height: int, width: int, steps: Iterable[Step]) -> tuple[float, float]:
    """Return mmdet's ``scale_factor``, (width, height): the last resize's alone, as mmdet keeps it."""
    found = (1.0, 1.0)
    for step in steps:
        found = step.scale_factor(height, width) or found
        height, width = step.size(height, width)
    return found


def final_offset(height: int, width: int, steps: Iterable[Step]) -> tuple[float, float]:
    """Return where an image's first pixel lies after all steps, (x, y) px; resizes move it as they do its pixels."""
    x, y = 0.0, 0.0
    for step in steps:
        factor = step.scale_factor(height, width) or (1.0, 1.0)
        added = step.offset(height, width)
        x, y = x * factor[0] + added[0], y * factor[1] + added[1]
        height, width = step.size(height, width)
    return x, y


def applied(image: np.ndarray, steps: Iterable[Step]) -> np.ndarray:
    """Return the image after all steps.

    Raises:
        ValueError: a step does not take such an image.
    """
    for step in steps:
        try:
            image = step.apply(image)
        except cv2.error as error:
            raise ValueError(
                f"steps, {_NAMES[type(step)]}: expected an image that OpenCV takes, found shape {image.shape} "
                f"{image.dtype}: {' '.join((error.err or str(error)).split())}"
            ) from error
    return image


def rescaled_size(height: int, width: int, scale: Sequence[float], floor: bool) -> Size:
    """Return the (height, width) of ``mmcv.imrescale``: the long edge within ``max(scale)``, the short in the other.

    An edge that this takes to zero (aspect ratios above 1000) stays at 1 px, where mmcv fails.
    """
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    half = 0.0 if floor else 0.5
    return max(1, int(height * factor + half)), max(1, int(width * factor + half))


def resized(image: np.ndarray, height: int, width: int, interpolation: str, backend: str) -> np.ndarray:
    """Return the image in another size, as ``mmcv.imresize`` makes it.

    Raises:
        ValueError: Pillow is asked to resize float32 pixels.
        RuntimeError: Pillow is not installed.
    """
    if image.shape[:2] == (height, width):
        return image
    if backend == "cv2":
        return cv2.resize(image, (width, height), interpolation=CV2_INTERPOLATIONS[interpolation])
    if image.dtype != np.uint8:
        raise ValueError(
            f"resize with Pillow: expected uint8 pixels, found {image.dtype}; use the backend cv2"
        )
    pillow = pillow_image()
    method = getattr(pillow, "Resampling", pillow)
    # mmcv hands the arrays over in BGR: channels do not mix, so that their order does not matter.
    resampled = pillow.fromarray(np.ascontiguousarray(image)).resize(
        (width, height), getattr(method, interpolation.upper())
    )
    return np.array(resampled)


def pillow_image() -> Any:
    """Return ``PIL.Image``.

    Raises:
        RuntimeError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise RuntimeError(
            "Pillow: expected it, as the model's test pipeline decodes or resizes with it, found none; "
            "pip install pillow"
        ) from error
    return Image


def check_normalisation(mean: Sequence[float], std: Sequence[float]) -> None:
    """Refuse a mean or standard deviation that makes pixels infinite or NaN.

    Raises:
        ValueError: not finite, or a standard deviation of zero.
    """
    for name, values in (("mean", mean), ("std", std)):
        if not all(map(is_number, values)):
            raise ValueError(f"{name}: expected finite numbers, found {tuple(values)}")
    if 0 in std:
        raise ValueError(f"std: expected numbers other than 0, found {tuple(std)}")


def _pixel_value(value: Any) -> Union[float, tuple[float, ...]]:
    found = tuple(value) if isinstance(value, (list, tuple)) else value
    values = found if isinstance(found, tuple) else (found,)
    if not all(is_number(v) for v in values) or not 1 <= len(values) <= 4:
        raise ValueError(f"value: expected 1 to 4 numbers, found {shown(value)}")
    return found
