"""Engines on disk: when they are good, when they are stale and why, and who builds them."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import onnx
import pytest

from runtime.cuda.binding import CudaPython
from runtime.engine.config import EngineConfig
from runtime.engine.files import (
    EngineRequest,
    Machine,
    check_engine,
    engine_path,
    ensure_engine,
    stale_reasons,
)
from runtime.engine.plugins import PluginLibrary
from runtime.engine.sidecar import Sidecar
from runtime.files import sha256_of
from runtime.precision.plan import PrecisionGroup, PrecisionPlan, plan_path
from runtime.transforms import Resize
from tests.runtime import fakes as models
from tests.runtime.engine import fake_cuda, fakes

ROOT = Path(__file__).parents[3]
CONFIG = EngineConfig(batch=(1, 2, 4))
SECONDS_TO_START = 60


def _machine(
    version: str = fakes.V8_5,
    *,
    gpu: str = "Fake GPU",
    compute_capability: tuple[int, int] = (9, 0),
    plugins_sha256: Optional[str] = None,
    **options: Any,
) -> Machine:
    device = fake_cuda.Device(gpu, compute_capability)
    plugins = PluginLibrary(Path("p.so"), plugins_sha256, frozenset()) if plugins_sha256 else None
    return Machine(fakes.library(version, **options), CudaPython(fake_cuda.Cudart(device)), plugins)


def _num_builds(machine: Machine) -> int:
    return len(machine.library.tensorrt.trt.created.builds)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return models.save(tmp_path / "m.onnx")


def _request(model: Path, config: Optional[EngineConfig] = CONFIG, **options: Any) -> EngineRequest:
    return EngineRequest(model, engine_path(model), config, **options)


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".lock"}


def test_an_engine_lies_beside_its_model() -> None:
    assert engine_path("out/maskrcnn.onnx") == Path("out/maskrcnn.engine")


def test_an_engine_is_built_once_and_described(model: Path) -> None:
    machine = _machine(plugins_sha256="ab" * 32)
    lines = []
    sidecar = ensure_engine(_request(model), machine, notify=lines.append)
    assert lines == [f"building {model.with_suffix('.engine')}: there is none yet"]
    assert sidecar == Sidecar.load(model.with_suffix(".engine"))
    assert sidecar.engine_sha256 == sha256_of(model.with_suffix(".engine"))
    assert sidecar.onnx == "m.onnx"
    assert sidecar.provenance.onnx_sha256 == sha256_of(model)
    assert sidecar.provenance.plugins_sha256 == "ab" * 32
    assert (sidecar.provenance.tensorrt, sidecar.provenance.gpu) == ("TensorRT 8.5.3.1", "Fake GPU")
    assert sidecar.config == CONFIG
    assert sidecar.metadata == models.metadata()
    assert set(sidecar.build) == {"seconds", "bytes", "network_layers", "layers_kept_fp32", "warnings"}
    assert sidecar.build["bytes"] == model.with_suffix(".engine").stat().st_size
    assert ensure_engine(_request(model), machine, notify=lines.append) == sidecar
    assert ensure_engine(_request(model), machine, "never", notify=lines.append) == sidecar
    assert (_num_builds(machine), len(lines)) == (1, 1)


def test_always_builds(model: Path) -> None:
    machine = _machine()
    lines = []
    for _ in range(2):
        ensure_engine(_request(model), machine, "always", notify=lines.append)
    assert _num_builds(machine) == 2
    assert lines[-1].endswith("m.engine: --rebuild always")


def _other_onnx(model: Path, request: EngineRequest) -> None:
    models.save(model, models.metadata(classes=("a", "b", "c")))


def _truncate(model: Path, request: EngineRequest) -> None:
    request.engine.write_bytes(request.engine.read_bytes()[:-10])


def _foreign_engine(model: Path, request: EngineRequest) -> None:
    data = bytearray(request.engine.read_bytes())
    data[-1] ^= 1
    request.engine.write_bytes(data)


def _no_sidecar(model: Path, request: EngineRequest) -> None:
    Path(f"{request.engine}.json").unlink()


def _damaged_sidecar(model: Path, request: EngineRequest) -> None:
    Path(f"{request.engine}.json").write_text("{")


def _other_plan(model: Path, request: EngineRequest) -> None:
    PrecisionPlan(()).save(plan_path(model))


def _as_it_is(model: Path, request: EngineRequest) -> None:
    pass


STALE = [
    (_other_onnx, {}, {}, r"ONNX \(SHA-256\): expected [0-9a-f]{64}, found [0-9a-f]{64}"),
    (
        _truncate,
        {},
        {},
        r"engine file: expected \d+ bytes of SHA-256 .*, found \d+ bytes of .*: truncated, or not the",
    ),
    (_foreign_engine, {}, {}, r"engine file: expected (\d+) bytes of .*, found \1 bytes of"),
    (_no_sidecar, {}, {}, r"expected m.engine.json beside it, found nothing"),
    (_damaged_sidecar, {}, {}, r"m.engine.json: expected a sidecar of format 1, found something else"),
    (_other_plan, {}, {}, r"precision plan: expected the one asked for, found another"),
    (_as_it_is, {"gpu": "NVIDIA A10"}, {}, r"GPU: expected NVIDIA A10, found Fake GPU"),
    (_as_it_is, {"compute_capability": (8, 6)}, {}, r"compute capability: expected 8.6, found 9.0"),
    (_as_it_is, {"version": fakes.V8_4}, {}, r"TensorRT: expected TensorRT 8.4.1.5, found TensorRT 8.5.3.1"),
    (
        _as_it_is,
        {"plugins_sha256": "ab" * 32},
        {},
        r"plugin library \(SHA-256\): expected (ab){32}, found None",
    ),
    (
        _as_it_is,
        {},
        {"config": EngineConfig(batch=(1, 2, 8), workspace_mib=64)},
        r"batch: expected \(1, 2, 8\), found \(1, 2, 4\); workspace_mib: expected 64, found None",
    ),
    (
        _as_it_is,
        {},
        {"config": replace(CONFIG, precision="fp32")},
        r"precision: expected fp32, found fp16",
    ),
    (_as_it_is, {}, {"use_plan": False}, r"precision plan: expected the one asked for, found another"),
    (_as_it_is, {}, {"config": None, "batch": 5}, r"batch: expected a profile with 5, found 1 to 4"),
]


@pytest.mark.parametrize(("change", "place", "wish", "reason"), STALE)
def test_a_stale_engine_is_named_refused_or_rebuilt(
    change: Any, place: dict, wish: dict, reason: str, model: Path
) -> None:
    request = _request(model)
    ensure_engine(request, _machine())
    change(model, request)
    machine, request = _machine(**place), replace(request, **wish)
    before = _content(model.parent)
    message = rf"engine .*m.engine: .*{reason}.*; build it again with `python -m runtime.build`, or use --rebuild auto"
    with pytest.raises(ValueError, match=message):
        ensure_engine(request, machine, "never")
    assert _content(model.parent) == before
    lines = []
    ensure_engine(request, machine, notify=lines.append)
    assert _num_builds(machine) == 1
    assert len(lines) == 1
    assert lines[0].startswith(f"building {request.engine}: ")
    assert stale_reasons(request, machine) == []
    assert fakes.opened(request.engine.read_bytes())["version"] == machine.library.tensorrt.version


def test_all_reasons_are_named_at_once(model: Path) -> None:
    request = _request(model)
    ensure_engine(request, _machine())
    _truncate(model, request)
    _other_onnx(model, request)
    other = _machine(fakes.V10_0, gpu="A", compute_capability=(8, 0), plugins_sha256="cd" * 32)
    reasons = stale_reasons(replace(request, config=EngineConfig(batch=(2, 2, 2))), other)
    starts = ["engine file", "ONNX", "plugin library", "TensorRT", "GPU", "compute capability", "batch"]
    assert [reason.startswith(start) for reason, start in zip(reasons, starts)] == [True] * 7
    assert len(reasons) == 7


@pytest.mark.parametrize("batch", [None, 1, 3, 4])
def test_without_wishes_any_good_engine_will_do(batch: Optional[int], model: Path) -> None:
    ensure_engine(_request(model, replace(CONFIG, precision="tf32")), _machine())
    machine = _machine()
    sidecar = ensure_engine(_request(model, None, batch=batch), machine)
    assert sidecar.config.precision == "tf32"
    assert _num_builds(machine) == 0


@pytest.mark.parametrize(("batch", "profile"), [(None, (1, 8, 8)), (1, (1, 2, 8)), (16, (1, 16, 16))])
def test_the_default_profile_takes_the_batch(batch: Optional[int], profile: tuple, model: Path) -> None:
    sidecar = ensure_engine(_request(model, None, batch=batch), _machine())
    assert sidecar.config.batch == profile
    assert sidecar.config.precision == "fp16"


def test_a_dynamic_model_gets_its_own_sizes_and_keeps_its_engine(tmp_path: Path) -> None:
    facts = models.metadata(size=None, steps=(Resize(scale=(192, 128), keep_ratio=True),))
    model = models.save(tmp_path / "m.onnx", facts)
    machine = _machine()
    for _ in range(2):
        sidecar = ensure_engine(_request(model), machine)
    assert (sidecar.config.height, sidecar.config.width) == ((64, 128, 192), (64, 192, 192))
    assert fakes.opened(engine_path(model).read_bytes())["profiles"][-1]["images"][2] == [4, 3, 192, 192]
    assert _num_builds(machine) == 1


def test_an_onnx_that_is_not_ours_has_an_engine_too(tmp_path: Path) -> None:
    model = models.save(tmp_path / "m.onnx", with_metadata=False)
    assert ensure_engine(_request(model), _machine()).metadata is None
    assert check_engine(engine_path(model), _machine()).metadata is None


@pytest.mark.parametrize("version", fakes.RELEASES)
def test_nodes_without_names_are_no_hindrance(version: str, model: Path) -> None:
    """The plan goes by names; the fake model's nodes have none."""
    assert not any(node.name for node in onnx.load(str(model)).graph.node)
    sidecar = ensure_engine(_request(model), _machine(version))
    assert sidecar.plan_sha256
    assert (sidecar.build["layers_kept_fp32"] > 0) == (version in fakes.WEAKLY_TYPED)


