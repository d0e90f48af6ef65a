"""The kernel of ``plugins/decode_detections`` on torch tensors."""

from collections.abc import Sequence
from ctypes import Structure, c_bool, c_float, c_int, c_int32, c_void_p

import torch
from torch import Tensor

from tests.gpu.kernel_library import (
    ELEMENT_TYPES,
    BoxDecoding,
    check,
    launch,
)


class DecodeDetectionsArguments(Structure):
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
        ("decoding", BoxDecoding),
        ("boxes", c_void_p),
        ("scores", c_void_p),
    ]


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
        check(name, tensor, dtypes)
    batch, num_proposals, num_logits = logits.shape
    num_classes = num_logits - 1
    scores = proposals.new_empty((batch, num_proposals * num_classes))
    boxes = proposals.new_empty((*scores.shape, 4))
    arguments = DecodeDetectionsArguments(
        logits.data_ptr(),
        ELEMENT_TYPES[logits.dtype],
        deltas.data_ptr(),
        ELEMENT_TYPES[deltas.dtype],
        proposals.data_ptr(),
        count.data_ptr(),
        image_sizes.data_ptr(),
        batch,
        num_proposals,
        num_classes,
        deltas.shape[2] == 4,
        BoxDecoding((c_float * 4)(*means), (c_float * 4)(*stds), max_ratio, clip),
        boxes.data_ptr(),
        scores.data_ptr(),
    )
    launch("decode_detections", arguments)
    return boxes, scores
