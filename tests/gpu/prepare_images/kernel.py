"""The kernel of ``plugins/prepare_images`` on torch tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor

from runtime.device.kernels import (
    PrepareImagesArguments,
    SourceImage,
)
from tests.gpu.kernel_library import (
    check,
    launch,
)


def prepare_images(
    images: Sequence[Tensor],
    sizes: "Sequence[tuple[int, int]]",
    size: "tuple[int, int]",
    *,
    tables: Tensor,
    reverse_channels: bool,
    pad_value: float = 0.0,
) -> Tensor:
    """Resize, normalise, pad and stack images; see ``prepare_images_kernel.h``.

    images: (H_i, W_i, 3) uint8, BGR; rows may lie apart, as in a crop. sizes: what each is resized to, (height, width).
    tables: (3, 256) float32, per output channel. Returns (B, 3, *size) float32.
    """
    check("tables", tables, [torch.float32])
    sources = (SourceImage * len(images))()
    for i, (image, resized) in enumerate(zip(images, sizes)):
        if not image.is_cuda or image.dtype != torch.uint8 or image.ndim != 3 or image.stride()[1:] != (3, 1):
            raise ValueError(
                f"images[{i}]: expected a (H, W, 3) CUDA tensor of uint8 with dense rows, found "
                f"{tuple(image.shape)} {image.dtype} on {image.device}, strides {image.stride()}"
            )
        sources[i] = SourceImage(image.data_ptr(), image.stride(0), *image.shape[:2], *resized)
    output = torch.empty((len(images), 3, *size), dtype=torch.float32, device=tables.device)
    launch(
        "prepare_images",
        PrepareImagesArguments(
            sources, len(images), *size, tables.data_ptr(), reverse_channels, pad_value, output.data_ptr()
        ),
    )
    return output
