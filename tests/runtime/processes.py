"""Commands as processes of their own, to be interrupted and looked at."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO

from examples import IMAGES_DIR

ROOT = Path(__file__).parents[2]
SECONDS = 120


def start(module: str, *arguments: object, **options: Any) -> subprocess.Popen:
    """Start a command; its output is piped unless the options say where to."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **options.pop("env", {})}
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, "-m", module, *(a if isinstance(a, bytes) else str(a) for a in arguments)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, **{**piped, **options})


def ended(process: subprocess.Popen) -> tuple[int, str, str]:
    """Wait; return exit status, standard output and standard error."""
    out, err = process.communicate(timeout=SECONDS)
    return process.returncode, *((text or b"").decode("utf-8", "replace") for text in (out, err))


def run(module: str, *arguments: object, **options: Any) -> tuple[int, str, str]:
    """Run a command to its end."""
    return ended(start(module, *arguments, **options))


def interrupt(process: subprocess.Popen, number: signal.Signals) -> tuple[int, str, str, float]:
    """Send a signal; return the exit status, the outputs, and how long it took to end, s."""
    sent = time.monotonic()
    process.send_signal(number)
    return *ended(process), time.monotonic() - sent


def first_line(process: subprocess.Popen) -> Any:
    """Return what a process prints first, up to the end of the line; nothing if it prints nothing for too long."""
    timer = threading.Timer(SECONDS, process.kill)
    timer.start()
    try:
        return process.stdout.readline()
    finally:
        timer.cancel()


def wait_for(condition: Any, process: subprocess.Popen) -> None:
    """Wait until something is so, while the process runs."""
    start = time.monotonic()
    while not condition():
        assert process.poll() is None, ended(process)
        assert time.monotonic() - start < SECONDS, "waited in vain"
        time.sleep(0.01)


def many_images(folder: Path, number: int) -> Path:
    """Return a folder with so many images: the embedded ones, over and over."""
    folder.mkdir()
    sources = sorted(IMAGES_DIR.glob("*.jpg"))
    for index in range(number):
        shutil.copyfile(sources[index % len(sources)], folder / f"{index:04}.jpg")
    return folder


def lines_of(out: Path) -> list[dict]:
    """Return the JSON lines; each is whole."""
    path = out / "detections.jsonl"
    if not path.exists():
        return []
    text = path.read_text(encoding="ascii")
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def coco_of(out: Path) -> tuple[dict, list[dict]]:
    """Return the images and the results of a folder, which COCO's own tools read."""
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = COCO(str(out / "images.json"))
        results = json.loads((out / "results.json").read_text())
        if results:
            dataset.loadRes(str(out / "results.json"))
    return dataset.dataset, results


def leftovers(folder: Path) -> list[str]:
    """Return the names of temporary files."""
    return [path.name for path in folder.rglob("*") if path.name.endswith(".part")]
