"""The kernel of ``plugins/grouped_nms`` on torch tensors."""

from ctypes import Structure, c_bool, c_float, c_int32, c_void_p

import torch
from torch import Tensor

from tests.gpu.kernel_library import check, launch, workspace_of


class GroupedNmsArguments(Structure):
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
        check(name, tensor, [dtype])
    batch, num_boxes = scores.shape
    indices = boxes.new_empty((batch, max_output), dtype=torch.int32)
    count = boxes.new_empty((batch,), dtype=torch.int32)
    workspace, size = workspace_of("grouped_nms", boxes.device, batch, num_boxes)
    arguments = GroupedNmsArguments(
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
    launch("grouped_nms", arguments, workspace.data_ptr(), size)
    return indices, count
