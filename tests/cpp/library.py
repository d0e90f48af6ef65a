"""The C++ library as Python calls it: its C interface through ctypes."""

import ctypes
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_int32, c_int64, c_size_t, c_uint64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np

CODES = {1: "not found", 2: "invalid", 3: "failed"}


class Options(ctypes.Structure):
    _fields_ = (
        ("struct_size", c_uint64),
        ("batch_size", c_int32),
        ("threads", c_int32),
        ("bf16", c_int32),
        ("streams", c_int32),
        ("sizes", c_int32),
        ("device_index", c_int32),
        ("no_cuda_graphs", c_int32),
        ("cache", c_char_p),
        ("plugins", c_char_p),
        ("backend", c_char_p),
    )


class Image(ctypes.Structure):
    _fields_ = (
        ("pixels", c_void_p),
        ("row_pitch", c_int64),
        ("num_bytes", c_uint64),
        ("height", c_int32),
        ("width", c_int32),
        ("channels", c_int32),
        ("on_device", c_int32),
    )


@dataclass(frozen=True, eq=False)
class Found:
    """What was found in an image."""

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: list[Optional[str]]
    keypoints: Optional[np.ndarray]
    rle: Optional[list[str]]
    masks: Optional[np.ndarray]


class LibraryError(Exception):
    """An error of the library's; ``code`` is one of ``CODES``'s values."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = CODES[code]


_FUNCTIONS: dict[str, tuple] = {
    "maskrcnn_open": (c_int, c_char_p, POINTER(Options), POINTER(c_void_p), POINTER(c_void_p)),
    "maskrcnn_detector_free": (None, c_void_p),
    "maskrcnn_detect": (
        c_int,
        c_void_p,
        POINTER(Image),
        c_size_t,
        c_float,
        c_void_p,
        POINTER(c_void_p),
        POINTER(c_void_p),
    ),
    "maskrcnn_submit": (
        c_int,
        c_void_p,
        POINTER(Image),
        c_size_t,
        c_float,
        c_void_p,
        POINTER(c_void_p),
        POINTER(c_void_p),
    ),
    "maskrcnn_wait": (c_int, c_void_p, POINTER(c_void_p), POINTER(c_void_p)),
    "maskrcnn_pending_free": (None, c_void_p),
    "maskrcnn_num_classes": (c_size_t, c_void_p),
    "maskrcnn_class_name": (c_char_p, c_void_p, c_size_t),
    "maskrcnn_num_keypoints": (c_size_t, c_void_p),
    "maskrcnn_keypoint_name": (c_char_p, c_void_p, c_size_t),
    "maskrcnn_mask_mode": (c_char_p, c_void_p),
    "maskrcnn_backend": (c_char_p, c_void_p),
    "maskrcnn_channels": (c_int, c_void_p),
    "maskrcnn_num_images": (c_size_t, c_void_p),
    "maskrcnn_num_detections": (c_size_t, c_void_p, c_size_t),
    "maskrcnn_boxes": (POINTER(c_float), c_void_p, c_size_t),
    "maskrcnn_scores": (POINTER(c_float), c_void_p, c_size_t),
    "maskrcnn_labels": (POINTER(c_int32), c_void_p, c_size_t),
    "maskrcnn_keypoints": (POINTER(c_float), c_void_p, c_size_t),
    "maskrcnn_rle": (c_int, c_void_p, c_size_t, c_size_t, POINTER(c_void_p), POINTER(c_void_p)),
    "maskrcnn_mask": (c_int, c_void_p, c_size_t, c_size_t, c_void_p, c_int64, POINTER(c_void_p)),
    "maskrcnn_results_free": (None, c_void_p),
    "maskrcnn_string_free": (None, c_void_p),
    "maskrcnn_error_code": (c_int, c_void_p),
    "maskrcnn_error_message": (c_char_p, c_void_p),
    "maskrcnn_error_free": (None, c_void_p),
    "maskrcnn_version": (c_char_p,),
    "maskrcnn_backends": (c_char_p,),
}


class Library:
    """The loaded library; functions are attributes, without their prefix."""

    def __init__(self, path: Path) -> None:
        self._handle = ctypes.CDLL(str(path))
        for name, (result, *arguments) in _FUNCTIONS.items():
            function = getattr(self._handle, name)
            function.restype, function.argtypes = result, arguments
            setattr(self, name.replace("maskrcnn_", "", 1), function)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"no function maskrcnn_{name}")

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function whose last parameter is the error."""
        error = c_void_p()
        code = getattr(self, name)(*arguments, byref(error))
        if code == 0:
            assert not error.value
            return
        message = self.error_message(error).decode()
        if error.value:
            assert self.error_code(error) == code
        self.error_free(error)
        raise LibraryError(code, message)


