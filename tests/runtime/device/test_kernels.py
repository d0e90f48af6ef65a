"""The binding of the plugin library's functions of images: structures as C has them, refusals of other libraries."""

import ctypes
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from runtime.device import kernels
from runtime.device.kernels import EncodeMasksArguments, ImageKernels, MaskCast, PrepareImagesArguments
from runtime.engine.plugins import find_plugins
from tests.runtime.engine.fake_kernels import FakeLibrary
from tests.runtime.processes import SECONDS

# The interface as the kernels' headers state it.
STRUCTURES = """
#include <stddef.h>
#include <stdint.h>
#include <string.h>
typedef struct {
  const uint8_t* pixels; int64_t row_stride; int32_t height, width; int32_t resized_height, resized_width;
} SourceImage;
typedef struct {
  const SourceImage* images; int32_t batch, height, width; const float* tables; int32_t reverse_channels;
  float pad_value;
  float* output;
} PrepareImagesArguments;
typedef struct { int32_t height, width; float scale_x, scale_y; } TargetImage;
typedef struct {
  const TargetImage* images; int32_t batch, max_dets; const float* masks; const float* dets; const int32_t* num_dets;
  int32_t mask_height, mask_width; float threshold; float min_score; uint8_t* strings; int64_t capacity;
  int64_t* offsets; int32_t* lengths; int64_t* used;
} EncodeMasksArguments;
typedef struct { const float* values; int64_t num_values; uint8_t* output; } CastMasksArguments;
"""
FUNCTIONS = """
int32_t maskrcnn_images_abi(void) { return 3; }
#define SIZE(type) if (strcmp(name, #type) == 0) return sizeof(type)
size_t maskrcnn_arguments_size(const char* name) {
  SIZE(SourceImage); SIZE(PrepareImagesArguments); SIZE(TargetImage); SIZE(EncodeMasksArguments);
  SIZE(CastMasksArguments);
  return 0;
}
const char* maskrcnn_error_string(int error) { return error == 700 ? "an illegal memory access" : "other"; }
int maskrcnn_prepare_images(const PrepareImagesArguments* a, void* stream) { return a->batch == 7 ? 700 : 0; }
int maskrcnn_encode_masks(const EncodeMasksArguments* a, void* stream) {
  return a->images[1].width == 3 && a->capacity == ((int64_t)1 << 40) && stream == (void*)9 ? 0 : 700;
}
int maskrcnn_cast_masks(const CastMasksArguments* a, void* stream) {
  int same = a->values == (float*)16 && a->num_values == ((int64_t)1 << 40) && a->output == (uint8_t*)32;
  return same && stream == (void*)9 ? 0 : 700;
}
"""


def _library(folder: Path, source: str) -> ctypes.CDLL:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    (folder / "images.c").write_text(source)
    path = folder / "images.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", str(path), str(folder / "images.c")], check=True, timeout=SECONDS
    )
    return ctypes.CDLL(str(path))


def test_every_field_lies_where_c_has_it(tmp_path: Path) -> None:
    structures = (
        kernels.SourceImage,
        kernels.PrepareImagesArguments,
        kernels.TargetImage,
        kernels.EncodeMasksArguments,
        kernels.CastMasksArguments,
    )
    fields = [(s, name) for s in structures for name, _ in s._fields_]
    offsets = ", ".join(f"offsetof({s.__name__}, {name})" for s, name in fields)
    library = _library(tmp_path, f"{STRUCTURES} size_t offsets[] = {{{offsets}}};")
    expected = list((ctypes.c_size_t * len(fields)).in_dll(library, "offsets"))
    assert [getattr(s, name).offset for s, name in fields] == expected


def test_functions_of_c_are_called_and_their_errors_raised(tmp_path: Path) -> None:
    images = ImageKernels(_library(tmp_path, STRUCTURES + FUNCTIONS))
    images.prepare_images(PrepareImagesArguments(batch=6), 9)
    message = (
        r"prepare_images: expected the kernels to start, found an illegal memory access \(CUDA error 700\)"
    )
    with pytest.raises(RuntimeError, match=message):
        images.prepare_images(PrepareImagesArguments(batch=7), 9)
    targets = (kernels.TargetImage * 2)(kernels.TargetImage(), kernels.TargetImage(2, 3, 1.0, 1.0))
    arguments = EncodeMasksArguments(images=targets, capacity=1 << 40)
    images.encode_masks(arguments, 9)
    with pytest.raises(RuntimeError, match="encode_masks: .* illegal memory access"):
        images.encode_masks(arguments, 8)


def test_the_cast_of_c_is_called_and_its_errors_raised(tmp_path: Path) -> None:
    cast = MaskCast(_library(tmp_path, STRUCTURES + FUNCTIONS))
    cast(16, 1 << 40, 32, 9)
    with pytest.raises(RuntimeError, match=r"cast_masks: .* an illegal memory access \(CUDA error 700\)"):
        cast(16, 1 << 40, 32, 8)


def test_a_library_without_the_cast_is_refused(tmp_path: Path) -> None:
    older = _library(tmp_path, (STRUCTURES + FUNCTIONS).replace("maskrcnn_cast_masks", "other"))
    ImageKernels(older)
    with pytest.raises(
        RuntimeError, match="found no maskrcnn_cast_masks; build it again with `make plugins`"
    ):
        MaskCast(older)


def test_a_cast_of_another_structure_is_refused(tmp_path: Path) -> None:
    other = STRUCTURES.replace(
        "int64_t num_values; uint8_t* output;", "int64_t num_values; uint8_t* output; int kind;"
    )
    with pytest.raises(
        RuntimeError, match="CastMasksArguments of 24 bytes, found 32; build it again with `make plugins`"
    ):
        MaskCast(_library(tmp_path, other + FUNCTIONS))


@pytest.mark.parametrize(
    ("library", "message"),
    [
        (
            SimpleNamespace(maskrcnn_plugins_register=lambda: 0),
            "plugin library: expected the functions of images, found no maskrcnn_images_abi; build it again with "
            "`make plugins`",
        ),
        (FakeLibrary(abi=2), "in version 3, found version 2; build it again with `make plugins`"),
        (
            FakeLibrary(sizes={"EncodeMasksArguments": 88}),
            "expected EncodeMasksArguments of 96 bytes, found 88; build it again with `make plugins`",
        ),
        (FakeLibrary(sizes={"SourceImage": 0}), "expected SourceImage of 32 bytes, found 0"),
    ],
    ids=["without", "other version", "other structures", "unknown structure"],
)
def test_another_library_is_refused(library: object, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        ImageKernels(library)


def test_the_library_that_is_built_has_them() -> None:
    path = find_plugins()
    if path is None:
        pytest.skip("no plugin library: run `make plugins`")
    images = ImageKernels(ctypes.CDLL(str(path)))
    with pytest.raises(
        RuntimeError, match="prepare_images: expected the kernels to start, found invalid arg"
    ):
        images.prepare_images(PrepareImagesArguments(batch=-1), 0)
    with pytest.raises(RuntimeError, match="cast_masks: expected the kernels to start, found invalid arg"):
        MaskCast(ctypes.CDLL(str(path)))(0, -1, 0, 0)
