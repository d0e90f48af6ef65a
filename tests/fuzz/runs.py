"""Commands that write, prepared to be killed or run side by side: what each writes, and whether that is whole."""

import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import cv2
import numpy as np
import onnx
import pytest

from export.api import _publish
from export.graft.__main__ import main as graft
from export.maskrcnn import main as export
from export.quantize import main as quantize
from runtime.build import main as build
from runtime.coco_writer import IMAGES, RESULTS
from runtime.comparison.recording import read_recording
from runtime.engine.sidecar import Sidecar
from runtime.files import sha256_of, whole_file
from runtime.graphs.load import metadata_of
from runtime.infer import main as infer
from runtime.inference.json_lines import LINES
from runtime.precision.plan import PrecisionGroup, PrecisionPlan, check_plan, plan_path
from runtime.quantization import quantization_of
from runtime.record import main as record
from runtime.run import main as run_model
from tests.export.graft.networks import NETWORKS, Recipe
from tests.fuzz.results import wrong_results
from tests.runtime import fakes
from tests.runtime.engine import fakes as engine_fakes
from tests.runtime.engine.fake_cuda import Device

NUM_IMAGES = 4
SIZE = (300, 400)
_NUM_VALUES = 20_000
_THREE_OUTPUTS = f"""<ir_version: 8, opset_import: ["": 17]>
net (float[{_NUM_VALUES}] x) => (float[{_NUM_VALUES}] a, float[{_NUM_VALUES}] b, float[{_NUM_VALUES}] c) {{
    a = Identity(x)
    b = Identity(x)
    c = Identity(x)
}}"""
_PNG_END = b"IEND\xaeB`\x82"


@dataclass(frozen=True)
class Job:
    """One run of a command into a folder.

    Attributes:
        run: the command.
        wrong: what is wrong with the outputs that are there; empty where they are whole or absent.
        written: what identifies a whole result, e.g. the images that it is of; None without one.
    """

    run: Callable[[], int]
    wrong: Callable[[], str]
    written: Callable[[], Optional[str]]


# From (inputs, the folder for outputs, a number that makes inputs differ, the outputs' stem) to a job.
Make = Callable[[Path, Path, int, str], Job]


def prepared(folder: Path, num_variants: int = 4) -> None:
    """Write the inputs of all jobs: a fake model, and images of several names and contents."""
    for variant in range(num_variants):
        images = folder / f"images-{variant}"
        images.mkdir(parents=True)
        for number in range(NUM_IMAGES):
            pixels = fakes.random_image(*SIZE, 100 * variant + number)
            # Half of the names are those of the other variants too.
            name = f"{number}.png" if number % 2 else f"{variant}-{number}.png"
            (images / name).write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
        classes = tuple(f"{name}-{variant}" for name in fakes.CLASSES)
        fakes.save(folder / f"model-{variant}.onnx", fakes.metadata(classes=classes))
        np.save(folder / f"x-{variant}.npy", np.full(_NUM_VALUES, variant, np.float32))
        onnx.save(NETWORKS["yolov8"](Recipe(classes=1)), folder / f"network-{variant}.onnx")
        # In a process of its own: this one is forked, and onnxruntime has threads.
        job = graft_job(folder, folder, variant, f"grafted-{variant}")
        child = forked(job.run, folder / "said")
        if child.wait(60) != 0:
            raise RuntimeError(f"no model to quantize: {child.said.read_text()[-2000:]}")
    onnx.save(onnx.parser.parse_model(_THREE_OUTPUTS), folder / "three.onnx")


def infer_job(inputs: Path, out: Path, variant: int, stem: str = "") -> Job:
    """Detections of one variant's images, with overlays."""
    out = out / stem
    images = inputs / f"images-{variant}"
    line = [
        str(images),
        "--model",
        str(inputs / f"model-{variant}.onnx"),
        "--out",
        str(out),
        "--threads",
        "1",
    ]

    if variant > 1:  # drawing takes most of the time
        line.append("--no-overlays")

    def wrong() -> str:
        there = [name for name in (RESULTS, IMAGES) if (out / name).exists()]
        if there == [IMAGES]:  # results alone are what a kill between the two leaves
            return f"{IMAGES} alone"
        said = wrong_results(out) if len(there) == 2 else ""
        return said or _wrong_lines(out / LINES) or _wrong_overlays(out)

    def written() -> Optional[str]:
        if not (out / IMAGES).exists():
            return None
        content = json.loads((out / IMAGES).read_text())
        whole = len(content["images"]) == NUM_IMAGES
        return f"{content['categories'][0]['name']}{'' if whole else ', a part'}"

    return Job(lambda: infer([*line, "--backend", "onnxruntime"]), wrong, written)


