"""What an exported model says about itself: written into the ONNX by ``export``, read by ``runtime``.

It is one JSON object under the key ``maskrcnn`` of the file's ``metadata_props``. The sidecar of an engine
carries the same object.
"""

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Optional

KEY = "maskrcnn"
FORMAT = 1

RESIZE_RULES = ("fit", "keep_ratio", "stretch")
MASK_MODES = ("crop", "full", "none")


@dataclass(frozen=True)
class ResizeRule:
    """How an image gets from its own size to the network's.

    Attributes:
        rule: ``keep_ratio``: mmdet's ``Resize(scale, keep_ratio=True)``, so that neither the long edge
            exceeds ``max(size)`` nor the short edge ``min(size)``. ``fit``: the largest size of the same
            aspect ratio inside ``size`` = (height, width), orientation included. ``stretch``: exactly
            ``size``.
        size: two positive ints in px; (height, width) for ``fit`` and ``stretch``, in any order for
            ``keep_ratio``.
    """

    rule: str
    size: tuple[int, int]

    def __post_init__(self) -> None:
        if self.rule not in RESIZE_RULES:
            raise ValueError(f"resize rule: expected one of {', '.join(RESIZE_RULES)}, found {self.rule!r}")
        object.__setattr__(self, "size", tuple(int(v) for v in self.size))
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"resize size: expected two positive ints, found {self.size}")


@dataclass(frozen=True)
class ModelMetadata:
    """The facts about a model that its graph does not hold.

    Attributes:
        classes: class names; a label is an index into them.
        mean, std: per channel in ``color_order``, in units of 0-255 pixel values: ``(pixel - mean) / std``.
        color_order: ``rgb`` or ``bgr``, the channel order the network expects.
        resize: how images are resized before padding.
        size: fixed (height, width) of the network's input in px, or None where both are dynamic.
        size_divisor: the padded height and width are multiples of this (dynamic size only).
        masks: ``crop``, ``full`` or ``none`` (a detector without a mask head).
        mask_threshold: probability at and above which a pixel belongs to the object.
        score_threshold: detections at or below this score are not in the output.
        max_per_img: rows per image in the outputs, K.
        config: name of the mmdet config.
        checkpoint_sha256: of the checkpoint's file, or None for random weights.
        versions: package name -> version at export time.
    """

    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    color_order: str
    resize: ResizeRule
    size: Optional[tuple[int, int]]
    size_divisor: int
    masks: str
    mask_threshold: float
    score_threshold: float
    max_per_img: int
    config: str = ""
    checkpoint_sha256: Optional[str] = None
    versions: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.color_order not in ("rgb", "bgr"):
            raise ValueError(f"color_order: expected rgb or bgr, found {self.color_order!r}")
        if self.masks not in MASK_MODES:
            raise ValueError(f"masks: expected one of {', '.join(MASK_MODES)}, found {self.masks!r}")
        for name in ("classes", "mean", "std", "size"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else tuple(value))
        for name, length in (("mean", 3), ("std", 3), ("size", 2)):
            value = getattr(self, name)
            if value is not None and len(value) != length:
                raise ValueError(f"{name}: expected {length} numbers, found {value}")
        if self.size_divisor < 1:
            raise ValueError(f"size_divisor: expected at least 1, found {self.size_divisor}")

    def to_json(self) -> str:
        """Return the JSON that ``from_json`` reads, with the format's number in it."""
        return json.dumps({"format": FORMAT, **asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> "ModelMetadata":
        """Parse what ``to_json`` wrote.

        Raises:
            ValueError: not JSON, another format number, or a missing or malformed field; the message names
                it.
        """
        try:
            data = json.loads(text)
        except ValueError as error:
            raise ValueError(f"model metadata: expected JSON under {KEY!r}, found {text[:80]!r}") from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            found = data.get("format") if isinstance(data, dict) else type(data).__name__
            raise ValueError(
                f"model metadata: expected format {FORMAT}, found {found}; "
                "export the model again with this version of `python -m export.maskrcnn`"
            )
        known = {f.name for f in fields(cls)}
        optional = {"config", "checkpoint_sha256", "versions"}
        missing = sorted(known - optional - set(data))
        if missing:
            raise ValueError(f"model metadata: missing {', '.join(missing)}; export the model again")
        values = {k: v for k, v in data.items() if k in known}
        try:
            values["resize"] = ResizeRule(**values["resize"])
            return cls(**values)
        except TypeError as error:
            # A field of another JSON type, e.g. a number for the list of classes.
            raise ValueError(f"model metadata: malformed field ({error}); export the model again") from error
