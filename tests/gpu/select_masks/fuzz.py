"""Garbage for the kernel of ``plugins/select_masks``."""

import numpy as np
import torch

from tests.gpu.fuzzing import garbage
from tests.gpu.kernel_library import to_layout
from tests.gpu.select_masks.kernel import select_masks


def fuzz(rng: np.random.Generator) -> None:
    batch, num_masks, channels = 2, int(rng.choice([1, 9])), int(rng.choice([1, 3, 8, 21]))
    layout = int(rng.integers(0, 3))
    dtype = torch.float16 if rng.random() < 0.5 else torch.float32
    size = rng.choice([1, 7, 28, 40], 2).tolist()
    labels = rng.choice([-(2**31), -1, 0, 1, channels, 2**31 - 1], (batch, num_masks)).astype(np.int32)
    logits = garbage(rng, (batch * num_masks, channels, *size), special=0.1).to(dtype)
    select_masks(to_layout(logits, layout), torch.from_numpy(labels).cuda(), channels=channels, layout=layout)
