"""The CUDA kernels on torch tensors, without TensorRT: for tests and timings.

``libmaskrcnn_kernels.so`` is looked for beside this file, or where ``MASKRCNN_KERNELS`` says. To build it by hand::

    nvcc -std=c++17 -O3 -arch=native -shared -Xcompiler -fPIC -I. plugins/*_c_api.cpp plugins/*/*_kernel.cu \
        -o plugins/libmaskrcnn_kernels.so

All tensors are contiguous CUDA tensors on one device. Everything runs on torch's current stream; nothing waits for it.
"""

import ctypes
import functools
import os
from collections.abc import Sequence
from ctypes import POINTER, Structure, byref, c_bool, c_float, c_int, c_int32, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Callable

import torch
from torch import Tensor

from runtime.device.kernels import (
    CastMasksArguments,
    EncodeMasksArguments,
    ImageKernels,
    MaskCast,
    PrepareImagesArguments,
    SourceImage,
    TargetImage,
)

MAX_LEVELS = 8
NCHW, NHWC, NHWC8 = 0, 1, 2
_ELEMENT_TYPES = {torch.float32: 0, torch.float16: 1, torch.int8: 2, torch.uint8: 3, torch.bool: 4}
_INTERPOLATIONS = {"bilinear": 0, "nearest": 1, "bicubic": 2}
_PADDINGS = {"zeros": 0, "border": 1, "reflection": 2}


class _GroupedNms(Structure):
    _fields_ = [
        ("boxes", c_void_p),
        ("scores", c_void_p),
        ("groups", c_void_p),
        ("batch", c_int32),
        ("groups_batch", c_int32),
        ("num_boxes", c_int32),
        ("max_output", c_int32),
        ("iou_threshold", c_float),
        ("score_threshold", c_float),
        ("shift_groups", c_bool),
        ("indices", c_void_p),
        ("count", c_void_p),
    ]


class _Level(Structure):
    _fields_ = [("data", c_void_p), ("height", c_int), ("width", c_int), ("spatial_scale", c_float)]


class _MultiLevelRoiAlign(Structure):
    _fields_ = [
        ("levels", _Level * MAX_LEVELS),
        ("num_levels", c_int),
        ("batch", c_int64),
        ("channels", c_int64),
        ("feature_type", c_int),
        ("feature_layout", c_int),
        ("rois", c_void_p),
        ("num_rois", c_int64),
        ("output", c_void_p),
        ("output_type", c_int),
        ("output_layout", c_int),
        ("output_height", c_int),
        ("output_width", c_int),
        ("sampling_ratio", c_int),
        ("mode", c_int),
        ("aligned", c_bool),
        ("finest_scale", c_float),
    ]


class _PasteMasks(Structure):
    _fields_ = [
        ("masks", c_void_p),
        ("mask_type", c_int),
        ("boxes", c_void_p),
        ("num_masks", c_int64),
        ("mask_height", c_int),
        ("mask_width", c_int),
        ("height", c_int),
        ("width", c_int),
        ("threshold", c_float),
        ("output", c_void_p),
        ("output_type", c_int),
    ]


class _GridSample(Structure):
    _fields_ = [
        ("input", c_void_p),
        ("grid", c_void_p),
        ("output", c_void_p),
        ("type", c_int),
        ("num_spatial", c_int),
        ("batch", c_int64),
        ("channels", c_int64),
        ("in_size", c_int64 * 3),
        ("out_size", c_int64 * 3),
        ("interpolation", c_int),
        ("padding", c_int),
        ("align_corners", c_bool),
    ]


class _SelectTop(Structure):
    _fields_ = [
        ("scores", c_void_p),
        ("batch", c_int32),
        ("num_scores", c_int32),
        ("k", c_int32),
        ("values", c_void_p),
        ("indices", c_void_p),
    ]


class _BoxDecoding(Structure):
    _fields_ = [("means", c_float * 4), ("stds", c_float * 4), ("max_ratio", c_float), ("clip", c_bool)]