def record_job(inputs: Path, out: Path, variant: int, stem: str = "r") -> Job:
    """A recording of one variant's images."""
    path, images = out / f"{stem}.npz", inputs / f"images-{variant}"
    line = [str(inputs / f"model-{variant}.onnx"), "--images", str(images), "-o", str(path), "--threads", "1"]

    def written() -> Optional[str]:
        return read_recording(path).metadata.classes[0] if path.exists() else None

    def wrong() -> str:
        if not path.exists():
            return ""
        recording = read_recording(path)
        variant = recording.metadata.classes[0].rpartition("-")[2]
        names = {image.name for image in recording.images}
        expected = {image.name for image in (inputs / f"images-{variant}").iterdir()}
        return "" if names == expected else f"images {names}, expected {expected}"

    return Job(lambda: record([*line, "--backend", "onnxruntime"]), wrong, written)


def build_job(inputs: Path, out: Path, variant: int, stem: str = "m") -> Job:
    """An engine of the fake TensorRT, which takes a moment to build."""
    model, engine = inputs / f"model-{variant}.onnx", out / f"{stem}.engine"

    def run() -> int:
        with pytest.MonkeyPatch.context() as patch:
            device = Device("NVIDIA H200", (9, 0))
            engine_fakes.install(patch, engine_fakes.V8_5, device, build_seconds=0.15)
            return build([str(model), "-o", str(engine), "--timing-cache", str(out / "cache")])

    def written() -> Optional[str]:
        """An engine and its sidecar; a new engine beside an old sidecar is stale, and is built again."""
        if not engine.exists() or not Path(f"{engine}.json").exists():
            return None
        sidecar = Sidecar.load(engine)
        return sidecar.metadata.classes[0] if sha256_of(engine) == sidecar.engine_sha256 else None

    def wrong() -> str:
        if Path(f"{engine}.json").exists():
            Sidecar.load(engine)  # raises where it is not whole
        if engine.exists() and not engine.read_bytes().startswith(b"fake engine\n"):
            return "an engine without a beginning"
        return ""

    return Job(run, wrong, written)


def write_job(inputs: Path, out: Path, variant: int, stem: str = "m") -> Job:
    """The last step of an export alone: the model and its plan take their names."""
    path = out / f"{stem}.onnx"
    model = onnx.load(inputs / f"model-{variant}.onnx")
    for node in model.graph.node:  # so that a plan of another variant's is seen
        node.name = f"{node.output[0]}-{variant}"

    def run() -> int:
        plan = PrecisionPlan((PrecisionGroup("all", "a test", tuple(n.name for n in model.graph.node)),))
        with ExitStack() as files:
            file = files.enter_context(whole_file(path))
            file.write(model.SerializeToString())
            _publish(files, path, plan)
        return 0

    def written() -> Optional[str]:
        return metadata_of(onnx.load(path), path).classes[0] if path.exists() else None

    def wrong() -> str:
        if not path.exists():
            return ""
        check_plan(PrecisionPlan.load(plan_path(path)), onnx.load(path))
        return ""

    return Job(run, wrong, written)


def export_job(inputs: Path, out: Path, variant: int, stem: str = "m") -> Job:
    """The embedded model, without the comparison, which takes a minute and writes nothing."""
    path = out / f"{stem}.onnx"
    options = ["--max-per-img", str(50 + variant), "--no-verify", "--no-simplify", "--size", "128", "192"]

    def written() -> Optional[str]:
        if not path.exists():
            return None
        props = {p.key: p.value for p in onnx.load(path).metadata_props}
        return f"class-{json.loads(props['maskrcnn'])['max_per_img'] - 50}"

    def wrong() -> str:
        if not path.exists():
            return "a plan alone" if plan_path(path).exists() else ""
        model = onnx.load(path)
        onnx.checker.check_model(model)
        if plan_path(path).exists():
            check_plan(PrecisionPlan.load(plan_path(path)), model)
        return ""

    return Job(lambda: export(["-o", str(path), *options]), wrong, written)


def graft_job(inputs: Path, out: Path, variant: int, stem: str = "g") -> Job:
    """A head behind a small network, held against NumPy."""
    path = out / f"{stem}.onnx"
    images = [str(inputs / f"images-{variant}" / name) for name in ("1.png", "3.png")]
    options = ["--head", "yolov8", "--classes", f"class-{variant}", "--score", "0.05", "--images", *images]

    def written() -> Optional[str]:
        return metadata_of(onnx.load(path), path).classes[0] if path.exists() else None

    def wrong() -> str:
        if path.exists():
            onnx.checker.check_model(onnx.load(path), full_check=True)
        return ""

    return Job(
        lambda: graft([str(inputs / f"network-{variant}.onnx"), "-o", str(path), *options]), wrong, written
    )


