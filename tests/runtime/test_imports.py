import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runtime.processes import SECONDS

ROOT = Path(__file__).parents[2]
FORBIDDEN = (
    "mmdet",
    "mmcv",
    "mmengine",
    "torch",
    "torchvision",
    "onnx",
    "export",
    "patches",
    "plugins",
    "examples",
)
# A deployment box may lack any of them.
LAZY = (
    "onnx",
    "onnxruntime",
    "pycocotools",
    "tensorrt",
    "tensorrt_rtx",
    "cuda",
    "pycuda",
    "av",
    "supervision",
    "trackers",
    "cvat_sdk",
)
LAZY += ("fastapi", "fastapi_offline", "h11", "prometheus_client", "python_multipart", "starlette", "uvicorn")
LAZY += ("pyarrow", "ray")
FOLDERS = ("runtime", *(f"runtime/{p.parent.name}" for p in sorted((ROOT / "runtime").glob("*/__init__.py"))))


def _modules_after(code: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has loaded after the code."""
    program = f"{code}\nimport sys\nprint(','.join({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=SECONDS
    )
    return set(done.stdout.split("\n")[-2].split(","))


def test_the_runtime_imports_no_framework_and_not_the_exporter(fake_model: Path) -> None:
    """Every module of the package, and a whole detection with run lengths."""
    modules = [folder.replace("/", ".") for folder in FOLDERS]
    modules += [
        f"{folder.replace('/', '.')}.{path.stem}"
        for folder in FOLDERS
        for path in sorted((ROOT / folder).glob("[!_]*.py"))
    ]
    code = (
        f"import {', '.join(modules)}\nimport numpy\n"
        "image = numpy.full((40, 50, 3), 200, numpy.uint8)\n"
        f"(found,) = runtime.Detector({str(fake_model)!r}, 'onnxruntime')([image])\n"
        "assert len(found) == 3 and found.masks.any() and len(found.rle()) == 3"
    )
    loaded = _modules_after(code)
    assert not loaded & set(FORBIDDEN)
    assert loaded & set(LAZY) == {"onnxruntime", "pycocotools"}


def test_importing_the_runtime_loads_no_backend() -> None:
    assert not _modules_after("from runtime import Detector, Detections") & {*LAZY, "rich"}


@pytest.mark.parametrize(
    "module",
    [
        "backends.tensorrt",
        "batch",
        "bulk.job",
        "build",
        "compare",
        "device.runner",
        "evaluate",
        "infer",
        "comparison.bisection",
        "record",
        "serve",
        "serving",
        "precision.plan",
    ],
)
def test_a_module_needs_none_of_what_a_box_may_lack(module: str) -> None:
    assert not _modules_after(f"import runtime.{module}") & set(LAZY)


@pytest.mark.parametrize("path", sorted((ROOT / "runtime").rglob("*.py")), ids=lambda p: p.stem)
def test_the_runtime_is_python_3_9(path: Path) -> None:
    """TensorRT 8.x has bindings for Python 3.10 at most, and boxes with 3.9 run it."""
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))
    unions = [a for a in _annotations(tree) if any(isinstance(n, ast.BitOr) for n in ast.walk(a))]
    assert not unions, (
        f"{path}:{unions[0].lineno}: `X | Y` is evaluated by Python 3.9, write Optional or Union"
    )


def _annotations(tree: ast.AST) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        for name in ("annotation", "returns"):
            if getattr(node, name, None) is not None:
                yield getattr(node, name)


def test_public_names_are_functions_whatever_is_imported_first() -> None:
    """``runtime.compare`` and ``runtime.evaluate`` are commands' modules too."""
    program = (
        "import runtime.compare, runtime.evaluate, runtime.build\n"
        "from runtime.compare import main\n"
        "from runtime import Detections, Detector, Session, build_engine, compare, evaluate\n"
        "import runtime, inspect\n"
        "assert all(map(inspect.isfunction, (main, build_engine, compare, evaluate, runtime.compare)))\n"
        "assert {*runtime.__all__} <= {*vars(runtime)}\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=SECONDS)


def test_an_unknown_name_is_an_import_error() -> None:
    with pytest.raises(ImportError, match="cannot import name 'detector_of'"):
        from runtime import detector_of  # noqa: F401


def test_types_are_shipped() -> None:
    assert (ROOT / "runtime" / "py.typed").is_file()
    assert '"py.typed"' in (ROOT / "setup.py").read_text(encoding="utf-8")