def _plan(*nodes: str) -> PrecisionPlan:
    return PrecisionPlan((PrecisionGroup("some", "A reason.", nodes),))


def test_the_plan_is_the_one_named_or_beside_the_model_or_the_graphs(model: Path, tmp_path: Path) -> None:
    def kept(request: EngineRequest) -> list[str]:
        ensure_engine(request, _machine())
        return fakes.opened(request.engine.read_bytes())["float32"]

    own = kept(_request(model))
    assert {"boxes", "dets"} <= set(own)
    _plan("boxes").save(plan_path(model))
    assert kept(_request(model)) == ["boxes"]
    _plan("dets").save(tmp_path / "other.json")
    assert kept(_request(model, plan=tmp_path / "other.json")) == ["dets"]
    assert kept(_request(model, use_plan=False)) == []
    plan_path(model).unlink()
    assert kept(_request(model)) == own


def test_a_plan_of_another_model_is_refused(model: Path) -> None:
    _plan("/backbone/conv1/Conv").save(plan_path(model))
    message = "m.plan.json: precision plan: expected names of the model's .* nodes, found 1 others: /backbone/conv1/"
    with pytest.raises(ValueError, match=message):
        ensure_engine(_request(model), _machine())


def test_a_plan_that_is_not_there_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match="precision plan .*none.json: expected a file, found nothing there"
    ):
        ensure_engine(_request(model, plan=tmp_path / "none.json"), _machine())


