"""A head: what is known of a kind of detector and not written in its file, as JSON.

Those of ``heads/`` go by their names; a user's own is named by its path.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Optional

from export.graft.arguments import looks_like_path
from export.graft.forms import FORMS, Form
from runtime.transforms import INTERPOLATIONS, ROUNDINGS

FOLDER = Path(__file__).parent / "heads"
PLACES = ("top_left", "center")
# What a required field has, for whoever left it out.
_EXPECTED = {
    "title": "a text",
    "source": "a text that says where the numbers come from",
    "decoding": "an object",
    "input": "an object",
    "score_threshold": "0 to 1",
    "iou_threshold": "0 to 1",
    "size": "[height, width] in whole px",
    "divisor": "whole px",
    "color_order": "rgb or bgr",
    "mean": "3 numbers",
    "std": "3 numbers",
    "stride": "whole px",
    "strides": "a list of whole px, one for each level",
    "anchors": "a list of anchors for each level",
    "variances": "2 numbers",
    "scales": "a number for each level",
}


@dataclass(frozen=True)
class ImageInput:
    """How an image becomes the network's input.

    Attributes:
        size: (height, width) px where the file leaves it free.
        divisor: height and width are multiples of it.
        color_order: ``rgb`` or ``bgr``.
        mean, std: per channel, in that order: ``(pixel - mean) / std``.
        resize: ``fit``: as large as fits, aspect ratio kept; ``stretch``: to the size.
        backend: what resizes, ``cv2`` or ``pillow``; both bilinear, but Pillow averages where it shrinks.
        rounding: of the edges, see ``runtime.transforms.ROUNDINGS``.
        place: of the image in the input: ``top_left`` or ``center``.
        pad: pixel around it, before it is normalised, in ``color_order``; None: 0 in the network's input.
    """

    size: tuple[int, int]
    divisor: int
    color_order: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: str = "fit"
    backend: str = "cv2"
    rounding: str = "half_up"
    place: str = "top_left"
    pad: Optional[tuple[float, ...]] = None

    def __post_init__(self) -> None:
        for name in ("size", "mean", "std", "pad"):
            value = getattr(self, name)
            if not isinstance(value, (list, tuple)) and not (name == "pad" and value is None):
                raise ValueError(f"{name}: expected a list of numbers, found {value!r}")
            object.__setattr__(self, name, None if value is None else tuple(value))
        _check_choice("color_order", self.color_order, ("rgb", "bgr"))
        _check_choice("resize", self.resize, ("fit", "stretch"))
        _check_choice("backend", self.backend, tuple(INTERPOLATIONS))
        _check_choice("rounding", self.rounding, tuple(ROUNDINGS))
        _check_choice("place", self.place, PLACES)
        if len(self.size) != 2 or any(type(v) is not int or v < 1 for v in (*self.size, self.divisor)):
            raise ValueError(f"size, divisor: expected whole px, found {self.size} and {self.divisor!r}")
        for name in ("mean", "std", "pad"):
            values = getattr(self, name)
            if values is not None and (len(values) != 3 or not all(_is_number(v) for v in values)):
                raise ValueError(f"{name}: expected 3 numbers, found {values!r}")
        if 0 in self.std:
            raise ValueError(f"std: expected numbers other than 0, found {self.std!r}")

    @property
    def pad_values(self) -> tuple[float, ...]:
        """Of the network's input around an image, per channel."""
        if self.pad is None:
            return (0.0, 0.0, 0.0)
        return tuple((p - m) / s for p, m, s in zip(self.pad, self.mean, self.std))


@dataclass(frozen=True)
class Head:
    """A kind of detector.

    Attributes:
        name: of its file.
        title: what people call it.
        source: where the numbers come from.
        form: how outputs are decoded.
        input: see ``ImageInput``.
        score_threshold: detections at or below it are left out.
        iou_threshold: of the NMS.
        classes: names; empty where the file, or whoever grafts, says them.
        keypoints, skeleton: see ``runtime.metadata``.
        pre_nms: most candidates that reach the NMS.
        max_per_img: most detections of an image.
        class_agnostic: boxes of different classes suppress each other.
        clip: boxes are cut to the image.
        mask_threshold: probability above which a pixel belongs to the object.
        names: outputs by role, all of a role in the order of the strides; for files whose shapes leave a choice.
    """

    name: str
    title: str
    source: str
    form: Form
    input: ImageInput
    score_threshold: float
    iou_threshold: float
    classes: tuple[str, ...] = ()
    keypoints: tuple[str, ...] = ()
    skeleton: tuple[tuple[int, int], ...] = ()
    pre_nms: int = 1000
    max_per_img: int = 300
    class_agnostic: bool = False
    clip: bool = False
    mask_threshold: float = 0.5
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("title", "source"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name}: expected a text, found {getattr(self, name)!r}")
        for name in ("classes", "keypoints"):
            object.__setattr__(self, name, _strings(name, getattr(self, name)))
        object.__setattr__(self, "skeleton", _skeleton(self.skeleton, len(self.keypoints)))
        roles = Counter(output.role for output in self.form.outputs(self.input.size, len(self.keypoints)))
        object.__setattr__(self, "names", _names(self.names, roles))
        for name in ("score_threshold", "iou_threshold", "mask_threshold"):
            value = getattr(self, name)
            if not _is_number(value) or not 0 <= value <= 1:
                raise ValueError(f"{name}: expected 0 to 1, found {value!r}")
        for name, most in (("pre_nms", 4096), ("max_per_img", 3000)):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= most:
                raise ValueError(f"{name}: expected 1 to {most}, found {value!r}")
        for name in ("class_agnostic", "clip"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}: expected true or false, found {getattr(self, name)!r}")

    @property
    def has_masks(self) -> bool:
        """Whether detections have masks."""
        return bool(getattr(self.form, "coefficients", 0))

    def changed(self, *, backend: Optional[str] = None, **values: Any) -> "Head":
        """Return the head with what is not None in the place of its own; ``backend`` is the input's."""
        given = self.input if backend is None else replace(self.input, backend=backend)
        return replace(self, input=given, **{k: v for k, v in values.items() if v is not None})


