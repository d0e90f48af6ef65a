"""Products of thin matrices, in the calling thread."""

import numpy as np

# OpenBLAS multiplies (n, k) by (k, m) in one thread up to this n * k * m (its interface/gemm.c:
# SMP_THRESHOLD_MIN * GEMM_MULTITHREAD_THRESHOLD).
_BLAS_SINGLE_THREAD_LIMIT = 65536 * 4


def thin_product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return ``left @ right`` ((n, k) and (k, m) float32), in pieces that BLAS does in the calling thread.

    There is no gain in threads for products this thin, and much to lose: OpenBLAS's threads wait for each
    other in a busy loop, so that where other processes want the cores too, pasting three masks of 720x1280 px
    took 130 ms instead of 4.
    """
    step = max(1, _BLAS_SINGLE_THREAD_LIMIT // max(1, right.size))
    if len(left) <= step:
        return left @ right
    # Every piece reads all of `right`: row by row that is five times as fast as from a transposed view.
    right = np.ascontiguousarray(right)
    num_pieces = -(-len(left) // step)
    pieces = np.zeros((num_pieces * step, left.shape[1]), np.float32)
    pieces[: len(left)] = left
    product = pieces.reshape(num_pieces, step, left.shape[1]) @ right
    return product.reshape(num_pieces * step, right.shape[1])[: len(left)]
