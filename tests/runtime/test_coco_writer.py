import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO

from runtime.coco_writer import ResultsWriter, coco_results
from runtime.detections import Detections
from tests.runtime import fakes
from tests.runtime.processes import ROOT, SECONDS, leftovers
from tests.runtime.test_detections import _detections


def test_boxes_become_xywh_and_labels_ids_from_one() -> None:
    first = coco_results(_detections(), 7, "a/b.jpg")[0]
    assert first["bbox"] == [1.0, 2.0, 19.0, 28.0]
    assert first["score"] == 0.9
    assert (first["image_id"], first["category_id"], first["file_name"]) == (7, 2, "a/b.jpg")
    assert first["segmentation"]["size"] == [40, 50]


def test_without_masks_there_is_no_segmentation() -> None:
    assert all("segmentation" not in result for result in coco_results(_detections(masks=False), 1, "a.jpg"))


def test_pycocotools_loads_both_files(tmp_path: Path) -> None:
    with ResultsWriter(tmp_path, fakes.CLASSES) as writer:
        writer.add(_detections(), 1, "a.jpg")
        writer.add(_detections().filter(1.0), 2, "none.jpg")
        writer.add(_detections(), 3, "b.jpg")
    dataset = COCO(str(tmp_path / "images.json"))
    results = dataset.loadRes(str(tmp_path / "results.json"))
    assert len(results.getAnnIds(imgIds=[1])) == 3
    assert results.getAnnIds(imgIds=[2]) == []
    assert [c["name"] for c in dataset.loadCats([1, 2, 3])] == list(fakes.CLASSES)
    annotation = results.loadAnns(results.getAnnIds(imgIds=[3]))[0]
    np.testing.assert_array_equal(results.annToMask(annotation), _detections().masks[0])
    assert not list(tmp_path.glob("*.part"))


def test_no_images_make_valid_empty_files(tmp_path: Path) -> None:
    with ResultsWriter(tmp_path, fakes.CLASSES):
        pass
    assert json.loads((tmp_path / "results.json").read_text()) == []
    assert json.loads((tmp_path / "images.json").read_text())["images"] == []


def test_a_failed_run_leaves_the_last_results_alone(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("[]")
    broken = Detections(
        np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32), (1, 1), fakes.CLASSES
    )
    with pytest.raises(RuntimeError, match="stop"), ResultsWriter(tmp_path, fakes.CLASSES) as writer:
        writer.add(broken, 1, "a.jpg")
        raise RuntimeError("stop")
    assert (tmp_path / "results.json").read_text() == "[]"


_KILLED = """
import os, signal, sys
from pathlib import Path
from runtime.coco_writer import ResultsWriter
from tests.runtime.test_detections import _detections
steps, after = int(sys.argv[2]), 0

def counted(function):
    def call(*arguments, **options):
        global after
        if after == steps:
            os.kill(os.getpid(), signal.SIGKILL)
        after += 1
        return function(*arguments, **options)
    return call

with ResultsWriter(Path(sys.argv[1]), ("new", "b", "c")) as writer:
    writer.add(_detections(), 1, "new.jpg")
    os.replace, os.unlink = counted(os.replace), counted(os.unlink)
"""


def _of_runs(folder: Path) -> dict[str, str]:
    """Return which run each file is of."""
    found = {}
    for name, key in (("results.json", "file_name"), ("images.json", "name")):
        if (folder / name).exists():
            content = json.loads((folder / name).read_text())
            found[name] = (content if name == "results.json" else content["categories"])[0][key].partition(
                "."
            )[0]
    return found


def test_a_kill_between_the_renames_mixes_no_two_runs(tmp_path: Path) -> None:
    """Before each step in turn; what is left is one run's, and the next run's files are whole."""
    seen = []
    for step in range(6):
        folder = tmp_path / str(step)
        folder.mkdir()
        with ResultsWriter(folder, ("old", "b", "c")) as writer:
            writer.add(_detections(), 1, "old.jpg")
        command = [sys.executable, "-c", _KILLED, str(folder), str(step)]
        done = subprocess.run(command, cwd=ROOT, timeout=SECONDS)
        assert done.returncode == (-signal.SIGKILL if step < 5 else 0)
        seen.append(_of_runs(folder))
        assert (len(leftovers(folder)) > 0) == (step < 4)
        with ResultsWriter(folder, ("next", "b", "c")) as writer:
            writer.add(_detections(), 1, "next.jpg")
        assert _of_runs(folder) == {"results.json": "next", "images.json": "next"}
        assert leftovers(folder) == []
    assert seen == [
        {"results.json": "old", "images.json": "old"},
        {"results.json": "old"},
        {"results.json": "new"},
        {"results.json": "new"},
        {"results.json": "new", "images.json": "new"},
        {"results.json": "new", "images.json": "new"},
    ]


def test_a_link_to_the_images_stays(tmp_path: Path) -> None:
    (tmp_path / "elsewhere.json").write_text("{}")
    (tmp_path / "images.json").symlink_to("elsewhere.json")
    with ResultsWriter(tmp_path, fakes.CLASSES):
        pass
    assert (tmp_path / "images.json").is_symlink()
    assert json.loads((tmp_path / "elsewhere.json").read_text())["images"] == []