def head_names() -> tuple[str, ...]:
    """Return the names of the heads that come with the tool."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.json")))


def load_head(name: str) -> Head:
    """Return a head by its name, or from a file.

    Raises:
        ValueError: no such head; or the file is none: the place in it is named.
    """
    if name in head_names():
        return _read(FOLDER / f"{name}.json")
    path = Path(name)
    if path.is_file():
        return _read(path)
    if looks_like_path(name, ".json"):
        found = "a folder" if path.is_dir() else "no such file"
        raise ValueError(f"--head {name}: expected a JSON file, found {found}; check the path")
    raise ValueError(
        f"--head: expected one of {', '.join(head_names())}, or a JSON file, found {name!r}; "
        "docs/detectors.md says what a file has"
    )


def _read(path: Path) -> Head:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise ValueError(f"expected an object, found a {type(data).__name__}")
        return _head(path.stem, data)
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(
            f"head {path}: {error}; correct the file, docs/detectors.md has its fields"
        ) from error


def _head(name: str, data: Mapping[str, Any]) -> Head:
    keys = {name: is_required for name, is_required in _keys(Head).items() if name not in ("name", "form")}
    _check_keys("", data, {**keys, "decoding": True})
    decoding = dict(_object("decoding", data))
    kind = decoding.pop("form", None)
    if not isinstance(kind, str) or kind not in FORMS:
        raise ValueError(f"decoding.form: expected one of {', '.join(FORMS)}, found {kind!r}")
    _check_keys("decoding.", decoding, _keys(FORMS[kind]))
    given = _object("input", data)
    _check_keys("input.", given, _keys(ImageInput))
    rest = {k: v for k, v in data.items() if k not in ("decoding", "input")}
    return Head(name=name, form=FORMS[kind](**decoding), input=ImageInput(**given), **rest)


def _object(name: str, data: Mapping[str, Any]) -> Mapping[str, Any]:
    if not isinstance(data.get(name), dict):
        raise ValueError(f"{name}: expected an object, found {data.get(name)!r}")
    return data[name]


def _keys(kind: Any) -> dict[str, bool]:
    """Return the fields of a dataclass, and whether each is required."""
    return {f.name: f.default is MISSING and f.default_factory is MISSING for f in fields(kind)}


def _check_keys(place: str, data: Mapping[str, Any], known: Mapping[str, bool]) -> None:
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise ValueError(
            f"{place}{unknown[0]}: expected one of {', '.join(sorted(known))}, found another field"
        )
    missing = [name for name, is_required in known.items() if is_required and name not in data]
    if missing:
        others = f" (nor {', '.join(place + name for name in missing[1:])})" if missing[1:] else ""
        raise ValueError(
            f"{place}{missing[0]}: expected {_EXPECTED[missing[0]]}, found no such field{others}"
        )


def _names(names: Any, roles: Mapping[str, int]) -> dict[str, tuple[str, ...]]:
    """Return outputs by role; ``roles`` are those of the form, and how many outputs each has."""
    if not isinstance(names, Mapping):
        raise ValueError(f"names: expected an object of lists by role ({', '.join(roles)}), found {names!r}")
    found = {}
    for role, outputs in names.items():
        if role not in roles:
            raise ValueError(f"names.{role}: expected one of the roles {', '.join(roles)}, found another")
        found[role] = _strings(f"names.{role}", outputs)
        if len(found[role]) != roles[role]:
            raise ValueError(
                f"names.{role}: expected {roles[role]} outputs, in the order of the strides, found {len(found[role])}"
            )
    return found


def _strings(name: str, values: Sequence[Any]) -> tuple[str, ...]:
    if not isinstance(values, (list, tuple)) or not all(isinstance(v, str) for v in values):
        raise ValueError(f"{name}: expected a list of names, found {values!r}")
    return tuple(values)


def _skeleton(lines: Any, num_keypoints: int) -> tuple[tuple[int, int], ...]:
    points = range(num_keypoints)
    good = isinstance(lines, (list, tuple)) and all(isinstance(line, (list, tuple)) for line in lines)
    if not good or not all(
        len(line) == 2 and all(type(v) is int and v in points for v in line) for line in lines
    ):
        raise ValueError(
            f"skeleton: expected pairs of indices of {num_keypoints} key points, found {lines!r}"
        )
    return tuple((line[0], line[1]) for line in lines)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < float("inf")


def _check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, found {value!r}")
