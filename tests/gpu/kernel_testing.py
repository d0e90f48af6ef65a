"""What the tests of the kernels share. Importing it skips a module where there is no CUDA GPU."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA GPU", allow_module_level=True)

from tests.gpu.kernel_library import library_path  # noqa: E402

MARKS = [
    pytest.mark.gpu,
    pytest.mark.skipif(not library_path().exists(), reason="libmaskrcnn_kernels.so is not built"),
]


def cuda(array: np.ndarray) -> "torch.Tensor":
    """Return an array as a CUDA tensor."""
    return torch.from_numpy(np.ascontiguousarray(array)).cuda()