class _DecodeDetections(Structure):
    _fields_ = [
        ("logits", c_void_p),
        ("logits_type", c_int),
        ("deltas", c_void_p),
        ("deltas_type", c_int),
        ("proposals", c_void_p),
        ("count", c_void_p),
        ("image_sizes", c_void_p),
        ("batch", c_int32),
        ("num_proposals", c_int32),
        ("num_classes", c_int32),
        ("class_agnostic", c_bool),
        ("decoding", _BoxDecoding),
        ("boxes", c_void_p),
        ("scores", c_void_p),
    ]


class _SelectMasks(Structure):
    _fields_ = [
        ("logits", c_void_p),
        ("logits_type", c_int),
        ("logits_layout", c_int),
        ("labels", c_void_p),
        ("num_masks", c_int64),
        ("channels", c_int64),
        ("num_pixels", c_int64),
        ("masks", c_void_p),
    ]


class _ProposalLevel(Structure):
    _fields_ = [
        ("logits", c_void_p),
        ("deltas", c_void_p),
        ("height", c_int32),
        ("width", c_int32),
        ("top", c_int32),
    ]


class _DecodeProposals(Structure):
    _fields_ = [
        ("levels", _ProposalLevel * MAX_LEVELS),
        ("num_levels", c_int32),
        ("batch", c_int32),
        ("num_anchors", c_int32),
        ("map_type", c_int),
        ("map_layout", c_int),
        ("priors", c_void_p),
        ("image_sizes", c_void_p),
        ("decoding", _BoxDecoding),
        ("min_size", c_float),
        ("boxes", c_void_p),
        ("scores", c_void_p),
    ]


def library_path() -> Path:
    """Return where the library is expected."""
    default = Path(__file__).resolve().parent / "libmaskrcnn_kernels.so"
    return Path(os.environ.get("MASKRCNN_KERNELS", default))


@functools.cache
def load_library() -> ctypes.CDLL:
    """Load the kernels.

    Raises:
        RuntimeError: the library is missing, or was built from other sources than this module.
    """
    path = library_path()
    if not path.exists():
        raise RuntimeError(
            f"kernels: expected {path}, which does not exist; build it as plugins/kernels.py says"
        )
    library = ctypes.CDLL(str(path))
    _check_sizes(
        library.maskrcnn_arguments_size,
        (
            _GroupedNms,
            _MultiLevelRoiAlign,
            _PasteMasks,
            _GridSample,
            _SelectTop,
            _DecodeDetections,
            _SelectMasks,
            _DecodeProposals,
        ),
    )
    ImageKernels(library)  # declares its functions, and checks their structures
    MaskCast(library)
    library.maskrcnn_grouped_nms_workspace_size.restype = c_size_t
    library.maskrcnn_grouped_nms.argtypes = [POINTER(_GroupedNms), c_void_p, c_size_t, c_void_p]
    library.maskrcnn_select_top_workspace_size.restype = c_size_t
    library.maskrcnn_select_top.argtypes = [POINTER(_SelectTop), c_void_p, c_size_t, c_void_p]
    library.maskrcnn_decode_proposals_workspace_size.restype = c_size_t
    library.maskrcnn_decode_proposals_workspace_size.argtypes = [POINTER(_DecodeProposals)]
    library.maskrcnn_decode_proposals.argtypes = [POINTER(_DecodeProposals), c_void_p, c_size_t, c_void_p]
    for name, structure in (
        ("multi_level_roi_align", _MultiLevelRoiAlign),
        ("paste_masks", _PasteMasks),
        ("grid_sample", _GridSample),
        ("decode_detections", _DecodeDetections),
        ("select_masks", _SelectMasks),
    ):
        getattr(library, f"maskrcnn_{name}").argtypes = [POINTER(structure), c_void_p]
    return library


def _check_sizes(size_of: Callable[[int], int], structures: "Sequence[type[Structure]]") -> None:
    size_of.restype = c_size_t
    for index, structure in enumerate(structures):
        built = size_of(index)
        if built != ctypes.sizeof(structure):
            raise RuntimeError(
                f"{library_path()}: expected arguments{structure.__name__} of {ctypes.sizeof(structure)} bytes, "
                f"found {built}; rebuild the library"
            )


def _launch(name: str, arguments: Structure, *workspace: object) -> None:
    library = load_library()
    stream = torch.cuda.current_stream().cuda_stream
    error = getattr(library, f"maskrcnn_{name}")(byref(arguments), *workspace, stream)
    if error:
        raise RuntimeError(f"{name}: {library.maskrcnn_error_string(error).decode()}")


