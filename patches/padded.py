"""Results of fixed size: every image has the same number of rows, and a count says how many are real.

mmdet hands lists of ``InstanceData`` from head to head, one per image and each of its own length. A graph for any
batch cannot; these tuples of batched tensors take their place in the patched code.
"""

from typing import NamedTuple, Optional

import torch
from torch import Tensor

from patches.tracing import Size, constant


class Proposals(NamedTuple):
    """RPN's output.

    Attributes:
        boxes: (B, P, 4) float32, [x1, y1, x2, y2] in input px; zeros past ``count``.
        count: (B,) int32.
    """

    boxes: Tensor
    count: Tensor

    @property
    def valid(self) -> Tensor:
        """Which rows are proposals, (B, P) bool."""
        rows = torch.arange(constant(self.boxes.shape[1]), device=self.boxes.device)
        return rows < self.count[:, None]


class Instances(NamedTuple):
    """The detector's output, best score first.

    Attributes:
        num_dets: (B,) int32.
        boxes: (B, K, 4) float32, [x1, y1, x2, y2] in input px; zeros past ``num_dets``.
        scores: (B, K) float32; zeros past ``num_dets``.
        labels: (B, K) int32; -1 past ``num_dets``.
        masks: (B, K, h, w) float32 probabilities of the label's mask, zeros past ``num_dets``; None without a
            mask head.
    """

    num_dets: Tensor
    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Optional[Tensor] = None


def take_rows(values: Tensor, indices: Tensor) -> Tensor:
    """Gather rows per image; an index of -1 gives a row of zeros.

    Args:
        values: (B, M, ...) any dtype.
        indices: (B, K) int.

    Returns:
        (B, K, ...) like ``values``.
    """
    index = indices.long()
    # int64 from here on: of int32, onnxruntime clips on the CPU alone, and takes what the GPU made there and back.
    index, valid = index.clamp(min=0), index >= 0
    for size in values.shape[2:]:
        valid = valid[..., None]
        index = index[..., None].expand(*(-1,) * index.dim(), constant(size))
    return torch.where(valid, values.gather(1, index), values.new_tensor(0))


def rois_from_boxes(boxes: Tensor) -> Tensor:
    """Return (B * P, 5) RoIs, [batch_index, x1, y1, x2, y2], from (B, P, 4) boxes: mmdet's ``bbox2roi``."""
    batch = torch.arange(boxes.shape[0], device=boxes.device).to(boxes.dtype)
    column = batch.view(-1, 1, 1).expand(-1, boxes.shape[1], 1)
    return torch.cat([column, boxes], dim=-1).reshape(-1, 5)


def split_batch(values: Tensor, num_rows: Size) -> Tensor:
    """Reshape (B * P, C) to (B, P, C), P given."""
    return values.reshape(-1, constant(num_rows), constant(values.shape[1]))
