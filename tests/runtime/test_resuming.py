"""``--resume``: a run that was killed at any moment and went on leaves what an uninterrupted one does."""

import json
import re
import shutil
import signal
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from runtime import infer
from runtime.inference.resuming import _Group, earlier_run
from tests.runtime import fakes
from tests.runtime.processes import ended, leftovers, lines_of, run, start, wait_for

NUM_IMAGES = 40
FILES = ("detections.jsonl", "results.json", "images.json")
# An embedded image of 448x640 px takes longer than a small one; so long is a run.
SIZE = (500, 700)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of which some cannot be read: a batch is so many that can."""
    folder = tmp_path_factory.mktemp("images")
    for index in range(NUM_IMAGES):
        path = folder / f"{index:03}.png"
        image = fakes.random_image(SIZE[0], SIZE[1] + index, index)
        path.write_bytes(b"damaged" if index % 7 == 3 else cv2.imencode(".png", image)[1].tobytes())
    return folder


def _options(model: Path, out: Path) -> tuple:
    run_as = ("--batch", 3, "--threads", 1, "--backend", "onnxruntime")
    return ("--model", model, "--out", out, "--format", "yolo", *run_as)


def _content(out: Path) -> dict[str, bytes]:
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def whole(images: Path, fake_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an uninterrupted run writes."""
    out = tmp_path_factory.mktemp("whole")
    assert infer.main([str(a) for a in (images, *_options(fake_model, out))]) == 1
    content = _content(out)
    assert set(FILES) < set(content)
    assert len(content) == 3 + 2 * (NUM_IMAGES - 6) + 2
    return content


