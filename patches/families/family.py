"""What a family of detectors is: one object per family says all that the exporter needs to know of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from patches.patch import Patch


class UnsupportedModelError(ValueError):
    """The model has a part whose patched counterpart does not exist: its name, and what is supported."""


@dataclass(frozen=True)
class Facts:
    """What the runtime must know of a model.

    Attributes:
        num_classes: labels are below it.
        has_masks: it makes masks.
        score_threshold: detections at or below this score are not in the output.
        mask_threshold: probability at and above which a pixel belongs to the object.
        max_per_img: most detections per image.
    """

    num_classes: int
    has_masks: bool
    score_threshold: float
    mask_threshold: float
    max_per_img: int


@dataclass(frozen=True)
class Family:
    """A family of detectors.

    Attributes:
        name: in words, for messages.
        owner: the class of mmdet's that its detectors are of.
        check: raises ``UnsupportedModelError`` for the first part that the patches do not cover.
        patches: those under which ``model.predict(images, image_sizes)`` can be traced.
        facts: of a model.
        nms_settings: of a model, by name: the test settings of each NMS, which mmdet reads at every call.
        score_settings: of a model: the test settings with its ``score_thr``.
        limit: changes a model's config before it is built: (test_cfg, max_per_img, max_proposals), each None for the
            config's own.
        spread_heads: scales the last layers of a model with random weights so that scores and boxes vary: (model,
            feature maps).
    """

    name: str
    owner: type
    check: Callable[[nn.Module], None]
    patches: Callable[[nn.Module], Sequence[Patch]]
    facts: Callable[[nn.Module], Facts]
    nms_settings: Callable[[nn.Module], Mapping[str, Any]]
    score_settings: Callable[[nn.Module], Any]
    limit: Callable[..., None]
    spread_heads: Callable[[nn.Module, tuple[Tensor, ...]], None]
