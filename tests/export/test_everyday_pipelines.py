"""Everyday test pipelines: ``mmdet.apis.inference_detector`` on image files, and the exported file on the same files.

What the exporter does not repeat, it refuses before it traces, and names the step, the argument and what to do.
"""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmcv.transforms import BaseTransform
from mmdet.apis import inference_detector
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.registry import MODELS, TRANSFORMS
from mmengine.config import Config
from PIL import Image

from benchmarks.inference import detections_from_sample
from export.api import PixelsDifferError, export_model
from export.model import LoadedModel, model_from_config
from export.pipeline import UnsupportedPipelineError
from export.random_weights import randomize
from export.verify import ordered_ties, pasting_as_on_a_gpu
from runtime import Detector
from runtime.comparison.detections import arrays_from_detections
from runtime.comparison.difference import Difference, Tolerance, compare_image
from runtime.pipeline import FileResult
from tests.models import structured_photos, tiny_config, write_config

# Masks of random weights are noise, with contours everywhere.
TOLERANCE = Tolerance(box_px=0.02, score=1e-4, mask=1e-3, mask_px=20)
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> "list[Path]":
    """A wide JPEG, a tall PNG, one that EXIF turns, a grey one."""
    folder = tmp_path_factory.mktemp("files")
    wide, tall, turned, grey = structured_photos((130, 200), (170, 90), (120, 150), (100, 140))
    exif = Image.Exif()
    exif[0x0112] = 8
    cv2.imwrite(str(folder / "wide.jpg"), wide)
    cv2.imwrite(str(folder / "tall.png"), tall)
    Image.fromarray(turned[..., ::-1]).save(folder / "turned.jpg", exif=exif)
    cv2.imwrite(str(folder / "grey.jpg"), cv2.cvtColor(grey, cv2.COLOR_BGR2GRAY))
    return sorted(folder.iterdir())


def steps(config: Config) -> list:
    return config.test_dataloader.dataset.pipeline


def inserted(*new: dict, at: int = 2) -> Callable[[Config], None]:
    def edit(config: Config) -> None:
        steps(config)[at:at] = [dict(step) for step in new]

    return edit


def resized_by(*new: dict) -> Callable[[Config], None]:
    def edit(config: Config) -> None:
        steps(config)[1:2] = [dict(step) for step in new]

    return edit


def read_by(**arguments: object) -> Callable[[Config], None]:
    return lambda config: steps(config)[0].update(arguments)


def preprocessed_by(**arguments: object) -> Callable[[Config], None]:
    return lambda config: config.model.data_preprocessor.update(arguments)


def normalized_in_the_pipeline(config: Config) -> None:
    config.model.data_preprocessor = {"type": "DetDataPreprocessor", "pad_size_divisor": 32}
    inserted({"type": "Normalize", "mean": MEAN, "std": STD, "to_rgb": True})(config)


def as_in_mmdet_2(config: Config) -> None:
    normalized_in_the_pipeline(config)
    inserted({"type": "RandomFlip", "prob": 0.0}, {"type": "Pad", "size_divisor": 32}, at=3)(config)


def grey_model(config: Config) -> None:
    config.model.backbone.in_channels = 1
    config.model.data_preprocessor.update(mean=[110.0], std=[50.0], bgr_to_rgb=False)
    steps(config)[0].color_type = "grayscale"


def grey_with_padding(config: Config) -> None:
    grey_model(config)
    inserted({"type": "Pad", "size": (200, 200), "pad_val": 30})(config)


def together(*edits: Callable[[Config], None]) -> Callable[[Config], None]:
    def edit(config: Config) -> None:
        for each in edits:
            each(config)

    return edit


