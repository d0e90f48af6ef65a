"""The test pipeline and the class names of configs in every form that training leaves them."""

import re
import warnings

import numpy as np
import pytest
from mmdet.datasets import CityscapesDataset, CocoDataset
from mmdet.registry import DATASETS
from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config
from mmengine.registry import DefaultScope

from export.dataset import ClassNames, class_names, test_dataset, test_pipeline, type_name

A = [{"type": "LoadImageFromFile"}, {"type": "Resize", "scale": (8, 6)}]
B = [{"type": "LoadImageFromFile"}, {"type": "Resize", "scale": (9, 7)}]
COCO = {"type": "CocoDataset", "pipeline": A}
OTHER = {"type": "CocoDataset", "pipeline": B}
BARE = {"type": "CocoDataset"}


def loader(dataset):
    return {"batch_size": 1, "dataset": dataset}


AS_MMDET = {
    "plain": (COCO, "dataset.pipeline"),
    "repeated": ({"type": "RepeatDataset", "times": 2, "dataset": COCO}, "dataset.dataset.pipeline"),
    "concatenated": (
        {"type": "ConcatDataset", "datasets": [COCO, OTHER]},
        "dataset.datasets[0].pipeline",
    ),
    "balanced, concatenated": (
        {"type": "ClassBalancedDataset", "dataset": {"type": "ConcatDataset", "datasets": [COCO]}},
        "dataset.dataset.datasets[0].pipeline",
    ),
    "concatenated, repeated": (
        {"type": "ConcatDataset", "datasets": [{"type": "RepeatDataset", "dataset": COCO}, OTHER]},
        "dataset.datasets[0].dataset.pipeline",
    ),
    "the wrapper's own": (
        {"type": "MultiImageMixDataset", "pipeline": A, "dataset": OTHER},
        "dataset.pipeline",
    ),
    "a tuple": ({**COCO, "pipeline": tuple(A)}, "dataset.pipeline"),
    "no type": ({"pipeline": A}, "dataset.pipeline"),
    "a class": ({"type": CocoDataset, "pipeline": A}, "dataset.pipeline"),
}


@pytest.mark.parametrize("name", AS_MMDET)
def test_the_pipeline_is_the_one_of_inference_detector(name):
    dataset, source = AS_MMDET[name]
    config = Config({"test_dataloader": loader(dataset), "val_dataloader": loader(OTHER), "test_pipeline": B})
    found = test_pipeline(config)
    assert found.steps == list(get_test_pipeline_cfg(config)) == A
    assert found.source == f"test_dataloader.{source}"


BEYOND_MMDET = {
    "no test_dataloader": ({"val_dataloader": loader(COCO)}, "val_dataloader.dataset.pipeline"),
    "test_dataloader None": (
        {"test_dataloader": None, "val_dataloader": loader(COCO)},
        "val_dataloader.dataset.pipeline",
    ),
    "no dataset": (
        {"test_dataloader": {"batch_size": 1}, "val_dataloader": loader(COCO)},
        "val_dataloader.dataset.pipeline",
    ),
    "dataset None": ({"test_dataloader": loader(None), "test_pipeline": A}, "test_pipeline"),
    "dataset without pipeline": ({"test_dataloader": loader(BARE), "test_pipeline": A}, "test_pipeline"),
    "pipeline None": (
        {"test_dataloader": loader({**BARE, "pipeline": None}), "test_pipeline": A},
        "test_pipeline",
    ),
    "pipeline empty": (
        {"test_dataloader": loader({**BARE, "pipeline": []}), "test_pipeline": A},
        "test_pipeline",
    ),
    "no dataloader at all": ({"test_pipeline": A}, "test_pipeline"),
    "empty dataloaders": ({"test_dataloader": {}, "val_dataloader": [], "test_pipeline": A}, "test_pipeline"),
    "a list": ({"test_dataloader": [loader(COCO)]}, "test_dataloader[0].dataset.pipeline"),
    "a list of equals": (
        {"test_dataloader": [loader(COCO), loader(COCO)]},
        "test_dataloader[0].dataset.pipeline",
    ),
    "a tuple, the first without": (
        {"test_dataloader": (loader(BARE), loader(COCO))},
        "test_dataloader[1].dataset.pipeline",
    ),
    "a list with None": ({"test_dataloader": [None, loader(COCO)]}, "test_dataloader[1].dataset.pipeline"),
    "a list of validation": (
        {"test_dataloader": [], "val_dataloader": [loader(COCO)]},
        "val_dataloader[0].dataset.pipeline",
    ),
    "concatenated, the first without": (
        {"test_dataloader": loader({"type": "ConcatDataset", "datasets": [BARE, COCO]})},
        "test_dataloader.dataset.datasets[1].pipeline",
    ),
    "a list of datasets": (
        {"test_dataloader": loader([COCO, OTHER])},
        "test_dataloader.dataset[0].pipeline",
    ),
    "the wrapper's is empty": (
        {"test_dataloader": loader({"type": "MultiImageMixDataset", "pipeline": [], "dataset": COCO})},
        "test_dataloader.dataset.dataset.pipeline",
    ),
}


