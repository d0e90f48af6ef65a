"""Package metadata, and the CPU reference of the operators (``plugins/reference.cpp``, pybind11).

Settings that tools read (ruff, pytest, the build requirements) are in ``pyproject.toml``; versions that
are tested together are pinned in ``constraints.txt``.
"""

from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import setup

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
    "mmdet>=3.3,<3.4",
    "mmengine>=0.10,<0.11",
    "onnx>=1.16",
    "onnxsim>=0.4.36",
    "setuptools<81",
]

# Optional: a deployment box without a compiler still gets the runtime. Whatever needs the reference says how to
# build it when it is missing.
reference = Pybind11Extension(
    "plugins._reference",
    ["plugins/reference.cpp"],
    include_dirs=["."],
    depends=[str(p.relative_to(ROOT)) for p in sorted(ROOT.glob("plugins/*/*.h"))],
    cxx_std=17,
    # No contraction into FMA: the reference is compared with NumPy and torch to the last bit where that is possible.
    extra_compile_args=["-O3", "-ffp-contract=off", "-Wall", "-Wextra"],
    extra_link_args=["-pthread"],
    optional=True,
)

setup(
    name="maskrcnn-deploy",
    version="0.1.0",
    description="mmdetection Mask R-CNN to one portable ONNX and to TensorRT: exact, any batch, fast",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.9",
    packages=["patches", "export", "plugins", "runtime", "runtime.backends", "examples"],
    package_data={"examples": ["*.pth", "images/*"], "plugins": ["*/*.h"]},
    ext_modules=[reference],
    cmdclass={"build_ext": build_ext},
    install_requires=RUNTIME,
    extras_require={
        "export": EXPORT,
        # mmcv without its compiled ops. Leave this extra out where a compiled mmcv is installed already.
        "mmcv-lite": ["mmcv-lite>=2.0.1,<2.2"],
        "test": ["pytest>=8", "pytest-xdist", "hypothesis", "ruff"],
        "gpu": ["tensorrt>=8.4", "cuda-python"],
    },
)