KEEP = {"type": "Resize", "scale": (192, 128), "keep_ratio": True}
REPEATED: "dict[str, Callable[[Config], None]]" = {
    "stock": lambda config: None,
    "Pad(size_divisor)": inserted({"type": "Pad", "size_divisor": 32}),
    "Pad(size) with grey": inserted({"type": "Pad", "size": (224, 224), "pad_val": {"img": (114, 114, 114)}}),
    "Pad(size) smaller than some": inserted({"type": "Pad", "size": (150, 150), "pad_val": 114}),
    "Pad(pad_to_square)": inserted({"type": "Pad", "pad_to_square": True, "pad_val": {"img": 114}}),
    "Pad of a float": inserted({"type": "Pad", "size_divisor": 64, "pad_val": {"img": 114.0}}),
    "Pad by reflection": inserted({"type": "Pad", "size_divisor": 64, "padding_mode": "reflect"}),
    "pad_value in the preprocessor": preprocessed_by(pad_value=3),
    "negative pad_value": preprocessed_by(pad_value=-2.5),
    "no divisor": preprocessed_by(pad_size_divisor=1),
    "another divisor": preprocessed_by(pad_size_divisor=64),
    "BGR": preprocessed_by(bgr_to_rgb=False, mean=MEAN[::-1], std=[1.0, 1.0, 1.0]),
    "rgb_to_bgr": preprocessed_by(bgr_to_rgb=False, rgb_to_bgr=True),
    "one mean for all channels": preprocessed_by(mean=[110], std=[60]),
    "pixels as they are": preprocessed_by(mean=None, std=None),
    "training's batch augmentation": preprocessed_by(
        batch_augments=[{"type": "BatchFixedSizePad", "size": (512, 512)}]
    ),
    "Normalize in the pipeline": normalized_in_the_pipeline,
    "as in mmdet 2": as_in_mmdet_2,
    "Normalize twice": inserted({"type": "Normalize", "mean": [1, 2, 3], "std": [2, 2, 2], "to_rgb": True}),
    "Normalize before Resize": inserted({"type": "Normalize", "mean": MEAN, "std": STD}, at=1),
    "scale_factor": resized_by({"type": "Resize", "scale_factor": 0.7, "keep_ratio": True}),
    "two scale factors": resized_by({"type": "Resize", "scale_factor": (0.5, 1.5)}),
    "stretch": resized_by({"type": "Resize", "scale": (192, 128)}),
    "an int for a scale": resized_by({"type": "Resize", "scale": 150, "keep_ratio": True}),
    "FixScaleResize": resized_by({"type": "FixScaleResize", "scale": (190, 127), "keep_ratio": True}),
    "FixShapeResize": resized_by({"type": "FixShapeResize", "width": 160, "height": 128, "keep_ratio": True}),
    "ResizeShortestEdge": resized_by({"type": "ResizeShortestEdge", "scale": 128, "max_size": 190}),
    "mmcv's Resize": resized_by({"type": "mmcv.Resize", "scale": (192, 128), "keep_ratio": True}),
    "two resizes": resized_by(KEEP, {"type": "Resize", "scale": (100, 100), "keep_ratio": True}),
    "no resize": resized_by(),
    "nearest": resized_by({**KEEP, "interpolation": "nearest"}),
    "bicubic": resized_by({**KEEP, "interpolation": "bicubic"}),
    "area": resized_by({**KEEP, "interpolation": "area"}),
    "lanczos": resized_by({**KEEP, "interpolation": "lanczos"}),
    "Pillow resizes": resized_by({**KEEP, "backend": "pillow", "interpolation": "hamming"}),
    "Pillow reads": read_by(imdecode_backend="pillow"),
    "to_float32": read_by(to_float32=True),
    "EXIF ignored": read_by(color_type="color_ignore_orientation"),
    "EXIF ignored by Pillow": read_by(color_type="color_ignore_orientation", imdecode_backend="pillow"),
    "local storage": read_by(backend_args={"backend": "local"}),
    "CenterCrop": inserted({"type": "CenterCrop", "crop_size": (100, 90)}),
    "CenterCrop with padding": inserted(
        {"type": "CenterCrop", "crop_size": 150, "auto_pad": True, "pad_cfg": {"type": "Pad", "pad_val": 9}}
    ),
    "RandomFlip(0)": inserted({"type": "RandomFlip", "prob": 0.0}),
    "annotations": inserted({"type": "LoadAnnotations", "with_bbox": True, "with_mask": True}),
    "grey": grey_model,
    "grey with padding": grey_with_padding,
    "grey, float32": together(grey_model, read_by(to_float32=True)),
}


