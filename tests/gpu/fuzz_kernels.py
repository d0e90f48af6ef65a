"""Run the kernels on garbage: NaN, Inf, huge and tiny numbers, any index. For compute-sanitizer, and for a test.

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck python -m tests.gpu.fuzz_kernels

Without torch's memory pool every tensor is an allocation of its own, so that a read or write past its end is seen.
"""

import importlib
import sys
from pathlib import Path

import numpy as np
import torch

NUM_ROUNDS = 5
# The folders with a ``fuzz.py``, which has a function ``fuzz(rng)``.
OPS = sorted(path.parent.name for path in Path(__file__).parent.glob("*/fuzz.py"))


def run(op: str, *, num_rounds: int) -> None:
    """Call an operator on garbage, each round with another seed; raises where a launch fails."""
    fuzz = importlib.import_module(f"tests.gpu.{op}.fuzz").fuzz
    with np.errstate(all="ignore"):
        for seed in range(num_rounds):
            fuzz(np.random.default_rng(seed))
    torch.cuda.synchronize()


if __name__ == "__main__":
    for name in sys.argv[1:] or OPS:
        run(name, num_rounds=NUM_ROUNDS)
        print(f"{name}: {NUM_ROUNDS} rounds")
