"""The C++ library, built, installed and loaded; without a compiler or a header, its tests skip and say why."""

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cpp.library import Library

ROOT = Path(__file__).parents[2]
# A folder with ONNX Runtime's include/ and lib/, as the archive of a release has them.
ONNXRUNTIME_VARIABLE = "MASKRCNN_TEST_ONNXRUNTIME"
_NUM_JOBS = str(min(2, os.cpu_count() or 1))


@dataclass(frozen=True)
class Installed:
    """Where the library was installed.

    Attributes:
        prefix: as ``cmake --install`` was told.
        library: the shared object.
        programs: folder of the programs that were built against it.
        build: folder of its own build.
    """

    prefix: Path
    library: Path
    programs: Path
    build: Path


def _missing() -> str:
    for tool in ("cmake", "c++", "cc"):
        if shutil.which(tool) is None:
            return f"no {tool}"
    if importlib.util.find_spec("openvino") is None:
        return "openvino is not installed"
    has_json = importlib.util.find_spec("nlohmann_json") or Path("/usr/include/nlohmann/json.hpp").is_file()
    return "" if has_json else "no nlohmann/json.hpp: pip install nlohmann-json"


def run(*command: object) -> str:
    """Run a command; return what it printed."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-6000:]}"
    return done.stdout


def built(source: Path, folder: Path, *options: str) -> None:
    """Configure and build a CMake project, warnings being errors."""
    run("cmake", "-S", source, "-B", folder, "-DCMAKE_CXX_FLAGS=-Werror", *options)
    run("cmake", "--build", folder, "-j", _NUM_JOBS)


def _with_onnxruntime() -> list[str]:
    root = os.environ.get(ONNXRUNTIME_VARIABLE)
    return [f"-DMASKRCNN_ONNXRUNTIME_ROOT={root}", "-DMASKRCNN_WITH_ONNXRUNTIME=ON"] if root else []


def _build(folder: Path, prefix: Path) -> None:
    built(
        ROOT,
        folder / "library",
        "-DMASKRCNN_BUILD_RUNTIME=ON",
        "-DMASKRCNN_BUILD_TESTS=ON",
        "-DMASKRCNN_BUILD_REFERENCE=OFF",
        "-DMASKRCNN_BUILD_KERNELS=OFF",
        f"-DPython_EXECUTABLE={sys.executable}",
        *_with_onnxruntime(),
    )
    run("cmake", "--install", folder / "library", "--prefix", prefix)
    for source in (ROOT / "examples" / "cpp", ROOT / "tests" / "cpp" / "consumer"):
        built(source, folder / "programs" / source.name, f"-DCMAKE_PREFIX_PATH={prefix}")


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Built, installed, and used by two projects of their own: the examples and the consumer. Once for all workers."""
    if reason := _missing():
        pytest.skip(reason)
    is_worker = "PYTEST_XDIST_WORKER" in os.environ
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if is_worker else base) / "cpp"
    folder.mkdir(exist_ok=True)
    prefix, done = folder / "prefix", folder / "done"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.is_file():
            _build(folder, prefix)
            done.touch()
    (library,) = prefix.glob("lib*/libmaskrcnn_runtime.so")
    return Installed(prefix, library, folder / "programs", folder / "library")


@pytest.fixture(scope="session")
def library(installed: Installed) -> Library:
    """Its C interface."""
    return Library(installed.library)
