# The two commands of the README: `make demo` and `make test`. Everything is installed into .venv.
#
#   PYTHON=python3.12       another Python (3.10 or newer)
#   CMAKE_FLAGS=...         for `make plugins`: -DTENSORRT_ROOT=... -DCMAKE_CUDA_ARCHITECTURES=90
#   PIP_FLAGS='--extra-index-url https://download.pytorch.org/whl/cpu'
#                           PyTorch without CUDA, which is gigabytes

PYTHON ?= python3
VENV ?= .venv
PIP_FLAGS ?=
CMAKE_FLAGS ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt
SOURCES := $(wildcard plugins/*.cpp plugins/*/*_bindings.cpp plugins/*/*.h)
INSTALLED := $(VENV)/.installed

.PHONY: help demo test test-slow test-headers plugins lint docs install clean

help:
	@echo "make demo       install, export the embedded model, detect in the embedded images; results in out/"
	@echo "make test       install, run the test suite (CPU)"
	@echo "make test-slow  the tests that take minutes: a config of every folder of mmdet's that benchmarks/results/zoo.json calls exact"
	@echo "make plugins    the CUDA kernels and the TensorRT plugin library, in build/; TENSORRT_ROOT=... names the headers"
	@echo "make test-headers HEADERS=...   compile the TensorRT adapters against every release's headers in a folder"
	@echo "make lint       ruff, which way imports point, and the types of runtime/"
	@echo "make docs       the documentation, in build/docs; a warning is an error"

install: $(INSTALLED)

$(INSTALLED): setup.py pyproject.toml constraints.txt $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(PIP) pip setuptools wheel pybind11
	$(PIP) --no-build-isolation -e '.[export,mmcv-lite,test,docs]'
# mmengine asks for the OpenCV that needs a desktop's libraries (libGL). The headless build has the same module.
	$(PIP) --force-reinstall --no-deps opencv-python-headless
	@touch $@

demo: $(INSTALLED)
	$(BIN)/python -m export.maskrcnn
	$(BIN)/python -m runtime.infer --batch 2

test: $(INSTALLED)
# A worker that dies ends the run: xdist's scopes may wait for ever after a restart.
	$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder --max-worker-restart 0

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

# Needs no installation: a deployment box has nvcc and TensorRT, and may have neither PyTorch nor pybind11.
plugins:
	cmake -S . -B build -DPython_EXECUTABLE=$$(test -x $(BIN)/python && echo $(abspath $(BIN))/python || command -v $(PYTHON)) \
		$(if $(TENSORRT_ROOT),-DTENSORRT_ROOT=$(TENSORRT_ROOT)) $(CMAKE_FLAGS)
	cmake --build build

test-headers: $(INSTALLED)
	MASKRCNN_TENSORRT_HEADERS=$(HEADERS) $(BIN)/python -m pytest tests/plugins/test_headers.py tests/cpp/test_engines.py tests/cpp/test_tensorrt.py

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

clean:
	rm -rf build dist *.egg-info plugins/*.so
