"""Every head on small networks, next to its decoder in NumPy: what the graph returns, row by row."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from export.graft import reference
from export.graft.api import Grafted, grafted
from export.graft.head import head_names, load_head
from tests.export.graft.networks import FACES, NETWORKS, SIZE, Recipe, yolov8

# float32 through exp and sums in another order; px of boxes up to some hundreds.
BOX_PX, SCORE = 2e-3, 1e-5


def graft_of(name: str, folder: Path, recipe: Recipe, **changes: object) -> Grafted:
    path = folder / f"{name}.onnx"
    onnx.save(NETWORKS[name](recipe), path)
    return grafted(path, load_head(name).changed(**changes))


def images_of(count: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(5).normal(size=(count, 3, *size)).astype(np.float32)


def run(made: Grafted, images: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(made.model.SerializeToString(), providers=["CPUExecutionProvider"])
    sizes = np.tile(np.float32(images.shape[2:]), (len(images), 1))
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": images, "image_sizes": sizes})))


def expected_of(made: Grafted, image: np.ndarray) -> reference.Found:
    session = onnxruntime.InferenceSession(
        made.network.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    arrays = dict(zip(names, session.run(names, {made.given.name: made.given.array(image[None])})))
    outputs = {role: [arrays[n][0] for n in found] for role, found in made.match.tensors.items()}
    return reference.decode(outputs, made.head, image.shape[1:])


def check_rows(
    found: dict[str, np.ndarray], index: int, want: reference.Found, made: Grafted, size: tuple
) -> None:
    """Every output of one image, absent rows too."""
    count = int(found["num_dets"][index])
    assert count == len(want.boxes)
    boxes = want.boxes.clip(0, (*size[::-1], *size[::-1])) if made.head.clip else want.boxes
    order = _paired(found["dets"][index, :count], boxes, want.scores)
    np.testing.assert_allclose(found["dets"][index, order, :4], boxes, atol=BOX_PX, rtol=1e-4)
    np.testing.assert_allclose(found["dets"][index, order, 4], want.scores, atol=SCORE)
    np.testing.assert_array_equal(found["labels"][index, order], want.labels)
    assert not found["dets"][index, count:].any()
    assert (found["labels"][index, count:] == -1).all()
    assert (np.diff(found["dets"][index, :count, 4]) <= 0).all()
    if want.keypoints is not None:
        np.testing.assert_allclose(found["keypoints"][index, order], want.keypoints, atol=BOX_PX, rtol=1e-4)
        assert not found["keypoints"][index, count:].any()
    if want.grids is not None:
        np.testing.assert_allclose(found["masks"][index, order], want.grids, atol=1e-4)


def _paired(rows: np.ndarray, boxes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the row of each expected detection: scores that differ by rounding alone may swap places."""
    if not len(rows):
        return np.zeros(0, int)
    others = np.abs(rows[None, :, 4] - scores[:, None]) > SCORE
    return (others * 1e9 + np.abs(rows[None, :, :4] - boxes[:, None]).max(2)).argmin(1)


# The logit of the scores, and how far they depend on the image.
CASES = {"none": (-30.0, 0.1), "some": (-1.5, 1.2), "all": (3.0, 0.3)}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", head_names())
def test_the_graph_is_the_decoder(name: str, case: str, tmp_path: Path) -> None:
    score, spread = CASES[case]
    recipe = Recipe(classes=1 if name in FACES else 3, score=score, spread=spread)
    made = graft_of(name, tmp_path, recipe)
    images = images_of(3)
    want = [expected_of(made, image) for image in images]
    counts = [len(found.boxes) for found in want]
    assert (max(counts) == 0) if case == "none" else (min(counts) > 0), counts
    for batch in (1, 2, 3):
        found = run(made, images[:batch])
        for index in range(batch):
            check_rows(found, index, want[index], made, SIZE)


@pytest.mark.parametrize("name", [name for name in head_names() if name not in FACES])
@pytest.mark.parametrize("classes", [1, 80])
def test_one_class_and_eighty(name: str, classes: int, tmp_path: Path) -> None:
    made = graft_of(name, tmp_path, Recipe(classes=classes, score=-1.0))
    assert made.match.num_classes == classes
    images = images_of(2)
    found = run(made, images)
    assert found["num_dets"].min() > 0
    for index, image in enumerate(images):
        check_rows(found, index, expected_of(made, image), made, SIZE)


