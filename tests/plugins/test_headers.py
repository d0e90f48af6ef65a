"""The TensorRT adapters compile, without a warning, against the headers of every supported release.

``MASKRCNN_TENSORRT_HEADERS`` names a folder with one folder per release, each with ``include/NvInfer.h``: the
``include/`` folders of https://github.com/NVIDIA/TensorRT, branches release/8.4 ... release/11.1. They are NVIDIA's and
not part of this repository.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.runtime.processes import SECONDS

ROOT = Path(__file__).parents[2]
VARIABLE = "MASKRCNN_TENSORRT_HEADERS"
SHARED = ["common/attributes.cpp", "common/op.cpp", "tensorrt/registry.cpp", "tensorrt/translate.cpp"]
# TensorRT deprecates IPluginV2 from 8.6 on, long before its replacement works everywhere.
FLAGS = ["-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Wno-deprecated-declarations", "-Werror"]


def releases() -> list[Path]:
    folder = os.environ.get(VARIABLE)
    return sorted(p.parent.parent for p in Path(folder).glob("*/include/NvInferVersion.h")) if folder else []


def cuda_include() -> Path:
    nvcc = shutil.which("nvcc")
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda", nvcc and Path(nvcc).resolve().parents[1]]
    for home in filter(None, homes):
        if (Path(home) / "include" / "cuda_runtime_api.h").is_file():
            return Path(home) / "include"
    pytest.skip("no cuda_runtime_api.h: set CUDA_HOME to a CUDA toolkit")


def major_version(release: Path) -> int:
    """Read TensorRT's major version, whatever the release's folder is called."""
    text = (release / "include" / "NvInferVersion.h").read_text()
    return int(re.search(r"#define (?:NV_TENSORRT_MAJOR|TRT_MAJOR_ENTERPRISE) (\d+)", text)[1])


def sources(release: Path) -> list[str]:
    # As CMakeLists.txt and tensorrt/registry.cpp choose: IPluginV3 from 10 on.
    adapter = "tensorrt/plugin_v2.cpp" if major_version(release) < 10 else "tensorrt/plugin_v3.cpp"
    ops = sorted(str(path.relative_to(ROOT / "plugins")) for path in ROOT.glob("plugins/*/*_op.cpp"))
    return [*SHARED, adapter, *ops]


@pytest.mark.skipif(not releases(), reason=f"{VARIABLE} is not set: it names a folder of TensorRT headers")
@pytest.mark.skipif(not shutil.which("g++"), reason="no g++")
@pytest.mark.parametrize("release", releases(), ids=lambda release: release.name)
def test_adapters_compile_without_warnings(release: Path) -> None:
    includes = ["-I", str(ROOT), "-isystem", str(release / "include"), "-isystem", str(cuda_include())]
    command = ["g++", *FLAGS, *includes, *(str(ROOT / "plugins" / source) for source in sources(release))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr[-4000:]
