"""Renders images of 80 classes of shapes, with exact masks: the data of the embedded model.

python -m examples.shapes OUT --num 200 --seed 20001      # a held-out set in COCO's format
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

SHAPES = ("circle", "ellipse", "triangle", "square", "pentagon", "star", "cross", "ring")
FILLS = ("red", "green", "blue", "yellow", "magenta", "cyan", "white", "striped", "checkered", "dotted")
CLASSES = tuple(f"{fill}_{shape}" for shape in SHAPES for fill in FILLS)
"""Label = 10 * shape + fill."""

IMAGE_SIZES = ((448, 640), (640, 448), (480, 640), (512, 512), (600, 800))
"""(height, width) in px of the images of a held-out set, in turn."""

SIZE_RANGE = (0.045, 0.55)
"""Diameter of an object as a fraction of the image's short side, log-uniform."""

MIN_VISIBLE = 0.4
"""Fraction of an object that the border and later objects leave visible, at least."""

MIN_AREA_PX = 24
"""Visible area of an object, at least."""

_ATTEMPTS_PER_OBJECT = 6
_HUES = {  # centre and spread, degrees
    "red": (0, 9),
    "green": (125, 18),
    "blue": (227, 14),
    "yellow": (50, 7),
    "magenta": (303, 11),
    "cyan": (184, 10),
}
_SUBPIXEL_BITS = 4

Rng = np.random.Generator
Image = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Scene:
    """One image and its objects.

    image: (H, W, 3) uint8, BGR. boxes: (N, 4) float32, xyxy in px, tight around the visible pixels.
    labels: (N,) int64. masks: (N, H, W) uint8 {0, 1}, the visible pixels of each object, disjoint.
    """

    image: Image
    boxes: Floats
    labels: NDArray[np.int64]
    masks: NDArray[np.uint8]


@dataclass(frozen=True)
class _Patch:
    """One object before it is placed: where its clipped window lies, and what it paints there."""

    label: int
    top: int
    left: int
    alpha: Floats  # (h, w) coverage in [0, 1]
    color: Floats  # (h, w, 3) BGR
    full_area: float

    @property
    def window(self) -> tuple[slice, slice]:
        height, width = self.alpha.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


def render(
    rng: Rng,
    height: int,
    width: int,
    *,
    num_objects: int | None = None,
    size_range: tuple[float, float] = SIZE_RANGE,
) -> Scene:
    """Draw one scene of `height` x `width` px.

    `num_objects` is an upper bound (by default 1 to 24): an object that finds no place is left out,
    the first one always finds one. The same generator state gives the same scene.
    """
    wanted = int(rng.integers(1, 25)) if num_objects is None else num_objects
    canvas = _background(rng, height, width)
    index = np.zeros((height, width), np.uint8)
    placed: list[_Patch] = []
    for _ in range(wanted * _ATTEMPTS_PER_OBJECT):
        if len(placed) == min(wanted, 255):
            break
        patch = _random_patch(rng, height, width, size_range)
        if patch is not None and _fits(patch, index, placed):
            placed.append(patch)
            _paint(canvas, index, patch, len(placed))
    return _scene(_finish(rng, canvas), index, [patch.label for patch in placed])


def scene_from_index(image: Image, index: NDArray[np.uint8], labels: NDArray[np.int64]) -> Scene:
    """Build a scene from `index` (H, W) uint8, 0 for the background and i + 1 for object i.

    `labels` is (N,) int64. Objects of fewer than `MIN_AREA_PX` pixels in `index` are left out.
    """
    ids = np.arange(1, len(labels) + 1, dtype=np.uint8)
    masks = (index[None] == ids[:, None, None]).astype(np.uint8)
    keep = masks.sum(axis=(1, 2), dtype=np.int64) >= MIN_AREA_PX
    masks = masks[keep]
    return Scene(image, boxes_from_masks(masks), np.asarray(labels, np.int64)[keep], masks)


