"""Config files and their names in every form that training leaves them and users type them."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from mmdet.apis import init_detector
from mmdet.models.detectors import MaskRCNN
from mmdet.registry import MODELS
from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config
from torch import nn

import export.config
from examples import CHECKPOINT_PATH, CONFIG_PATH
from export.config import config_path, load_config, shipped_configs
from export.dataset import class_names, test_dataset, test_pipeline, type_name
from export.model import model_from_config

SHIPPED = "mask-rcnn_r50_fpn_2x_coco"

NAMES = {
    "bare": SHIPPED,
    "file name": f"{SHIPPED}.py",
    "with its folder": f"mask_rcnn/{SHIPPED}.py",
    "with its folder, no suffix": f"mask_rcnn/{SHIPPED}",
    "of a source checkout": f"configs/mask_rcnn/{SHIPPED}.py",
    "of a source checkout, ./": f"./configs/mask_rcnn/{SHIPPED}.py",
    "of a source checkout's parent": f"mmdetection/configs/mask_rcnn/{SHIPPED}.py",
    "mmengine's": f"mmdet::mask_rcnn/{SHIPPED}.py",
    "mmengine's, no suffix": f"mmdet::mask_rcnn/{SHIPPED}",
    "mmengine's, bare": f"mmdet::{SHIPPED}",
}


@pytest.mark.parametrize("name", NAMES)
def test_names_of_a_shipped_config(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_path(NAMES[name]) == shipped_configs()[SHIPPED]


def test_a_file_comes_before_a_shipped_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = Path("configs") / "mask_rcnn" / f"{SHIPPED}.py"
    own.parent.mkdir(parents=True)
    own.write_text("model = dict(type='MaskRCNN')")
    assert config_path(str(own)) == own
    monkeypatch.setenv("HOME", str(tmp_path))
    assert config_path(f"~/{own}") == tmp_path / own


def test_a_shipped_config_in_pure_python_has_a_name_of_its_own(tmp_path, monkeypatch):
    root = tmp_path / "mmdet"
    shutil.copytree(shipped_configs()[SHIPPED].parent, root / ".mim" / "configs" / "mask_rcnn")
    pure = root / "configs" / "mask_rcnn" / "mask_rcnn_r50_fpn_2x_coco.py"
    pure.parent.mkdir(parents=True)
    pure.write_text("")
    monkeypatch.setattr(export.config.mmdet, "__file__", str(root / "__init__.py"))
    assert config_path("mmdet.configs.mask_rcnn.mask_rcnn_r50_fpn_2x_coco") == pure
    assert config_path("mmdet/configs/mask_rcnn/mask_rcnn_r50_fpn_2x_coco.py") == pure
    assert config_path(SHIPPED).parent.parent.name == "configs"
    with pytest.raises(FileNotFoundError, match=f"a name of mmdet 2.x, .*; give {SHIPPED}"):
        config_path("mask_rcnn_r50_fpn_2x_coco")


NOT_NAMES = {
    "2.x": (
        "mask_rcnn_r50_fpn_2x_coco",
        f"a name of mmdet 2.x, which mmdet 3.x calls {SHIPPED}; give {SHIPPED}",
    ),
    "2.x, file": (
        "mask_rcnn_r50_fpn_2x_coco.py",
        f"a name of mmdet 2.x, which mmdet 3.x calls {SHIPPED}; give {SHIPPED}",
    ),
    "2.x, path": (
        "configs/mask_rcnn/mask_rcnn_r50_fpn_2x_coco.py",
        f"a name of mmdet 2.x, .*; give {SHIPPED}",
    ),
    "2.x, mmengine's": (
        "mmdet::mask_rcnn/mask_rcnn_r50_fpn_2x_coco",
        f"a name of mmdet 2.x, .*; give {SHIPPED}",
    ),
    "2.x, cascade": ("cascade_mask_rcnn_r50_fpn_1x_coco", "give cascade-mask-rcnn_r50_fpn_1x_coco"),
    "2.x, caffe": ("mask_rcnn_r50_caffe_fpn_1x_coco", "give mask-rcnn_r50-caffe_fpn_1x_coco"),
    "2.x, many scales": (
        "mask_rcnn_r50_caffe_fpn_mstrain-poly_3x_coco",
        "give mask-rcnn_r50-caffe_fpn_ms-poly-3x_coco",
    ),
    "2.x, many GPUs": ("htc_x101_64x4d_fpn_16x1_20e_coco", "give htc_x101-64x4d_fpn_16xb1-20e_coco"),
    "another folder": (
        f"gone/{SHIPPED}.py",
        f"found 'gone/{SHIPPED}.py', which is neither.*Did you mean {SHIPPED}",
    ),
    "a missing absolute path": (f"/gone/configs/mask_rcnn/{SHIPPED}.py", f"which is neither.*{SHIPPED}"),
    "upper case": ("Mask-RCNN_R50_FPN_2x_coco", f"which is neither.*Did you mean {SHIPPED}"),
    "another package": ("mmseg::fcn/fcn.py", "found 'mmseg::fcn/fcn.py', which is neither"),
    "nothing": ("", "found an empty name; give a file, or a name such as"),
    "blank": (" ", "found an empty name"),
    "URL": (
        "https://example.org/mask_rcnn_r50_fpn_2x_coco.py",
        f"found the URL .*; download the config with its _base_ files. Did you mean {SHIPPED}",
    ),
    "Windows": (rf"C:\work\{SHIPPED}.py", f"a path is written with / here. Did you mean {SHIPPED}"),
    "Windows, relative": (rf"configs\mask_rcnn\{SHIPPED}.py", "a path is written with / here"),
    "a missing checkpoint": ("epoch_12.pth", "the config is the first argument, the checkpoint the second"),
    "a missing model": ("out/model.onnx", "the config is the first argument, the checkpoint the second"),
    "long": ("x" * 5000, "which is neither"),
    "null": ("a\0b.py", "which is neither"),
    "no such user": ("~nobody-at-all/c.py", "which is neither"),
    "a module that is not shipped": (
        "mmdet.configs.nope.mask_rcnn_r50_fpn_2x_coco",
        f"Did you mean {SHIPPED}",
    ),
    "a device": ("/dev/zero", "found /dev/zero, which is not a regular file; copy its content"),
}


@pytest.mark.parametrize("name", NOT_NAMES)
def test_what_is_no_name_is_refused(name):
    given, message = NOT_NAMES[name]
    with pytest.raises(FileNotFoundError, match=message) as caught:
        load_config(given)
    assert len(str(caught.value)) < 600


def test_what_is_no_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "link.py").symlink_to("gone")
    (tmp_path / "circle.py").symlink_to("circle.py")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "one.py").write_text("")
    (tmp_path / "over.py").write_text("_base_ = ['./pipe.py']")
    for name, message in {
        "pipe.py": "pipe.py, which is not a regular file",
        "link.py": "the link .*link.py, whose target is not there",
        "circle.py": "the link .*circle.py, whose target is not there",
        "folder": "the folder .*folder; give one file in it, such as one.py",
    }.items():
        with pytest.raises(FileNotFoundError, match=message):
            load_config(str(tmp_path / name))
    with pytest.raises(ValueError, match="found ./pipe.py, which is not a regular one"):
        load_config(str(tmp_path / "over.py"))


BASE = f"_base_ = [{str(CONFIG_PATH)!r}]\n"
READ_BASE = "from mmengine.config import read_base\nwith read_base():\n    from {} import *\n"
BROKEN = {
    # name: (file name, content, message)
    "empty": ("c.py", "", "expected a `model`, found nothing; give a whole config"),
    "comments": ("c.py", "# a config\n", "expected a `model`, found nothing"),
    "no model": (
        "c.py",
        "optim_wrapper = dict(lr=1)\nlr = 1\n",
        "expected a `model`, found lr, optim_wrapper",
    ),
    "model None": (
        "c.py",
        "model = None",
        "expected a `model` with a type, .*found NoneType; give a whole config",
    ),
    "model a name": ("c.py", "model = 'MaskRCNN'", "expected a `model` with a type, .*found str"),
    "model a list": (
        "c.py",
        "model = [dict(type='MaskRCNN')]",
        "expected a `model` with a type, .*found list",
    ),
    "model empty": ("c.py", "model = dict()", "expected a `model` with a type, .*found an empty one"),
    "model without type": (
        "c.py",
        "model = dict(neck=None)",
        "with a type, .*found neck; give a whole config",
    ),
    "syntax": (
        "c.py",
        "a = 1\nmodel = (\n",
        r"cannot be read: line 2: '\(' was never closed; mend the Python",
    ),
    "indentation": ("c.py", "a = 1\n  b = 2\n", "line 2: unexpected indent"),
    "Python 2": ("c.py", "print 'a'\n", "line 1: Missing parentheses"),
    "a web page": ("c.py", "\n<!DOCTYPE html>\n<html>", "c.py is a web page; download the raw file"),
    "binary": ("c.py", b"\x80\x04\xff\xfe", "it is not UTF-8 text; give the config's source"),
    "null characters": ("c.py", b"a = 1\0", "it is not UTF-8 text"),
    "UTF-16": ("c.py", "a = 1\n".encode("utf-16"), "it is not UTF-8 text"),
    "byte order mark": (
        "c.py",
        b"\xef\xbb\xbfa = 1\n",
        "begins with a byte order mark; save it as UTF-8 without",
    ),
    "raises": ("c.py", "a = {}\nb = a['key']\n", "KeyError: 'key' in line 2; mend the config"),
    "divides": ("c.py", "a = 1\n\nb = a / 0\n", "ZeroDivisionError: division by zero in line 3"),
    "asserts": (
        "c.py",
        "assert False\n",
        "AssertionError in line 1|AssertionError: AssertionError in line 1",
    ),
    "ends": (
        "c.py",
        "import sys\nsys.exit(0)\n",
        "its Python ends the program in line 2; take the call of sys.exit",
    ),
    "ends otherwise": ("c.py", "raise SystemExit('done')", "its Python ends the program in line 1"),
    "its own base": (
        "c.py",
        "_base_ = './c.py'",
        "expected _base_ files that end, found ./c.py, which includes this one; end",
    ),
    "its own base, pure": ("c.py", READ_BASE.format(".c"), "its _base_ files include each other"),
    "recursion": ("c.py", "def f():\n    return f()\nf()\n", "or its Python calls itself without end"),
    "missing base": ("c.py", "_base_ = './gone.py'", "gone.py'; put it there, or give the resolved config"),
    "missing base with a space": ("c.py", "_base_ = './go ne.py'", "go ne.py'; put it there"),
    "missing base, JSON": ("c.json", '{"_base_": "gone.json"}', "gone.json.*; put it there"),
    "missing base, pure": ("c.py", READ_BASE.format(".gone"), "gone.py not found.*; put it there"),
    "missing base that mmdet ships": (
        "c.py",
        "_base_ = ['../_base_/models/mask-rcnn_r50_fpn.py']",
        "write it as mmdet::_base_/models/mask-rcnn_r50_fpn.py, which mmdet ships",
    ),
    "missing base of 2.x": (
        "c.py",
        "_base_ = ['../_base_/models/mask_rcnn_r50_fpn.py']",
        "mmdet 3.x calls it mask-rcnn_r50_fpn.py: give a config of mmdet 3.x",
    ),
    "missing package's base": (
        "c.py",
        READ_BASE.format("mmdet.configs._base_.nope"),
        "mmdet's wheel has no configs in pure Python",
    ),
    "base of another package": (
        "c.py",
        "_base_ = 'mmseg::fcn/a.py'",
        "mmsegmentation is not installed.*install",
    ),
    "base a number": ("c.py", "_base_ = 3", "expected _base_ to be a file name or a list of them, found 3"),
    "base a folder": ("c.py", "_base_ = './'", "expected _base_ to name files, found ./"),
    "base's key is not there": ("c.py", BASE + "a = _base_.nope\n", "no attribute 'nope' in line 2; mend"),
    "variable of the environment": ("c.py", "a = '{{$NO_SUCH_VARIABLE:}}'", "NO_SUCH_VARIABLE.*environment"),
    "reserved": ("c.py", "filename = 'a'\n", "filename is reserved"),
    "a file that it reads": ("c.py", "a = open('gone.txt').read()\n", "gone.txt' in line 1"),
    "generator": ("c.py", "model = dict(type='A', a=(i for i in 'ab'))", "cannot pickle 'generator'.*mend"),
    "custom import": (
        "c.py",
        BASE + "custom_imports = dict(imports=['my_gone.parts'])",
        r"import my_gone.parts, which custom_imports names \(No module named 'my_gone'\); put the folder .*PYTHONPATH",
    ),
    "custom import, a string": (
        "c.py",
        BASE + "custom_imports = dict(imports='my_gone')",
        "my_gone, which custom_im",
    ),
    "custom import, a number": (
        "c.py",
        BASE + "custom_imports = dict(imports=3)",
        "custom_imports must be a list",
    ),
    "custom import, no mapping": ("c.py", BASE + "custom_imports = 'my_gone'", "must be a mapping, not str"),
    "missing class's package": (
        "c.py",
        "from my_gone.parts import Net\nmodel = dict(type=Net)",
        "my_gone.parts in .*line 1.*; put the folder that holds the module on PYTHONPATH",
    ),
    "missing class": (
        "c.py",
        "from mmdet.models import MaskRCN\nmodel = dict(type=MaskRCN)",
        "Failed to import MaskRCN from mmdet.models in .*line 1",
    ),
    "missing class in a list": (
        "c.py",
        "import my_gone\nmodel = dict(type='A', neck=[dict(type=my_gone.Neck)])",
        "my_gone.*; put the folder",
    ),
    "pure, a call": (
        "c.py",
        "import numpy as np\nmean = np.zeros(3)\nmodel = dict(type='A')",
        "it calls something that it imports in line 2, and a pure-Python config may only name .*; write the value",
    ),
    "pure, as mmengine 0.7 wrote it": (
        "c.py",
        "if '_base_':\n    from .gone import *\n",
        "write `with read_base..:` for `if '_base_':`",
    ),
    "pure with an ordinary base": (
        "c.py",
        BASE
        + "from mmdet.models import MaskRCNN\nmodel = dict(type=MaskRCNN)\nwith open('a') as f:\n    pass\n",
        "cannot be read",
    ),
    "JSON syntax": ("c.json", "{'model': 1}", "line 1 column 2 .*; mend the JSON"),
    "JSON list": ("c.json", "[1, 2]", "a JSON config is a mapping with the key model"),
    "JSON empty": ("c.json", "", "line 1 column 1 .*; mend the JSON"),
    "YAML syntax": ("c.yaml", "a: [1\nb: {", "line 2, column 2; mend the YAML"),
    "YAML empty": ("c.yml", "", "a YML config is a mapping with the key model"),
    "YAML text": ("c.yaml", "hello", "a YAML config is a mapping"),
    "a checkpoint": (
        "c.pth",
        b"PK\3\4",
        "expected a .py, .json or .yaml file, found a checkpoint; the config is the",
    ),
    "a model": ("c.onnx", b"\x08", "found an exported model; give the config that it was trained with"),
    "an engine": ("c.engine", b"", "found an exported model"),
    "an image": ("c.jpg", b"\xff\xd8", "found the suffix .jpg; rename the file if it is a config"),
    "no suffix": ("c", "model = 1", "found no suffix; rename the file if it is a config"),
    "capitals": ("c.PY", "model = 1", "found the suffix .PY; write it in lower case"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_config_says_what_is_wrong(name, tmp_path):
    file, content, message = BROKEN[name]
    path = tmp_path / file
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as caught:
        load_config(str(path))
    assert str(caught.value).startswith(f"config {path}: expected ")
    assert "\n" not in str(caught.value)


def test_a_base_of_two_bases_is_no_circle(tmp_path):
    (tmp_path / "root.py").write_text("model = dict(type='MaskRCNN')\n")
    for name in ("left", "right"):
        (tmp_path / f"{name}.py").write_text(f"_base_ = './root.py'\n{name} = 1\nmodel = dict(_delete_=True)")
    (tmp_path / "child.py").write_text("_base_ = ['./left.py']\nmodel = dict(type='MaskRCNN')")
    assert load_config(str(tmp_path / "child.py")).left == 1
    (tmp_path / "child.py").write_text("_base_ = ['./left.py', './right.py']")
    with pytest.raises(
        ValueError, match="Duplicate key is not allowed among bases.*model.*; mend the config"
    ):
        load_config(str(tmp_path / "child.py"))
    (tmp_path / "root.py").write_text("_base_ = './left.py'")
    with pytest.raises(ValueError, match="root.py: expected _base_ files that end, found ./left.py"):
        load_config(str(tmp_path / "child.py"))


def test_the_file_of_a_broken_base_is_named(tmp_path, monkeypatch):
    (tmp_path / "base.py").write_text("a = 1\nb = (\n")
    (tmp_path / "child.py").write_text("_base_ = './base.py'")
    with pytest.raises(ValueError, match="child.py: .*: line 2 of .*base.py: "):
        load_config(str(tmp_path / "child.py"))
    (tmp_path / "base.py").write_text("a = 1\n\nb = c\n")
    with pytest.raises(ValueError, match="child.py: .*name 'c' is not defined in .*base.py, line 3"):
        load_config(str(tmp_path / "child.py"))
    (tmp_path / "project_parts.py").write_text("import not_there_at_all\n")
    (tmp_path / "child.py").write_text(BASE + "custom_imports = dict(imports=['project_parts'])")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        ValueError, match="project_parts, which custom_imports names .No module named 'not_there_at_"
    ):
        load_config(str(tmp_path / "child.py"))


V2_PIPELINE = """
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='MultiScaleFlipAug', img_scale=(1333, 800), flip=False,
    transforms=[dict(type='Resize', keep_ratio=True), dict(type='ImageToTensor', keys=['img']),
                dict(type='Collect', keys=['img'])])]
