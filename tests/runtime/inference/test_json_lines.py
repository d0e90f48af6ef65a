"""``detections.jsonl``: whole lines at any moment, the old file until the first, and no mixture of two runs."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.inference.json_lines import JsonLinesWriter
from tests.runtime.processes import ROOT, SECONDS, coco_of, ended, leftovers, lines_of, start

RESULTS = [
    {
        "image_id": 7,
        "category_id": 2,
        "bbox": [1.0, 2.0, 3.0, 4.0],
        "score": 0.5,
        "file_name": "a.jpg",
        "segmentation": {"size": [4, 5], "counts": "abc"},
    }
]


def test_a_line_has_what_was_found_or_why_nothing_was(tmp_path: Path) -> None:
    (tmp_path / "detections.jsonl").write_text("{}\n")
    with JsonLinesWriter(tmp_path) as lines:
        assert lines_of(tmp_path) == [{}]  # of the run before
        lines.add(7, "ä\n\udcff.jpg", (4, 5), RESULTS, ("x", "y"))
        first = lines_of(tmp_path)
        lines.add_skipped(8, "b.jpg", "damaged\nreally")
        assert lines_of(tmp_path)[:1] == first
    assert lines_of(tmp_path) == [
        {
            "image_id": 7,
            "file_name": "ä\n\udcff.jpg",
            "width": 5,
            "height": 4,
            "detections": [
                {
                    "category": "y",
                    "category_id": 2,
                    "bbox": [1.0, 2.0, 3.0, 4.0],
                    "score": 0.5,
                    "segmentation": {"size": [4, 5], "counts": "abc"},
                }
            ],
        },
        {"image_id": 8, "file_name": "b.jpg", "skipped": "damaged\nreally"},
    ]
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("num_lines", [0, 1, 2])
def test_after_an_exception_the_lines_stay(num_lines: int, tmp_path: Path) -> None:
    (tmp_path / "detections.jsonl").write_text("{}\n")
    with pytest.raises(KeyError), JsonLinesWriter(tmp_path) as lines:
        for index in range(num_lines):
            lines.add_skipped(index, "a.jpg", "damaged")
        raise KeyError
    found = lines_of(tmp_path)
    assert [line.get("image_id") for line in found] == (list(range(num_lines)) or [None])
    assert leftovers(tmp_path) == []


def test_two_runs_in_one_folder_do_not_mix(tmp_path: Path) -> None:
    """The one that ends last has the name, with all of its lines."""
    with JsonLinesWriter(tmp_path) as first:
        first.add_skipped(1, "first", "")
        with JsonLinesWriter(tmp_path) as second:
            second.add_skipped(1, "second", "")
            first.add_skipped(2, "first", "")
            second.add_skipped(2, "second", "")
        assert [line["file_name"] for line in lines_of(tmp_path)] == ["second"] * 2
        first.add_skipped(3, "first", "")
    assert [line["file_name"] for line in lines_of(tmp_path)] == ["first"] * 3
    assert leftovers(tmp_path) == []


def test_where_there_are_no_hard_links_the_file_comes_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*paths: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", link)
    with JsonLinesWriter(tmp_path) as lines:
        lines.add_skipped(1, "a", "")
        assert lines_of(tmp_path) == []
    assert len(lines_of(tmp_path)) == 1
    assert leftovers(tmp_path) == []


def test_a_line_that_finds_no_room_leaves_the_others_whole(tmp_path: Path) -> None:
    program = f"""
import pathlib, resource
from runtime.inference.json_lines import JsonLinesWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
with JsonLinesWriter(pathlib.Path({str(tmp_path)!r})) as lines:
    for index in range(100):
        try:
            lines.add_skipped(index, "a.jpg", "x" * 100)
        except OSError as error:
            print(error)
            break
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=SECONDS
    )
    assert "File too large: expected room for" in done.stdout
    assert f"free some, or name another folder: '{tmp_path / 'detections.jsonl'}'" in done.stdout
    assert 1 <= len(lines_of(tmp_path)) < 10
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1000


@pytest.mark.parametrize("num_processes", [2, 4])
def test_processes_in_one_folder_leave_one_whole_run(
    num_processes: int, fake_model: Path, tmp_path: Path
) -> None:
    """Each has another image, so that a mixture would show."""
    import cv2

    from tests.runtime import fakes

    images = []
    for index in range(num_processes):
        images.append(tmp_path / f"{index}.png")
        data = cv2.imencode(".png", fakes.random_image(40 + 10 * index, 96, index))[1]
        images[-1].write_bytes(data.tobytes())
    out = tmp_path / "out"
    processes = [start("runtime.infer", image, "--model", fake_model, "--out", out) for image in images]
    assert [ended(process)[0] for process in processes] == [0] * num_processes
    (line,), (dataset, results) = lines_of(out), coco_of(out)
    assert {r["file_name"] for r in results} == {image["file_name"] for image in dataset["images"]}
    assert line["file_name"] in [image["file_name"] for image in dataset["images"]]
    assert len(line["detections"]) == len(results)
    assert leftovers(out) == []
