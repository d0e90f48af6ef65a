"""The kernel of ``plugins/decode_proposals`` on torch tensors."""

from collections.abc import Sequence
from ctypes import Structure, byref, c_float, c_int, c_int32, c_void_p

import torch
from torch import Tensor

from tests.gpu.kernel_library import (
    ELEMENT_TYPES,
    MAX_LEVELS,
    NCHW,
    BoxDecoding,
    check,
    launch,
    workspace_of,
)


class ProposalLevel(Structure):
    _fields_ = [
        ("logits", c_void_p),
        ("deltas", c_void_p),
        ("height", c_int32),
        ("width", c_int32),
        ("top", c_int32),
        ("stride_x", c_float),
        ("stride_y", c_float),
    ]


class DecodeProposalsArguments(Structure):
    _fields_ = [
        ("levels", ProposalLevel * MAX_LEVELS),
        ("num_levels", c_int32),
        ("batch", c_int32),
        ("num_anchors", c_int32),
        ("map_type", c_int),
        ("map_layout", c_int),
        ("priors", c_void_p),
        ("image_sizes", c_void_p),
        ("decoding", BoxDecoding),
        ("min_size", c_float),
        ("boxes", c_void_p),
        ("scores", c_void_p),
    ]


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
    strides: Sequence[float] = (),
) -> tuple[Tensor, Tensor]:
    """Return the best anchors of every level as boxes; see ``decode_proposals_kernel.h``.

    logits: L maps of ``num_anchors`` channels in ``layout`` (see ``to_layout``), all float32 or all float16.
    deltas: the same with ``num_anchors * 4`` channels. priors: (N, 4) float32. image_sizes: (B, 2) float32.
    strides: x and y of each level, px, or none; see ``priors`` there.
    Returns boxes (B, M, 4) and scores (B, M), float32, M the sum of ``top``.
    """
    dtype = logits[0].dtype
    for tensor in (*logits, *deltas):
        check("logits, deltas", tensor, [dtype] if dtype in (torch.float32, torch.float16) else [])
    check("priors", priors, [torch.float32])
    check("image_sizes", image_sizes, [torch.float32])
    levels = (ProposalLevel * MAX_LEVELS)()
    for i, (logit, delta, rows) in enumerate(zip(logits, deltas, top)):
        height, width = logit.shape[2:] if layout == NCHW else logit.shape[1:3]
        own = strides[2 * i : 2 * i + 2] or (0.0, 0.0)
        levels[i] = ProposalLevel(logit.data_ptr(), delta.data_ptr(), height, width, rows, *own)
    scores = priors.new_empty((logits[0].shape[0], sum(top)))
    boxes = priors.new_empty((*scores.shape, 4))
    arguments = DecodeProposalsArguments(
        levels,
        len(logits),
        logits[0].shape[0],
        num_anchors,
        ELEMENT_TYPES[dtype],
        layout,
        priors.data_ptr(),
        image_sizes.data_ptr(),
        BoxDecoding((c_float * 4)(*means), (c_float * 4)(*stds), max_ratio, clip),
        min_size,
        boxes.data_ptr(),
        scores.data_ptr(),
    )
    workspace, size = workspace_of("decode_proposals", priors.device, byref(arguments))
    launch("decode_proposals", arguments, workspace.data_ptr(), size)
    return boxes, scores
