"""``benchmarks.cpp_engine`` with an ONNX on the CPU: all of it but the engine. What it compares, it tells apart."""

import json
import math
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import cpp_engine
from examples import IMAGES_DIR
from runtime.detections import Detections
from runtime.masks import MaskCrop
from tests.cpp.conftest import Installed
from tests.runtime import fakes

FIGURES = {"resident_bytes", "threads", "file_descriptors"}


class Masks:
    """A square in each mask, one px further right than in the one before; fulfils ``MaskSource``."""

    def crop(self, index: int) -> MaskCrop:
        return MaskCrop(np.ones((4, 5), bool), 2, 3 + index)

    def select(self, keep: np.ndarray) -> "Masks":
        """Return those of another number of detections."""
        assert not len(keep)
        return self


def expected() -> Detections:
    boxes = np.array([[1, 2, 11, 22], [3, 4, 13.5, 14.25]], np.float32)
    scores, labels = np.array([0.75, 0.5], np.float32), np.array([1, 0], np.int32)
    return Detections(boxes, scores, labels, (20, 30), ("a", "b"), Masks())


def results() -> list[dict]:
    """Of ``expected``, as the C++ program writes them."""
    counts = [rle["counts"] for rle in expected().rle()]
    assert counts[0] != counts[1]
    return [
        {"category_id": 2, "bbox": [1, 2, 10, 20], "score": 0.75, "segmentation": {"counts": counts[0]}},
        {"category_id": 1, "bbox": [3, 4, 10.5, 10.25], "score": 0.5, "segmentation": {"counts": counts[1]}},
    ]


def test_the_same_is_no_difference() -> None:
    found = cpp_engine.difference([expected(), expected()], [results(), results()])
    assert found == cpp_engine.Difference(2, 4, 4, 0, 0.0, 0.0, 0, 0)
    assert found.is_none


@pytest.mark.parametrize(
    ("field", "value", "difference"),
    [
        ("bbox", [3, 4, 10.5, 10.5], {"box_px": 0.25}),
        ("bbox", [2, 4, 10.5, 10.25], {"box_px": 1.0}),
        ("score", 0.625, {"score": 0.125}),
        ("category_id", 2, {"labels": 1}),
        ("segmentation", {"counts": "5"}, {"run_lengths": 1}),
        ("segmentation", {}, {"run_lengths": 1}),
    ],
)
def test_every_difference_is_seen(field: str, value: object, difference: dict) -> None:
    ours = results()
    ours[1][field] = value
    found = cpp_engine.difference([expected()], [ours])
    assert found == replace(cpp_engine.Difference(1, 2, 2, 0, 0.0, 0.0, 0, 0), **difference)
    assert not found.is_none


@pytest.mark.parametrize(("field", "value"), [("bbox", [3, 4, math.nan, 10.25]), ("score", math.nan)])
def test_nan_is_a_difference(field: str, value: object) -> None:
    ours = results()
    ours[0][field] = value
    found = cpp_engine.difference([expected()], [ours])
    assert math.isnan(found.box_px if field == "bbox" else found.score)
    assert not found.is_none


def test_one_more_here_and_one_fewer_there_are_a_difference() -> None:
    found = cpp_engine.difference([expected(), expected()], [results()[:1], [*results(), results()[1]]])
    assert found == cpp_engine.Difference(2, 4, 4, 2, 0.0, 0.0, 0, 0)
    assert not found.is_none


def test_fewer_detections_or_none_at_all_are_a_difference() -> None:
    assert not cpp_engine.difference([expected()], [results()[:1]]).is_none
    assert not cpp_engine.difference([expected().select(np.zeros(0, int))], [[]]).is_none
    with pytest.raises(ValueError, match=r"^results: expected those of 1 images, found those of 2; "):
        cpp_engine.difference([expected()], [results(), []])


def test_the_benchmark_measures_both(installed: Installed, tmp_path: Path) -> None:
    model = fakes.save(tmp_path / "m.onnx")
    out = tmp_path / "out.json"
    programs = installed.programs / "cpp"
    options = ["--batch", 3, "--num-images", 4, "--runs", 3, "--rounds", 2, "--calls", 200, "--out", out]
    arguments = [model, "--programs", programs, "--images", IMAGES_DIR, *options]
    assert cpp_engine.main([str(argument) for argument in arguments]) == 0
    measured = json.loads(out.read_text())
    assert {size: found["is_none"] for size, found in measured["agreement"].items()} == {"1": True, "3": True}
    for size, found in measured["latency"].items():
        assert size in ("1", "3")
        assert found["cpp_ms"]["n"] == found["python_ms"]["n"] == 6
        assert min(found["cpp_ms"]["rounds"] + found["python_ms"]["rounds"]) > 0
    assert [figures["calls"] for figures in measured["endurance"]["figures"]] == list(range(20, 201, 20))
    assert set(measured["endurance"]["grown"]) == FIGURES
    assert (
        measured["endurance"]["grown"]["threads"] == measured["endurance"]["grown"]["file_descriptors"] == 0
    )
    assert min(measured["endurance"]["figures"][0][name] for name in FIGURES) > 0
    assert measured["endurance"]["unlike"] == measured["company"]["unlike"] == 0
    # Rounds of two detectors over the batches of 1 and of 3 that begin at each image.
    assert measured["company"]["results"] == 2 * 5 * 4 * (1 + 3)


@pytest.mark.parametrize("option", ["batch", "runs", "threads", "calls", "detectors"])
@pytest.mark.parametrize("value", ["abc", "", "3x", " 3", "1e3", "99999999999"])
def test_a_number_that_is_none_is_refused(installed: Installed, option: str, value: str) -> None:
    program = installed.programs / "cpp" / "maskrcnn_benchmark"
    done = subprocess.run(
        [str(program), "m.onnx", "i.ppm", f"--{option}", value], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr == f'benchmark: error: --{option}: expected a whole number, found "{value}"\n'


@pytest.mark.parametrize("option", ["batch", "runs", "threads", "calls", "detectors"])
def test_a_number_below_one_is_refused(installed: Installed, option: str) -> None:
    program = installed.programs / "cpp" / "maskrcnn_benchmark"
    done = subprocess.run(
        [str(program), "m.onnx", "i.ppm", f"--{option}", "0"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr == f"benchmark: error: --{option}: expected at least 1, found 0\n"


def test_a_part_that_fails_is_said_and_the_others_run(installed: Installed, tmp_path: Path) -> None:
    model = fakes.save(tmp_path / "m.onnx")
    out = tmp_path / "out.json"
    options = ["--parts", "agreement", "company", "--num-images", 1, "--batch", 1, "--out", out]
    arguments = [model, "--programs", tmp_path, "--images", IMAGES_DIR, *options]
    assert cpp_engine.main([str(argument) for argument in arguments]) == 1
    measured = json.loads(out.read_text())
    assert "maskrcnn_detect" in measured["agreement"]["error"]
    assert "maskrcnn_benchmark" in measured["company"]["error"]
