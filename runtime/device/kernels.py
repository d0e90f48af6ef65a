"""The plugin library's C functions that prepare images, and encode or cast masks, on the device.

The structures are those of ``plugins/prepare_images``, ``plugins/encode_masks`` and ``plugins/cast_masks``. Pointers
are device addresses, except ``images``, which the functions have read when they return. Nothing waits: everything is
put on the stream.
"""

import ctypes
from collections.abc import Mapping
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_int32, c_int64, c_size_t, c_void_p
from typing import Any

ABI = 2


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


# By their numbers in ``maskrcnn_images_arguments_size``; CastMasksArguments, which came later, is the next.
_STRUCTURES = (SourceImage, PrepareImagesArguments, TargetImage, EncodeMasksArguments)
# Result and arguments of each function.
_COMMON = {
    "maskrcnn_images_arguments_size": (c_size_t, c_int),
    "maskrcnn_error_string": (c_char_p, c_int),
}
_FUNCTIONS = {
    "maskrcnn_images_abi": (c_int32,),
    **_COMMON,
    "maskrcnn_prepare_images": (c_int, POINTER(PrepareImagesArguments), c_void_p),
    "maskrcnn_encode_masks_workspace_size": (c_size_t, POINTER(EncodeMasksArguments)),
    "maskrcnn_encode_masks": (c_int, POINTER(EncodeMasksArguments), c_void_p, c_size_t, c_void_p),
}
_CAST_FUNCTIONS = {**_COMMON, "maskrcnn_cast_masks": (c_int, POINTER(CastMasksArguments), c_void_p)}


class ImageKernels:
    """The functions of a loaded library."""

    def __init__(self, library: Any) -> None:
        """Bind the functions.

        Args:
            library: a ``ctypes.CDLL``.

        Raises:
            RuntimeError: it has not got them, or those of another version.
        """
        missing = [name for name in _FUNCTIONS if not hasattr(library, name)]
        if missing:
            raise RuntimeError(
                f"plugin library: expected the functions of images, found no {missing[0]}; build it again with "
                "`make plugins`"
            )
        self._library = library
        _declare(library, _FUNCTIONS)
        self._check()

    def _check(self) -> None:
        abi = self._library.maskrcnn_images_abi()
        expected = (ABI, *(ctypes.sizeof(structure) for structure in _STRUCTURES))
        found = (abi, *(self._library.maskrcnn_images_arguments_size(i) for i in range(len(_STRUCTURES))))
        if found != expected:
            raise RuntimeError(
                f"plugin library: expected the functions of images in version {ABI} with structures of "
                f"{expected[1:]} bytes, found version {abi} and {found[1:]}; build it again with `make plugins`"
            )

    def prepare_images(self, arguments: PrepareImagesArguments, stream: int) -> None:
        """Resize, normalise and pad images.

        Raises:
            RuntimeError: the device refuses.
        """
        status = self._library.maskrcnn_prepare_images(byref(arguments), stream)
        _raise_for(self._library, "prepare_images", status)

    def encode_masks_workspace_size(self, arguments: EncodeMasksArguments) -> int:
        """Return the bytes that ``encode_masks`` needs on the device for its work."""
        return int(self._library.maskrcnn_encode_masks_workspace_size(byref(arguments)))

    def encode_masks(
        self, arguments: EncodeMasksArguments, workspace: int, workspace_size: int, stream: int
    ) -> None:
        """Paste masks at the original images' size and write their run lengths.

        Raises:
            RuntimeError: the device refuses.
        """
        status = self._library.maskrcnn_encode_masks(byref(arguments), workspace, workspace_size, stream)
        _raise_for(self._library, "encode_masks", status)


class MaskCast:
    """The function of a loaded library that casts masks; fulfils ``runtime.engine.buffers.Cast``."""

    def __init__(self, library: Any) -> None:
        """Bind the function.

        Args:
            library: a ``ctypes.CDLL``.

        Raises:
            RuntimeError: it is an older one, which has not got it, or has it with another structure.
        """
        if not hasattr(library, "maskrcnn_cast_masks"):
            raise RuntimeError(
                "plugin library: expected maskrcnn_cast_masks, found none; build it again with `make plugins`"
            )
        self._library = library
        _declare(library, _CAST_FUNCTIONS)
        expected, found = (
            ctypes.sizeof(CastMasksArguments),
            library.maskrcnn_images_arguments_size(len(_STRUCTURES)),
        )
        if found != expected:
            raise RuntimeError(
                f"plugin library: expected maskrcnn_cast_masks with a structure of {expected} bytes, found {found}; "
                "build it again with `make plugins`"
            )

    def __call__(self, values: int, num_values: int, output: int, stream: int) -> None:
        """Cast float32 values to uint8.

        Raises:
            RuntimeError: the device refuses.
        """
        status = self._library.maskrcnn_cast_masks(
            byref(CastMasksArguments(values, num_values, output)), stream
        )
        _raise_for(self._library, "cast_masks", status)


def _declare(library: Any, signatures: Mapping[str, tuple]) -> None:
    for name, (result, *arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments


def _raise_for(library: Any, name: str, status: int) -> None:
    if status != 0:
        text = library.maskrcnn_error_string(status).decode()
        raise RuntimeError(f"{name}: expected the kernels to start, found {text} (CUDA error {status})")
