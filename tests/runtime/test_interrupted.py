"""Commands that are interrupted: they end in time, what was finished is there and valid, and nothing else is."""

import functools
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.runtime.processes import (
    ROOT,
    coco_of,
    ended,
    first_line,
    interrupt,
    leftovers,
    lines_of,
    many_images,
    run,
    start,
    wait_for,
)

NUM_IMAGES = 300  # more than the commands are through with at their first line about progress, after 5 s
CLASS = "red_circle"  # of the embedded model
# From the signal to the end: a batch of the embedded model, on a machine that does other things too.
IN_TIME_SECONDS = 30
SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return many_images(tmp_path_factory.mktemp("many") / "images", NUM_IMAGES)


def _infer(model: Path, images: Path, out: Path, *options: object) -> subprocess.Popen:
    return start("runtime.infer", images, "--model", model, "--threads", 1, "--out", out, *options)


@pytest.fixture(scope="module")
def whole(
    embedded_path: Path, images: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], list[dict]]:
    """The results of a run that nobody interrupts, on the first six images, in batches: some CPUs round differently."""

    @functools.cache
    def results(batch: int) -> list[dict]:
        out = tmp_path_factory.mktemp("whole")
        options = ("--model", embedded_path, "--threads", 1, "--out", out, "--batch", batch)
        code, _, _ = run("runtime.infer", *sorted(images.iterdir())[:6], *options)
        assert code == 0
        return coco_of(out)[1]

    return results


@pytest.mark.parametrize(("number", "batch"), [(signal.SIGINT, 1), (signal.SIGTERM, 4)])
def test_what_was_finished_is_written(
    number: signal.Signals,
    batch: int,
    embedded_path: Path,
    images: Path,
    whole: Callable[[int], list[dict]],
    tmp_path: Path,
) -> None:
    process = _infer(embedded_path, images, tmp_path, "--batch", batch)
    wait_for(lambda: len(lines_of(tmp_path)) >= 2, process)
    code, printed, said, seconds = interrupt(process, number)
    assert code == 128 + number
    assert seconds < IN_TIME_SECONDS
    assert "Traceback" not in said + printed
    lines = lines_of(tmp_path)
    assert 2 <= len(lines) < NUM_IMAGES
    assert f"interrupted by {number.name}: {len(lines)} of {NUM_IMAGES} images finished, in " in said
    dataset, results = coco_of(tmp_path)
    assert [image["id"] for image in dataset["images"]] == [line["image_id"] for line in lines]
    assert [r["image_id"] for r in results] == [x["image_id"] for x in lines for _ in x["detections"]]
    known = [(r["image_id"], r["bbox"], r["segmentation"]) for r in whole(batch) if r["image_id"] <= 2]
    assert [(r["image_id"], r["bbox"], r["segmentation"]) for r in results if r["image_id"] <= 2] == known
    assert leftovers(tmp_path) == []
    assert len(list(tmp_path.glob("*.png"))) == len(lines)


@pytest.mark.parametrize("number", SIGNALS)
def test_before_anything_is_finished_nothing_is_written(
    number: signal.Signals, embedded_path: Path, images: Path, tmp_path: Path
) -> None:
    """Neither over the results of an earlier run."""
    (tmp_path / "results.json").write_text("[]")
    (tmp_path / "detections.jsonl").write_text("{}\n")
    process = _infer(embedded_path, images, tmp_path, "--batch", 60)
    wait_for(lambda: leftovers(tmp_path), process)
    code, printed, said, seconds = interrupt(process, number)
    assert code == 128 + number
    assert seconds < IN_TIME_SECONDS * 4  # a batch of 60
    assert f"interrupted by {number.name}" in said
    assert "Traceback" not in said + printed
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {
        "results.json": "[]",
        "detections.jsonl": "{}\n",
    }


def test_a_killed_process_leaves_whole_lines_and_the_next_one_cleans_up(
    embedded_path: Path, images: Path, tmp_path: Path
) -> None:
    process = _infer(embedded_path, images, tmp_path)
    wait_for(lambda: len(lines_of(tmp_path)) >= 2, process)
    process.kill()
    assert ended(process)[0] == -signal.SIGKILL
    assert 2 <= len(lines_of(tmp_path)) < NUM_IMAGES
    assert not (tmp_path / "results.json").exists()
    assert leftovers(tmp_path) != []
    (tmp_path / f".other.png.{_machine_of(tmp_path)}-4194305-00000000.part").write_bytes(b"of another image")
    one = images / "0000.jpg"
    assert run("runtime.infer", one, "--model", embedded_path, "--out", tmp_path)[0] == 0
    assert leftovers(tmp_path) == []
    assert len(lines_of(tmp_path)) == len(coco_of(tmp_path)[0]["images"]) == 1


def _machine_of(folder: Path) -> str:
    return leftovers(folder)[0].rsplit(".", 2)[1].partition("-")[0]


COMMANDS = {
    "record": ("runtime.record", "{model}", "--images", "{images}", "-o", "{out}/r.npz"),
    "compare": ("runtime.compare", "{model}", "{model}", "--images", "{images}", "--json", "{out}/r.json"),
    "layers": (
        "runtime.compare",
        "{model}",
        "{model}",
        "--layers",
        "--layer-chunk",
        "1",
        "--images",
        "{images}",
        "--json",
        "{out}/r.json",
    ),
    "evaluate": (
        "runtime.evaluate",
        "{model}",
        "--images",
        "{images}",
        "--annotations",
        "{annotations}",
        "--json",
        "{out}/r.json",
    ),
}