def _check(name: str, tensor: Tensor, dtypes: Sequence[torch.dtype]) -> None:
    if not tensor.is_cuda or not tensor.is_contiguous() or tensor.dtype not in dtypes:
        found = f"{'contiguous' if tensor.is_contiguous() else 'strided'} {tensor.dtype} on {tensor.device}"
        raise ValueError(f"{name}: expected a contiguous CUDA tensor of {list(dtypes)}, found {found}")


def grouped_nms(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    *,
    iou_threshold: float,
    score_threshold: float,
    max_output: int,
    shift_groups: bool = True,
) -> tuple[Tensor, Tensor]:
    """Greedy NMS within groups; see ``grouped_nms_kernel.h``.

    boxes: (B, M, 4) float32. scores: (B, M) float32. groups: (B, M) or (1, M) int32.
    Returns indices (B, max_output) int32 and count (B,) int32.
    """
    for name, tensor, dtype in (
        ("boxes", boxes, torch.float32),
        ("scores", scores, torch.float32),
        ("groups", groups, torch.int32),
    ):
        _check(name, tensor, [dtype])
    batch, num_boxes = scores.shape
    indices = boxes.new_empty((batch, max_output), dtype=torch.int32)
    count = boxes.new_empty((batch,), dtype=torch.int32)
    size = load_library().maskrcnn_grouped_nms_workspace_size(batch, num_boxes)
    workspace = boxes.new_empty((max(size, 1),), dtype=torch.uint8)
    arguments = _GroupedNms(
        boxes.data_ptr(),
        scores.data_ptr(),
        groups.data_ptr(),
        batch,
        groups.shape[0],
        num_boxes,
        max_output,
        iou_threshold,
        score_threshold,
        shift_groups,
        indices.data_ptr(),
        count.data_ptr(),
    )
    _launch("grouped_nms", arguments, workspace.data_ptr(), size)
    return indices, count


def to_layout(tensor: Tensor, layout: int) -> Tensor:
    """Return a contiguous tensor whose memory holds an NCHW tensor in a layout: (N, H, W, C or C padded to 8)."""
    if layout == NCHW:
        return tensor.contiguous()
    channels = tensor.shape[1]
    if layout == NHWC8:
        # The padding may hold anything: NaN shows where it is read as data.
        tensor = torch.nn.functional.pad(tensor, (0, 0, 0, 0, 0, -channels % 8), value=float("nan"))
    return tensor.permute(0, 2, 3, 1).contiguous()