@pytest.mark.parametrize("name", head_names())
def test_all_rows_are_full_and_candidates_are_cut(name: str, tmp_path: Path) -> None:
    """More candidates than reach the NMS, more of it than there are rows; nothing suppresses anything."""
    made = graft_of(
        name, tmp_path, Recipe(score=3.0, spread=0.5), max_per_img=5, pre_nms=20, iou_threshold=1.0
    )
    images = images_of(2)
    found = run(made, images)
    assert found["num_dets"].tolist() == [5, 5]
    for index, image in enumerate(images):
        check_rows(found, index, expected_of(made, image), made, SIZE)


@pytest.mark.parametrize("name", head_names())
def test_nan_among_scores_is_nobodys_detection(name: str, tmp_path: Path) -> None:
    made = graft_of(name, tmp_path, Recipe(classes=1 if name in FACES else 3, score=3.0, spread=0.3))
    images = images_of(2)
    images[0, 1, 20, 20] = np.nan  # of one cell in every level
    found = run(made, images)
    assert np.isfinite(found["dets"]).all()
    for index, image in enumerate(images):
        check_rows(found, index, expected_of(made, image), made, SIZE)


@pytest.mark.parametrize("name", head_names())
def test_nan_in_a_box_reaches_the_outputs(name: str, tmp_path: Path) -> None:
    """The runtime then says so; other images of the batch are what they were."""
    made = graft_of(name, tmp_path, Recipe(score=3.0, spread=0.3), max_per_img=1000)
    images = images_of(2)
    alone = run(made, images[1:])
    images[0, 0, 20, 20] = np.nan
    found = run(made, images)
    assert np.isnan(found["dets"][0, : found["num_dets"][0], :4]).any()
    for output, array in alone.items():
        np.testing.assert_allclose(found[output][1], array[0], atol=BOX_PX)


@pytest.mark.parametrize("name", ["scrfd", "retinaface", "centerface"])
def test_any_size(name: str, tmp_path: Path) -> None:
    """Places of cells come from the input's own size."""
    path = tmp_path / "network.onnx"
    onnx.save(NETWORKS[name](Recipe(score=-1.0)), path)
    made = grafted(path, name, dynamic_size=True)
    assert made.metadata.size is None
    for size in ((64, 96), (96, 64), (32, 32), (160, 128)):
        images = images_of(2, size)
        found = run(made, images)
        for index, image in enumerate(images):
            check_rows(found, index, expected_of(made, image), made, size)


@pytest.mark.parametrize("name", ["scrfd", "yolov8-seg"])
def test_an_image_without_a_size_is_filling(name: str, tmp_path: Path) -> None:
    """And no head leaves ``image_sizes`` unread: TensorRT takes such an input out of the engine."""
    made = graft_of(name, tmp_path, Recipe(score=3.0))
    images = images_of(2)
    session = onnxruntime.InferenceSession(made.model.SerializeToString(), providers=["CPUExecutionProvider"])
    sizes = np.array([[0, 0], SIZE], np.float32)
    counts, dets, labels, *_ = session.run(None, {"images": images, "image_sizes": sizes})
    assert counts[0] == 0
    assert counts[1] > 0
    assert not dets[0].any()
    assert (labels[0] == -1).all()


def test_boxes_of_classes_suppress_each_other_where_that_is_asked_for(tmp_path: Path) -> None:
    recipe = Recipe(classes=3, score=0.0)
    made = graft_of("yolov8", tmp_path, recipe, iou_threshold=0.1)
    agnostic = grafted(tmp_path / "yolov8.onnx", replace(made.head, class_agnostic=True))
    image = images_of(1)
    counts = [int(run(each, image)["num_dets"][0]) for each in (made, agnostic)]
    assert counts[0] > counts[1] > 0
    for each in (made, agnostic):
        check_rows(run(each, image), 0, expected_of(each, image[0]), each, SIZE)


def test_key_points_with_scores_of_their_own(tmp_path: Path) -> None:
    """As YOLOv8-pose has them, behind the scores; with masks behind these."""
    for coefficients in (0, 32):
        path = tmp_path / f"pose_{coefficients}.onnx"
        onnx.save(yolov8(Recipe(classes=2, score=0.0), coefficients, keypoints=4), path)
        head = load_head("yolov8-seg" if coefficients else "yolov8")
        made = grafted(path, head.changed(keypoints=("a", "b", "c", "d"), skeleton=((0, 3),)))
        assert made.match.num_classes == 2
        images = images_of(2)
        found = run(made, images)
        assert found["num_dets"].min() > 0
        for index, image in enumerate(images):
            check_rows(found, index, expected_of(made, image), made, SIZE)
