"""Garbage for the kernel of ``plugins/decode_proposals``."""

import numpy as np
import torch

from tests.gpu.decode_proposals.kernel import decode_proposals
from tests.gpu.fuzzing import garbage
from tests.gpu.kernel_library import to_layout


def fuzz(rng: np.random.Generator) -> None:
    """Garbage, and maps whose padding would show a read past their end."""
    batch, num_anchors = int(rng.integers(1, 4)), int(rng.choice([1, 3, 8, 11]))
    sizes = [
        tuple(rng.integers(1, rng.choice([3, 30, 120]), 2).tolist()) for _ in range(int(rng.integers(1, 9)))
    ]
    dtype, layout = torch.float16 if rng.random() < 0.5 else torch.float32, int(rng.integers(0, 3))
    logits, deltas = (
        [to_layout(garbage(rng, (batch, channels, *s)).to(dtype), layout) for s in sizes]
        for channels in (num_anchors, 4 * num_anchors)
    )
    decode_proposals(
        logits,
        deltas,
        garbage(rng, (sum(h * w for h, w in sizes) * num_anchors, 4)),
        garbage(rng, (batch, 2)),
        top=rng.choice([1, 33, 1000, 4096], len(sizes)).tolist(),
        num_anchors=num_anchors,
        max_ratio=float(rng.choice([0, 4, 3e38])),
        clip=bool(rng.random() < 0.5),
        min_size=float(rng.choice([-1, 0, 10])),
        layout=layout,
    )
