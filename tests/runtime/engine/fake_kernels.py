"""The plugin library's functions of images, on ``fake_cuda``'s memory: what the host does, when the stream gets there.

The host's ``prepare`` and ``paste_mask`` have tests of their own against mmdet; run lengths are pycocotools'.
"""

import ctypes
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_int, c_int32, c_size_t, c_void_p
from typing import Any, Optional

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from runtime.device.kernels import (
    ABI,
    CastMasksArguments,
    EncodeMasksArguments,
    PrepareImagesArguments,
    SourceImage,
    TargetImage,
)
from runtime.host.postprocess import paste_mask
from tests.runtime.engine import fake_cuda

_ERROR = ctypes.create_string_buffer(b"invalid device function")


class FakeLibrary:
    """What ``ctypes.CDLL`` returns.

    Attributes:
        capacities: of the calls of ``maskrcnn_encode_masks`` so far.
        num_prepared: images of the calls of ``maskrcnn_prepare_images`` so far.
        streams: that they were put on.
        min_scores: of the calls of ``maskrcnn_encode_masks`` so far.
        num_cast: values of the calls of ``maskrcnn_cast_masks`` so far.
        failing: names of functions that return an error.
    """

    def __init__(self, abi: int = ABI, sizes: Optional[dict[str, int]] = None) -> None:
        structures = (
            SourceImage,
            PrepareImagesArguments,
            TargetImage,
            EncodeMasksArguments,
            CastMasksArguments,
        )
        sizes = {**{s.__name__: ctypes.sizeof(s) for s in structures}, **(sizes or {})}
        self.capacities: list[int] = []
        self.num_prepared: list[int] = []
        self.streams: set[int] = set()
        self.min_scores: list[float] = []
        self.num_cast: list[int] = []
        self.failing: set[str] = set()
        functions = {
            "plugins_register": (CFUNCTYPE(c_int), lambda: 0),
            "images_abi": (CFUNCTYPE(c_int32), lambda: abi),
            "arguments_size": (CFUNCTYPE(c_size_t, c_char_p), lambda name: sizes.get(name.decode(), 0)),
            "error_string": (CFUNCTYPE(c_void_p, c_int), lambda status: ctypes.addressof(_ERROR)),
            "prepare_images": (CFUNCTYPE(c_int, POINTER(PrepareImagesArguments), c_void_p), self._prepare),
            "encode_masks": (CFUNCTYPE(c_int, POINTER(EncodeMasksArguments), c_void_p), self._encode),
            "cast_masks": (CFUNCTYPE(c_int, POINTER(CastMasksArguments), c_void_p), self._cast),
        }
        for name, (prototype, function) in functions.items():
            setattr(self, f"maskrcnn_{name}", prototype(function))

    def _prepare(self, pointer: Any, stream: int) -> int:
        if "prepare_images" in self.failing:
            return 98
        arguments = _copied(pointer)
        # Of the host: it may be gone when the stream gets here.
        images = [_fields(arguments.images[i]) for i in range(arguments.batch)]
        self.num_prepared.append(len(images))
        self.streams.add(stream)
        fake_cuda.put_on_stream(stream, lambda: _do_prepare(arguments, images))
        return 0

    def _encode(self, pointer: Any, stream: int) -> int:
        if "encode_masks" in self.failing:
            return 98
        arguments = _copied(pointer)
        images = [_fields(arguments.images[i]) for i in range(arguments.batch)]
        self.capacities.append(arguments.capacity)
        self.min_scores.append(arguments.min_score)
        fake_cuda.put_on_stream(stream, lambda: _do_encode(arguments, images))
        return 0

    def _cast(self, pointer: Any, stream: int) -> int:
        if "cast_masks" in self.failing:
            return 98
        arguments = _copied(pointer)
        self.num_cast.append(arguments.num_values)
        fake_cuda.put_on_stream(stream, lambda: _do_cast(arguments))
        return 0


def _copied(pointer: Any) -> Any:
    copy = type(pointer.contents)()
    ctypes.pointer(copy)[0] = pointer.contents
    return copy


def _fields(structure: ctypes.Structure) -> dict:
    return {name: getattr(structure, name) for name, _ in structure._fields_}


def _array(address: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    num_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    return fake_cuda.memory_at(address, num_bytes).view(dtype).reshape(shape)


def _do_prepare(a: PrepareImagesArguments, images: list[dict]) -> None:
    output = _array(a.output, (a.batch, 3, a.height, a.width), "float32")
    tables = _array(a.tables, (3, 256), "float32")
    output[...] = a.pad_value
    for image, planes in zip(images, output):
        height, width = image["resized_height"], image["resized_width"]
        rows = _array(image["pixels"], (image["height"], image["row_stride"]), "uint8")
        pixels = rows[:, : 3 * image["width"]].reshape(image["height"], image["width"], 3)
        resized = cv2.resize(np.ascontiguousarray(pixels), (width, height), interpolation=cv2.INTER_LINEAR)
        for channel in range(3):
            values = resized[:, :, 2 - channel if a.reverse_channels else channel]
            planes[channel, :height, :width] = tables[channel][values]


def _do_cast(a: CastMasksArguments) -> None:
    values = _array(a.values, (a.num_values,), "float32")
    _array(a.output, (a.num_values,), "uint8")[...] = values.astype(np.uint8)


def _do_encode(a: EncodeMasksArguments, images: list[dict]) -> None:
    rows = (a.batch, a.max_dets)
    masks = _array(a.masks, (*rows, a.mask_height, a.mask_width), "float32")
    dets = _array(a.dets, (*rows, 5), "float32")
    num_dets = _array(a.num_dets, (a.batch,), "int32")
    offsets, lengths = _array(a.offsets, rows, "int64"), _array(a.lengths, rows, "int32")
    strings = _array(a.strings, (a.capacity,), "uint8")
    offsets[...], lengths[...] = -1, 0
    used = 0
    # Backwards: the strings are in no order that one could rely on.
    for index in reversed(range(a.batch)):
        for row in reversed(range(int(num_dets[index]))):
            if dets[index, row, 4] < np.float32(a.min_score):
                continue
            counts = _counts(masks[index, row], dets[index, row, :4], images[index], a.threshold)
            lengths[index, row] = len(counts)
            if used + len(counts) <= a.capacity:
                offsets[index, row] = used
                strings[used : used + len(counts)] = np.frombuffer(counts, np.uint8)
            used += len(counts)
    _array(a.used, (1,), "int64")[0] = used


def _counts(mask: np.ndarray, box: np.ndarray, image: dict, threshold: float) -> bytes:
    scale = np.array([image["scale_x"], image["scale_y"]] * 2, np.float32)
    size = (image["height"], image["width"])
    crop = paste_mask(mask, box / scale, size, threshold)
    whole = np.zeros(size, np.uint8, order="F")
    whole[crop.window] = crop.pixels
    return coco_mask.encode(whole)["counts"]