"""
V2_MODEL = (
    "model = dict(type='MaskRCNN', pretrained='torchvision://resnet50', backbone=dict(type='ResNet'))\n"
)
V2 = {
    "data": (
        V2_MODEL + "data = dict(samples_per_gpu=2, test=dict(type='CocoDataset'))",
        "data.test, data.samples_",
    ),
    "data of validation": (V2_MODEL + "data = dict(val=dict(type='CocoDataset'))", "data.val"),
    "all": (
        V2_MODEL + V2_PIPELINE + "data = dict(test=dict(pipeline=test_pipeline))",
        "data.test, MultiScaleFlipAug's",
    ),
    "test pipeline": (
        V2_MODEL + V2_PIPELINE,
        "MultiScaleFlipAug's img_scale.*, Collect in the test pipeline",
    ),
    "bundle": (
        V2_MODEL + "test_pipeline = [dict(type='DefaultFormatBundle')]",
        "DefaultFormatBundle in the test pipeline",
    ),
    "normalisation": (
        V2_MODEL + "img_norm_cfg = dict(mean=[1, 2, 3], std=[1, 1, 1], to_rgb=True)",
        "img_norm_cfg and no model.data_preprocessor",
    ),
    "schedule": (
        V2_MODEL + "lr_config = dict(policy='step')\nevaluation = dict(interval=1)",
        "lr_config, evaluation and no model.data_preprocessor",
    ),
    "its transforms in a config of 3.x": (
        BASE + V2_PIPELINE + "test_dataloader = dict(dataset=dict(pipeline=test_pipeline))",
        "MultiScaleFlipAug's img_scale in the test pipeline, Collect in the test pipeline",
    ),
    "without a model": ("data = dict(test=dict(type='CocoDataset'))", "data.test"),
}


@pytest.mark.parametrize("name", V2)
def test_a_config_of_mmdet_2_is_said_to_be_one(name, tmp_path):
    text, traits = V2[name]
    path = tmp_path / "mask_rcnn_r50_fpn_2x_coco.py"
    path.write_text(text)
    message = f"expected an mmdet 3 config, found one of mmdet 2.x .{traits}.*; give the 3.x config of the same model"
    with pytest.raises(ValueError, match=message) as caught:
        load_config(str(path))
    assert f"such as {SHIPPED}, which mmdet ships" in str(caught.value)
    assert "The checkpoint can stay as it is" in str(caught.value)


NOT_V2 = {
    "settings left over": BASE + "img_norm_cfg = dict(mean=[1], std=[1])\nevaluation = dict(interval=1)\n",
    "data left over": BASE + "data = dict(test=dict(type='CocoDataset'))\n",
    "a pipeline that is not used": BASE + V2_PIPELINE,
    "no data_preprocessor": "model = dict(type='MaskRCNN')\ntest_pipeline = [dict(type='Resize', scale=(8, 8))]",
    "other data": "model = dict(type='MaskRCNN')\ndata = 'coco'\n",
    "semi-supervised": "model = dict(type='SoftTeacher', detector=dict(type='FasterRCNN', data_preprocessor=dict()))\n"
    "evaluation = 1",
}


@pytest.mark.parametrize("name", NOT_V2)
def test_a_config_of_mmdet_3_is_not_taken_for_one_of_2(name, tmp_path):
    path = tmp_path / "c.py"
    path.write_text(NOT_V2[name])
    assert load_config(str(path)).model.type


# Pure Python

IMPORTS = """
from mmcv.ops import RoIAlign, nms
from mmcv.transforms import LoadImageFromFile
from mmengine.dataset import DefaultSampler
from mmengine.model import PretrainedInit
from mmengine.runner import TestLoop
from torch.nn import BatchNorm2d, SyncBatchNorm
from mmdet.datasets import CocoDataset
from mmdet.datasets.transforms import PackDetInputs, Resize
from mmdet.evaluation import CocoMetric
from mmdet.models.backbones import ResNet
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.models.dense_heads import RPNHead
from mmdet.models.detectors import MaskRCNN
from mmdet.models.losses import CrossEntropyLoss, L1Loss
from mmdet.models.necks import FPN
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import Shared2FCBBoxHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.models.task_modules import AnchorGenerator, DeltaXYWHBBoxCoder, MaxIoUAssigner, RandomSampler
"""


def pure_python(**replaced: str) -> str:
    """Return the embedded config with a class or a function wherever it has a type's name."""
    names = re.findall(r"\w+", " ".join(line.partition(" import ")[2] for line in IMPORTS.splitlines()))
    text = CONFIG_PATH.read_text().replace('type="BN"', 'type="BatchNorm2d"')
    for name in names:
        text = text.replace(f'type="{name}"', f"type={name}")
    assert 'type="' not in text
    for old, new in replaced.items():
        assert f"type={old}" in text
        text = text.replace(f"type={old}", f"type={new}")
    return IMPORTS + text


