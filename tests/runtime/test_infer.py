import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from runtime import infer
from runtime.host.runner import HostBatch
from runtime.inference import overlays
from runtime.transforms import Resize
from tests.runtime import fakes
from tests.runtime.engine import fakes as engine_fakes
from tests.runtime.engine.fake_kernels import FakeLibrary
from tests.runtime.processes import SECONDS, coco_of, lines_of

ROOT = Path(__file__).parents[2]


def _write(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Five images of mixed sizes, one without detections."""
    folder = tmp_path / "images"
    for index, (height, width) in enumerate([(64, 96), (96, 64), (200, 333), (33, 41)]):
        _write(folder / f"{index}.png", fakes.random_image(height, width, index))
    _write(folder / "dark.jpg", np.zeros((50, 60, 3), np.uint8))
    return folder


def _run(*arguments: object) -> int:
    return infer.main([str(a) for a in arguments])


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_a_folder_is_detected_drawn_and_written(
    batch: int, images: Path, fake_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    assert _run(images, "--model", fake_model, "--batch", batch, "--out", out, "--threads", 1) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "333x200" in printed.out
    assert "1 square (0.90), 1 circle (0.50)" in printed.out
    assert "8 detections of score 0.3 or more in 5 images\n" in printed.out
    stages = "read X, prepare X, engine X, results X, write X, overlays X"
    line = f"X images/s; ms per image, side by side: {stages}\n".replace("X", "[0-9.]+")
    assert re.search(line, printed.out)
    assert sorted(p.name for p in out.iterdir()) == sorted(
        ["0.png", "1.png", "2.png", "3.png", "dark.png", "detections.jsonl", "images.json", "results.json"]
    )
    results = COCO(str(out / "images.json")).loadRes(str(out / "results.json"))
    assert len(results.getAnnIds()) == 12  # --json-score keeps the third detection of score 0.2
    sizes = {i["id"]: (i["width"], i["height"]) for i in results.dataset["images"]}
    assert sizes == {1: (96, 64), 2: (64, 96), 3: (333, 200), 4: (41, 33), 5: (60, 50)}
    assert {r["file_name"] for r in json.loads((out / "results.json").read_text())} == {
        (images / f"{i}.png").as_posix() for i in range(4)
    }


def test_scores_and_overlays_can_be_chosen(
    images: Path, fake_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    options = ("--score", 0.6, "--json-score", 0.4, "--no-overlays", "--out", out)
    assert _run(f"{images}/*.png", "--model", fake_model, *options) == 0
    assert "4 detections of score 0.6 or more in 4 images" in capsys.readouterr().out
    assert len(json.loads((out / "results.json").read_text())) == 8
    assert not list(out.glob("*.png"))


def test_a_corrupt_image_is_reported_and_the_others_are_done(
    images: Path, fake_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (images / "1.png").write_bytes(b"not an image")
    out = tmp_path / "out"
    assert _run(images, "--model", fake_model, "--batch", 2, "--out", out) == 1
    printed = capsys.readouterr()
    assert f"skipped: {images / '1.png'}: expected an image, found 12 bytes" in printed.err
    assert "6 detections of score 0.3 or more in 4 images, 1 skipped" in printed.out
    assert not (out / "1.png").exists()
    # Ids count the files, so that they do not move when one is damaged; each overlay is its own image's.
    assert [i["id"] for i in json.loads((out / "images.json").read_text())["images"]] == [1, 3, 4, 5]
    assert cv2.imread(str(out / "2.png")).shape[:2] == (400, 666)


def test_an_image_too_large_for_a_fixed_model_is_skipped(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    facts = fakes.metadata(steps=(Resize(scale=(96, 64), keep_ratio=True),))
    model = fakes.save(tmp_path / "m.onnx", facts)
    assert _run(images / "0.png", images / "1.png", "--model", model, "--out", tmp_path / "out") == 1
    assert f"skipped: {images / '1.png'}: image of 96x64 px" in capsys.readouterr().err


def test_only_corrupt_images_still_write_valid_files(fake_model: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"")
    assert _run(bad, "--model", fake_model, "--out", tmp_path / "out") == 1
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == []


@pytest.mark.parametrize("backend", ["tensorrt", "auto"])
def test_an_engine_is_built_on_first_use_and_finds_the_same(
    backend: str,
    images: Path,
    fake_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(fake_model.read_bytes())
    assert _run(images, "--model", model, "--backend", "onnxruntime", "--out", tmp_path / "expected") == 0
    engine_fakes.install(monkeypatch)
    engine_fakes.put_plugins(monkeypatch, tmp_path)
    capsys.readouterr()
    options = ("--backend", backend, "--batch", 2)
    assert _run(images, "--model", model, *options, "--out", tmp_path / "first") == 0
    printed = capsys.readouterr()
    assert printed.err == f"building {tmp_path / 'm.engine'}: there is none yet\n"
    stages = "read X, copy_in X, prepare X, engine X, encode X, copy_out X, write X, overlays X\n"
    assert re.search(stages.replace("X", "[0-9.]+"), printed.out)
    assert "on the CPU" not in printed.out
    options = ("--backend", backend, "--rebuild", "never")
    assert _run(images, "--model", tmp_path / "m.engine", *options, "--out", tmp_path / "second") == 0
    assert capsys.readouterr().err == ""
    for name in ("first", "second"):
        for path in (tmp_path / "expected").iterdir():
            assert (tmp_path / name / path.name).read_bytes() == path.read_bytes()


def test_a_plugin_library_without_the_functions_of_images_is_noted(
    images: Path,
    fake_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(fake_model.read_bytes())
    engine_fakes.install(monkeypatch)
    engine_fakes.put_plugins(monkeypatch, tmp_path, FakeLibrary(abi=1))
    assert _run(images, "--model", model, "--backend", "tensorrt", "--out", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert (
        "images prepared and masks pasted on the CPU: plugin library: expected the functions of images"
        in printed
    )


def test_the_embedded_images_are_the_default(
    images: Path,
    fake_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    assert infer.DEFAULT_IMAGES == ROOT / "examples" / "images"
    monkeypatch.setattr(infer, "DEFAULT_IMAGES", images)
    assert _run("--model", fake_model, "--out", tmp_path / "out") == 0
    printed = capsys.readouterr()
    assert "in 5 images" in printed.out
    assert (
        printed.err
        == f"note: no source is named; the images that come with the package are taken, {images}\n"
    )


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ((), ""),
        (("--score", 0.05, "--json-score", 0.05), ""),
        (("--score", 0.01), "--score 0.01"),
        (("--score", 0, "--json-score", 0.01), "--score 0, --json-score 0.01"),
    ],
)
def test_scores_below_the_models_own_are_noted_once(
    options: tuple, named: str, images: Path, fake_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert _run(images, "--model", fake_model, "--out", tmp_path / "out", *options) == 0
    said = capsys.readouterr().err
    if not named:
        assert said == ""
        return
    assert said.startswith(f"note: {named}: the model itself leaves out what is at or below 0.05; ")
    assert said.count("\n") == 1
    assert "`python -m export.graft` with --score" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.jpg"], "error: none.jpg: expected an image, a folder or a glob pattern"),
        (["{tmp}/*.tiff"], "expected images .*found none"),
        (["{tmp}/empty"], "folder .*empty: expected images .*found none"),
        (["{images}", "--model", "{tmp}/no.onnx"], "no.onnx: .*make it with `python -m export.maskrcnn`"),
        (
            ["{images}", "--model", "{images}/0.png"],
            "expected a name ending in .onnx, .xml or .engine, found '.png'",
        ),
        (
            ["{images}", "--model", "{images}/0.png", "--backend", "onnxruntime"],
            "expected an ONNX file, found",
        ),
        (
            ["{images}", "--backend", "tensorrt"],
            "^error: TensorRT: expected the Python package tensorrt, found none that loads .*; `pip install tensorrt`",
        ),
        (["{images}", "--out", "{images}/0.png"], "error: .*0.png"),
        (["{images}", "--out", "/proc/xx"], "cannot write, name another folder: .*: '/proc/xx'"),
    ],
)
def test_what_cannot_begin_exits_with_two(
    arguments: list[str],
    message: str,
    images: Path,
    fake_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine_fakes.remove(monkeypatch)
    (tmp_path / "empty").mkdir()
    filled = [a.format(tmp=tmp_path, images=images) for a in arguments]
    if "--model" not in filled:
        filled += ["--model", str(fake_model)]
    if "--out" not in filled:
        filled += ["--out", str(tmp_path / "out")]
    assert infer.main(filled) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.strip().split("\n")) == 1
    assert re.search(message, printed.err)


@pytest.mark.parametrize(
    "arguments", [["--batch", "0"], ["--score", "1.5"], ["--backend", "x"], ["--threads", "no"]]
)
def test_wrong_arguments_exit_with_two(arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as exit_info:
        infer.main(arguments)
    assert exit_info.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_an_overlay_never_replaces_an_input(images: Path, fake_model: Path) -> None:
    before = {p: p.read_bytes() for p in images.iterdir()}
    assert _run(images, "--model", fake_model, "--out", images) == 0
    assert all(path.read_bytes() == content for path, content in before.items())
    assert (images / "images_0.png").exists()


def test_overlays_are_not_detected_the_second_time(
    images: Path, fake_model: Path, capsys: pytest.CaptureFixture
) -> None:
    """Nor by a pattern, nor in the folder of another run; one that is named is."""
    files: list[set[str]] = []
    for _ in range(3):
        capsys.readouterr()
        assert _run(images, "--model", fake_model, "--out", images) == 0
        files.append({path.name for path in images.iterdir()})
    assert files[0] == files[1] == files[2]
    printed = capsys.readouterr()
    assert "in 5 images\n" in printed.out
    assert f"ignored in {images}: 5 overlays of earlier runs, 3 others (.json, .jsonl)\n" in printed.err
    assert _run(f"{images}/*.png", "--model", fake_model, "--out", images) == 0
    assert "in 4 images\n" in capsys.readouterr().out
    assert _run(images / "images_0.png", "--model", fake_model, "--out", images) == 0
    assert "in 1 image\n" in capsys.readouterr().out
    assert (images / "images_images_0.png").exists()


def test_an_output_that_is_an_input_is_refused(
    images: Path, fake_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Whatever it is called."""
    out = tmp_path / "out"
    out.mkdir()
    for name in ("results.json", "images.json", "detections.jsonl"):
        (out / name).symlink_to(images / "0.png")
        before = (images / "0.png").read_bytes()
        assert _run(images, "--model", fake_model, "--out", out) == 2
        assert "expected a file that is not read, found the input" in capsys.readouterr().err
        assert (images / "0.png").read_bytes() == before
        (out / name).unlink()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_an_overlay_that_finds_no_room_ends_the_run_with_what_was_finished(
    number: int,
    images: Path,
    fake_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    written = []

    def failing(path: Path, data: bytes) -> None:
        written.append(path)
        if len(written) == 3:
            raise OSError(number, "expected room", str(path))

    monkeypatch.setattr(overlays, "write_whole", failing)
    out = tmp_path / "out"
    assert _run(images, "--model", fake_model, "--out", out) == 2
    printed = capsys.readouterr()
    assert f"expected room: '{out / '2.png'}'\nended early: 3 of 5 images finished, in {out}" in printed.err
    assert "Traceback" not in printed.err
    assert "3 images" in printed.out
    assert [i["id"] for i in coco_of(out)[0]["images"]] == [1, 2, 3]
    assert [line["image_id"] for line in lines_of(out)] == [1, 2, 3]


def test_an_overlay_that_cannot_be_is_said_and_the_others_are_drawn(
    images: Path,
    fake_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    write = overlays.write_whole

    def failing(path: Path, data: bytes) -> None:
        if path.name == "1.png":
            raise OSError(errno.EILSEQ, "no such name", str(path))
        write(path, data)

    monkeypatch.setattr(overlays, "write_whole", failing)
    out = tmp_path / "out"
    assert _run(images, "--model", fake_model, "--out", out) == 1
    printed = capsys.readouterr()
    assert f"no overlay: [Errno 84] no such name: '{out / '1.png'}'; rename the image" in printed.err
    assert "4 overlays" in printed.out
    assert len(coco_of(out)[0]["images"]) == 5


@pytest.mark.parametrize("after", [0, 2])
def test_a_device_that_fails_ends_the_run_with_what_was_finished(
    after: int,
    images: Path,
    fake_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """Before anything is finished, the results of an earlier run stay."""
    out = tmp_path / "out"
    assert _run(images, "--model", fake_model, "--out", out) == 0
    runs = []
    result = HostBatch.result

    def failing(batch: HostBatch, *arguments: object) -> object:
        runs.append(batch)
        if len(runs) > after:
            raise RuntimeError("device lost")
        return result(batch, *arguments)

    monkeypatch.setattr(HostBatch, "result", failing)
    capsys.readouterr()
    assert _run(images, "--model", fake_model, "--out", out) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: device lost\n")
    assert len(coco_of(out)[0]["images"]) == len(lines_of(out)) == (after or 5)
    assert ("ended early: 2 of 5 images finished" in said) == (after > 0)


def test_names_of_any_length_and_bytes_have_overlays(fake_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    names = [b"a" * 251 + b".jpg", b"a" * 250 + b".webp", b"\xff.png", b"A.bmp", b"a.bmp", b"line\nbreak.png"]
    for index, name in enumerate(names):
        data = cv2.imencode(".png", fakes.random_image(40, 50, index))[1].tobytes()
        (folder / os.fsdecode(name)).write_bytes(data)
    out = tmp_path / "out"
    assert _run(folder, "--model", fake_model, "--out", out) == 0
    assert len(list(out.glob("*.png"))) == len(coco_of(out)[0]["images"]) == len(names)
    found = {os.fsencode(Path(line["file_name"]).name) for line in lines_of(out)}
    assert found == set(names)


def test_the_command_runs_as_a_module(images: Path, fake_model: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "runtime.infer",
        str(images / "*.png"),
        "--model",
        str(fake_model),
        "--batch",
        "3",
    ]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=SECONDS,
    )
    # No progress bar where there is no terminal.
    assert done.stderr == ""
    assert "8 detections of score 0.3 or more in 4 images" in done.stdout
