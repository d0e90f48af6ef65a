"""Package metadata, and the CPU reference of the operators (``plugins/``, pybind11).

Settings that tools read (ruff, pytest, the build requirements) are in ``pyproject.toml``; versions that
are tested together are pinned in ``constraints.txt``.
"""

import os
import shutil
import subprocess
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent

RUNTIME = [
    "numpy>=1.24",
    "opencv-python-headless>=4.8",
    "onnxruntime>=1.17",
    "pycocotools>=2.0.6",
    "rich>=13",
]
EXPORT = [
    "torch>=2.4",
    "onnx>=1.16",
    "onnxsim>=0.4.36",
    "setuptools<81",
]
# OpenMMLab's, mmcv without its compiled operators. An extra of its own: where a compiled mmcv is installed, or the fork
# whose distributions onedl-mmdetection, onedl-mmcv and onedl-mmengine have the same import names, it would be installed
# over them.
MMDET = [
    "mmdet>=3.3,<3.4",
    "mmengine>=0.10,<0.11",
    "mmcv-lite>=2.0.1,<2.2",
]

PACKAGES = ["export", "patches", "plugins", "runtime"]
# Of examples/, what the commands take without arguments; in an installed package it is in runtime/_embedded/.
EMBEDDED = [
    "tiny-mask-rcnn_r18_fpn_shapes.py",
    "tiny-mask-rcnn_r18_fpn_shapes.pth",
    "images/*.jpg",
    "verification/*.jpg",
]
# Beside `python -m export.maskrcnn` and so on.
COMMANDS = {
    "maskrcnn-export": "export.maskrcnn",
    "maskrcnn-quantize": "export.quantize",
    "maskrcnn-reference": "export.reference",
    "maskrcnn-graft": "export.graft.__main__",
    "maskrcnn-convert": "export.convert.__main__",
    "maskrcnn-infer": "runtime.infer",
    "maskrcnn-build": "runtime.build",
    "maskrcnn-compare": "runtime.compare",
    "maskrcnn-evaluate": "runtime.evaluate",
    "maskrcnn-record": "runtime.record",
    "maskrcnn-run": "runtime.run",
    "maskrcnn-serve": "runtime.serve",
    "maskrcnn-batch": "runtime.batch",
    "maskrcnn-precision": "runtime.precision.__main__",
}

# Releases before it have not been run.
OPENVINO = 'openvino>=2026.4; python_version >= "3.10"'
# Its parser and builder need no GPU: engines are built for real in the tests of any machine that it has wheels for.
TENSORRT_RTX = (
    'tensorrt-rtx>=1.7; sys_platform == "linux" and platform_machine == "x86_64" and python_version >= "3.10"'
)

# 1.21 is the first that finds CUDA's libraries in NVIDIA's wheels. It is installed over the package onnxruntime, which
# has to go: docs/running.md.
ONNXRUNTIME_CUDA = ["onnxruntime-gpu[cuda,cudnn]>=1.21", "cuda-python"]

# What other programs take of results, and where images come from; each as it has been run.
SUPERVISION = 'supervision>=0.31; python_version >= "3.10"'
CVAT = 'cvat-sdk>=2.80; python_version >= "3.11"'
VIDEO = "av>=14.2"
TRACKERS = 'trackers>=2.6; python_version >= "3.10"'
SERVE = [
    "fastapi>=0.115",
    "fastapi-offline>=1.7",  # the page of the API without resources from elsewhere
    "uvicorn>=0.34",
    "h11>=0.14",
    "prometheus-client>=0.20",
    "python-multipart>=0.0.20",
]
# Clients of the service, in its tests.
SERVE_TEST = ["httpx", "tritonclient[http]", "selenium"]
RAY = ['ray[serve,data]>=2.60; python_version >= "3.10"']

# As CMakeLists.txt lists them.
OPERATORS_WITH_BINDINGS = [
    "cast_masks",
    "decode_detections",
    "decode_proposals",
    "encode_masks",
    "grouped_nms",
    "multi_level_roi_align",
    "padded_space_to_depth",
    "paste_masks",
    "prepare_images",
    "roi_align",
    "select_masks",
    "select_top",
]

