"""Detections drawn over their image."""

import colorsys
from dataclasses import dataclass

import cv2
import numpy as np

from runtime.detections import Detections
from runtime.masks import MaskCrop

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_MASK_OPACITY = 0.4
# A Hershey letter at scale 1 is about 22 px high. Text is this share of the image's shorter edge, within what
# one can read and what does not hide the objects.
_TEXT_HEIGHT_SHARE = 0.018
_MIN_TEXT_SCALE, _MAX_TEXT_SCALE = 0.42, 1.6
_HERSHEY_HEIGHT_PX = 22
# Small images are enlarged before they are drawn on, or their labels would cover them.
_MIN_DRAWN_EDGE_PX = 480
# Key points of a lower score are not drawn: those of hidden joints lie anywhere.
_MIN_KEYPOINT_SCORE = 0.25

Color = tuple[int, int, int]


@dataclass(frozen=True)
class _Pen:
    """Sizes for one image: text scale, text thickness, line thickness and the room around text, px."""

    text_scale: float
    text_thickness: int
    line_thickness: int
    padding: int


@dataclass(frozen=True)
class _Label:
    """A text and the filled box that it stands in, xyxy px; ``baseline`` is the text's lower edge."""

    text: str
    color: Color
    box: tuple[int, int, int, int]
    baseline: int


def class_color(label: int) -> Color:
    """Return a saturated BGR colour, always the same one for a label and far from its neighbours'.

    Hues step by the golden ratio, which never repeats; lightness alternates so that wrapped-around neighbours
    differ.
    """
    hue = (0.05 + label * 0.618033988749895) % 1.0
    red, green, blue = colorsys.hls_to_rgb(hue, (0.5, 0.62, 0.4)[label % 3], 0.9)
    return round(blue * 255), round(green * 255), round(red * 255)


