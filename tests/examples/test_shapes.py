"""The renderer: what its scenes promise."""

import json

import cv2
import numpy as np
import pytest

from examples import shapes
from examples.shapes import CLASSES, MIN_AREA_PX, boxes_from_masks, coco_from_scenes, held_out_scenes, render


def test_class_names_are_ten_times_shape_plus_fill():
    assert len(CLASSES) == len(set(CLASSES)) == 80
    assert (CLASSES[0], CLASSES[9], CLASSES[10], CLASSES[79]) == (
        "red_circle",
        "dotted_circle",
        "red_ellipse",
        "dotted_ring",
    )


def test_same_seed_same_scene():
    first, second, other = (render(np.random.default_rng(seed), 120, 160) for seed in (3, 3, 4))
    assert np.array_equal(first.image, second.image)
    assert np.array_equal(first.masks, second.masks)
    assert np.array_equal(first.labels, second.labels)
    assert not np.array_equal(first.image, other.image)


@pytest.mark.parametrize(("height", "width"), [(448, 640), (640, 448), (65, 300)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_scene_is_consistent(height, width, seed):
    scene = render(np.random.default_rng(seed), height, width)
    num = len(scene.labels)
    assert (scene.image.shape, scene.image.dtype) == ((height, width, 3), np.uint8)
    assert (scene.masks.shape, scene.masks.dtype) == ((num, height, width), np.uint8)
    assert (scene.boxes.shape, scene.boxes.dtype) == ((num, 4), np.float32)
    assert scene.labels.dtype == np.int64
    assert ((scene.labels >= 0) & (scene.labels < 80)).all()
    assert scene.masks.sum(axis=0).max() <= 1  # visible pixels belong to one object
    assert (scene.masks.sum(axis=(1, 2)) >= MIN_AREA_PX).all()


def test_boxes_are_tight():
    scene = render(np.random.default_rng(8), 200, 200)
    assert len(scene.boxes)
    for box, mask in zip(scene.boxes.astype(int), scene.masks):
        x1, y1, x2, y2 = box
        inside = mask[y1:y2, x1:x2]
        assert inside.sum() == mask.sum()
        assert inside[0].any()
        assert inside[-1].any()
        assert inside[:, 0].any()
        assert inside[:, -1].any()


@pytest.mark.parametrize("seed", range(5))
def test_one_object(seed):
    assert len(render(np.random.default_rng(seed), 200, 300, num_objects=1).labels) == 1


def test_no_objects():
    scene = render(np.random.default_rng(0), 64, 96, num_objects=0)
    assert scene.boxes.shape == (0, 4)
    assert scene.masks.shape == (0, 64, 96)


def test_crowded_scene_keeps_every_object_visible():
    scene = render(np.random.default_rng(5), 600, 800, num_objects=60)
    assert len(scene.labels) >= 40
    assert (scene.masks.sum(axis=(1, 2)) >= MIN_AREA_PX).all()


def test_every_class_is_drawn():
    labels = [render(np.random.default_rng(seed), 160, 240, num_objects=20).labels for seed in range(50)]
    assert set(np.concatenate(labels).tolist()) == set(range(80))


def test_boxes_of_no_masks():
    assert boxes_from_masks(np.zeros((0, 8, 8), np.uint8)).shape == (0, 4)


def test_index_map_round_trip():
    scene = render(np.random.default_rng(2), 128, 128)
    again = shapes.scene_from_index(scene.image, shapes.index_from_masks(scene.masks), scene.labels)
    assert np.array_equal(again.masks, scene.masks)
    assert np.array_equal(again.boxes, scene.boxes)


def test_held_out_scenes_do_not_depend_on_their_number():
    assert np.array_equal(held_out_scenes(2, 9)[1].image, held_out_scenes(3, 9)[1].image)


def test_coco_annotations_decode_to_the_masks():
    from pycocotools import mask as rle_tools

    scenes = held_out_scenes(1, 3)
    truth = coco_from_scenes(scenes, ["a.png"])
    assert [c["name"] for c in truth["categories"]] == list(CLASSES)
    for annotation, mask, label in zip(truth["annotations"], scenes[0].masks, scenes[0].labels):
        assert np.array_equal(rle_tools.decode(annotation["segmentation"]), mask)
        assert annotation["category_id"] == label + 1


def test_command_writes_a_coco_folder(tmp_path):
    shapes.main([str(tmp_path / "set"), "--num", "2", "--seed", "1"])
    truth = json.loads((tmp_path / "set" / "annotations.json").read_text())
    for entry in truth["images"]:
        image = cv2.imread(str(tmp_path / "set" / entry["file_name"]))
        assert image.shape[:2] == (entry["height"], entry["width"])
