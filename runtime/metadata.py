"""What an exported model says about itself: written into the ONNX by ``export``, read by ``runtime``.

It is one JSON object under the key ``maskrcnn`` of the file's ``metadata_props``. The sidecar of an engine
carries the same object.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Optional

from runtime.documents import parsed
from runtime.messages import shown
from runtime.ranges import MAX_SIZE
from runtime.transforms import (
    Fit,
    Load,
    Resize,
    Step,
    check_normalisation,
    is_resize,
    load_from_dict,
    load_to_dict,
    step_from_dict,
    step_to_dict,
)
from runtime.values import is_number, pair

KEY = "maskrcnn"
# 1: an image is read in colour by OpenCV and resized, nothing else; ``resize`` stands for the steps.
FORMAT = 2
FORMATS = (1, 2)

MASK_MODES = ("crop", "full", "grid", "none")
# Of the network's input: normalised, or pixels that the graph normalises, (B, C, H, W) or (B, H, W, C).
INPUTS = ("float32", "uint8", "uint8_nhwc")
MAX_CHANNELS = 4
# Of the outputs.
MAX_ROWS = 1 << 20


@dataclass(frozen=True)
class ModelMetadata:
    """The facts about a model that its graph does not hold.

    Attributes:
        classes: class names; a label is an index into them.
        load: how an image file is decoded.
        steps: what happens to its pixels before they are normalised.
        mean, std: per channel of the network's input, in ``color_order``: ``(pixel - mean) / std``.
        color_order: ``rgb`` exchanges the first and the third channel of what the steps leave; ``bgr`` does not.
        pad_value: of the network's input outside an image.
        size: fixed (height, width) of the network's input in px, or None where both are dynamic.
        size_divisor: the padded height and width are multiples of this (dynamic size only).
        masks: ``crop``, ``full``, ``grid`` (probabilities on a grid over the whole input) or ``none`` (a detector
            without a mask head).
        mask_threshold: probability at and above which a pixel belongs to the object.
        score_threshold: detections at or below this score are not in the output.
        max_per_img: rows per image in the outputs, K.
        config: name of the mmdet config.
        checkpoint_sha256: of the checkpoint's file, or None for random weights.
        versions: package name -> version at export time.
        keypoints: names of the key points that each detection has, in the order of the output; empty without any.
        skeleton: pairs of key points, as indices into their names, between which a line is drawn.
        clip: boxes are cut to the original image.
        input: ``float32``: the network's input is what the fields above make of pixels. ``uint8`` and ``uint8_nhwc``:
            it is the pixels that the steps leave, (B, C, H, W) or (B, H, W, C), and the graph does what comes after
            them: colour order, normalisation, pad value.
    """

    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    color_order: str
    steps: tuple[Step, ...]
    size: Optional[tuple[int, int]]
    size_divisor: int
    masks: str
    mask_threshold: float
    score_threshold: float
    max_per_img: int
    load: Load = Load()
    pad_value: float = 0.0
    config: str = ""
    checkpoint_sha256: Optional[str] = None
    versions: dict = field(default_factory=dict)
    keypoints: tuple[str, ...] = ()
    skeleton: tuple[tuple[int, int], ...] = ()
    clip: bool = False
    input: str = "float32"

    def __post_init__(self) -> None:
        if self.color_order not in ("rgb", "bgr"):
            raise ValueError(f"color_order: expected rgb or bgr, found {shown(self.color_order)}")
        if self.masks not in MASK_MODES:
            raise ValueError(f"masks: expected one of {', '.join(MASK_MODES)}, found {shown(self.masks)}")
        if self.input not in INPUTS:
            raise ValueError(f"input: expected one of {', '.join(INPUTS)}, found {shown(self.input)}")
        for name in ("classes", "mean", "std", "size", "steps", "keypoints", "skeleton"):
            value = getattr(self, name)
            is_none = value is None and name == "size"
            object.__setattr__(self, name, None if is_none else _tuple(name, value))
        self._check_classes()
        self._check_keypoints()
        self._check_channels()
        self._check_size()
        self._check_thresholds()

    @property
    def resize(self) -> Optional[Step]:
        """The step that resizes, the last where there are several; None where none does."""
        return next((step for step in reversed(self.steps) if is_resize(step)), None)

    @property
    def channels(self) -> int:
        """How many channels the network's input has."""
        return len(self.mean)

    def _check_classes(self) -> None:
        if not self.classes or not all(isinstance(name, str) for name in self.classes):
            raise ValueError(f"classes: expected one name or more, found {shown(self.classes)}")

    def _check_keypoints(self) -> None:
        if not all(isinstance(name, str) for name in self.keypoints or ()) or self.keypoints is None:
            raise ValueError(f"keypoints: expected names, found {shown(self.keypoints)}")
        lines = tuple(_tuple("skeleton", line) for line in self.skeleton or ())
        valid = range(len(self.keypoints))
        if not all(len(line) == 2 and all(type(v) is int and v in valid for v in line) for line in lines):
            raise ValueError(
                f"skeleton: expected pairs of indices of the {len(valid)} key points, found {shown(self.skeleton)}"
            )
        object.__setattr__(self, "skeleton", lines)
        if not isinstance(self.clip, bool):
            raise ValueError(f"clip: expected true or false, found {shown(self.clip)}")

    def _check_channels(self) -> None:
        if not 1 <= len(self.mean) <= MAX_CHANNELS or len(self.mean) != len(self.std):
            raise ValueError(
                f"mean, std: expected as many numbers of each, 1 to {MAX_CHANNELS}, found "
                f"{shown(self.mean)} and {shown(self.std)}"
            )
        if not all(is_number(value) for value in (*self.mean, *self.std)):
            raise ValueError(
                f"mean, std: expected finite numbers, found {shown(self.mean)} and {shown(self.std)}"
            )
        check_normalisation(self.mean, self.std)
        if self.color_order == "rgb" and self.channels != 3:
            raise ValueError(f"color_order: expected bgr of {self.channels} channels, found rgb")
        if not is_number(self.pad_value):
            raise ValueError(f"pad_value: expected a finite number, found {shown(self.pad_value)}")

    def _check_size(self) -> None:
        size = self.size
        if size is not None and (len(size) != 2 or not all(map(_is_whole, size))):
            raise ValueError(f"size: expected 2 numbers of 1 or more, up to {MAX_SIZE}, found {shown(size)}")
        if not _is_whole(self.size_divisor):
            raise ValueError(
                f"size_divisor: expected at least 1, up to {MAX_SIZE}, found {shown(self.size_divisor)}"
            )
        if not all(isinstance(step, Step) for step in self.steps):
            raise ValueError(f"steps: expected steps of runtime.transforms, found {shown(self.steps)}")
        if not isinstance(self.load, Load):
            raise ValueError(f"load: expected runtime.transforms.Load, found {shown(self.load)}")

    def _check_thresholds(self) -> None:
        if not is_number(self.mask_threshold) or not 0 <= self.mask_threshold <= 1:
            raise ValueError(f"mask_threshold: expected 0 to 1, found {shown(self.mask_threshold)}")
        if not is_number(self.score_threshold):
            raise ValueError(
                f"score_threshold: expected a finite number, found {shown(self.score_threshold)}"
            )
        if not _is_whole(self.max_per_img, MAX_ROWS):
            raise ValueError(
                f"max_per_img: expected at least 1, up to {MAX_ROWS}, found {shown(self.max_per_img)}"
            )

    def to_json(self) -> str:
        """Return the JSON that ``from_json`` reads, with the format's number in it."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["load"] = load_to_dict(self.load)
        values["steps"] = [step_to_dict(step) for step in self.steps]
        return json.dumps({"format": FORMAT, **values})

    @classmethod
    def from_json(cls, text: str) -> "ModelMetadata":
        """Parse what ``to_json`` wrote, of this format or an older one.

        Raises:
            ValueError: not JSON, an unknown format number, or a missing or malformed field; the message names
                it.
        """
        try:
            data = parsed(text)
        except ValueError as error:
            raise ValueError(f"model metadata under {KEY!r}: {error}; export the model again") from error
        number = data.get("format") if isinstance(data, dict) else None
        if type(number) is not int or number not in FORMATS:
            found = shown(number) if isinstance(data, dict) else type(data).__name__
            raise ValueError(
                f"model metadata: expected format {' or '.join(map(str, FORMATS))}, found {found}; "
                "export the model again with this version of `python -m export.maskrcnn`"
            )
        if data["format"] == 1:
            data = _from_format_1(data)
        known = {f.name for f in fields(cls)}
        optional = {f.name for f in fields(cls) if f.default is not MISSING} | {"versions"}
        missing = sorted(known - optional - set(data))
        if missing:
            raise ValueError(
                f"model metadata: expected the fields {', '.join(missing)}, found none of them; export the model again"
            )
        values = {k: v for k, v in data.items() if k in known}
        try:
            return cls(**{**values, **_transforms(values)})
        except ValueError as error:
            raise ValueError(f"model metadata: malformed field ({error}); export the model again") from error


def _transforms(values: Mapping[str, Any]) -> dict[str, Any]:
    steps = values["steps"]
    if not isinstance(steps, list):
        raise ValueError(f"steps: expected a list, found {type(steps).__name__}")
    found: dict[str, Any] = {"steps": [step_from_dict(s, f"steps[{i}]") for i, s in enumerate(steps)]}
    if "load" in values:
        found["load"] = load_from_dict(values["load"])
    return found


def _from_format_1(data: Mapping[str, Any]) -> dict[str, Any]:
    if "resize" not in data:
        raise ValueError(
            "model metadata: expected the fields resize, found none of them; export the model again"
        )
    try:
        step = _step_of_rule(data["resize"])
    except ValueError as error:
        raise ValueError(
            f"model metadata: malformed field (resize: {error}); export the model again"
        ) from error
    return {**data, "steps": [step_to_dict(step)]}


def _step_of_rule(data: Any) -> Step:
    """Return the step of a resize rule of format 1, whose size is (height, width)."""
    if not isinstance(data, dict) or set(data) != {"rule", "size"}:
        raise ValueError(f"expected a rule and a size, found {shown(data)}")
    rule = data["rule"]
    height, width = pair("size", data["size"])
    if rule == "fit":
        return Fit((height, width))
    if rule in ("keep_ratio", "stretch"):
        return Resize(scale=(width, height), keep_ratio=rule == "keep_ratio")
    raise ValueError(f"rule: expected fit, keep_ratio or stretch, found {shown(rule)}")


def _tuple(name: str, value: Any) -> tuple:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ValueError(f"{name}: expected a list, found {type(value).__name__}")
    return tuple(value)


def _is_whole(value: Any, most: int = MAX_SIZE) -> bool:
    """Return whether the value is a whole number from 1."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most