def draw_detections(image: np.ndarray, detections: Detections) -> np.ndarray:
    """Return the image with masks, contours, boxes, key points, and class and score of every detection.

    The best detections are drawn last, so that they stay visible; labels are moved to where they hide no
    better one's label, if there is such a place.

    Args:
        image: (H, W, 3) uint8 BGR, or as ``read_image`` reads others, grey or with alpha; not changed.
        detections: of this image.

    Returns:
        (H', W', 3) uint8 BGR, enlarged by a whole factor where the image is small.

    Raises:
        ValueError: the image is not the detections'.
    """
    if image.shape[:2] != detections.image_size:
        raise ValueError(
            f"image: expected the detections' {detections.image_size} (height, width), found {image.shape[:2]}; "
            "draw on the image that was detected in, at its own size"
        )
    image = in_color(image)
    factor = max(1, -(-_MIN_DRAWN_EDGE_PX // max(image.shape[:2])))
    canvas = np.repeat(np.repeat(image, factor, 0), factor, 1) if factor > 1 else image.copy()
    worst_first = detections.select(np.argsort(detections.scores, kind="stable"))
    pen = _pen_for(canvas.shape[0], canvas.shape[1])
    if worst_first.has_masks:
        for crop, label in zip(worst_first.mask_crops(), worst_first.labels):
            _draw_mask(canvas, crop, class_color(int(label)), factor, pen)
    for box, label in zip(worst_first.boxes * factor, worst_first.labels):
        _draw_box(canvas, box, class_color(int(label)), pen)
    if worst_first.keypoints is not None:
        for points, label in zip(worst_first.keypoints, worst_first.labels):
            _draw_keypoints(canvas, points, worst_first.skeleton, class_color(int(label)), factor, pen)
    for label in reversed(_placed_labels(worst_first, factor, canvas.shape, pen)):
        _draw_label(canvas, label, pen)
    return canvas


def in_color(image: np.ndarray) -> np.ndarray:
    """Return (H, W, 3) BGR pixels of an image that may be grey or have alpha."""
    if image.ndim == 2 or image.shape[2] == 1:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    return image[..., :3]


def _pen_for(height: int, width: int) -> _Pen:
    scale = min(height, width) * _TEXT_HEIGHT_SHARE / _HERSHEY_HEIGHT_PX
    scale = float(np.clip(scale, _MIN_TEXT_SCALE, _MAX_TEXT_SCALE))
    return _Pen(
        text_scale=scale,
        text_thickness=max(1, round(scale * 1.7)),
        line_thickness=max(2, round(scale * 3)),
        padding=max(2, round(scale * 5)),
    )


def _draw_mask(canvas: np.ndarray, crop: MaskCrop, color: Color, factor: int, pen: _Pen) -> None:
    pixels = crop.pixels.view(np.uint8)
    if not pixels.any():
        return
    if factor > 1:
        pixels = np.repeat(np.repeat(pixels, factor, 0), factor, 1)
    top, left = crop.top * factor, crop.left * factor
    region = canvas[top : top + pixels.shape[0], left : left + pixels.shape[1]]
    tinted = cv2.addWeighted(region, 1 - _MASK_OPACITY, np.full_like(region, color), _MASK_OPACITY, 0)
    cv2.copyTo(tinted, pixels, region)
    contours, _ = cv2.findContours(pixels, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(canvas, contours, -1, color, pen.line_thickness, cv2.LINE_AA, offset=(left, top))


def _draw_box(canvas: np.ndarray, box: np.ndarray, color: Color, pen: _Pen) -> None:
    x1, y1, x2, y2 = _inside(box, canvas.shape)
    # A dark edge keeps the line visible on a background of its own colour.
    cv2.rectangle(canvas, (x1, y1), (x2, y2), (0, 0, 0), pen.line_thickness + 2)
    cv2.rectangle(canvas, (x1, y1), (x2, y2), color, pen.line_thickness)


def _draw_keypoints(
    canvas: np.ndarray,
    points: np.ndarray,
    skeleton: tuple[tuple[int, int], ...],
    color: Color,
    factor: int,
    pen: _Pen,
) -> None:
    """Draw one detection's key points, (P, 3), and the lines between them; thinner where the object is small."""
    limits = np.array(canvas.shape[1::-1])
    places = np.rint(np.clip(points[:, :2] * factor, -limits, 2 * limits)).astype(int).tolist()
    shown = points[:, 2] >= _MIN_KEYPOINT_SCORE
    extent = np.ptp(points[shown, :2], axis=0).max(initial=0.0) * factor if shown.any() else 0.0
    thickness = max(1, min(pen.line_thickness, round(float(extent) / 24)))
    for a, b in skeleton:
        if shown[a] and shown[b]:
            cv2.line(canvas, places[a], places[b], color, thickness, cv2.LINE_AA)
    for place, is_shown in zip(places, shown):
        if is_shown:
            cv2.circle(canvas, place, thickness + 2, (0, 0, 0), cv2.FILLED, cv2.LINE_AA)
            cv2.circle(canvas, place, thickness + 1, (255, 255, 255), cv2.FILLED, cv2.LINE_AA)


def _inside(box: np.ndarray, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Return the box as whole pixels within the canvas: a mad coordinate would overflow OpenCV's integers."""
    limits = np.array([shape[1] - 1, shape[0] - 1] * 2)
    x1, y1, x2, y2 = np.clip(np.rint(box), 0, limits).astype(int).tolist()
    return x1, y1, x2, y2


def _placed_labels(detections: Detections, factor: int, shape: tuple[int, ...], pen: _Pen) -> list[_Label]:
    """Return every detection's label, best first, each in the first of its places that no better one takes."""
    placed: list[_Label] = []
    taken = np.zeros((0, 4), int)
    for index in reversed(range(len(detections))):
        label = int(detections.labels[index])
        text = f"{detections.classes[label]}{_track(detections, index)} {detections.scores[index]:.2f}"
        (width, height), descent = cv2.getTextSize(text, _FONT, pen.text_scale, pen.text_thickness)
        size = (width + 2 * pen.padding, height + descent + pen.padding)
        places = _label_places(_inside(detections.boxes[index] * factor, shape), size, shape)
        box = next((place for place in places if not _overlaps(place, taken)), places[0])
        taken = np.vstack((taken, box))
        placed.append(_Label(text, class_color(label), box, box[3] - descent - pen.padding // 2))
    return placed


def _track(detections: Detections, index: int) -> str:
    """Return the object's number in a video, where it has one."""
    track_id = -1 if detections.track_ids is None else int(detections.track_ids[index])
    return f" #{track_id}" if track_id >= 0 else ""


def _label_places(
    box: tuple[int, int, int, int], size: tuple[int, int], shape: tuple[int, ...]
) -> list[tuple[int, int, int, int]]:
    """Return the places for a label, in order of preference, moved into the canvas: above, in, below the box."""
    x1, y1, x2, y2 = box
    width, height = size
    corners = [
        (x1, y1 - height),
        (x1, y1),
        (x2 - width, y1 - height),
        (x1, y2),
        (x1, y2 - height),
        (x2 - width, y2),
        (x2 - width, y2 - height),
        (x1, (y1 + y2 - height) // 2),
    ]
    moved = [(max(0, min(x, shape[1] - width)), max(0, min(y, shape[0] - height))) for x, y in corners]
    return [(x, y, x + width, y + height) for x, y in moved]


def _overlaps(box: tuple[int, int, int, int], taken: np.ndarray) -> bool:
    x1, y1, x2, y2 = box
    return bool(((taken[:, 0] < x2) & (taken[:, 2] > x1) & (taken[:, 1] < y2) & (taken[:, 3] > y1)).any())


def _draw_label(canvas: np.ndarray, label: _Label, pen: _Pen) -> None:
    x1, y1, x2, y2 = label.box
    cv2.rectangle(canvas, (x1, y1), (x2 - 1, y2 - 1), label.color, cv2.FILLED)
    blue, green, red = label.color
    # Luma of ITU-R BT.601: black text on light colours, white on dark ones.
    light = 0.299 * red + 0.587 * green + 0.114 * blue > 128
    text_color = (0, 0, 0) if light else (255, 255, 255)
    origin = (x1 + pen.padding, label.baseline)
    cv2.putText(
        canvas, label.text, origin, _FONT, pen.text_scale, text_color, pen.text_thickness, cv2.LINE_AA
    )
