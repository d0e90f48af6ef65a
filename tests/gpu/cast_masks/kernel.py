"""The kernel of ``plugins/cast_masks`` on torch tensors."""

import torch
from torch import Tensor

from runtime.device.kernels import CastMasksArguments
from tests.gpu.kernel_library import check, launch


def cast_masks(values: Tensor) -> Tensor:
    """Return float32 values as uint8, of any shape; see ``cast_masks_kernel.h``."""
    check("values", values, [torch.float32])
    output = torch.empty_like(values, dtype=torch.uint8)
    launch("cast_masks", CastMasksArguments(values.data_ptr(), values.numel(), output.data_ptr()))
    return output
