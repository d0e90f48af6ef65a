"""What the C++ library makes of pixels and of masks, by models whose outputs are known: its input, or constants.

The input is compared with ``runtime.host.preprocess.prepare``, which is OpenCV's, bit for bit.
"""

from pathlib import Path
from typing import Optional

import numpy as np
import pytest

from runtime import Detector as PythonDetector
from runtime.host.preprocess import prepare
from runtime.metadata import ModelMetadata
from runtime.transforms import (
    CenterCrop,
    CenterPad,
    Fit,
    FixShapeResize,
    Load,
    Normalize,
    Pad,
    Resize,
    ResizeShortestEdge,
    Step,
    final_size,
)
from tests.cpp import library as cpp
from tests.cpp.agreement import assert_same
from tests.cpp.library import Library
from tests.cpp.models import metadata, save_constant, save_echo

SIZE = (96, 128)
PIXELS = 3 * SIZE[0] * SIZE[1]
MEAN, STD = (103.53, 116.28, 123.675), (57.375, 57.12, 58.395)


def image(height: int, width: int, seed: int = 0, channels: int = 3) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    return noise[..., 0] if channels == 1 else noise


def echo_of(library: Library, path: Path, facts: ModelMetadata, images: list[np.ndarray]) -> np.ndarray:
    """Return the network's input, (B, C, H, W) float32, as the library prepared it."""
    save_echo(path, facts)
    with cpp.Detector(library, path, threads=1) as detector:
        found = detector(images)
    return np.stack([one.scores.reshape(facts.channels, *facts.size) for one in found])


def check(library: Library, path: Path, facts: ModelMetadata, images: list[np.ndarray]) -> None:
    expected = prepare(images, facts).images
    found = echo_of(library, path, facts, images)
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))
    assert len({float(v) for v in expected.ravel()[:2000]}) > 5


STEPS: dict[str, tuple[Step, ...]] = {
    "none": (),
    "fit": (Fit(SIZE),),
    "fit_half_even": (Fit(SIZE, rounding="half_even"),),
    "fit_floor": (Fit(SIZE, rounding="floor"),),
    "letterbox": (Fit(SIZE), CenterPad(SIZE, (114, 114, 114))),
    "stretch": (Resize((128, 96)),),
    "keep_ratio": (Resize((90, 128), keep_ratio=True),),
    "keep_ratio_floor": (Resize((90, 128), keep_ratio=True, floor=True),),
    "factors": (Resize(factors=(0.7, 1.3)),),
    "factors_keep_ratio": (Resize(factors=(0.7, 1.3), keep_ratio=True),),
    "shortest_edge": (ResizeShortestEdge(50, 90),),
    "shortest_edge_keep_ratio": (ResizeShortestEdge(50, 90, keep_ratio=True),),
    "fix_shape": (FixShapeResize((100, 80)),),
    "fix_shape_keep_ratio": (FixShapeResize((100, 80), keep_ratio=True), Pad((100, 80))),
    "pad_divisor": (Resize((50, 77), keep_ratio=True), Pad(size_divisor=32, value=(1, 2.5, 3.5))),
    "pad_one_number": (Resize((50, 77), keep_ratio=True), Pad((90, 91), value=7)),
    "pad_square": (Resize((50, 77), keep_ratio=True), Pad(to_square=True)),
    "pad_edge": (Resize((50, 47)), Pad((90, 91), mode="edge")),
    "pad_reflect": (Resize((20, 17)), Pad((90, 91), mode="reflect")),
    "pad_symmetric": (Resize((20, 17)), Pad((90, 91), mode="symmetric")),
    "crop": (Resize((120, 90)), CenterCrop((61, 42))),
    "crop_with_pad": (Resize((50, 60)), CenterCrop((91, 42), Pad(size_divisor=1, value=9))),
    "normalize": (Fit(SIZE), Normalize(MEAN, STD)),
    "normalize_bgr": (Fit(SIZE), Normalize(MEAN, STD, to_rgb=False), Pad((128, 96), value=0.25)),
    "normalize_crop": (Fit(SIZE), Normalize(MEAN, STD), CenterCrop((50, 40))),
    "two_resizes": (Resize((200, 150)), Resize((100, 80), keep_ratio=True)),
}
SIZES = ((60, 90), (131, 77), (48, 64), (192, 256), (96, 128), (5, 7), (1, 1), (300, 11))


@pytest.mark.parametrize("name", STEPS)
def test_steps(library: Library, tmp_path: Path, name: str) -> None:
    """Enlarged, made smaller, of half the size and twice, in batches of unlike images."""
    facts = metadata(STEPS[name], size=SIZE, max_per_img=PIXELS)
    fitting = [size for size in SIZES if fits(size, facts)]
    check(library, tmp_path / "m.onnx", facts, [image(*size, seed=i) for i, size in enumerate(fitting)])
    assert len(fitting) >= 3


