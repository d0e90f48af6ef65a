"""Sources of ``runtime.infer``: folders within folders, lists, JSON lines; and what is written of them."""

import base64
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import supervision

from runtime import Detector, infer
from tests.runtime import fakes
from tests.runtime.processes import ROOT, first_line, lines_of, start


def _png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image)[1].tobytes()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Images in folders within folders, two of one name, and one that is dark: nothing is found in it."""
    folder = tmp_path / "images"
    for index, name in enumerate(["a.png", "sub/a.png", "sub/deep er/c.png"]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(_png(fakes.random_image(64, 96 + index, index)))
    (folder / "dark.png").write_bytes(_png(np.zeros((50, 60, 3), np.uint8)))
    return folder


def _run(*arguments: object) -> int:
    return infer.main([str(a) for a in arguments])


def test_folders_are_taken_with_those_within(
    images: Path, fake_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (images / "circle").symlink_to(images)
    (images / "sub" / "notes.txt").write_text("x")
    out = images / "out"  # within the source
    for _ in range(2):
        assert _run(images, "--recursive", "--model", fake_model, "--out", out, "--crops", "box") == 0
        names = [Path(line["file_name"]).relative_to(images).as_posix() for line in lines_of(out)]
        assert names == ["a.png", "dark.png", "sub/a.png", "sub/deep er/c.png"]
        assert sorted(p.name for p in out.glob("*.png")) == ["a.png", "c.png", "dark.png", "sub_a.png"]
    said = capsys.readouterr().err
    assert re.search(r"ignored in .*images: 1 folder, ", said)
    assert _run(images, "--model", fake_model, "--out", out) == 0
    assert len(lines_of(out)) == 2


def test_a_list_names_sources(images: Path, fake_model: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_bytes(f"{images / 'dark.png'}\r\n\n{images / 'sub'}\n{images / 'a.png'}".encode("utf-8-sig"))
    assert _run("--list", listed, "--model", fake_model, "--out", tmp_path / "out") == 0
    names = [Path(line["file_name"]).relative_to(images).as_posix() for line in lines_of(tmp_path / "out")]
    assert names == ["dark.png", "sub/a.png", "a.png"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n \n", "--list .*: expected a source in each line, found none"),
        (b"\x89PNG\0\0\n", "--list .*: expected text, found a byte 0"),
        (b"nowhere.png\n", "nowhere.png: expected an image, a folder or a glob pattern"),
    ],
)
def test_a_list_that_is_none_is_refused(
    content: bytes, message: str, fake_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "list").write_bytes(content)
    assert _run("--list", tmp_path / "list", "--model", fake_model) == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-", "a.png"], "expected '-' .JSON lines from standard input. alone, found 1 more"),
        (["a.png", "b.mp4"], "expected images or videos, found both, such as a.png and b.mp4"),
        (["{images}", "--track"], "--track: expected videos as sources, found images"),
        (["{images}", "--stride", "2"], "--stride: expected videos as sources, found images"),
        (["-", "--resume"], "--resume: expected files as sources, found standard input"),
        (["b.mp4", "--crops", "box"], "--crops: expected images as sources, found videos"),
        (["{images}", "--classes", "circel"], "found circel; did you mean 'circle'?"),
    ],
)
def test_what_does_not_go_together_is_refused(
    arguments: list[str],
    message: str,
    images: Path,
    fake_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    given = [a.format(images=images) for a in arguments]
    assert _run("--model", fake_model, "--out", tmp_path / "out", *given) == 2
    assert re.search(message.replace("?", r"\?"), capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_only_chosen_classes_are_in_all_files(images: Path, fake_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = (
        "--classes",
        "square",
        "triangle",
        "--crops",
        "box",
        "--format",
        "yolo",
        "labelme",
        "--score",
        "0.1",
    )
    assert _run(images, "--model", fake_model, "--out", out, *options) == 0
    results = json.loads((out / "results.json").read_text())
    assert [r["category_id"] for r in results] == [2, 3]
    assert [d["category"] for line in lines_of(out) for d in line["detections"]] == ["square", "triangle"]
    shapes = json.loads((out / "labelme" / "a.json").read_text())["shapes"]
    assert {s["label"] for s in shapes} == {"square", "triangle"}
    assert {line.split()[0] for line in (out / "yolo" / "labels" / "a.txt").read_text().splitlines()} == {
        "1",
        "2",
    }
    assert [p.name for p in sorted((out / "crops" / "a").iterdir())] == ["001_square.png", "002_triangle.png"]
    assert (out / "yolo" / "labels" / "dark.txt").read_text() == ""


def test_crops_are_the_pixels_of_boxes_or_masks(images: Path, fake_model: Path, tmp_path: Path) -> None:
    image = fakes.random_image(64, 96, 0)
    with Detector(fake_model, "onnxruntime") as detector:
        (found,) = detector([image])
    for kind in ("box", "mask"):
        out = tmp_path / kind
        assert _run(images / "a.png", "--model", fake_model, "--out", out, "--crops", kind) == 0
        files = sorted((out / "crops" / "a").iterdir())
        assert [p.name for p in files] == ["001_square.png", "002_circle.png"]
        for path, box, mask in zip(files, found.boxes.round().astype(int), found.masks):
            x1, y1, x2, y2 = box
            cut = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            np.testing.assert_array_equal(cut[..., :3], image[y1:y2, x1:x2])
            if kind == "mask":
                np.testing.assert_array_equal(cut[..., 3], mask[y1:y2, x1:x2] * 255)
    # A higher score leaves none of the first run.
    assert (
        _run(images / "a.png", "--model", fake_model, "--out", out, "--crops", "box", "--score", "0.8") == 0
    )
    assert [p.name for p in (out / "crops" / "a").iterdir()] == ["001_square.png"]


def test_names_of_classes_are_safe_in_files(images: Path, tmp_path: Path) -> None:
    names = ("../../x", "a/b\\c:d", "ü" * 200)
    model = fakes.save(tmp_path / "m.onnx", fakes.metadata(classes=names))
    out = tmp_path / "out"
    options = ("--crops", "box", "--format", "yolo", "--score", "0.1")
    assert _run(images / "a.png", "--model", model, "--out", out, *options) == 0
    crops = sorted(p.name for p in (out / "crops" / "a").iterdir())
    assert crops == ["001_a_b_c_d.png", "002_x.png", f"003_{'ü' * 30}.png"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "m.onnx", "out"]


def test_supervision_reads_labels_of_a_run(images: Path, fake_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert (
        _run(images / "a.png", images / "dark.png", "--model", fake_model, "--out", out, "--format", "yolo")
        == 0
    )
    dataset = supervision.DetectionDataset.from_yolo(
        str(images), str(out / "yolo" / "labels"), str(out / "yolo" / "data.yaml"), force_masks=True
    )
    assert dataset.classes == list(fakes.CLASSES)
    assert (out / "yolo" / "classes.txt").read_text().split() == list(fakes.CLASSES)
    read = {Path(path).name: found for path, _, found in dataset}
    with Detector(fake_model, "onnxruntime") as detector:
        (found,) = detector([fakes.random_image(64, 96, 0)])
    assert read["a.png"].class_id.tolist() == found.filter(0.3).labels.tolist()
    for one, other in zip(read["a.png"].mask, found.masks):
        assert (one & other).sum() / (one | other).sum() > 0.9
    assert len(read["dark.png"]) == 0


def _request(identity: Any, image: np.ndarray | bytes) -> str:
    data = image if isinstance(image, bytes) else _png(image)
    return json.dumps({"id": identity, "image": base64.b64encode(data).decode()})


def _answers(model: Path, lines: list[str], *options: object) -> tuple[int, list[dict], str]:
    done = subprocess.run(
        [sys.executable, "-m", "runtime.infer", "-", "--model", str(model), *map(str, options)],
        input=("\n".join(lines) + "\n").encode(),
        cwd=ROOT,
        capture_output=True,
        timeout=100,
        check=False,
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr.decode()


def test_lines_are_answered_in_their_order(fake_model: Path) -> None:
    sizes = [(64, 96), (96, 64), (33, 41)]
    requests = [_request(f"n{i}", fakes.random_image(*size, i)) for i, size in enumerate(sizes)]
    address = json.loads(requests[0])
    address["image"] = "data:image/png;base64," + address["image"]
    lines = [
        requests[0],
        "not JSON",
        requests[1],
        "",
        _request({"any": [1]}, b"no image"),
        '{"id": 7}',
        '{"id": 8, "image": "***"}',
        json.dumps({**address, "id": None}),
        requests[2],
    ]
    code, answers, said = _answers(fake_model, lines, "--batch", 2, "--json-score", 0.4)
    assert code == 1
    assert said == ""
    assert [a["id"] for a in answers] == ["n0", None, "n1", {"any": [1]}, 7, 8, None, "n2"]
    assert [a.get("line") for a in answers] == [None, 2, None, 5, 6, 7, None, None]
    errors = [a["error"] for a in answers if "error" in a]
    assert [e.partition(", found")[0] for e in errors] == [
        "expected JSON",
        "image: expected an image",
        'expected {"id": ..., "image": "<base64>"}',
        "image: expected base64",
    ]
    with Detector(fake_model, "onnxruntime") as detector:
        for answer, size, seed in (
            (answers[0], sizes[0], 0),
            (answers[2], sizes[1], 1),
            (answers[7], sizes[2], 2),
        ):
            (found,) = detector([fakes.random_image(*size, seed)])
            expected = json.loads(json.dumps(found.filter(0.4).to_dict()))
            assert {k: v for k, v in answer.items() if k != "id"} == expected


def test_a_program_may_wait_for_each_answer(fake_model: Path) -> None:
    process = start("runtime.infer", "-", "--model", fake_model, "--batch", 4, stdin=subprocess.PIPE)
    try:
        for index in range(3):
            process.stdin.write((_request(index, fakes.random_image(64, 96, index)) + "\n").encode())
            process.stdin.flush()
            assert json.loads(first_line(process))["id"] == index
        process.stdin.close()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait(20)


def test_a_signal_ends_the_waiting(fake_model: Path) -> None:
    process = start("runtime.infer", "-", "--model", fake_model, stdin=subprocess.PIPE)
    try:
        process.stdin.write((_request(1, fakes.random_image(64, 96)) + "\n").encode())
        process.stdin.flush()
        assert json.loads(first_line(process))["id"] == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM
        assert b"Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.wait(20)


def test_a_line_that_is_too_long_is_passed_over(fake_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKRCNN_MAX_IMAGE_BYTES", "20000")
    lines = [_request("long", b"x" * 3_000_000), _request("short", fakes.random_image(33, 41))]
    code, answers, _ = _answers(fake_model, lines)
    assert code == 1
    assert answers[0]["line"] == 1
    assert answers[0]["error"].startswith("expected a shorter line; set MASKRCNN_MAX_IMAGE_BYTES")
    assert (answers[1]["id"], len(answers[1]["detections"])) == ("short", 3)


def test_a_closed_standard_input_is_refused(fake_model: Path) -> None:
    command = [sys.executable, "-m", "runtime.infer", "-", "--model", str(fake_model)]
    closed = subprocess.run(
        ["sh", "-c", '"$@" <&-', "sh", *command], cwd=ROOT, capture_output=True, timeout=60, check=False
    )
    assert closed.returncode == 2
    assert b"expected JSON lines on standard input, found it closed" in closed.stderr


def test_an_image_that_does_not_fit_is_an_error_of_its_own(tmp_path: Path) -> None:
    from runtime.transforms import Resize

    model = fakes.save(tmp_path / "m.onnx", fakes.metadata(steps=(Resize(scale=(96, 64), keep_ratio=True),)))
    lines = [_request(1, fakes.random_image(64, 96)), _request(2, fakes.random_image(96, 64))]
    code, answers, _ = _answers(model, lines, "--batch", 2)
    assert code == 1
    assert len(answers[0]["detections"]) == 3
    assert "image of 96x64 px" in answers[1]["error"]


def test_key_points_of_an_answer_have_places_and_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    import io
    from dataclasses import replace

    from runtime.inference.options import InferenceOptions
    from runtime.inference.requests import answer_requests
    from tests.runtime.interop.test_cvat import HEIGHT, WIDTH, _Points

    class Detecting(_Points):
        file_batch = 1

    stream = io.BytesIO((_request(3, fakes.random_image(HEIGHT, WIDTH)) + "\n").encode())
    done = answer_requests(stream, Detecting(), replace(InferenceOptions(Path()), json_score=0.1))  # type: ignore[arg-type]
    assert (done.num_images, done.exit_status) == (1, 0)
    (row,) = json.loads(capsys.readouterr().out)["detections"]
    assert row["bbox"] == [1, 2, 29, 38]
    assert row["keypoints"] == [
        {"id": 0, "name": "nose", "x": 3, "y": 4, "score": 0.9},
        {"id": 1, "name": "tail", "x": 5, "y": 6, "score": 0.1},
    ]
