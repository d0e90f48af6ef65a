"""Standard output and error that are closed, full, or not UTF-8: the work is done, and the exit status says so."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from runtime.streams import SafeStream, safe_streams, unwaited
from tests.runtime import fakes
from tests.runtime.processes import ROOT, SECONDS, coco_of


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images whose names are not ASCII."""
    folder = tmp_path_factory.mktemp("streams") / "bilder ≥"
    folder.mkdir()
    for index, name in enumerate(("ä≤.png", "日本.png")):
        data = cv2.imencode(".png", fakes.random_image(64, 96, index))[1].tobytes()
        (folder / name).write_bytes(data)
    return folder


ENDS = {
    "closed output": (">&-", {}),
    "closed error": ("2>&-", {}),
    "both closed": (">&- 2>&-", {}),
    "all three closed": ("<&- >&- 2>&-", {}),
    "full": (">/dev/full 2>/dev/full", {}),
    "nobody reads": ("2>&1 | true", {}),
    "one line is read": ("2>&1 | head -1", {}),
    "ASCII": ("", {"PYTHONIOENCODING": "ascii"}),
    "C": ("", {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}),
    "Latin-1": ("", {"PYTHONIOENCODING": "latin-1"}),
}


@pytest.mark.parametrize("name", ENDS)
def test_a_run_is_never_ended_by_its_output(
    name: str, images: Path, fake_model: Path, tmp_path: Path
) -> None:
    redirection, environment = ENDS[name]
    out, status = tmp_path / "out", tmp_path / "status"
    damaged = tmp_path / "nicht ≠.png"
    damaged.write_bytes(b"no image")
    # A pipe's exit status would be the reader's.
    program = f'({{ "$@"; echo $? > "$STATUS"; }}) {redirection}'
    command = [sys.executable, "-m", "runtime.infer", str(images), str(damaged), "--model", str(fake_model)]
    done = subprocess.run(
        ["bash", "-c", program, "bash", *command, "--out", str(out)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "STATUS": str(status), **environment},
        capture_output=True,
        timeout=120,
    )
    assert status.read_text() == "1\n"  # for the damaged one
    assert b"Traceback" not in done.stderr + done.stdout
    assert b"Exception ignored" not in done.stderr
    dataset, results = coco_of(out)
    assert [Path(i["file_name"]).name for i in dataset["images"]] == ["ä≤.png", "日本.png"]
    assert len(results) == 6
    assert cv2.imdecode(_array(out / "日本.png"), 1).shape[0] >= 64
    if name in ("ASCII", "C"):
        assert b"\\u2265" in done.stdout or "≥".encode() in done.stdout
        assert b"4 detections of score 0.3 or more in 2 images, 1 skipped" in done.stdout


def _array(path: Path) -> "object":
    import numpy as np

    return np.frombuffer(path.read_bytes(), np.uint8)


def test_an_error_is_an_exit_status_also_where_nobody_can_read_it(tmp_path: Path) -> None:
    command = f"{sys.executable} -m runtime.infer none.jpg >&- 2>&-"
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=SECONDS
    )
    assert done.returncode == 2


class _Failing(io.StringIO):
    encoding = "utf-8"

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("stream", [None, _Failing(), open(os.devnull)], ids=["none", "full", "read-only"])  # noqa: SIM115
def test_a_stream_that_fails_is_given_up(stream: object) -> None:
    safe = SafeStream(stream)
    for _ in range(2):
        assert safe.write("text") == 4
        safe.flush()
    assert not safe.isatty()


@pytest.mark.skipif(sys.platform != "linux", reason="a pipe is opened again by /proc")
def test_lines_that_nobody_reads_are_not_waited_for() -> None:
    reading, writing = os.pipe()
    own = os.dup(writing)
    unwaited(own)
    with open(own, "w", buffering=1) as file:
        safe = SafeStream(file)
        for _ in range(3000):
            assert safe.write("x" * 99 + "\n") == 100
        assert os.get_blocking(writing)
        found = b""
        while len(found) < 60_000:
            found += os.read(reading, 1 << 16)
        safe.write("last\n")
        safe.end()
    os.close(writing)
    while part := os.read(reading, 1 << 16):
        found += part
    os.close(reading)
    assert found.endswith(b"last\n")
    assert found.count(b"\n") < 3000
    with open(os.devnull, "wb") as file:
        unwaited(file.fileno())
        assert os.get_blocking(file.fileno())


def test_what_an_encoding_lacks_is_escaped() -> None:
    data = io.BytesIO()
    stream = io.TextIOWrapper(data, encoding="ascii")
    safe = SafeStream(stream)
    safe.write("a ≥ \udcff\n")
    safe.flush()
    assert data.getvalue() == b"a \\u2265 \\udcff\n"


def test_the_streams_are_put_back(capsys: pytest.CaptureFixture) -> None:
    before = sys.stdout, sys.stderr
    with pytest.raises(KeyError), safe_streams():
        print(json.dumps("shown"))
        raise KeyError
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr().out == '"shown"\n'