def fits(size: tuple[int, int], facts: ModelMetadata) -> bool:
    height, width = final_size(*size, facts.steps)
    return height <= SIZE[0] and width <= SIZE[1]


@pytest.mark.parametrize("color_order", ["rgb", "bgr"])
def test_colours_and_padding(library: Library, tmp_path: Path, color_order: str) -> None:
    facts = metadata(
        (Fit((90, 90)),), size=SIZE, max_per_img=PIXELS, color_order=color_order, pad_value=-1.25
    )
    check(library, tmp_path / "m.onnx", facts, [image(40, 50), image(50, 40, 1)])


def test_random_sizes(library: Library, tmp_path: Path) -> None:
    """Every tap of the resize that falls between, before and behind pixels."""
    facts = metadata((Resize((128, 96)),), size=SIZE, max_per_img=PIXELS)
    random = np.random.default_rng(5)
    sizes = random.integers(1, 400, (40, 2)).tolist()
    check(library, tmp_path / "m.onnx", facts, [image(h, w, i) for i, (h, w) in enumerate(sizes)])


def test_float_images(library: Library, tmp_path: Path) -> None:
    """``to_float32`` without a resize, which would be one of float32."""
    facts = metadata(
        (Pad((100, 90), value=(0.1, 0.2, 300.5)),), size=SIZE, max_per_img=PIXELS, load=Load(to_float32=True)
    )
    check(library, tmp_path / "m.onnx", facts, [image(70, 90), image(33, 12, 1)])


@pytest.mark.parametrize(("channels", "color_type"), [(1, "grayscale"), (1, "unchanged"), (4, "unchanged")])
def test_other_channels(library: Library, tmp_path: Path, channels: int, color_type: str) -> None:
    facts = metadata(
        (Fit(SIZE), Pad(SIZE[::-1], value=(5, 6, 7, 8))),
        size=SIZE,
        max_per_img=channels * SIZE[0] * SIZE[1],
        mean=tuple(range(1, channels + 1)),
        std=(2.0,) * channels,
        color_order="bgr",
        load=Load(color_type),
    )
    images = [image(40, 60, 0, channels), image(150, 60, 1, channels)]
    check(library, tmp_path / "m.onnx", facts, images)
    wrong = image(40, 60, 0, 3)
    with (
        cpp.Detector(library, tmp_path / "m.onnx") as detector,
        pytest.raises(cpp.LibraryError, match=r"images\[0\]: expected . channels of uint8, found 3"),
    ):
        detector([wrong])


def test_a_fourth_channel_is_dropped_where_two_are_exchanged(library: Library, tmp_path: Path) -> None:
    facts = metadata((Fit(SIZE),), size=SIZE, max_per_img=PIXELS, load=Load("unchanged"))
    check(library, tmp_path / "m.onnx", facts, [image(40, 60, 0, 4), image(40, 60, 1, 3)])