def index_from_masks(masks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pack disjoint `masks` (N, H, W) into one (H, W) uint8 map: 0 or 1 + the object's index."""
    ids = np.arange(1, len(masks) + 1, dtype=np.uint8)
    return (masks * ids[:, None, None]).max(axis=0, initial=0)


def boxes_from_masks(masks: NDArray[np.uint8]) -> Floats:
    """Tight boxes (N, 4) float32, xyxy in px with exclusive right and bottom, of non-empty `masks` (N, H, W)."""
    boxes = np.zeros((len(masks), 4), np.float32)
    for box, mask in zip(boxes, masks):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes


def held_out_scenes(num: int, seed: int, sizes: tuple[tuple[int, int], ...] = IMAGE_SIZES) -> list[Scene]:
    """Render `num` scenes of `sizes`, (height, width) px, in turn; scene i depends on `seed`, i and its size alone."""
    sizes = [sizes[i % len(sizes)] for i in range(num)]
    return [render(np.random.default_rng((seed, i)), *size) for i, size in enumerate(sizes)]


def coco_from_scenes(scenes: list[Scene], names: list[str]) -> dict:
    """Describe `scenes`, stored under the file names `names`, in COCO's detection format (RLE masks)."""
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    images = [
        {"id": i + 1, "file_name": name, "height": scene.image.shape[0], "width": scene.image.shape[1]}
        for i, (scene, name) in enumerate(zip(scenes, names))
    ]
    annotations = [a for i, scene in enumerate(scenes) for a in _annotations(scene, i + 1)]
    numbered = [{"id": i + 1, **annotation} for i, annotation in enumerate(annotations)]
    return {"info": {}, "images": images, "annotations": numbered, "categories": categories}


def _annotations(scene: Scene, image_id: int) -> list[dict]:
    from pycocotools import mask as rle_tools

    annotations = []
    for box, label, mask in zip(scene.boxes, scene.labels, scene.masks):
        rle = rle_tools.encode(np.asfortranarray(mask))
        x1, y1, x2, y2 = (float(v) for v in box)
        annotations.append(
            {
                "image_id": image_id,
                "category_id": int(label) + 1,
                "iscrowd": 0,
                "area": int(mask.sum()),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
            }
        )
    return annotations


# Objects


def _random_patch(rng: Rng, height: int, width: int, size_range: tuple[float, float]) -> _Patch | None:
    """Draw an object at a random place; None when the border leaves too little of it."""
    shape, fill = int(rng.integers(len(SHAPES))), int(rng.integers(len(FILLS)))
    low, high = (math.log(fraction * min(height, width)) for fraction in size_range)
    radius = max(math.exp(rng.uniform(low, high)) / 2, 5.0)
    center = rng.uniform((-0.2 * radius, -0.2 * radius), (width + 0.2 * radius, height + 0.2 * radius))
    contours = [c * radius + center for c in _outline(SHAPES[shape], rng)]
    corners = np.concatenate(contours)
    left, top = np.maximum(np.floor(corners.min(axis=0)).astype(int), 0)
    right, bottom = np.minimum(np.ceil(corners.max(axis=0)).astype(int) + 1, (width, height))
    if right - left < 2 or bottom - top < 2:
        return None
    alpha = _coverage(contours, left, top, right - left, bottom - top)
    full_area = _area(contours)
    if (alpha >= 0.5).sum() < max(MIN_VISIBLE * full_area, MIN_AREA_PX):
        return None
    color = _fill(FILLS[fill], rng, radius, np.array((center[0] - left, center[1] - top)), alpha.shape)
    return _Patch(10 * shape + fill, top, left, alpha, color, full_area)


def _outline(shape: str, rng: Rng) -> list[NDArray[np.float64]]:
    """Contours (P, 2) of a shape of radius 1 at the origin, turned at random; two contours make a hole."""
    angle = rng.uniform(0, 2 * math.pi)
    if shape == "circle":
        return [_regular(64, angle)]
    if shape == "ring":
        return [_regular(64, angle), _regular(64, angle) * rng.uniform(0.48, 0.68)]
    if shape == "ellipse":
        return [_turn(_regular(64, 0.0) * (1.0, rng.uniform(0.45, 0.68)), angle)]
    if shape == "star":
        inner = np.where(np.arange(10) % 2, rng.uniform(0.40, 0.50), 1.0)
        return [_regular(10, angle) * inner[:, None]]
    if shape == "cross":
        return [_turn(_cross(rng.uniform(0.26, 0.40)), angle)]
    return [_regular({"triangle": 3, "square": 4, "pentagon": 5}[shape], angle)]


def _regular(num: int, angle: float) -> NDArray[np.float64]:
    angles = angle + np.arange(num) * (2 * math.pi / num)
    return np.stack((np.cos(angles), np.sin(angles)), axis=1)


def _cross(arm: float) -> NDArray[np.float64]:
    quarter = np.array(((arm, 1.0), (arm, arm), (1.0, arm)))
    turns = [_turn(quarter, -i * math.pi / 2) for i in range(4)]
    return np.concatenate(turns)


def _turn(points: NDArray[np.float64], angle: float) -> NDArray[np.float64]:
    cos, sin = math.cos(angle), math.sin(angle)
    return points @ np.array(((cos, sin), (-sin, cos)))


def _area(contours: list[NDArray[np.float64]]) -> float:
    areas = [cv2.contourArea(contour.astype(np.float32)) for contour in contours]
    return areas[0] - sum(areas[1:])


def _coverage(contours: list[NDArray[np.float64]], left: int, top: int, width: int, height: int) -> Floats:
    """Anti-aliased coverage (height, width) in [0, 1] of the window at (left, top); holes are even-odd."""
    points = [np.round((c - (left, top)) * (1 << _SUBPIXEL_BITS)).astype(np.int32) for c in contours]
    canvas = np.zeros((height, width), np.uint8)
    cv2.fillPoly(canvas, points, 255, lineType=cv2.LINE_AA, shift=_SUBPIXEL_BITS)
    return canvas.astype(np.float32) / 255


def _fits(patch: _Patch, index: NDArray[np.uint8], placed: list[_Patch]) -> bool:
    """Whether every object below keeps its visible share once `patch` lies on top."""
    window = patch.window
    covered = np.bincount(index[window][patch.alpha >= 0.5], minlength=len(placed) + 1)
    hit = [i for i in range(len(placed)) if covered[i + 1]]
    for i in hit:
        visible = int((index[placed[i].window] == i + 1).sum()) - int(covered[i + 1])
        if visible < max(MIN_VISIBLE * placed[i].full_area, MIN_AREA_PX):
            return False
    return True


def _paint(canvas: Floats, index: NDArray[np.uint8], patch: _Patch, number: int) -> None:
    alpha = patch.alpha[..., None]
    canvas[patch.window] += alpha * (patch.color - canvas[patch.window])
    index[patch.window][patch.alpha >= 0.5] = number


# Fills


def _bgr(hue_deg: float, saturation: float, value: float) -> Floats:
    hsv = np.array([[[hue_deg % 360, saturation, value]]], np.float32)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0] * 255