def multi_level_roi_align(
    features: Sequence[Tensor],
    rois: Tensor,
    *,
    channels: int,
    output_size: tuple[int, int],
    spatial_scales: Sequence[float],
    finest_scale: float = 56.0,
    sampling_ratio: int = 0,
    mode: str = "avg",
    aligned: bool = True,
    layout: int = NCHW,
    output_layout: int = NCHW,
    output_dtype: "torch.dtype | None" = None,
) -> Tensor:
    """RoIAlign from the level that fits each RoI; see ``multi_level_roi_align_kernel.h``.

    features: L float32 or float16 tensors in ``layout`` (see ``to_layout``), of ``channels`` channels.
    rois: (R, 5) float32. Returns (R, C, *output_size), or (R, *output_size, C) in a channels-last layout.
    """
    _check("rois", rois, [torch.float32])
    for feature in features:
        _check("features", feature, [features[0].dtype] if features[0].dtype in _ELEMENT_TYPES else [])
    dtype = output_dtype or features[0].dtype
    stored = -(-channels // 8) * 8 if output_layout == NHWC8 else channels
    num_rois = rois.shape[0]
    shape = (num_rois, channels, *output_size) if output_layout == NCHW else (num_rois, *output_size, stored)
    output = torch.empty(shape, dtype=dtype, device=rois.device)
    levels = (_Level * MAX_LEVELS)()
    for i, (feature, scale) in enumerate(zip(features, spatial_scales)):
        height, width = feature.shape[2:] if layout == NCHW else feature.shape[1:3]
        levels[i] = _Level(feature.data_ptr(), height, width, scale)
    arguments = _MultiLevelRoiAlign(
        levels,
        len(features),
        features[0].shape[0],
        channels,
        _ELEMENT_TYPES[features[0].dtype],
        layout,
        rois.data_ptr(),
        num_rois,
        output.data_ptr(),
        _ELEMENT_TYPES[dtype],
        output_layout,
        *output_size,
        sampling_ratio,
        {"max": 0, "avg": 1}[mode],
        aligned,
        finest_scale,
    )
    _launch("multi_level_roi_align", arguments)
    return output


def paste_masks(
    masks: Tensor,
    boxes: Tensor,
    size: tuple[int, int],
    *,
    threshold: float = 0.5,
    dtype: torch.dtype = torch.uint8,
) -> Tensor:
    """Paste masks into their boxes; see ``paste_masks_kernel.h``.

    masks: (B, K, h, w) float32 or float16. boxes: (B, K, 4) float32. Returns (B, K, *size) of 0 and 1.
    """
    _check("masks", masks, [torch.float32, torch.float16])
    _check("boxes", boxes, [torch.float32])
    output = torch.empty((*masks.shape[:2], *size), dtype=dtype, device=masks.device)
    arguments = _PasteMasks(
        masks.data_ptr(),
        _ELEMENT_TYPES[masks.dtype],
        boxes.data_ptr(),
        masks.shape[0] * masks.shape[1],
        *masks.shape[2:],
        *size,
        threshold,
        output.data_ptr(),
        _ELEMENT_TYPES[dtype],
    )
    _launch("paste_masks", arguments)
    return output


def grid_sample(
    features: Tensor,
    grid: Tensor,
    *,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool,
) -> Tensor:
    """Do what ``torch.nn.functional.grid_sample`` does; see ``grid_sample_kernel.h``.

    features: (N, C, H, W) or (N, C, D, H, W), float32 or float16. grid: (N, ..., 2 or 3), of the same dtype.
    """
    _check("features", features, [torch.float32, torch.float16])
    _check("grid", grid, [features.dtype])
    spatial = grid.shape[1:-1]
    output = features.new_empty((*features.shape[:2], *spatial))
    arguments = _GridSample(
        features.data_ptr(),
        grid.data_ptr(),
        output.data_ptr(),
        _ELEMENT_TYPES[features.dtype],
        len(spatial),
        *features.shape[:2],
        (c_int64 * 3)(*[1] * (3 - len(spatial)), *features.shape[2:]),
        (c_int64 * 3)(*[1] * (3 - len(spatial)), *spatial),
        _INTERPOLATIONS[mode],
        _PADDINGS[padding_mode],
        align_corners,
    )
    _launch("grid_sample", arguments)
    return output


def select_top(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k best scores of each row and their indices, sorted; see ``select_top_kernel.h``.

    scores: (B, N) float32, N >= k. Returns values (B, k) float32 and indices (B, k) int32: best first, equal scores by
    ascending index, NaN last (torch.topk has it first).
    """
    _check("scores", scores, [torch.float32])
    batch, num_scores = scores.shape
    values = scores.new_empty((batch, k))
    indices = scores.new_empty((batch, k), dtype=torch.int32)
    size = load_library().maskrcnn_select_top_workspace_size(batch, num_scores, k)
    workspace = scores.new_empty((max(size, 1),), dtype=torch.uint8)
    arguments = _SelectTop(scores.data_ptr(), batch, num_scores, k, values.data_ptr(), indices.data_ptr())
    _launch("select_top", arguments, workspace.data_ptr(), size)
    return values, indices


def decode_proposals(
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    priors: Tensor,
    image_sizes: Tensor,
    *,
    top: Sequence[int],
    num_anchors: int,
    max_ratio: float,
    means: Sequence[float] = (0.0, 0.0, 0.0, 0.0),
    stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    clip: bool = True,
    min_size: float = -1.0,
    layout: int = NCHW,
) -> tuple[Tensor, Tensor]:
    """Return the best anchors of every level as boxes; see ``decode_proposals_kernel.h``.

    logits: L maps of ``num_anchors`` channels in ``layout`` (see ``to_layout``), all float32 or all float16.
    deltas: the same with ``num_anchors * 4`` channels. priors: (N, 4) float32. image_sizes: (B, 2) float32.
    Returns boxes (B, M, 4) and scores (B, M), float32, M the sum of ``top``.
    """
    dtype = logits[0].dtype
    for tensor in (*logits, *deltas):
        _check("logits, deltas", tensor, [dtype] if dtype in (torch.float32, torch.float16) else [])
    _check("priors", priors, [torch.float32])
    _check("image_sizes", image_sizes, [torch.float32])
    levels = (_ProposalLevel * MAX_LEVELS)()
    for i, (logit, delta, rows) in enumerate(zip(logits, deltas, top)):
        height, width = logit.shape[2:] if layout == NCHW else logit.shape[1:3]
        levels[i] = _ProposalLevel(logit.data_ptr(), delta.data_ptr(), height, width, rows)
    scores = priors.new_empty((logits[0].shape[0], sum(top)))
    boxes = priors.new_empty((*scores.shape, 4))
    arguments = _DecodeProposals(
        levels,
        len(logits),
        logits[0].shape[0],
        num_anchors,
        _ELEMENT_TYPES[dtype],
        layout,
        priors.data_ptr(),
        image_sizes.data_ptr(),
        _BoxDecoding((c_float * 4)(*means), (c_float * 4)(*stds), max_ratio, clip),
        min_size,
        boxes.data_ptr(),
        scores.data_ptr(),
    )
    size = load_library().maskrcnn_decode_proposals_workspace_size(byref(arguments))
    workspace = priors.new_empty((max(size, 1),), dtype=torch.uint8)
    _launch("decode_proposals", arguments, workspace.data_ptr(), size)
    return boxes, scores


def decode_detections(
    logits: Tensor,
    deltas: Tensor,
    proposals: Tensor,
    count: Tensor,
    image_sizes: Tensor,
    *,
    max_ratio: float,
    means: Sequence[float] = (0.0, 0.0, 0.0, 0.0),
    stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    clip: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return every class's box and score of every proposal; see ``decode_detections_kernel.h``.

    logits: (B, P, C + 1), deltas: (B, P, 4 C) or (B, P, 4), each float32 or float16. proposals: (B, P, 4) float32.
    count: (B,) int32. image_sizes: (B, 2) float32. Returns boxes (B, P C, 4) and scores (B, P C), float32.
    """
    for name, tensor, dtypes in (
        ("logits", logits, [torch.float32, torch.float16]),
        ("deltas", deltas, [torch.float32, torch.float16]),
        ("proposals", proposals, [torch.float32]),
        ("count", count, [torch.int32]),
        ("image_sizes", image_sizes, [torch.float32]),
    ):
        _check(name, tensor, dtypes)
    batch, num_proposals, num_logits = logits.shape
    num_classes = num_logits - 1
    scores = proposals.new_empty((batch, num_proposals * num_classes))
    boxes = proposals.new_empty((*scores.shape, 4))
    arguments = _DecodeDetections(
        logits.data_ptr(),
        _ELEMENT_TYPES[logits.dtype],
        deltas.data_ptr(),
        _ELEMENT_TYPES[deltas.dtype],
        proposals.data_ptr(),
        count.data_ptr(),
        image_sizes.data_ptr(),
        batch,
        num_proposals,
        num_classes,
        deltas.shape[2] == 4,
        _BoxDecoding((c_float * 4)(*means), (c_float * 4)(*stds), max_ratio, clip),
        boxes.data_ptr(),
        scores.data_ptr(),
    )
    _launch("decode_detections", arguments)
    return boxes, scores


def select_masks(logits: Tensor, labels: Tensor, *, channels: int, layout: int = NCHW) -> Tensor:
    """Return the probabilities of each detection's own mask; see ``select_masks_kernel.h``.

    logits: (B * K, channels, h, w) in ``layout`` (see ``to_layout``), float32 or float16. labels: (B, K) int32.
    Returns (B, K, h, w) float32.
    """
    _check("logits", logits, [torch.float32, torch.float16])
    _check("labels", labels, [torch.int32])
    size = logits.shape[2:] if layout == NCHW else logits.shape[1:3]
    masks = torch.empty((*labels.shape, *size), dtype=torch.float32, device=labels.device)
    arguments = _SelectMasks(
        logits.data_ptr(),
        _ELEMENT_TYPES[logits.dtype],
        layout,
        labels.data_ptr(),
        labels.numel(),
        channels,
        size.numel(),
        masks.data_ptr(),
    )
    _launch("select_masks", arguments)
    return masks


def prepare_images(
    images: Sequence[Tensor],
    sizes: "Sequence[tuple[int, int]]",
    size: "tuple[int, int]",
    *,
    tables: Tensor,
    reverse_channels: bool,
    pad_value: float = 0.0,
) -> Tensor:
    """Resize, normalise, pad and stack images; see ``prepare_images_kernel.h``.

    images: (H_i, W_i, 3) uint8, BGR; rows may lie apart, as in a crop. sizes: what each is resized to, (height, width).
    tables: (3, 256) float32, per output channel. Returns (B, 3, *size) float32.
    """
    _check("tables", tables, [torch.float32])
    sources = (SourceImage * len(images))()
    for i, (image, resized) in enumerate(zip(images, sizes)):
        if not image.is_cuda or image.dtype != torch.uint8 or image.ndim != 3 or image.stride()[1:] != (3, 1):
            raise ValueError(
                f"images[{i}]: expected a (H, W, 3) CUDA tensor of uint8 with dense rows, found "
                f"{tuple(image.shape)} {image.dtype} on {image.device}, strides {image.stride()}"
            )
        sources[i] = SourceImage(image.data_ptr(), image.stride(0), *image.shape[:2], *resized)
    output = torch.empty((len(images), 3, *size), dtype=torch.float32, device=tables.device)
    _launch(
        "prepare_images",
        PrepareImagesArguments(
            sources, len(images), *size, tables.data_ptr(), reverse_channels, pad_value, output.data_ptr()
        ),
    )
    return output


def encode_masks(
    masks: Tensor,
    dets: Tensor,
    num_dets: Tensor,
    *,
    sizes: "Sequence[tuple[int, int]]",
    scales: "Sequence[tuple[float, float]]",
    capacity: int,
    threshold: float = 0.5,
    min_score: float = float("-inf"),
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Paste masks and encode them as COCO's compressed counts; see ``encode_masks_kernel.h``.

    masks: (B, K, h, w) float32. dets: (B, K, 5) float32. num_dets: (B,) int32. sizes: each target image's (height,
    width). scales: each one's network px per px, (x, y). Returns strings (capacity,) uint8, offsets (B, K) int64 into
    them, lengths (B, K) int32 and used (1,) int64.
    """
    _check("masks", masks, [torch.float32])
    _check("dets", dets, [torch.float32])
    _check("num_dets", num_dets, [torch.int32])
    images = (TargetImage * len(sizes))(*(TargetImage(*size, *scale) for size, scale in zip(sizes, scales)))
    strings = masks.new_empty((capacity,), dtype=torch.uint8)
    offsets = masks.new_empty(dets.shape[:2], dtype=torch.int64)
    lengths = masks.new_empty(dets.shape[:2], dtype=torch.int32)
    used = masks.new_empty((1,), dtype=torch.int64)
    arguments = EncodeMasksArguments(
        images,
        *dets.shape[:2],
        masks.data_ptr(),
        dets.data_ptr(),
        num_dets.data_ptr(),
        *masks.shape[2:],
        threshold,
        min_score,
        strings.data_ptr(),
        capacity,
        offsets.data_ptr(),
        lengths.data_ptr(),
        used.data_ptr(),
    )
    size = load_library().maskrcnn_encode_masks_workspace_size(byref(arguments))
    workspace = masks.new_empty((max(size, 1),), dtype=torch.uint8)
    _launch("encode_masks", arguments, workspace.data_ptr(), size)
    return strings, offsets, lengths, used


def cast_masks(values: Tensor) -> Tensor:
    """Return float32 values as uint8, of any shape; see ``cast_masks_kernel.h``."""
    _check("values", values, [torch.float32])
    output = torch.empty_like(values, dtype=torch.uint8)
    _launch("cast_masks", CastMasksArguments(values.data_ptr(), values.numel(), output.data_ptr()))
    return output