def test_a_timing_cache_is_kept_between_builds(model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "caches" / "timing.cache"
    for count in (1, 2):
        ensure_engine(_request(model, timing_cache=cache), _machine(), "always")
        assert cache.read_bytes() == b"timing cache of 8.5.3.1\n" + b"kernel\n" * count


@pytest.mark.parametrize(
    ("rebuild", "kind", "message"),
    [
        ("sometimes", ValueError, "--rebuild: expected one of auto, never, always, found 'sometimes'"),
        ("never", FileNotFoundError, "engine .*m.engine: there is none yet; build it again with"),
    ],
)
def test_what_cannot_be_had_is_refused(rebuild: str, kind: type, message: str, model: Path) -> None:
    with pytest.raises(kind, match=message):
        ensure_engine(_request(model), _machine(), rebuild)
    assert [path.name for path in model.parent.iterdir()] == ["m.onnx"]


def test_a_missing_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="model .*none.onnx: expected an ONNX file, found nothing"):
        ensure_engine(_request(tmp_path / "none.onnx"), _machine())


def test_never_needs_no_right_to_write(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model may be deployed in a read-only folder."""
    ensure_engine(_request(model), _machine())
    for path in model.parent.glob("*.lock"):
        path.unlink()
    before = {path.name for path in model.parent.iterdir()}
    ensure_engine(_request(model), _machine(), "never")
    ensure_engine(_request(model), _machine(), "auto")
    assert {path.name for path in model.parent.iterdir()} == before


@pytest.mark.parametrize(
    ("options", "kind"),
    [({"failure": "no kernel"}, RuntimeError), ({"unsupported": ("Gather",)}, ValueError)],
)
def test_a_build_that_fails_leaves_what_was_there(options: dict, kind: type, model: Path) -> None:
    cache = model.parent / "timing.cache"
    request = _request(model, timing_cache=cache)
    ensure_engine(request, _machine())
    before = _content(model.parent)
    with pytest.raises(kind):
        ensure_engine(request, _machine(**options), "always")
    assert _content(model.parent) == before
    assert stale_reasons(request, _machine()) == []


def test_an_engine_by_itself_is_checked(model: Path) -> None:
    request = _request(model)
    sidecar = ensure_engine(request, _machine())
    assert check_engine(request.engine, _machine()) == sidecar
    assert check_engine(str(request.engine), _machine()) == sidecar
    with pytest.raises(
        ValueError, match="GPU: expected B, found Fake GPU; compute capability: .*; build it again"
    ):
        check_engine(request.engine, _machine(gpu="B", compute_capability=(8, 0)))
    _other_onnx(model, request)
    with pytest.raises(ValueError, match=r"ONNX \(SHA-256\)"):
        check_engine(request.engine, _machine())
    # On a box that only runs it, there is no ONNX.
    model.unlink()
    assert check_engine(request.engine, _machine()) == sidecar
    _truncate(model, request)
    with pytest.raises(ValueError, match="engine file: .* truncated"):
        check_engine(request.engine, _machine())
    request.engine.unlink()
    with pytest.raises(FileNotFoundError, match="engine .*: expected a file, found nothing; build it with"):
        check_engine(request.engine, _machine())


def test_an_engine_elsewhere_finds_its_model(model: Path, tmp_path: Path) -> None:
    engine = tmp_path / "engines" / "x.engine"
    sidecar = ensure_engine(EngineRequest(model, engine, CONFIG), _machine())
    assert sidecar.onnx == str(model)
    models.save(model, models.metadata(classes=("a", "b", "c")))
    with pytest.raises(ValueError, match="ONNX"):
        check_engine(engine, _machine())


PROGRAM = """
import os, sys, time
from pathlib import Path
from runtime.cuda.binding import CudaPython
from runtime.engine.files import EngineRequest, Machine, ensure_engine
from tests.runtime.engine import fake_cuda, fakes

folder, name, mode = Path(sys.argv[1]), sys.argv[2], sys.argv[3]

def begin():
    with open(folder / "builds.txt", "a") as file:
        file.write(f"{name}\\n")

def hang(handle):
    (folder / "writing").touch()
    time.sleep(600)

if mode == "hang":
    os.fsync = hang
library = fakes.library(build_seconds=0.5, on_build=begin)
machine = Machine(library, CudaPython(fake_cuda.Cudart(fake_cuda.Device())), None)
(folder / f"ready.{name}").touch()
while not (folder / "go").exists():
    time.sleep(0.005)
request = EngineRequest(folder / "m.onnx", folder / "m.engine")
sidecar = ensure_engine(request, machine, "auto", notify=lambda line: print(line, flush=True))
print(sidecar.engine_sha256, flush=True)
"""


def _start(folder: Path, name: str, mode: str = "build") -> subprocess.Popen:
    command = [sys.executable, "-c", PROGRAM, str(folder), name, mode]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def _wait_for(*paths: Path) -> None:
    end = time.monotonic() + SECONDS_TO_START
    while not all(path.exists() for path in paths):
        assert time.monotonic() < end, f"{paths} did not come"
        time.sleep(0.01)


def test_of_two_processes_one_builds_and_the_other_waits(model: Path) -> None:
    folder = model.parent
    processes = [_start(folder, name) for name in "ab"]
    _wait_for(folder / "ready.a", folder / "ready.b")
    (folder / "go").touch()
    outputs = [process.communicate(timeout=SECONDS_TO_START)[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert len((folder / "builds.txt").read_text().splitlines()) == 1
    engine = folder / "m.engine"
    assert {lines[-1] for lines in outputs} == {sha256_of(engine)}
    first, second = sorted(outputs, key=lambda lines: lines[0])
    assert first[0] == f"building {engine}: there is none yet"
    assert second[0] == f"waiting for another process that builds {engine}"
    assert stale_reasons(_request(model, None), _machine()) == []
    assert not list(folder.glob("*.partial"))


def test_a_process_killed_while_it_writes_leaves_no_half_file(model: Path) -> None:
    folder = model.parent
    request = _request(model, None)
    process = _start(folder, "killed", "hang")
    (folder / "go").touch()
    _wait_for(folder / "writing")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=SECONDS_TO_START)
    assert process.returncode == -signal.SIGKILL
    assert not request.engine.exists()
    assert not Path(f"{request.engine}.json").exists()
    # Its lock went with it, and the next one builds.
    machine = _machine()
    ensure_engine(request, machine)
    assert _num_builds(machine) == 1
    assert check_engine(request.engine, _machine()).engine_sha256 == sha256_of(request.engine)


def test_a_process_killed_between_engine_and_sidecar_leaves_a_stale_engine(model: Path) -> None:
    """The engine is there under its name, and the old sidecar does not describe it."""
    request = _request(model)
    ensure_engine(request, _machine())
    sidecar = Path(f"{request.engine}.json").read_bytes()
    ensure_engine(replace(request, config=EngineConfig(batch=(1, 1, 1))), _machine())
    Path(f"{request.engine}.json").write_bytes(sidecar)
    assert json.loads(sidecar)["config"]["batch"] == [1, 2, 4]
    (reason,) = stale_reasons(request, _machine())
    assert reason.startswith("engine file: expected")