@pytest.mark.parametrize("name", BEYOND_MMDET)
def test_the_pipeline_where_mmdet_looks_no_further(name):
    config, source = BEYOND_MMDET[name]
    found = test_pipeline(Config(config))
    assert (found.steps, found.source) == (A, source)


REFUSED = {
    "nothing": (
        {"model": {}},
        "expected a test pipeline in .*found none of them among model; add the test_pipeline",
    ),
    "an empty config": ({}, "found none of them among no keys"),
    "training only": (
        {"train_dataloader": loader(COCO), "train_pipeline": A},
        "found none of them among train_dataloader, train_pipeline",
    ),
    "one transform": (
        {"test_pipeline": {"type": "Resize"}},
        r"expected test_pipeline to be a list of transforms, found ConfigDict; write it as \[dict",
    ),
    "text": (
        {"test_dataloader": loader({**BARE, "pipeline": "default"})},
        r"expected test_dataloader.dataset.pipeline to be a list of transforms, found str",
    ),
    "two that differ": (
        {"test_dataloader": [loader(COCO), loader(OTHER)]},
        r"test_dataloader\[0\].dataset.pipeline and test_dataloader\[1\].dataset.pipeline differ; leave in test_dat",
    ),
    "the third differs": (
        {"val_dataloader": [loader(COCO), loader(COCO), loader(OTHER)]},
        r"val_dataloader\[0\].dataset.pipeline and val_dataloader\[2\].dataset.pipeline differ",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_pipeline_that_is_not_clear_is_refused(name):
    config, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        test_pipeline(Config(config))


def test_the_test_dataset_is_the_innermost_one():
    wrapped = {"type": "RepeatDataset", "dataset": {"type": "ConcatDataset", "datasets": [COCO, OTHER]}}
    assert test_dataset(Config({"test_dataloader": loader(wrapped)})) == COCO
    assert test_dataset(Config({"test_dataloader": [loader(COCO)]})) == COCO
    assert test_dataset(Config({"test_dataloader": None, "val_dataloader": loader(OTHER)})) == OTHER
    assert test_dataset(Config({"test_dataloader": loader(None), "model": {}})) == {}
    assert test_dataset(Config({"train_dataloader": loader(COCO)})) == {}


def metainfo(classes, **dataset):
    return {"test_dataloader": loader({**BARE, "metainfo": {"classes": classes}, **dataset})}


THREE = ("a", "b", "c")
GIVEN = {
    # name: (config, the checkpoint's, number of classes) -> (names, source)
    "checkpoint first": ((metainfo(("x", "y", "z")), THREE, 3), (THREE, "the checkpoint")),
    "checkpoint, a list": (({}, ["a", "b", "c"], 3), (THREE, "the checkpoint")),
    "checkpoint, a name": (({}, "box", 1), (("box",), "the checkpoint")),
    "checkpoint of another number": ((metainfo(THREE), ("x",), 3), (THREE, "test_dataloader's metainfo")),
    "checkpoint empty": ((metainfo(THREE), (), 3), (THREE, "test_dataloader's metainfo")),
    "dataset's metainfo": ((metainfo(THREE), None, 3), (THREE, "test_dataloader's metainfo")),
    "variable metainfo": (({"metainfo": {"classes": THREE}}, None, 3), (THREE, "the config's metainfo")),
    "dataset before the variable": (
        ({**metainfo(THREE), "metainfo": {"classes": ("x", "y", "z")}}, None, 3),
        (THREE, "test_dataloader's metainfo"),
    ),
    "validation": (
        ({"val_dataloader": loader({"metainfo": {"classes": THREE}})}, None, 3),
        (THREE, "val_dataloader's metainfo"),
    ),
    "training": (
        ({"train_dataloader": loader({"metainfo": {"classes": THREE}})}, None, 3),
        (THREE, "train_dataloader's metainfo"),
    ),
    "training, repeated": (
        (
            {
                "train_dataloader": loader(
                    {"type": "RepeatDataset", "dataset": {"metainfo": {"classes": THREE}}}
                )
            },
            None,
            3,
        ),
        (THREE, "train_dataloader's metainfo"),
    ),
    "upper case": (
        ({"test_dataloader": loader({**BARE, "metainfo": {"CLASSES": THREE}})}, None, 3),
        (THREE, "test_dataloader's metainfo"),
    ),
    "both cases": (
        ({"test_dataloader": loader({"metainfo": {"CLASSES": ("x", "y"), "classes": ["p", "q"]}})}, None, 2),
        (("p", "q"), "test_dataloader's metainfo"),
    ),
    "a string of one": ((metainfo("box"), None, 1), (("box",), "test_dataloader's metainfo")),
    "a forgotten comma": ((metainfo(("box")), None, 1), (("box",), "test_dataloader's metainfo")),
    "a second dataset of the right number": (
        (
            {
                "test_dataloader": loader(
                    {"datasets": [{"metainfo": {"classes": ("x",)}}, {"metainfo": {"classes": THREE}}]}
                )
            },
            None,
            3,
        ),
        (THREE, "test_dataloader's metainfo"),
    ),
    "numbers": ((metainfo([1, 2.5, True]), None, 3), (("1", "2.5", "True"), "test_dataloader's metainfo")),
    "an array": ((metainfo(np.array(["a", "b"])), None, 2), (("a", "b"), "test_dataloader's metainfo")),
    "numbered": ((metainfo({1: "b", 0: "a"}), None, 2), (("a", "b"), "test_dataloader's metainfo")),
    "bytes": ((metainfo([b"a", "b"]), None, 2), (("a", "b"), "test_dataloader's metainfo")),
    "duplicates": ((metainfo(["a", "a"]), None, 2), (("a", "a"), "test_dataloader's metainfo")),
    "empty names": (
        (metainfo(["a", "", " "]), None, 3),
        (("a", "class_1", "class_2"), "test_dataloader's metainfo"),
    ),
    "more than one line": (
        (metainfo(["a\nb", " c\r\n", "d\te\x1b[1m"]), None, 3),
        (("a b", "c", "d e [1m"), "test_dataloader's metainfo"),
    ),
    "any script": ((metainfo(["盒子", "ящик"]), None, 2), (("盒子", "ящик"), "test_dataloader's metainfo")),
    "the class's own": (
        ({"test_dataloader": loader({"type": "CityscapesDataset"})}, None, 8),
        (CityscapesDataset.METAINFO["classes"], "the dataset class CityscapesDataset"),
    ),
    "with scope": (
        ({"test_dataloader": loader({"type": "mmdet.CocoDataset"})}, None, 80),
        (CocoDataset.METAINFO["classes"], "the dataset class CocoDataset"),
    ),
    "a class": (
        ({"test_dataloader": loader({"type": CocoDataset, "metainfo": {"palette": [(1, 2, 3)]}})}, None, 80),
        (CocoDataset.METAINFO["classes"], "the dataset class CocoDataset"),
    ),
    "balanced": (
        (
            {
                "test_dataloader": loader(
                    {"type": "ClassBalancedDataset", "oversample_thr": 1, "dataset": BARE}
                )
            },
            None,
            80,
        ),
        (CocoDataset.METAINFO["classes"], "the dataset class CocoDataset"),
    ),
}


@pytest.mark.parametrize("name", GIVEN)
def test_given_names(name):
    (config, checkpoint, number), (names, source) = GIVEN[name]
    assert class_names(Config(config), checkpoint, number) == ClassNames(names, source, False)


INVENTED = {
    "no source": (({}, None, 2), "neither the checkpoint nor the config has names, the model 2 classes"),
    "the variable's": (
        ({"metainfo": {"classes": THREE}}, None, 80),
        "the config's metainfo has 3 names, the model 80 classes",
    ),
    "one name": (
        ({"metainfo": {"classes": ("a",)}}, None, 2),
        "the config's metainfo has 1 name, the model 2 classes",
    ),
    "one class": (
        ({"metainfo": {"classes": THREE}}, None, 1),
        "the config's metainfo has 3 names, the model 1 class",
    ),
    "a string is not its letters": (
        ({"metainfo": {"classes": "box"}}, None, 3),
        "the config's metainfo has 1 name, the model 3 classes",
    ),
    "a checkpoint's string is not its letters": (
        ({}, "box", 3),
        "the checkpoint has 1 name, the model 3 classes",
    ),
    "several": (
        (metainfo(THREE), ("a", "b"), 5),
        "the checkpoint has 2 names, test_dataloader's metainfo has 3 names, the dataset class CocoDataset has 80 "
        "names, the model 5 classes",
    ),
    "the same twice": (
        ({"test_dataloader": [loader({"metainfo": {"classes": THREE}})] * 2}, None, 2),
        "test_dataloader's metainfo has 3 names, the model 2 classes",
    ),
    "a file that is gone": (
        ({"metainfo": {"classes": "data/names.txt"}}, None, 1),
        "the config's metainfo has the file 'data/names.txt', which is not there, the model 1 class",
    ),
    "a set": (
        ({}, {"a", "b"}, 2),
        "the checkpoint has a set, which has no order, in place of a list of names, the model 2 classes",
    ),
    "a mapping": (
        ({"metainfo": {"classes": {"a": 0, "b": 1}}}, None, 2),
        "the config's metainfo has a mapping in place of a list of names, the model 2 classes",
    ),
    "a number": (
        ({"metainfo": {"classes": 2}}, None, 2),
        "the config's metainfo has int 2 in place of a list of names, the model 2 classes",
    ),
}


@pytest.mark.parametrize("name", INVENTED)
def test_invented_names_say_why(name):
    (config, checkpoint, number), source = INVENTED[name]
    expected = ClassNames(tuple(f"class_{i}" for i in range(number)), source, True)
    assert class_names(Config(config), checkpoint, number) == expected


ODD_DATASETS = {
    "unknown": {"type": "MyDataset"},
    "unknown scope": {"type": "my_project.MyDataset"},
    "no type": {"ann_file": "a.json"},
    "a function": {"type": loader},
    "None": None,
    "a string": "coco",
    "metainfo None": {**BARE, "metainfo": None},
    "metainfo a string": {**BARE, "metainfo": "names"},
    "metainfo a list": {**BARE, "metainfo": ["a", "b"]},
    "classes None": {**BARE, "metainfo": {"classes": None}},
    "a class without METAINFO": {"type": dict},
    "empty wrapper": {"type": "ConcatDataset", "datasets": []},
}


@pytest.mark.parametrize("name", ODD_DATASETS)
def test_an_odd_dataset_is_no_source(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mmengine warns of a scope that is not installed
        found = class_names(Config({"test_dataloader": loader(ODD_DATASETS[name])}), None, 2)
    assert found.is_invented
    assert found.names == ("class_0", "class_1")


FILES = {
    "plain": (b"alpha\nbeta\n", ("alpha", "beta")),
    "no last line end": (b"alpha\nbeta", ("alpha", "beta")),
    "Windows": (b"\xef\xbb\xbfalpha\r\nbeta\r\n", ("alpha", "beta")),
    "blank lines": (b"alpha\n\nbeta\n\n\n", ("alpha", "beta")),
    "spaces": (b"traffic light\n  stop sign \n", ("traffic light", "stop sign")),
    "any script": ("盒子\nящик\n".encode(), ("盒子", "ящик")),
    "blank name": (b"alpha\n\n", ("alpha", "class_1")),
}


@pytest.mark.parametrize("name", FILES)
def test_names_in_a_file(name, tmp_path):
    content, names = FILES[name]
    path = tmp_path / "names"
    path.write_bytes(content)
    assert class_names(Config(metainfo(str(path))), None, 2).names == names


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_file_says_what_mmengine_reads_in_it(number, tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("\n".join(THREE[:number]) + "\n")
    dataset = {**BARE, "metainfo": {"classes": str(path)}, "lazy_init": True}
    with DefaultScope.overwrite_default_scope("mmdet"):  # whatever other tests of this process have left
        expected = DATASETS.build(dataset).metainfo["classes"]
    found = class_names(Config({"test_dataloader": loader(dataset)}), None, number)
    assert (list(found.names), found.is_invented) == (expected, False)


def test_a_file_is_found_beside_the_config_and_in_the_data_root(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "labels.txt").write_text("a\nb\n")
    (tmp_path / "beside.txt").write_text("c\nd\n")
    path = tmp_path / "config.py"
    path.write_text(f"data_root = {str(tmp_path / 'data')!r}\nmetainfo = dict(classes='labels.txt')")
    monkeypatch.chdir(tmp_path / "data")
    assert class_names(Config.fromfile(str(path)), None, 2).names == ("a", "b")
    monkeypatch.chdir("/")
    assert class_names(Config.fromfile(str(path)), None, 2).names == ("a", "b")
    path.write_text("metainfo = dict(classes='beside.txt')")
    assert class_names(Config.fromfile(str(path)), None, 2).names == ("c", "d")


ODD_FILES = {
    "another number": (b"a\nb\nc\n", "the config's metainfo has 3 names, the model 2 classes"),
    "empty": (b"", "the config's metainfo has 0 names, the model 2 classes"),
    "binary": (b"\x89PNG\xff\xfe\n\n", "which cannot be read .*, the model 2 classes"),
}


@pytest.mark.parametrize("name", ODD_FILES)
def test_a_file_that_does_not_fit(name, tmp_path):
    content, source = ODD_FILES[name]
    path = tmp_path / "names.txt"
    path.write_bytes(content)
    found = class_names(Config({"metainfo": {"classes": str(path)}}), None, 2)
    assert found.is_invented
    assert re.search(source, found.source)


TEXTS = {"a folder": "/tmp", "long": "x" * 5000, "null": "a\0b", "empty": ""}


@pytest.mark.parametrize("name", TEXTS)
def test_a_string_that_is_no_file_is_a_name(name):
    found = class_names(Config(metainfo(TEXTS[name])), None, 1)
    assert not found.is_invented
    assert len(found.names) == 1


TYPES = {
    "Resize": "Resize",
    "mmdet.Resize": "Resize",
    "mmdet.datasets.transforms.Resize": "Resize",
    CocoDataset: "CocoDataset",
    loader: "loader",
    None: "NoneType",
    3: "int",
}


@pytest.mark.parametrize("kind", TYPES)
def test_type_name(kind):
    assert type_name(kind) == TYPES[kind]