# Optional: a deployment box without a compiler still gets the runtime. Whatever needs the reference says how to
# build it when it is missing.
reference = Pybind11Extension(
    "plugins._reference",
    ["plugins/reference.cpp", *(f"plugins/{name}/{name}_bindings.cpp" for name in OPERATORS_WITH_BINDINGS)],
    include_dirs=["."],
    depends=[str(p.relative_to(ROOT)) for p in sorted(ROOT.glob("plugins/*/*.h"))],
    cxx_std=17,
    # No contraction into FMA: the reference is compared with NumPy and torch to the last bit where that is possible.
    extra_compile_args=["-O3", "-ffp-contract=off", "-Wall", "-Wextra"],
    extra_link_args=["-pthread"],
    optional=True,
)


# One process per core: pybind11's headers take most of the time of each file.
ParallelCompile().install()


class BuildModules(build_py):
    """The packages, without modules that an earlier build has left behind, and with the embedded model."""

    def run(self) -> None:
        if self.editable_mode:
            super().run()
            return
        # What is compiled is built again where it is older than its sources.
        for path in Path(self.build_lib).rglob("*"):
            if path.is_file() and path.suffix != ".so":
                path.unlink()
        super().run()
        for pattern in EMBEDDED:
            for path in sorted((ROOT / "examples").glob(pattern)):
                target = Path(self.build_lib) / "runtime" / "_embedded" / path.relative_to(ROOT / "examples")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)


class BuildAll(build_ext):
    """The reference, and the TensorRT plugin library where nvcc, CMake and ``TENSORRT_ROOT`` are at hand.

    It is then ``plugins/libmaskrcnn_plugins.so`` in the installed package. ``make plugins`` builds it without pip.
    """

    def run(self) -> None:
        super().run()
        tools = shutil.which("nvcc") and shutil.which("cmake")
        if tools and os.environ.get("TENSORRT_ROOT") and not self.inplace:
            self._build_plugins(Path(self.build_lib).resolve() / "plugins")

    def _build_plugins(self, target: Path) -> None:
        build = Path(self.build_temp).resolve() / "plugins"
        root = os.environ["TENSORRT_ROOT"]
        options = [
            "-DMASKRCNN_BUILD_REFERENCE=OFF",
            f"-DTENSORRT_ROOT={root}",
            *os.environ.get("CMAKE_FLAGS", "").split(),
        ]
        subprocess.run(["cmake", "-S", str(ROOT), "-B", str(build), *options], check=True)
        subprocess.run(["cmake", "--build", str(build), "--target", "maskrcnn_plugins"], check=True)
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy2(build / "libmaskrcnn_plugins.so", target)


setup(
    name="maskrcnn-deploy",
    version="0.1.0",
    description="mmdetection Mask R-CNN to one portable ONNX and to TensorRT: exact, any batch, fast",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.9",
    packages=find_packages(include=[*PACKAGES, *(f"{name}.*" for name in PACKAGES)]),
    package_data={
        "": ["py.typed"],
        "export.convert": ["*.cpp"],
        "export.graft": ["heads/*.json"],
        "runtime.serving": ["page.html"],
    },
    ext_modules=[reference],
    cmdclass={"build_py": BuildModules, "build_ext": BuildAll},
    # build/ itself is CMake's, where `make plugins` puts the plugin library.
    options={"build": {"build_base": "build/python"}},
    entry_points={"console_scripts": [f"{name} = {module}:main" for name, module in COMMANDS.items()]},
    install_requires=RUNTIME,
    extras_require={
        "export": EXPORT,
        "mmdet": MMDET,
        "mmcv-lite": MMDET,  # the same, by the name of the part that may be there already in another build
        "test": [
            "pytest>=8",
            "pytest-timeout",
            "pytest-xdist",
            "hypothesis",
            "ruff",
            "import-linter>=2.6",
            "mypy",
            "nlohmann-json",  # headers of the C++ library's tests
            OPENVINO,
            TENSORRT_RTX,
            SUPERVISION,
            CVAT,
            VIDEO,
            TRACKERS,
            *SERVE,
            *SERVE_TEST,
            *RAY,
        ],
        "serve": SERVE,
        "ray": RAY,
        "openvino": [OPENVINO, "onnx>=1.16"],
        "interop": [SUPERVISION],
        "cvat": [CVAT, "pillow"],
        "video": [VIDEO],
        "track": [VIDEO, TRACKERS],
        "docs": ["mkdocs-material>=9.6"],
        "gpu": ["tensorrt>=8.4", "cuda-python"],
        "cuda": ONNXRUNTIME_CUDA,
    },
)
