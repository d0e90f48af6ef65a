"""Garbage for the kernel of ``plugins/decode_detections``."""

import numpy as np
import torch

from tests.gpu.decode_detections.kernel import decode_detections
from tests.gpu.fuzzing import garbage


def fuzz(rng: np.random.Generator) -> None:
    batch, num_proposals = int(rng.integers(1, 4)), int(rng.choice([1, 5, 300]))
    num_classes = int(rng.choice([1, 3, 80, 131]))
    dtypes = [torch.float16 if rng.random() < 0.5 else torch.float32 for _ in range(2)]
    num_deltas = 4 if rng.random() < 0.5 else 4 * num_classes
    count = rng.choice([-(2**31), -1, 0, 2, num_proposals, 2**31 - 1], batch).astype(np.int32)
    decode_detections(
        garbage(rng, (batch, num_proposals, num_classes + 1), special=0.1).to(dtypes[0]),
        garbage(rng, (batch, num_proposals, num_deltas)).to(dtypes[1]),
        garbage(rng, (batch, num_proposals, 4)),
        torch.from_numpy(count).cuda(),
        garbage(rng, (batch, 2)),
        max_ratio=float(rng.choice([0, 4, 3e38])),
        clip=bool(rng.random() < 0.5),
    )