class Detector:
    """A model that the library has opened; a context."""

    def __init__(self, library: Library, model: Path, **options: Any) -> None:
        self._library = library
        self._pointer = c_void_p()
        given = Options(struct_size=ctypes.sizeof(Options), **options)
        library.call("open", str(model).encode(), byref(given), byref(self._pointer))
        self.classes = [self._name(i) for i in range(library.num_classes(self._pointer))]

    def _name(self, label: int) -> str:
        return self._library.class_name(self._pointer, label).decode()

    @property
    def masks(self) -> str:
        return self._library.mask_mode(self._pointer).decode()

    @property
    def backend(self) -> str:
        return self._library.backend(self._pointer).decode()

    def __call__(
        self, images: Sequence[np.ndarray], min_score: float = 0.0, *, masks: bool = False
    ) -> list[Found]:
        with ExitStack() as stack:
            given = images_of(images)
            return self._fetched(stack, self._started("detect", given, min_score), masks)

    def submit(self, images: Sequence[np.ndarray]) -> "Pending":
        return Pending(self, self._started("submit", images_of(images), 0.0))

    def raw(self, images: Any, count: int, min_score: float = 0.0) -> None:
        """Detect in what is given as it is, and drop what is found."""
        results = c_void_p()
        self._library.call("detect", self._pointer, images, count, min_score, None, byref(results))
        self._library.results_free(results)

    def _started(self, function: str, images: Any, min_score: float) -> c_void_p:
        pointer = c_void_p()
        self._library.call(function, self._pointer, images, len(images), min_score, None, byref(pointer))
        return pointer

    def _fetched(self, stack: ExitStack, results: c_void_p, masks: bool) -> list[Found]:
        stack.callback(self._library.results_free, results)
        return [self._found(results, i, masks) for i in range(self._library.num_images(results))]

    def _found(self, results: c_void_p, image: int, masks: bool) -> Found:
        lib = self._library
        count = lib.num_detections(results, image)
        labels = array_of(lib.labels(results, image), (count,), np.int32)
        num_points = lib.num_keypoints(self._pointer)
        has_masks = self.masks != "none"
        return Found(
            boxes=array_of(lib.boxes(results, image), (count, 4), np.float32),
            scores=array_of(lib.scores(results, image), (count,), np.float32),
            labels=labels,
            names=[self.classes[label] for label in labels],
            keypoints=array_of(lib.keypoints(results, image), (count, num_points, 3), np.float32)
            if num_points
            else None,
            rle=[self._rle(results, image, i) for i in range(count)] if has_masks else None,
            masks=None,
        )

    def _rle(self, results: c_void_p, image: int, index: int) -> str:
        counts = c_void_p()
        self._library.call("rle", results, image, index, byref(counts))
        text = ctypes.string_at(counts.value).decode()
        self._library.string_free(counts)
        return text

    def mask(self, images: Sequence[np.ndarray], index: int, pitch: int) -> np.ndarray:
        """Return one mask of the first image in rows ``pitch`` bytes apart, 7 wherever nothing was written."""
        results = self._started("detect", images_of(images), 0.0)
        out = np.full((images[0].shape[0], pitch), 7, np.uint8)
        try:
            self._library.call("mask", results, 0, index, out.ctypes.data, pitch)
        finally:
            self._library.results_free(results)
        return out

    def close(self) -> None:
        self._library.detector_free(self._pointer)
        self._pointer = c_void_p()

    def __enter__(self) -> "Detector":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Pending:
    """A batch under way."""

    def __init__(self, detector: Detector, pointer: c_void_p) -> None:
        self._detector, self._pointer = detector, pointer

    def results(self) -> list[Found]:
        library, results = self._detector._library, c_void_p()
        library.call("wait", self._pointer, byref(results))
        with ExitStack() as stack:
            return self._detector._fetched(stack, results, False)

    def free(self) -> None:
        self._detector._library.pending_free(self._pointer)


def images_of(images: Sequence[np.ndarray]) -> Any:
    """Return the C structures of arrays, (H, W, C) or (H, W) uint8, whose rows may lie apart; they keep the arrays."""
    made = (Image * len(images))(*map(_image_of, images))
    made.pixels = list(images)  # of temporary arrays, which would be freed, the structures hold addresses
    return made


def _image_of(array: np.ndarray) -> Image:
    channels = array.shape[2] if array.ndim == 3 else 1
    row, *others = array.strides
    assert others == ([channels, 1] if array.ndim == 3 else [1])
    return Image(
        pixels=array.ctypes.data,
        row_pitch=row,
        num_bytes=row * (array.shape[0] - 1) + array.shape[1] * channels,
        height=array.shape[0],
        width=array.shape[1],
        channels=channels,
    )


def array_of(pointer: Any, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return a copy of what lies behind a pointer, which is NULL of nothing."""
    if not np.prod(shape):
        return np.zeros(shape, dtype)
    return np.ctypeslib.as_array(pointer, shape).astype(dtype)


def in_threads(calls: Sequence[Any]) -> list[Any]:
    """Return what each call returns, all of them at once."""
    results: list[Any] = [None] * len(calls)
    errors: list[BaseException] = []

    def run(index: int) -> None:
        try:
            results[index] = calls[index]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors, errors
    assert not any(thread.is_alive() for thread in threads)
    return results