def loaded_model(edit: Callable[[Config], None]) -> LoadedModel:
    config = tiny_config()
    edit(config)
    model = randomize(model_from_config(config), seed=0, size=(128, 192))
    model.cfg = config  # where mmdet.apis looks for the test pipeline
    return LoadedModel(model, config, "tiny", None)


def exported(loaded: LoadedModel, folder: Path, **options: object) -> Path:
    import torch

    torch.save({"state_dict": loaded.model.state_dict()}, folder / "m.pth")
    config = write_config(loaded.config, folder / "m.py")
    export_model(config, folder / "m.pth", folder / "m.onnx", **options)
    return folder / "m.onnx"


@pytest.mark.parametrize("name", REPEATED)
def test_it_finds_what_inference_detector_finds(name: str, files: "list[Path]", tmp_path: Path) -> None:
    loaded = loaded_model(REPEATED[name])
    path = exported(loaded, tmp_path, verify=False)
    matched = 0
    with Detector(path, "onnxruntime", batch_size=1, threads=1) as detector:
        for result in detector.detect_files(files):
            assert not result.error
            difference = difference_from_mmdet(loaded, result)
            if difference.violations(TOLERANCE):
                with ordered_ties():
                    difference = difference_from_mmdet(loaded, result)
            assert not difference.violations(TOLERANCE), result.path
            matched += difference.matched
    assert matched > 12


def difference_from_mmdet(loaded: LoadedModel, result: FileResult) -> Difference:
    with pasting_as_on_a_gpu():
        sample = inference_detector_of(loaded, result.path)
    expected = detections_from_sample(sample, result.detections.classes)
    return compare_image(*(arrays_from_detections(side) for side in (expected, result.detections)))


def inference_detector_of(loaded: LoadedModel, path: Path) -> object:
    if not any("Resize" in str(step["type"]) for step in steps(loaded.config)):
        # mmdet's heads insist on a scale factor, which nothing has set: it is 1.
        settings = {"type": "Resize", "scale_factor": 1.0}
        loaded.model.cfg = loaded.config.copy()
        loaded.model.cfg.test_dataloader.dataset.pipeline.insert(1, settings)
    return inference_detector(loaded.model, str(path))


@TRANSFORMS.register_module()
class Inverted(BaseTransform):
    """A transform of one's own."""

    def transform(self, results: dict) -> dict:
        results["img"] = 255 - results["img"]
        return results


@MODELS.register_module()
class OwnPreprocessor(DetDataPreprocessor):
    """A data preprocessor of one's own."""

    def forward(self, data: dict, training: bool = False) -> dict:
        done = super().forward(data, training)
        done["inputs"] = done["inputs"] * 2
        return done


@MODELS.register_module()
class RenamedPreprocessor(DetDataPreprocessor):
    """The same under another name."""