def quantize_job(inputs: Path, out: Path, variant: int, stem: str = "q") -> Job:
    """INT8 of what was grafted, with a report, and the ranges in a file."""
    path, report, cache = out / f"{stem}.onnx", out / f"{stem}.json", out / f"ranges-{variant}.json"
    line = [
        str(inputs / f"grafted-{variant}.onnx"),
        "-o",
        str(path),
        "--report",
        str(report),
        "--cache",
        str(cache),
    ]
    line += ["--images", str(inputs / f"images-{variant}"), "--threads", "1"]

    def written() -> Optional[str]:
        return metadata_of(onnx.load(path), path).classes[0] if path.exists() else None

    def wrong() -> str:
        for document in (report, cache):
            if document.exists():
                json.loads(document.read_text())
        if not path.exists():
            return ""
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        return "" if quantization_of(model) is not None else "a model that says nothing of its quantization"

    return Job(lambda: quantize(line), wrong, written)


def run_job(inputs: Path, out: Path, variant: int, stem: str = "arrays") -> Job:
    """Three outputs of a model, each full of the variant's number."""
    out = out / stem
    files = [out / f"{name}.npy" for name in "abc"]
    line = [
        str(inputs / "three.onnx"),
        "--input",
        f"x={inputs / f'x-{variant}.npy'}",
        "--output-dir",
        str(out),
    ]

    def found() -> list[float]:
        return [float(value) for file in files if file.exists() for value in np.unique(np.load(file))]

    def wrong() -> str:
        return f"outputs of several runs: {found()}" if len(set(found())) > 1 else ""

    def written() -> Optional[str]:
        return f"class-{found()[0]:.0f}" if all(file.exists() for file in files) else None

    return Job(lambda: run_model([*line, "--backend", "onnxruntime", "--threads", "1"]), wrong, written)


JOBS: Mapping[str, Make] = {
    "infer": infer_job,
    "record": record_job,
    "build": build_job,
    "export": export_job,
    "export's last step": write_job,
    "graft": graft_job,
    "quantize": quantize_job,
    "run": run_job,
}


def _wrong_lines(path: Path) -> str:
    """Lines are whole, in order, and of one run."""
    if not path.exists():
        return ""
    text = path.read_text(encoding="ascii")
    lines = [json.loads(line) for line in text.splitlines()]
    numbers = [line["image_id"] for line in lines]
    if not text.endswith("\n") or numbers != sorted(set(numbers)):
        return f"lines {numbers}"
    variants = {d["category"].rpartition("-")[2] for line in lines for d in line["detections"]}
    return f"lines of several runs: {variants}" if len(variants) > 1 else ""


def _wrong_overlays(out: Path) -> str:
    for path in out.glob("*.png"):
        data = np.fromfile(path, np.uint8)
        if not data.tobytes().endswith(_PNG_END) or cv2.imdecode(data, cv2.IMREAD_COLOR) is None:
            return f"{path.name} is not whole"
    return ""


def leftovers(folder: Path) -> list[str]:
    """Return the names of temporary files."""
    return sorted(
        path.name for path in folder.rglob("*") if path.name.startswith(".") or ".part" in path.name
    )


@dataclass
class Child:
    """A forked process that runs a job.

    Attributes:
        pid: its id, and that of its group.
        said: the file that its output goes to.
    """

    pid: int
    said: Path

    def wait(self, seconds: float) -> Optional[int]:
        """Return the exit status, negative for a signal; None where it hangs, and is ended."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        os.killpg(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        return None

    def kill(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)


def forked(
    run: Callable[[], int], said: Path, *, most_bytes: Optional[int] = None, start: Optional[int] = None
) -> Child:
    """Run a job in a forked process, which has everything imported.

    Args:
        run: the command.
        said: where its output goes.
        most_bytes: of any file that it writes, beyond which a disk is as good as full.
        start: a descriptor; it begins when that can be read.
    """
    said.write_bytes(b"")
    # A signal that comes before there is a command ends the process; the command's own handlers come with it.
    numbers = (signal.SIGINT, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
        return Child(pid, said)
    status = 99
    try:
        os.setsid()
        output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        for number in (1, 2):
            os.dup2(output, number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout, sys.stderr = (open(n, "w", buffering=1, closefd=False) for n in (1, 2))  # noqa: SIM115
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
        if most_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
        if start is not None:
            os.read(start, 1)
        status = run()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
