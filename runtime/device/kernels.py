"""The plugin library's C functions that prepare images, and encode or cast masks, on the device.

The structures are those of ``plugins/prepare_images``, ``plugins/encode_masks`` and ``plugins/cast_masks``. Pointers
are device addresses, except ``images``, which the functions have read when they return. Nothing waits: everything is
put on the stream.
"""

import ctypes
from collections.abc import Iterable, Mapping
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_int32, c_int64, c_size_t, c_void_p
from typing import Any

ABI = 3


class SourceImage(ctypes.Structure):
    """An image as decoded, (height, width, 3) uint8 BGR, and its size in the network's input, px."""

    _fields_ = (
        ("pixels", c_void_p),
        ("row_stride", c_int64),
        ("height", c_int32),
        ("width", c_int32),
        ("resized_height", c_int32),
        ("resized_width", c_int32),
    )


class PrepareImagesArguments(ctypes.Structure):
    """Images -> ``output``, (batch, 3, height, width) float32, by ``tables``, (3, 256) float32."""

    _fields_ = (
        ("images", POINTER(SourceImage)),
        ("batch", c_int32),
        ("height", c_int32),
        ("width", c_int32),
        ("tables", c_void_p),
        ("reverse_channels", c_int32),
        ("pad_value", c_float),
        ("output", c_void_p),
    )


class TargetImage(ctypes.Structure):
    """The image that masks are pasted into, px, and the network's px per px of it."""

    _fields_ = (
        ("height", c_int32),
        ("width", c_int32),
        ("scale_x", c_float),
        ("scale_y", c_float),
    )


class EncodeMasksArguments(ctypes.Structure):
    """Probabilities (batch, max_dets, mask_height, mask_width) and boxes -> COCO's run lengths in ``strings``."""

    _fields_ = (
        ("images", POINTER(TargetImage)),
        ("batch", c_int32),
        ("max_dets", c_int32),
        ("masks", c_void_p),
        ("dets", c_void_p),
        ("num_dets", c_void_p),
        ("mask_height", c_int32),
        ("mask_width", c_int32),
        ("threshold", c_float),
        ("min_score", c_float),
        ("strings", c_void_p),
        ("capacity", c_int64),
        ("offsets", c_void_p),
        ("lengths", c_void_p),
        ("used", c_void_p),
    )


class CastMasksArguments(ctypes.Structure):
    """``num_values`` float32 -> as many uint8."""

    _fields_ = (("values", c_void_p), ("num_values", c_int64), ("output", c_void_p))


# Result and arguments of each function.
_SIZES = {
    "maskrcnn_images_abi": (c_int32,),
    "maskrcnn_arguments_size": (c_size_t, c_char_p),
    "maskrcnn_error_string": (c_char_p, c_int),
}
_IMAGES = {
    "maskrcnn_prepare_images": (c_int, POINTER(PrepareImagesArguments), c_void_p),
    "maskrcnn_encode_masks": (c_int, POINTER(EncodeMasksArguments), c_void_p),
}
_CAST = {"maskrcnn_cast_masks": (c_int, POINTER(CastMasksArguments), c_void_p)}


class ImageKernels:
    """The functions of a loaded library."""

    def __init__(self, library: Any) -> None:
        """Bind the functions.

        Args:
            library: a ``ctypes.CDLL``.

        Raises:
            RuntimeError: it has not got them, or those of another version.
        """
        _bind(library, _IMAGES, (SourceImage, PrepareImagesArguments, TargetImage, EncodeMasksArguments))
        self._library = library

    def prepare_images(self, arguments: PrepareImagesArguments, stream: int) -> None:
        """Resize, normalise and pad images.

        Raises:
            RuntimeError: the device refuses.
        """
        status = self._library.maskrcnn_prepare_images(byref(arguments), stream)
        _raise_for(self._library, "prepare_images", status)

    def encode_masks(self, arguments: EncodeMasksArguments, stream: int) -> None:
        """Paste masks at the original images' size and write their run lengths.

        Raises:
            RuntimeError: the device refuses.
        """
        status = self._library.maskrcnn_encode_masks(byref(arguments), stream)
        _raise_for(self._library, "encode_masks", status)


class MaskCast:
    """The function of a loaded library that casts masks; fulfils ``runtime.engine.buffers.Cast``."""

    def __init__(self, library: Any) -> None:
        """Bind the function.

        Args:
            library: a ``ctypes.CDLL``.

        Raises:
            RuntimeError: it has not got it, or that of another version.
        """
        _bind(library, _CAST, (CastMasksArguments,))
        self._library = library

    def __call__(self, values: int, num_values: int, output: int, stream: int) -> None:
        """Cast float32 values to uint8.

        Raises:
            RuntimeError: the device refuses.
        """
        status = self._library.maskrcnn_cast_masks(
            byref(CastMasksArguments(values, num_values, output)), stream
        )
        _raise_for(self._library, "cast_masks", status)


def check_sizes(library: Any, structures: Iterable[type[ctypes.Structure]]) -> None:
    """Refuse a library whose structures, which it names as this module does, have other sizes.

    Raises:
        RuntimeError: one has.
    """
    for structure in structures:
        expected = ctypes.sizeof(structure)
        found = library.maskrcnn_arguments_size(structure.__name__.encode())
        if found != expected:
            raise RuntimeError(
                f"plugin library: expected {structure.__name__} of {expected} bytes, found {found}; build it again "
                "with `make plugins`"
            )


def _bind(library: Any, functions: Mapping[str, tuple], structures: Iterable[type[ctypes.Structure]]) -> None:
    """Declare functions, and refuse a library of another version."""
    declared = {**_SIZES, **functions}
    # The version first: of a library of another one, a function that is missing is no news.
    if hasattr(library, "maskrcnn_images_abi"):
        _declare(library, {"maskrcnn_images_abi": _SIZES["maskrcnn_images_abi"]})
        found = library.maskrcnn_images_abi()
        if found != ABI:
            raise RuntimeError(
                f"plugin library: expected the functions of images in version {ABI}, found version {found}; build it "
                "again with `make plugins`"
            )
    missing = [name for name in declared if not hasattr(library, name)]
    if missing:
        raise RuntimeError(
            f"plugin library: expected the functions of images, found no {missing[0]}; build it again with "
            "`make plugins`"
        )
    _declare(library, declared)
    check_sizes(library, structures)


def _declare(library: Any, signatures: Mapping[str, tuple]) -> None:
    for name, (result, *arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments


def _raise_for(library: Any, name: str, status: int) -> None:
    if status != 0:
        text = library.maskrcnn_error_string(status).decode()
        raise RuntimeError(f"{name}: expected the kernels to start, found {text} (CUDA error {status})")