@pytest.mark.parametrize(("name", "number"), list(zip(COMMANDS, SIGNALS * 2)))
def test_nothing_partial_is_published(
    name: str, number: signal.Signals, embedded_path: Path, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    places = {"model": embedded_path, "images": images, "out": out, "annotations": tmp_path / "a.json"}
    places["annotations"].write_text(json.dumps(_annotations(images)))
    module, *arguments = (part.format(**places) for part in COMMANDS[name])
    with (tmp_path / "said").open("wb") as file:
        process = start(module, *arguments, stderr=file, env={"PYTHONUNBUFFERED": "1"})
        wait_for(lambda: " s\n" in (tmp_path / "said").read_text(), process)  # a line about progress
        code, printed, _, seconds = interrupt(process, number)
    said = (tmp_path / "said").read_text()
    assert code == 128 + number
    assert seconds < IN_TIME_SECONDS
    assert said.endswith(f"interrupted by {number.name}; what was not finished is not written\n")
    assert "Traceback" not in said
    assert printed == ""
    assert list(out.iterdir()) == []


def _annotations(images: Path) -> dict:
    entries = [{"id": i, "file_name": p.name} for i, p in enumerate(sorted(images.iterdir()), 1)]
    objects = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}]
    return {"images": entries, "annotations": objects, "categories": [{"id": 1, "name": CLASS}]}


def test_a_signal_that_is_ignored_stays_ignored(embedded_path: Path, images: Path, tmp_path: Path) -> None:
    """As under nohup, and in the background of a shell."""
    paths = sorted(images.iterdir())[:3]
    process = start(
        "runtime.infer",
        *paths,
        "--model",
        embedded_path,
        "--out",
        tmp_path,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    wait_for(lambda: lines_of(tmp_path), process)
    assert interrupt(process, signal.SIGINT)[0] == 0
    assert len(lines_of(tmp_path)) == 3


NATIVE = """
import hashlib
from runtime import interrupts
from runtime.files import whole_file
with interrupts.handled({patience}), whole_file({path!r}) as file:
    file.write(b"half")
    print("begun", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # minutes, without the interpreter's lock
"""


def _in_native_code(path: Path, patience: object) -> subprocess.Popen:
    """Start a process that is in native code, where no handler runs, and has begun a file."""
    process = subprocess.Popen(
        [sys.executable, "-c", NATIVE.format(patience=patience, path=str(path))],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert first_line(process) == b"begun\n"
    begun = _ticks(process)
    wait_for(lambda: _ticks(process) > begun + 20, process)
    return process


def _ticks(process: subprocess.Popen) -> int:
    """Return the process's time on the CPU, in hundredths of a second."""
    return int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11])


@pytest.mark.parametrize("number", SIGNALS)
def test_native_code_is_left_after_a_while(number: signal.Signals, tmp_path: Path) -> None:
    process = _in_native_code(tmp_path / "file", 0.5)
    code, _, said, seconds = interrupt(process, number)
    assert (code, said) == (128 + number, f"interrupted by {number.name}: ended at once\n")
    assert 0.4 < seconds < IN_TIME_SECONDS
    assert list(tmp_path.iterdir()) == []


def test_native_code_is_waited_for_until_a_second_signal(tmp_path: Path) -> None:
    """One that comes right after the first is the same: supervisors send several."""
    process = _in_native_code(tmp_path / "file", None)
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(2)
    code, _, said, _ = interrupt(process, signal.SIGINT)
    assert (code, said) == (143, "interrupted by SIGTERM: ended at once\n")  # the first
    assert list(tmp_path.iterdir()) == []


def test_a_small_disk_ends_the_run_with_what_was_finished(
    embedded_path: Path, images: Path, tmp_path: Path
) -> None:
    """A limit on the size of files stands for it; an overlay is larger, the results of one image are not."""
    limit = 150_000
    process = start(
        "runtime.infer",
        images,
        "--model",
        embedded_path,
        "--out",
        tmp_path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    code, _, said = ended(process)
    assert code == 2
    assert "expected room for" in said
    assert "free some, or name another folder: '" in said
    assert "Traceback" not in said
    lines = lines_of(tmp_path)
    assert f"ended early: {len(lines)} of {NUM_IMAGES} images finished, in " in said
    assert [i["id"] for i in coco_of(tmp_path)[0]["images"]] == [line["image_id"] for line in lines] != []
    assert leftovers(tmp_path) == []


BUILD = """
import sys
import pytest
from runtime import build
from tests.runtime.engine import fakes
fakes.install(pytest.MonkeyPatch(), build_seconds=600)
sys.exit(build.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_a_build_ends_in_time_and_leaves_what_was_there(
    number: signal.Signals, fake_model: Path, tmp_path: Path
) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(fake_model.read_bytes())
    (tmp_path / "m.engine").write_bytes(b"of an earlier build")
    with (tmp_path / "said").open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", BUILD, str(model), "--rebuild", "always"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=file,
        )
        wait_for(lambda: b" s  " in (tmp_path / "said").read_bytes(), process)  # how far it is
        code, _, _, seconds = interrupt(process, number)
    said = (tmp_path / "said").read_text()
    assert code == 128 + number
    assert seconds < IN_TIME_SECONDS
    assert said.endswith(f"interrupted by {number.name}; what was not finished is not written\n")
    assert "Traceback" not in said
    assert (tmp_path / "m.engine").read_bytes() == b"of an earlier build"
    assert {p.name for p in tmp_path.iterdir()} - {"m.engine.lock"} == {"m.onnx", "m.engine", "said"}