def _fill(fill: str, rng: Rng, radius: float, center: NDArray[np.float64], size: tuple[int, int]) -> Floats:
    """Colours (h, w, 3) of an object whose centre lies at `center` (x, y) of its window of `size` (h, w)."""
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    angle = rng.uniform(0, 2 * math.pi)
    u = (x - center[0]) * math.cos(angle) + (y - center[1]) * math.sin(angle)
    v = (y - center[1]) * math.cos(angle) - (x - center[0]) * math.sin(angle)
    shade = (1 + rng.uniform(-0.12, 0.12) * u / radius).astype(np.float32)[..., None]
    if fill == "white":
        return _bgr(rng.uniform(0, 360), rng.uniform(0, 0.10), rng.uniform(0.72, 1.0)) * shade
    if fill in _HUES:
        hue, spread = _HUES[fill]
        value = rng.uniform(0.62, 1.0)
        return _bgr(hue + rng.uniform(-spread, spread), rng.uniform(0.72, 1.0), value) * shade
    light = _bgr(rng.uniform(0, 360), rng.uniform(0, 0.35), rng.uniform(0.72, 1.0))
    dark = _bgr(rng.uniform(0, 360), rng.uniform(0, 0.8), rng.uniform(0.1, 0.45))
    inside = _pattern(fill, rng, radius, u, v)[..., None]
    first, second = (light, dark) if rng.random() < 0.5 else (dark, light)
    return (first + inside * (second - first)) * shade


def _pattern(fill: str, rng: Rng, radius: float, u: Floats, v: Floats) -> Floats:
    """Share (h, w) in [0, 1] of the second colour; edges are one pixel soft."""
    period = max(2 * radius / rng.uniform(3.5, 7.0), 4.0)
    if fill == "striped":
        distance = np.abs((u / period + rng.random()) % 1 - 0.5) * period - period / 4
    elif fill == "checkered":
        waves = np.sin(u * (math.pi / period)) * np.sin(v * (math.pi / period))
        distance = waves * (period / math.pi)
    else:
        row = np.floor(v / period)
        du, dv = (u / period + 0.5 * (row % 2)) % 1 - 0.5, v / period - row - 0.5
        distance = (rng.uniform(0.27, 0.36) - np.hypot(du, dv)) * period
    return np.clip(distance + 0.5, 0, 1).astype(np.float32)


