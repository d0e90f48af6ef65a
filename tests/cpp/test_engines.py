"""Engines in the C++ library: refused in Python's words, and its backend compiles against every release's headers.

The backend itself needs a GPU.
"""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from runtime.cuda.binding import CudaPython
from runtime.engine.config import EngineConfig
from runtime.engine.files import EngineRequest, Machine, check_engine, engine_path, ensure_engine
from runtime.engine.plugins import PluginLibrary
from runtime.engine.sidecar import sidecar_path
from tests.cpp.conftest import ROOT, Installed
from tests.plugins.test_headers import cuda_include, major_version, releases
from tests.runtime import fakes as models
from tests.runtime.engine import fake_cuda, fakes

HERE = ("TensorRT 8.5.3.1", "Fake GPU", "9.0", "ab" * 32)
SOURCES = ("sidecar.cpp", "plugin_library.cpp", "tensorrt_engine.cpp", "tensorrt_model.cpp")


def machine(gpu: str = "Fake GPU", capability: tuple[int, int] = (9, 0), plugins: str = "ab" * 32) -> Machine:
    device = fake_cuda.Device(gpu, capability)
    library = PluginLibrary(Path("p.so"), plugins, frozenset()) if plugins else None
    return Machine(fakes.library(fakes.V8_5), CudaPython(fake_cuda.Cudart(device)), library)


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """An engine that the fake TensorRT built on this machine, with its sidecar and its model."""
    model = models.save(tmp_path / "m.onnx")
    request = EngineRequest(model, engine_path(model), EngineConfig(batch=(1, 2, 4)))
    ensure_engine(request, machine())
    return request.engine


@pytest.fixture
def checker(installed: Installed) -> Path:
    """The program that says what the library says of an engine."""
    found = installed.build / "runtime" / "cpp" / "maskrcnn_sidecar_check"
    if not found.is_file():
        pytest.skip("no libcrypto with its headers: apt-get install libssl-dev")
    return found


def said(checker: Path, engine: Path, here: tuple[str, ...] = HERE) -> str:
    done = subprocess.run([checker, engine, *here], capture_output=True, text=True, timeout=20)
    assert not done.stderr
    return done.stdout.rstrip("\n")


def expected(engine: Path, on: Machine) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        check_engine(engine, on)
    code = 1 if isinstance(caught.value, FileNotFoundError) else 2
    return f"{code} {caught.value}"


def test_a_good_engine(checker: Path, engine: Path) -> None:
    assert said(checker, engine) == f"0 {engine.stat().st_size} bytes, {len(models.CLASSES)} classes"
    # libnvinfer 8 does not tell the fourth number of its release.
    assert said(checker, engine, ("TensorRT 8.5.3", *HERE[1:])).startswith("0 ")
    assert said(checker, engine, ("TensorRT 8.5", *HERE[1:])).startswith("0 ")
    assert "TensorRT: expected TensorRT 8.5.2" in said(checker, engine, ("TensorRT 8.5.2", *HERE[1:]))


def test_stale_and_foreign_ones_in_pythons_words(checker: Path, engine: Path) -> None:
    cases: list[tuple[tuple[str, ...], dict[str, Any]]] = [
        ((HERE[0], "Other GPU", *HERE[2:]), {"gpu": "Other GPU"}),
        ((*HERE[:2], "8.6", HERE[3]), {"capability": (8, 6)}),
        (HERE[:3], {"plugins": ""}),
        ((*HERE[:3], "cd" * 32), {"plugins": "cd" * 32, "gpu": "Fake GPU"}),
    ]
    for here, there in cases:
        assert said(checker, engine, here) == expected(engine, machine(**there))
    models.save(engine.with_suffix(".onnx"), models.metadata(max_per_img=4, classes=("a", "b", "c")))
    assert "ONNX (SHA-256)" in said(checker, engine)
    assert said(checker, engine) == expected(engine, machine())


def test_truncated_and_missing_ones_in_pythons_words(checker: Path, engine: Path) -> None:
    engine.write_bytes(engine.read_bytes()[:-5])
    assert "truncated, or not the file that m.engine.json describes" in said(checker, engine)
    assert said(checker, engine) == expected(engine, machine())
    sidecar_path(engine).unlink()
    assert said(checker, engine) == expected(engine, machine())
    engine.unlink()
    assert said(checker, engine) == expected(engine, machine())


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"engine_sha256": 5},
        {"onnx": None},
        {"provenance": ["x"]},
        {"build": "x"},
        {"metadata": {"format": 2}},
    ],
)
def test_damaged_sidecars_in_pythons_words(checker: Path, engine: Path, change: dict) -> None:
    path = sidecar_path(engine)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert said(checker, engine) == expected(engine, machine())


def test_no_sidecar_at_all(checker: Path, engine: Path) -> None:
    """A JSON library's words for what is not JSON are its own."""
    sidecar_path(engine).write_bytes(b"\x00\xff{")
    found = said(checker, engine)
    assert found.startswith(
        f"2 {sidecar_path(engine)}: expected a sidecar of format 1, found something else ("
    )
    assert found.endswith("); build the engine again with `python -m runtime.build`")


@pytest.mark.skipif(
    not releases(), reason="MASKRCNN_TENSORRT_HEADERS is not set: see tests/plugins/test_headers.py"
)
@pytest.mark.skipif(not shutil.which("g++"), reason="no g++")
@pytest.mark.parametrize("release", releases(), ids=lambda release: release.name)
def test_the_backend_compiles_without_warnings(release: Path) -> None:
    if "8.4" in release.name:
        pytest.skip("its tensors have no names")
    assert major_version(release) >= 8
    source = ROOT / "runtime" / "cpp"
    includes = [
        "-I",
        source / "include",
        "-I",
        ROOT,
        "-isystem",
        release / "include",
        "-isystem",
        cuda_include(),
    ]
    flags = [
        "-std=c++17",
        "-fsyntax-only",
        "-Wall",
        "-Wextra",
        "-Wpedantic",
        "-Werror",
        "-Wno-deprecated-declarations",
    ]
    for name in SOURCES[2:]:
        done = subprocess.run(
            ["g++", *flags, *includes, source / "src" / name], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr[-4000:]