REFUSED: "dict[str, tuple[Callable[[Config], None], str]]" = {
    "a transform of one's own": (
        inserted({"type": "Inverted"}, at=1),
        r"step 2 of 4, Inverted: expected one of .*, found tests\.export\.\S*Inverted; leave it out",
    ),
    "RandomFlip": (
        inserted({"type": "RandomFlip", "prob": 1.0}),
        "RandomFlip: expected prob=0, found prob=1.0; leave",
    ),
    "RandomFlip of several": (
        inserted({"type": "RandomFlip", "prob": [0.2, 0.0], "direction": ["horizontal", "vertical"]}),
        "RandomFlip: expected prob=0",
    ),
    "photometric distortion": (
        inserted({"type": "PhotoMetricDistortion"}),
        "found mmdet.*PhotoMetricDistortion",
    ),
    "random sizes": (
        resized_by({"type": "RandomResize", "scale": [(192, 128), (96, 64)], "keep_ratio": True}),
        "step 2 of 3, RandomResize: expected one of",
    ),
    "test-time augmentation": (
        lambda c: steps(c).__setitem__(
            slice(1, None),
            [{"type": "TestTimeAug", "transforms": [[dict(KEEP)], [{"type": "PackDetInputs"}]]}],
        ),
        "expected PackDetInputs as its last step, found .*TestTimeAug",
    ),
    "an unknown transform": (inserted({"type": "Blurr"}), "Blurr: expected a transform that mmdet can build"),
    "an unknown argument": (
        resized_by({**KEEP, "img_scale": 3}),
        "Resize: expected a transform that mmdet can build",
    ),
    "a dictionary without a type": (
        inserted({"scale": 3}),
        "expected a dict with a type, found a ConfigDict",
    ),
    "an unknown interpolation": (
        resized_by({**KEEP, "interpolation": "cubic"}),
        "Resize: expected interpolation of nearest, bilinear, .* found 'cubic'",
    ),
    "an interpolation of the other backend": (
        resized_by({**KEEP, "backend": "pillow", "interpolation": "area"}),
        "with backend pillow, found 'area'",
    ),
    "an unknown backend": (
        resized_by({**KEEP, "backend": "turbo"}),
        "expected backend cv2 or pillow, found 'turbo'",
    ),
    "Pillow on float32": (
        together(read_by(to_float32=True), resized_by({**KEEP, "backend": "pillow"})),
        "expected backend='cv2' for float32 images",
    ),
    "turbojpeg": (
        read_by(imdecode_backend="turbojpeg"),
        "expected imdecode_backend cv2 or pillow, found 'turbojpeg'",
    ),
    "an unknown color_type": (
        read_by(color_type="colour"),
        "expected color_type of color, .* found 'colour'",
    ),
    "petrel": (
        read_by(backend_args={"backend": "petrel"}),
        "expected backend_args of local files, found 'petrel'",
    ),
    "no loading": (
        lambda c: steps(c).pop(0),
        r"expected LoadImageFromFile as its first step, found \S*Resize first",
    ),
    "no packing": (lambda c: steps(c).pop(), r"expected PackDetInputs as its last step, found \S*Resize"),
    "no scale factor for mmdet": (
        lambda c: steps(c)[-1].update(meta_keys=("img_id", "ori_shape", "img_shape")),
        "PackDetInputs: expected meta_keys with .*, found none of scale_factor",
    ),
    "a preprocessor of one's own": (
        preprocessed_by(type="OwnPreprocessor"),
        r"expected DetDataPreprocessor itself, found tests.*OwnPreprocessor, which has its own forward",
    ),
    "std of zero": (preprocessed_by(std=[1.0, 0.0, 1.0]), "std: expected numbers other than 0"),
    "grey images for a colour model": (
        together(read_by(color_type="grayscale"), preprocessed_by(mean=[1], std=[1], bgr_to_rgb=False)),
        "expected images of the 3 channel.* found 1 with color_type='grayscale'",
    ),
    "grey images turned to RGB": (
        together(grey_model, preprocessed_by(bgr_to_rgb=True)),
        "expected bgr_to_rgb=False of grey images, found True",
    ),
    "three means of grey images": (
        together(grey_model, preprocessed_by(mean=MEAN, std=STD)),
        "expected mean and std of 1 or 1 numbers",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_repeated_is_refused_by_name(name: str, files: "list[Path]", tmp_path: Path) -> None:
    edit, message = REFUSED[name]
    config = tiny_config()
    edit(config)
    with pytest.raises(UnsupportedPipelineError, match=message):
        export_model(write_config(config, tmp_path / "m.py"), "none", tmp_path / "m.onnx", images=files)
    assert not (tmp_path / "m.onnx").exists()


def test_a_preprocessor_that_adds_nothing_is_taken(files: "list[Path]", tmp_path: Path) -> None:
    loaded = loaded_model(preprocessed_by(type="RenamedPreprocessor"))
    assert exported(loaded, tmp_path, images=files).is_file()


def test_what_mmdet_itself_does_differently_here_stops_the_export(
    files: "list[Path]", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A project that changes mmcv at import time: nothing in the config shows it, the pixels do."""
    import mmcv

    original = mmcv.imresize
    monkeypatch.setattr(
        "mmcv.image.geometric.imresize",
        lambda img, *a, **k: np.flipud(original(np.ascontiguousarray(img), *a, **k)),
    )
    loaded = loaded_model(lambda config: None)
    with pytest.raises(
        PixelsDifferError, match=r"of the network's input differs, first at channel .* mmdet has"
    ):
        exported(loaded, tmp_path, images=files)
    assert not (tmp_path / "m.onnx").exists()