@pytest.mark.parametrize("after", [(1,), (2, 9, 30), (37,)])
def test_after_being_killed_it_goes_on(
    after: tuple[int, ...], images: Path, fake_model: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    for number in after:
        process = start("runtime.infer", images, *_options(fake_model, tmp_path), "--resume")
        try:
            wait_for(lambda number=number: len(_lines(tmp_path)) >= number, process)
        finally:
            process.send_signal(signal.SIGKILL)
        assert ended(process)[0] == -signal.SIGKILL
        assert len(_lines(tmp_path)) >= number  # nothing is lost
    code, printed, _ = run("runtime.infer", images, *_options(fake_model, tmp_path), "--resume")
    assert code == 1
    assert re.search(r"resumed: \d+ of 40 images were finished before", printed) or after == (1,)
    assert _content(tmp_path) == whole
    assert leftovers(tmp_path) == []


def _lines(out: Path) -> list[bytes]:
    path = out / "detections.jsonl"
    return path.read_bytes().splitlines() if path.exists() else []


@pytest.mark.parametrize("num_lines", [0, 1, 8, 20, 33, NUM_IMAGES])
def test_wherever_it_was_cut_the_files_are_the_same(
    num_lines: int, images: Path, fake_model: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    lines = whole["detections.jsonl"].splitlines(keepends=True)
    (tmp_path / "detections.jsonl").write_bytes(b"".join(lines[:num_lines]) + lines[-1][:7])
    for name, content in whole.items():
        # Overlays of images that have a line were written, the last one's perhaps not.
        is_image = name.endswith((".png", ".txt")) and Path(name).stem.isdigit()
        if is_image and int(Path(name).stem) < num_lines - 1:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(content)
    assert infer.main([str(a) for a in (images, *_options(fake_model, tmp_path), "--resume")]) == 1
    assert _content(tmp_path) == whole


def test_without_an_earlier_run_it_begins(images: Path, fake_model: Path, tmp_path: Path, capsys) -> None:
    one = images / "000.png"
    assert infer.main([str(a) for a in (one, *_options(fake_model, tmp_path), "--resume")]) == 0
    assert len(lines_of(tmp_path)) == 1
    assert "resumed" not in capsys.readouterr().out


def test_groups_are_those_of_the_pipeline(images: Path, fake_model: Path, tmp_path: Path) -> None:
    """Batches begin again where ``runtime.pipeline`` begins one."""
    from runtime.pipeline import _groups, _ReadFile

    generator = np.random.default_rng(0)
    for batch in (1, 2, 5):
        readable = (generator.random(700) < 0.3).tolist()
        readable[100:500] = [False] * 400
        files = (
            _ReadFile(i, Path(), None, "" if r else "x", None, 0.0, None) for i, r in enumerate(readable)
        )
        lengths = [len(group) for group in _groups(files, batch)]
        group, found, begin = _Group(batch), [], 0
        for number, is_readable in enumerate(readable, 1):
            if group.ends_with(is_readable):
                found.append(number - begin)
                begin = number
        assert found == (lengths if begin == len(readable) else lengths[:-1])


@pytest.mark.parametrize("change", ["other sources", "fewer sources", "another model", "no JSON", "no line"])
def test_another_run_is_not_gone_on_with(
    change: str,
    images: Path,
    fake_model: Path,
    whole: dict[str, bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    lines = [json.loads(line) for line in whole["detections.jsonl"].splitlines()[:20]]
    sources, model, out = [images], fake_model, tmp_path / "out"
    message = "name the sources of the run that was interrupted, or leave --resume out"
    if change == "other sources":
        sources = [images / "005.png", images]
    elif change == "fewer sources":
        sources = sorted(images.glob("*.png"))[:10]
    elif change == "another model":
        changed = fakes.metadata(classes=("square", "circle", "triangle"), mask_threshold=0.7)
        model = fakes.save(tmp_path / "m.onnx", changed)
        lines[-1]["detections"][0]["bbox"][0] += 1
        message = "run with the model and the options of the run that was interrupted"
    out.mkdir()
    text = "".join(json.dumps(line) + "\n" for line in lines)
    if change == "no JSON":
        text, message = "{\n" + text, "line 1: expected JSON, found"
    elif change == "no line":
        text, message = "[]\n" + text, "line 1: expected an image's detections, found"
    (out / "detections.jsonl").write_text(text)
    assert infer.main([str(a) for a in (*sources, *_options(model, out), "--resume")]) == 2
    assert message in capsys.readouterr().err
    assert (out / "detections.jsonl").read_text() == text
    assert not (out / "results.json").exists()


def test_own_ids_are_resumed(images: Path, fake_model: Path, tmp_path: Path) -> None:
    names = [f"{i:03}.png" for i in range(6)]
    truth = {
        "images": [{"id": f"x{n}", "file_name": n} for n in names],
        "categories": [{"id": 70, "name": "square"}, {"id": 7, "name": "circle"}],
    }
    (tmp_path / "own.json").write_text(json.dumps(truth))
    contents = []
    for folder, resumed in (("a", False), ("b", True)):
        out = tmp_path / folder
        options = [
            images,
            *_options(fake_model, out),
            "--annotations",
            tmp_path / "own.json",
            "--no-overlays",
        ]
        if resumed:
            out.mkdir()
            shutil.copyfile(tmp_path / "a" / "detections.jsonl", out / "detections.jsonl")
            options.append("--resume")
        assert infer.main([str(a) for a in options]) == 1
        contents.append({name: (out / name).read_bytes() for name in FILES})
    assert contents[0] == contents[1]
    assert {line["image_id"] for line in lines_of(tmp_path / "b")} == {f"x{n}" for n in names}


def test_the_end_of_an_earlier_run_is_read_once(tmp_path: Path) -> None:
    start_time = time.monotonic()
    line = {"detections": [], "width": 1, "height": 1}
    with (tmp_path / "detections.jsonl").open("w") as file:
        for number in range(20000):
            file.write(json.dumps({"image_id": number, "file_name": "a", **line}) + "\n")
    expected = [{"image_id": number, "file_name": "a"} for number in range(30000)]
    found = earlier_run(tmp_path, expected, 8)
    assert (found.num_kept, found.num_lines) == (19992, 20000)
    assert [x["image_id"] for x in found.compared()] == list(range(19992, 20000))
    assert time.monotonic() - start_time < 20
