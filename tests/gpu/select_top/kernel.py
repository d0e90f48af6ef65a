"""The kernel of ``plugins/select_top`` on torch tensors."""

from ctypes import Structure, c_int32, c_void_p

import torch
from torch import Tensor

from tests.gpu.kernel_library import check, launch, workspace_of


class SelectTopArguments(Structure):
    _fields_ = [
        ("scores", c_void_p),
        ("batch", c_int32),
        ("num_scores", c_int32),
        ("k", c_int32),
        ("values", c_void_p),
        ("indices", c_void_p),
    ]


def select_top(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k best scores of each row and their indices, sorted; see ``select_top_kernel.h``.

    scores: (B, N) float32, N >= k. Returns values (B, k) float32 and indices (B, k) int32: best first, equal scores by
    ascending index, NaN last (torch.topk has it first).
    """
    check("scores", scores, [torch.float32])
    batch, num_scores = scores.shape
    values = scores.new_empty((batch, k))
    indices = scores.new_empty((batch, k), dtype=torch.int32)
    workspace, size = workspace_of("select_top", scores.device, batch, num_scores, k)
    arguments = SelectTopArguments(
        scores.data_ptr(), batch, num_scores, k, values.data_ptr(), indices.data_ptr()
    )
    launch("select_top", arguments, workspace.data_ptr(), size)
    return values, indices
