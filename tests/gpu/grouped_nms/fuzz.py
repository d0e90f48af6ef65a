"""Garbage for the kernel of ``plugins/grouped_nms``."""

import numpy as np
import torch

from tests.gpu.fuzzing import garbage
from tests.gpu.grouped_nms.kernel import grouped_nms


def fuzz(rng: np.random.Generator) -> None:
    batch, num_boxes = int(rng.integers(1, 4)), int(rng.choice([1, 33, 513, 1500]))
    groups = rng.integers(-(2**31), 2**31, (batch, num_boxes)) // int(rng.choice([1, 2**30]))
    grouped_nms(
        garbage(rng, (batch, num_boxes, 4)),
        garbage(rng, (batch, num_boxes), special=0.1),
        torch.from_numpy(groups.astype(np.int32)).cuda(),
        iou_threshold=float(rng.choice([-1, 0, 0.5, 1])),
        score_threshold=float(rng.choice([-np.inf, np.nan, 0, 1])),
        max_output=int(rng.choice([1, 100, 2000])),
        shift_groups=bool(rng.random() < 0.5),
    )
