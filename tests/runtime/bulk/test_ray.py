"""Real Ray on this machine: killed workers, killed drivers."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime import Detector
from runtime.images import read_image

pytest.importorskip("ray", reason="ray, of the extra `ray`, is not installed")
pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow, of the extra `ray`, is not installed")
ROOT = Path(__file__).parents[3]
IMAGES = ROOT / "examples" / "images"
SECONDS = 90
pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of 24 images, two of which are none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(22):
        shutil.copy(IMAGES / "portrait.jpg", folder / f"{index:02d}.jpg")
    for name in ("22.jpg", "23.jpg"):
        (folder / name).write_bytes(b"no image")
    return folder


def _started(folder: Path, model: Path, *more: str) -> "subprocess.Popen[bytes]":
    words = [
        sys.executable,
        "-m",
        "runtime.batch",
        "photos",
        "--model",
        str(model),
        "--output",
        "out",
        "--block",
        "2",
    ]
    # A session of its own: what Ray starts in it is ended with it.
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [*words, "--backend", "onnxruntime", *more],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _wait_for(blocks: int, folder: Path, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + SECONDS
    while len(list((folder / "out" / "detections").glob("*.parquet"))) < blocks:
        assert process.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.02)


def _descendants(process: int) -> Iterator[int]:
    """Yield the processes that a process started, and those that they did."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    found = {process}
    while new := {child for child, parent in parents.items() if parent in found and child not in found}:
        found |= new
        yield from new


def _named(process: int, name: str) -> bool:
    try:
        return name.encode() in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False


def test_killed_worker_and_killed_driver_each_image_once(
    embedded_path: Path, photos: Path, tmp_path: Path
) -> None:
    first = _started(tmp_path, embedded_path)
    try:
        _wait_for(1, tmp_path, first)
        workers = [p for p in _descendants(first.pid) if _named(p, "MapWorker")]
        assert workers, (tmp_path / "log").read_text()
        os.kill(workers[0], signal.SIGKILL)
        done = len(list((tmp_path / "out" / "detections").iterdir()))
        _wait_for(min(done + 2, 11), tmp_path, first)
    finally:
        started = list(_descendants(first.pid))
        first.kill()
        first.wait(20)
        for process in started:
            if _named(process, "ray"):
                os.kill(process, signal.SIGKILL)
    second = _started(tmp_path, embedded_path)
    assert second.wait(SECONDS) == 1, (tmp_path / "log").read_text()
    log = (tmp_path / "log").read_text()
    assert "24 images in 12 blocks (" in log
    assert "(0 done before)" not in log
    assert ": 22 detected, 2 failed; in out" in log
    detected = pq.read_table(tmp_path / "out" / "detections").to_pydict()
    failed = pq.read_table(tmp_path / "out" / "failed").to_pydict()
    names = sorted(Path(path).name for path in detected["path"] + failed["path"])
    assert names == [f"{index:02d}.jpg" for index in range(24)]
    assert [Path(path).name for path in failed["path"]] == ["22.jpg", "23.jpg"]
    with Detector(embedded_path, "onnxruntime") as detector:
        (expected,) = detector([read_image(IMAGES / "portrait.jpg")])
    expected = expected.filter(0.05)
    assert len(expected) > 10
    for labels, counts in zip(detected["labels"], detected["rle"]):
        assert labels == expected.labels.tolist()
        assert counts == [r["counts"] for r in expected.rle()]
    # Everything is there: nothing is detected again, and another run is refused.
    third = _started(tmp_path, embedded_path)
    assert third.wait(SECONDS) == 1
    assert "(12 done before)" in (tmp_path / "log").read_text()
    other = _started(tmp_path, embedded_path, "--score", "0.5")
    assert other.wait(SECONDS) == 2
    assert "found those of a run with another min_score" in (tmp_path / "log").read_text()


def test_a_signal_while_ray_starts(embedded_path: Path, photos: Path, tmp_path: Path) -> None:
    """Ray handles SIGTERM in its own way then."""
    process = _started(tmp_path, embedded_path)
    try:
        deadline = time.monotonic() + SECONDS
        while not any(_named(p, "gcs_server") for p in _descendants(process.pid)):
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 128 + signal.SIGTERM
        assert "interrupted by SIGTERM" in (tmp_path / "log").read_text()
    finally:
        process.kill()
        process.wait(SECONDS)