# Background


def _background(rng: Rng, height: int, width: int) -> Floats:
    """Canvas (H, W, 3) float32: blurred colour blobs, coarse and fine noise, lines, unlabelled polygons."""
    canvas = _smooth_noise(rng, height, width, int(rng.integers(2, 7)), rng.uniform(20, 80))
    canvas += rng.uniform(40, 200, 3).astype(np.float32)
    canvas += _smooth_noise(rng, height, width, int(rng.integers(10, 120)), rng.uniform(0, 26))
    np.clip(canvas, 0, 255, out=canvas)
    for _ in range(int(rng.integers(0, 4))):
        _draw_blob(rng, canvas)
    for _ in range(int(rng.integers(0, 9))):
        _draw_line(rng, canvas)
    return canvas


def _smooth_noise(rng: Rng, height: int, width: int, cells: int, amplitude: float) -> Floats:
    """Noise of `cells` cells along the short side, interpolated to (height, width, 3)."""
    scale = cells / min(height, width)
    grid = rng.standard_normal((max(round(height * scale), 2), max(round(width * scale), 2), 3), np.float32)
    interpolation = cv2.INTER_CUBIC if rng.random() < 0.5 else cv2.INTER_LINEAR
    return cv2.resize(grid * np.float32(amplitude), (width, height), interpolation=interpolation)


def _random_color(rng: Rng) -> tuple[float, float, float]:
    blue, green, red = rng.uniform(0, 255, 3)
    return float(blue), float(green), float(red)


def _draw_line(rng: Rng, canvas: Floats) -> None:
    height, width = canvas.shape[:2]
    (x1, x2), (y1, y2) = rng.integers(0, width, 2), rng.integers(0, height, 2)
    thickness = int(rng.integers(1, 6))
    cv2.line(canvas, (int(x1), int(y1)), (int(x2), int(y2)), _random_color(rng), thickness)


def _draw_blob(rng: Rng, canvas: Floats) -> None:
    """A polygon of no class: irregular radii and angles."""
    height, width = canvas.shape[:2]
    num = int(rng.integers(6, 10))
    angles = np.sort(rng.uniform(0, 2 * math.pi, num))
    radii = rng.uniform(0.3, 1.0, num) * min(height, width) * rng.uniform(0.03, 0.16)
    points = np.stack((np.cos(angles), np.sin(angles)), axis=1) * radii[:, None] + rng.uniform(
        0, (width, height)
    )
    cv2.fillPoly(canvas, [np.round(points).astype(np.int32)], _random_color(rng))


def _finish(rng: Rng, canvas: Floats) -> Image:
    """Camera effects on the whole image: blur, exposure, sensor noise."""
    if rng.random() < 0.25:
        canvas = cv2.GaussianBlur(canvas, (3, 3), rng.uniform(0.4, 0.9))
    canvas *= np.float32(rng.uniform(0.78, 1.05))
    if rng.random() < 0.6:
        noise = rng.standard_normal((canvas.shape[0], canvas.shape[1], 1), np.float32)
        canvas = canvas + noise * np.float32(rng.uniform(1, 8))
    return np.clip(np.round(canvas), 0, 255).astype(np.uint8)


def _scene(image: Image, index: NDArray[np.uint8], labels: list[int]) -> Scene:
    return scene_from_index(image, index, np.array(labels, np.int64))


# Command line


def write_coco(out: Path, *, num: int, seed: int, sizes: tuple[tuple[int, int], ...] = IMAGE_SIZES) -> None:
    """Write `num` held-out scenes as PNG files and `annotations.json` into the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    scenes = held_out_scenes(num, seed, sizes)
    names = [f"{i:06d}.png" for i in range(num)]
    for scene, name in zip(scenes, names):
        if not cv2.imwrite(str(out / name), scene.image):
            raise RuntimeError(f"could not write {out / name}: is the folder writable?")
    (out / "annotations.json").write_text(json.dumps(coco_from_scenes(scenes, names)))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder for the images and annotations.json")
    parser.add_argument("--num", type=int, default=200, help="number of images (default %(default)s)")
    parser.add_argument("--seed", type=int, default=20001, help="default %(default)s")
    args = parser.parse_args(argv)
    write_coco(args.out, num=args.num, seed=args.seed)
    print(f"wrote {args.num} images and annotations.json to {args.out}")


if __name__ == "__main__":
    main()
