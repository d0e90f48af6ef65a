"""The library's TensorRT backend without a GPU: built against the real headers, with fakes of what it calls."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.cpp.conftest import ROOT, run

FOLDER = Path(__file__).parent
ENGINE = b"fake engine"
PLUGINS = "libmaskrcnn_plugins.so"
# What is a backend's own, and another's.
_OTHERS = ("openvino_model.cpp", "onnxruntime_model.cpp")
_CLASS = re.compile(r"^class V(\w+) : public VRoot\n\{(.*?)^\};", re.M | re.S)
_METHOD = re.compile(r"virtual ([^;]*?)\s+noexcept\s*=\s*0;", re.S)


def stubs(header: str) -> str:
    """Return classes that end the process in every method of TensorRT's implementation classes.

    Args:
        header: text of NvInferImpl.h.
    """
    found = dict(_CLASS.findall(header))
    classes = []
    for name in ("Runtime", "CudaEngine", "ExecutionContext"):
        methods = [
            f"  {' '.join(m.split())} noexcept override {{ std::abort(); }}"
            for m in _METHOD.findall(found[name])
        ]
        assert methods, name
        body = "\n".join(methods)
        classes.append(f"class Stub{name} : public apiv::V{name} {{\n public:\n{body}\n}};\n")
    using = "using namespace nvinfer1;\n"
    return f"#include <NvInfer.h>\n#include <cstdlib>\n{using}" + "\n".join(classes)


def build(folder: Path, headers: Path, cuda: Path, json: Path, flags: tuple[str, ...]) -> None:
    """Build ``maskrcnn_detect``, ``_benchmark`` and ``_recovery`` with the backend in them, and its libraries.

    Args:
        folder: where to.
        headers: folder of TensorRT 8.5's include/.
        cuda, json: folders of CUDA's headers and of nlohmann/json.hpp.
        flags: of the compiler.
    """
    (folder / "stubs.h").write_text(stubs((headers / "include" / "NvInferImpl.h").read_text()))
    runtime, examples = ROOT / "runtime" / "cpp", ROOT / "examples" / "cpp"
    systems = [option for place in (headers / "include", cuda, json) for option in ("-isystem", place)]
    places = [f"-I{place}" for place in (ROOT, runtime / "include", runtime / "src", FOLDER, folder)]
    common = ["c++", "-std=c++17", "-Wall", "-Wextra", "-Wno-deprecated-declarations", "-fPIC", *flags]
    common += [*places, *systems, "-DMASKRCNN_STATIC", "-DMASKRCNN_WITH_TENSORRT"]
    for name, output in (("nvinfer", "libnvinfer.so.8"), ("plugins", PLUGINS)):
        run(*common, "-Wno-unused-parameter", "-shared", FOLDER / f"{name}.cpp", "-o", folder / output)
    sources = [path for path in sorted((runtime / "src").glob("*.cpp")) if path.name not in _OTHERS]
    sources += [FOLDER / "cudart.cpp", examples / "images.cpp"]
    objects = [folder / f"{source.stem}.o" for source in sources]
    with ThreadPoolExecutor(2) as threads:
        made = threads.map(lambda pair: run(*common, "-c", pair[0], "-o", pair[1]), zip(sources, objects))
        assert len(list(made)) == len(sources)
    files_of = {
        "detect": [examples / "detect.cpp"],
        "benchmark": [examples / f"{name}.cpp" for name in ("benchmark", "endurance", "figures")],
        "recovery": [FOLDER / "recovery.cpp"],
    }
    for program, files in files_of.items():
        libraries = ["-rdynamic", "-lcrypto", "-ldl", "-pthread"]
        run(*common, *files, *objects, *libraries, "-o", folder / f"maskrcnn_{program}")
