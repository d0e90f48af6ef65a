"""What a head says of its images, as the runtime's own steps and facts."""

from typing import Optional

from export.graft.grid import Size
from export.graft.head import Head, ImageInput
from runtime.metadata import ModelMetadata
from runtime.transforms import CenterPad, Fit, Pad, Resize, Step


def metadata_of(
    head: Head, classes: tuple[str, ...], size: Optional[Size], *, config: str, sha256: str, versions: dict
) -> ModelMetadata:
    """Return the metadata of a model with a head.

    Args:
        head: its head.
        classes: names.
        size: (height, width) of its input in px; None: images are fitted into the head's size, and batches padded.
        config: where it comes from, in words.
        sha256: of the file that it was grafted on.
        versions: of the packages that made it.
    """
    given = head.input
    pads = given.pad_values
    return ModelMetadata(
        classes=classes,
        steps=_steps(given, size),
        mean=given.mean,
        std=given.std,
        color_order=given.color_order,
        pad_value=pads[0] if len(set(pads)) == 1 else 0.0,
        size=size,
        size_divisor=given.divisor,
        masks="grid" if head.has_masks else "none",
        mask_threshold=head.mask_threshold,
        score_threshold=head.score_threshold,
        max_per_img=head.max_per_img,
        config=config,
        checkpoint_sha256=sha256,
        versions=versions,
        keypoints=head.keypoints,
        skeleton=head.skeleton,
        clip=head.clip,
    )


def _steps(given: ImageInput, size: Optional[Size]) -> tuple[Step, ...]:
    box = size or given.size
    if given.resize == "stretch":
        return (Resize(scale=box[::-1], backend=given.backend),)
    fit = Fit(box, rounding=given.rounding, backend=given.backend)
    pads = set(given.pad_values)
    if given.place == "center":
        return (fit, CenterPad(box, _pixel(given)))
    if len(pads) == 1:
        return (fit,)  # what the runtime pads batches with
    if size is None:
        return (fit, Pad(size_divisor=given.divisor, value=_pixel(given)))
    return (fit, Pad(shape=box[::-1], value=_pixel(given)))


def _pixel(given: ImageInput) -> tuple[float, ...]:
    """Return the pixel around an image in the order in which images are read, BGR."""
    pad = given.pad if given.pad is not None else given.mean
    return tuple(pad) if given.color_order == "bgr" else tuple(reversed(pad))