REFUSED: dict[str, tuple[tuple[Step, ...], Load, str]] = {
    "bicubic": (
        (Resize((64, 64), interpolation="bicubic"),),
        Load(),
        r"steps\[0\], resize: expected bilinear of cv2, found bicubic of cv2",
    ),
    "pillow": (
        (Pad(size_divisor=2), Fit(SIZE, backend="pillow")),
        Load(),
        r"steps\[1\], fit: expected bilinear of cv2, found bilinear of pillow",
    ),
    "float": (
        (Normalize(MEAN, STD), Resize((64, 64))),
        Load(),
        r"steps\[1\], resize: expected pixels in uint8, found float32",
    ),
    "to_float32": (
        (Resize((64, 64)),),
        Load(to_float32=True),
        r"steps\[0\], resize: expected pixels in uint8, found float32",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_repeated_is_refused_by_name(library: Library, tmp_path: Path, name: str) -> None:
    steps, load, message = REFUSED[name]
    save_echo(tmp_path / "m.onnx", metadata(steps, size=SIZE, max_per_img=PIXELS, load=load))
    with pytest.raises(cpp.LibraryError, match=message + ".*the C\\+\\+ runtime does not repeat it"):
        cpp.Detector(library, tmp_path / "m.onnx")


def boxes(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return (count, 5) float32 rows: inside, over the borders, outside, thin, without width, reversed."""
    random = np.random.default_rng(seed)
    corners = random.uniform(-0.4, 1.2, (count, 2, 2)) * (width, height)
    rows = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    rows[0] = [10, 12, 10, 40]
    rows[1] = [3, 3, 3, 3]
    rows[2] = [-50, -50, -20, -20]
    rows[3] = [width * 2, 0, width * 3, height]
    rows[4] = [20.25, 10.5, 20.5, 60.75]
    rows[5] = [40, 30, 20, 10]
    rows[6] = [0, 0, width, height]
    return np.concatenate([rows, np.linspace(0.9, 0.1, count)[:, None]], axis=1).astype(np.float32)


def blobs(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return (count, height, width) float32 probabilities, smooth and rough."""
    random = np.random.default_rng(seed)
    return (1 / (1 + np.exp(-4 * random.normal(size=(count, height, width))))).astype(np.float32)


MASKS = {
    "crop": ({"masks": "crop"}, (28, 28)),
    "crop_oblong": ({"masks": "crop"}, (7, 14)),
    "crop_threshold_0": ({"masks": "crop", "mask_threshold": 0.0}, (28, 28)),
    "grid": ({"masks": "grid"}, (24, 32)),
    "grid_letterbox": ({"masks": "grid", "clip": True}, (24, 32)),
    "full": ({"masks": "full"}, SIZE),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("original", [(96, 128), (301, 200), (37, 90)])
def test_masks(library: Library, tmp_path: Path, name: str, original: tuple[int, int]) -> None:
    """Run lengths as Python's, at the original size; those of constants, in images of other shapes."""
    fields, cells = MASKS[name]
    steps = (Fit(SIZE), CenterPad(SIZE)) if "letterbox" in name else (Fit(SIZE),)
    facts = metadata(steps, size=SIZE, max_per_img=40, **fields)
    values = blobs(40, *cells)
    if facts.masks == "full":
        values = (values > 0.4).astype(np.uint8)
    save_constant(tmp_path / "m.onnx", facts, boxes(40, *SIZE), values)
    images = [image(*original), image(original[1], original[0], 1)]
    with (
        cpp.Detector(library, tmp_path / "m.onnx") as ours,
        PythonDetector(tmp_path / "m.onnx", backend="openvino") as theirs,
    ):
        expected = theirs(images)
        assert assert_same(ours(images), expected) == 80
        assert sum(mask.any() for mask in expected[0].masks) > 15
        for index in (0, 6, 10):
            written = ours.mask(images[:1], index, original[1])
            np.testing.assert_array_equal(written, expected[0].masks[index])


@pytest.mark.parametrize("clip", [False, True])
def test_keypoints(library: Library, tmp_path: Path, clip: bool) -> None:
    facts = metadata(
        (Fit(SIZE), CenterPad(SIZE, 114)),
        size=SIZE,
        max_per_img=9,
        keypoints=("left", "right"),
        skeleton=((0, 1),),
        clip=clip,
    )
    points = np.random.default_rng(3).uniform(0, 90, (9, 2, 3))
    save_constant(tmp_path / "m.onnx", facts, boxes(9, *SIZE), keypoints=points)
    images = [image(50, 90), image(200, 100, 1)]
    with (
        cpp.Detector(library, tmp_path / "m.onnx") as ours,
        PythonDetector(tmp_path / "m.onnx", backend="openvino") as theirs,
    ):
        found, expected = ours(images), theirs(images)
        assert assert_same(found, expected) == 18
        np.testing.assert_array_equal(found[1].keypoints, expected[1].keypoints)
        np.testing.assert_array_equal(found[1].boxes, expected[1].boxes)
        assert found[0].rle is None


OUTPUTS = {
    "nan": ({"dets": (2, 1, np.nan)}, r"model output dets\[0, 2\]: expected finite boxes and scores"),
    "inf_score": ({"dets": (0, 4, np.inf)}, r"model output dets\[0, 0\]: expected finite boxes and scores"),
    "label": ({"labels": 7}, r"model output labels\[0\]: expected 0 to 1 for the 2 classes .*, found 7"),
    "negative_label": ({"labels": -1}, r"model output labels\[0\]: expected 0 to 1 .*, found -1"),
    "count": ({"num_dets": 99}, r"model output num_dets\[0\]: expected 0 to 9, found 99"),
    "negative_count": ({"num_dets": -2}, r"model output num_dets\[0\]: expected 0 to 9, found -2"),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_of_no_valid_model_are_errors(library: Library, tmp_path: Path, name: str) -> None:
    changes, message = OUTPUTS[name]
    rows = boxes(9, *SIZE)
    labels: Optional[np.ndarray] = None
    if "dets" in changes:
        row, column, value = changes["dets"]
        rows[row, column] = value
    if "labels" in changes:
        labels = np.full(9, changes["labels"])
    facts = metadata((Fit(SIZE),), size=SIZE, max_per_img=9)
    save_constant(tmp_path / "m.onnx", facts, rows, labels=labels, num_dets=changes.get("num_dets"))
    with cpp.Detector(library, tmp_path / "m.onnx") as detector:
        with pytest.raises(cpp.LibraryError, match=message) as caught:
            detector([image(40, 40)])
        assert caught.value.code == "failed"