def state_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def embedded() -> nn.Module:
    return model_from_config(load_config(str(CONFIG_PATH)))


@pytest.mark.parametrize(
    "replaced", [{}, {"BatchNorm2d": "SyncBatchNorm"}, {"nms": "'nms'"}, {"RoIAlign": "'RoIAlign'"}]
)
def test_a_pure_python_config_is_the_ordinary_one(replaced, embedded, tmp_path):
    path = tmp_path / "pure.py"
    path.write_text(pure_python(**replaced))
    config = load_config(str(path))
    model = model_from_config(config)
    assert type(model) is MaskRCNN
    assert state_of(model) == state_of(embedded)
    assert [type(m) for m in model.modules()] == [type(m) for m in embedded.modules()]
    assert model.test_cfg.rpn.nms.type == "nms"
    weights = torch.load(CHECKPOINT_PATH, map_location="cpu", weights_only=True)["state_dict"]
    images = torch.rand(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    for m in (model, embedded):
        m.load_state_dict(weights)
    with torch.no_grad():
        for found, expected in zip(model.extract_feat(images), embedded.extract_feat(images)):
            assert torch.equal(found, expected)


def test_a_pure_python_config_reads_like_the_ordinary_one(tmp_path):
    path = tmp_path / "pure.py"
    path.write_text(pure_python())
    config, ordinary = load_config(str(path)), load_config(str(CONFIG_PATH))
    found, expected = test_pipeline(config), test_pipeline(ordinary)
    assert [step["type"].__name__ for step in found.steps] == [step["type"] for step in expected.steps]
    assert found.steps == get_test_pipeline_cfg(config)
    assert test_dataset(config)["data_root"] == test_dataset(ordinary)["data_root"]
    assert class_names(config, None, 80) == class_names(ordinary, None, 80)
    assert "MaskRCNN" not in config  # an import is no setting


def test_a_pure_python_config_with_bases(embedded, tmp_path):
    (tmp_path / "base.py").write_text(pure_python())
    (tmp_path / "child.py").write_text(
        READ_BASE.format(".base")
        + "from torch.nn import SyncBatchNorm\nfrom mmengine.model import PretrainedInit\n"
        + "model.update(dict(backbone=dict(norm_cfg=dict(type=SyncBatchNorm), "
        + "init_cfg=dict(type=PretrainedInit, checkpoint='torchvision://resnet18'))))\n"
    )
    config = load_config(str(tmp_path / "child.py"))
    assert config.model.backbone.init_cfg is None
    assert config.model.backbone.norm_cfg.type == "BN"
    assert state_of(model_from_config(config)) == state_of(embedded)


def test_a_pure_python_config_is_the_model_of_init_detector(tmp_path):
    path = tmp_path / "pure.py"
    path.write_text(pure_python())
    theirs = init_detector(str(path), str(CHECKPOINT_PATH), device="cpu", palette="coco")
    assert state_of(model_from_config(load_config(str(path)))) == state_of(theirs)


def test_what_training_alone_imports_need_not_be_installed(tmp_path):
    path = tmp_path / "pure.py"
    path.write_text(
        "from my_gone.hooks import Hook\nfrom my_gone import Reader, Other\nimport my_gone.parts as parts\n"
        + pure_python()
        + "custom_hooks = [dict(type=Hook), dict(type=parts.Hook)]\nunused = Other\n"
        "train_dataloader = dict(dataset=dict(type=Reader, pipeline=[dict(type=parts.Augment)]))\n"
    )
    config = load_config(str(path))
    assert config.train_dataloader.dataset.type == "my_gone.Reader"
    assert config.train_dataloader.dataset.pipeline[0].type == "my_gone.parts.Augment"
    assert class_names(config, None, 2).is_invented
    assert model_from_config(config).with_mask


# Preparation

PREPARED = {
    "init_cfg": (
        "backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='x'))",
        lambda m: m.backbone.init_cfg is None,
    ),
    "init_cfg, scoped": (
        "backbone=dict(init_cfg=dict(type='mmengine.Pretrained', checkpoint='x'))",
        lambda m: m.backbone.init_cfg is None,
    ),
    "init_cfg of a list": (
        "backbone=dict(init_cfg=[dict(type='Kaiming'), dict(type='Pretrained', checkpoint='x')])",
        lambda m: [c.type for c in m.backbone.init_cfg] == ["Kaiming"],
    ),
    "another init_cfg": (
        "backbone=dict(init_cfg=dict(type='Kaiming'))",
        lambda m: m.backbone.init_cfg.type == "Kaiming",
    ),
    "the model's": ("init_cfg=dict(type='Pretrained', checkpoint='x')", lambda m: m.init_cfg is None),
    "pretrained": ("pretrained='torchvision://resnet50'", lambda m: m.pretrained is None),
    "pretrained, of timm": ("backbone=dict(pretrained=True)", lambda m: m.backbone.pretrained is False),
    "in a list": ("neck=[dict(pretrained='x'), dict()]", lambda m: m.neck[0].pretrained is None),
    "in a tuple": (
        "neck=(dict(norm_cfg=dict(type='SyncBN')),)",
        lambda m: m.neck[0].norm_cfg.type == "BN" and isinstance(m.neck, tuple),
    ),
    "nested": (
        "detector=dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='x')))",
        lambda m: m.detector.backbone.init_cfg is None,
    ),
    "SyncBN": ("norm_cfg=dict(type='SyncBN', requires_grad=True)", lambda m: m.norm_cfg.type == "BN"),
    "SyncBN, scoped": ("norm_cfg=dict(type='mmcv.MMSyncBN')", lambda m: m.norm_cfg.type == "BN"),
    "NaiveSyncBN": ("norm_cfg=dict(type='NaiveSyncBN')", lambda m: m.norm_cfg.type == "BN"),
    "GN": ("norm_cfg=dict(type='GN', num_groups=32)", lambda m: m.norm_cfg.type == "GN"),
}


@pytest.mark.parametrize("name", PREPARED)
def test_preparation(name, tmp_path):
    text, holds = PREPARED[name]
    path = tmp_path / "c.py"
    path.write_text(f"model = dict(type='MaskRCNN', {text})")
    assert holds(load_config(str(path)).model)


PREPARED_CLASSES = {
    "torch.nn": ("from torch import nn", "dict(type=nn.SyncBatchNorm)", "BN"),
    "torch": ("import torch", "dict(type=torch.nn.SyncBatchNorm)", "BN"),
    "mmcv": ("from mmcv.ops import SyncBatchNorm", "dict(type=SyncBatchNorm)", "BN"),
    "mmengine": (
        "from mmengine.utils.dl_utils.parrots_wrapper import SyncBatchNorm as S",
        "dict(type=S)",
        "BN",
    ),
    "batch normalisation": ("from torch import nn", "dict(type=nn.BatchNorm2d)", nn.BatchNorm2d),
    "activation": ("from torch.nn import LeakyReLU", "dict(type=LeakyReLU)", nn.LeakyReLU),
    "a function of mmcv": ("from mmcv.ops import soft_nms", "dict(type=soft_nms)", "soft_nms"),
    "renamed": ("from mmcv.ops import nms as suppress", "dict(type=suppress)", "nms"),
}


@pytest.mark.parametrize("name", PREPARED_CLASSES)
def test_preparation_of_classes(name, tmp_path):
    imported, text, expected = PREPARED_CLASSES[name]
    path = tmp_path / "c.py"
    path.write_text(f"{imported}\nmodel = dict(type='MaskRCNN', one={text}, many=[({text},)])")
    model = load_config(str(path)).model
    assert model.one.type == model.many[0][0].type == expected


def test_classes_in_layers_build(tmp_path):
    path = tmp_path / "c.py"
    path.write_text(
        "from torch import nn\nfrom mmdet.models import ResNet, FPN\n\n"
        "model = dict(type=ResNet, depth=18, conv_cfg=dict(type=nn.Conv2d), norm_cfg=dict(type=nn.SyncBatchNorm))\n"
        "neck = dict(type=FPN, in_channels=[8], out_channels=8, num_outs=2, act_cfg=dict(type=nn.LeakyReLU))\n"
    )
    config = load_config(str(path))
    model = MODELS.build(config.model)
    assert isinstance(model.bn1, nn.BatchNorm2d)
    assert any(isinstance(m, nn.LeakyReLU) for m in MODELS.build(config.neck).modules())


@pytest.mark.parametrize("suffix", [".json", ".yaml", ".yml"])
def test_a_config_in_another_format_is_the_ordinary_one(suffix, embedded, tmp_path):
    path = tmp_path / f"dumped{suffix}"
    text = json.dumps(Config.fromfile(str(CONFIG_PATH)).to_dict())
    path.write_text(text if suffix == ".json" else yaml.safe_dump(json.loads(text)))
    config = load_config(str(path))
    assert state_of(model_from_config(config)) == state_of(embedded)
    assert class_names(config, None, 80) == class_names(load_config(str(CONFIG_PATH)), None, 80)
    found, expected = test_pipeline(config).steps, test_pipeline(load_config(str(CONFIG_PATH))).steps
    assert found[:2] == expected[:2]
    assert found[1]["scale"] == (640, 448)
    assert len(found) == len(expected)


def test_the_dump_of_a_pure_python_config_is_the_ordinary_one(embedded, tmp_path):
    """Training leaves it in its work directory, with ``module.name`` for every class and function."""
    (tmp_path / "pure.py").write_text(pure_python(BatchNorm2d="SyncBatchNorm"))
    dumped = tmp_path / "dumped.json"
    dumped.write_text(json.dumps(Config.fromfile(str(tmp_path / "pure.py")).to_dict()))
    assert '"mmcv.ops.nms"' in dumped.read_text()
    config = load_config(str(dumped))
    model = model_from_config(config)
    assert [type(m) for m in model.modules()] == [type(m) for m in embedded.modules()]
    assert model.test_cfg.rpn.nms.type == "nms"
    assert [type_name(step["type"]) for step in test_pipeline(config).steps][1] == "Resize"
    assert class_names(config, None, 80) == class_names(load_config(str(CONFIG_PATH)), None, 80)


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".yaml", '{"a":' * 100_000),
        (".yaml", "- " * 100_000),
        (".json", "[" * 100_000 + "]" * 100_000),
        (".py", "model = " + "(" * 100_000),
    ],
)
def test_what_is_nested_too_deep_for_a_parser_is_refused(suffix, text, tmp_path):
    """YAML's ends the process."""
    path = tmp_path / f"deep{suffix}"
    path.write_text(text)
    message = f"config {path}: expected values up to 200 deep in each other, found 100000; mend the config"
    with pytest.raises(ValueError, match=message):
        load_config(str(path))


def test_a_base_is_not_nested_too_deep_either(tmp_path):
    (tmp_path / "base.yaml").write_text('{"a":' * 1000)
    (tmp_path / "config.py").write_text("_base_ = 'base.yaml'")
    with pytest.raises(
        ValueError, match="base.yaml: expected values up to 200 deep in each other, found 1000"
    ):
        load_config(str(tmp_path / "config.py"))
