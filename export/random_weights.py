"""Random weights for trying a config out, or for testing one without its checkpoint."""

import patches  # isort: skip  # noqa: F401  makes mmdet importable without mmcv's compiled operators

import logging
from typing import Optional

import numpy as np
import torch
from mmcv.cnn.bricks import ContextBlock, GeneralizedAttention
from mmcv.ops import DeformConv2dPack, ModulatedDeformConv2dPack
from mmengine.logging import MMLogger
from torch import Tensor, nn

from patches.families import family_of

RESIDUAL_SCALE = 0.1
# Of deformable convolutions, px of their input.
OFFSET_PX = 0.5
# Of batch statistics. Two images' pooled values are almost equal, and their variance next to nothing.
MIN_VARIANCE = 0.1


def randomize(model: nn.Module, *, seed: int, size: tuple[int, int]) -> nn.Module:
    """Give a detector random weights that behave like trained ones: scores spread, and NMS has work to do.

    Batch statistics are those of a random image, and the last layers are scaled so that objectness, class scores,
    deltas and mask logits vary. mmdet's own initialisation gives equal scores everywhere and no detections.

    Args:
        model: a two-stage detector of stock parts; a head without the usual last layers keeps its initialisation.
        seed: of torch's generator, which is left as it was.
        size: (height, width) of the image in px, multiples of 32.

    Returns:
        The same model, in evaluation mode.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _init_weights(model)
        _randomize(model, _network_images(model, size, seed))
    return model.eval()


def _init_weights(model: nn.Module) -> None:
    # mmengine logs a paragraph per parameter.
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        model.init_weights()
    finally:
        logger.setLevel(level)


@torch.no_grad()
def _randomize(model: nn.Module, images: Tensor) -> None:
    for module in model.modules():
        norm = _last_norm(module)
        if norm is not None:
            nn.init.constant_(norm.weight, RESIDUAL_SCALE)
        if isinstance(module, ContextBlock):
            for term in (module.channel_add_conv, module.channel_mul_conv):
                if term is not None:
                    term[-1].weight.mul_(RESIDUAL_SCALE)
        if isinstance(module, (DeformConv2dPack, ModulatedDeformConv2dPack)):
            weight = module.conv_offset.weight
            nn.init.normal_(weight, std=OFFSET_PX / weight[0].numel() ** 0.5)
        if isinstance(module, GeneralizedAttention):
            module.gamma.fill_(
                RESIDUAL_SCALE
            )  # mmcv starts it at zero, which leaves nothing of the attention
        if isinstance(getattr(module, "rfp_conv", None), nn.Conv2d):
            nn.init.normal_(module.rfp_conv.weight, std=RESIDUAL_SCALE / module.rfp_conv.in_channels**0.5)
    _calibrate_batch_norm(model, images)
    features = model.extract_feat(images)
    family_of(model).spread_heads(model, features)


def structured_images(num: int, size: tuple[int, int], seed: int) -> Tensor:
    """Return (num, 3, H, W) normalised images with structure at several scales, no two alike."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(num, 3, *size)
    for cells in (3, 8, 24):
        noise = torch.randn(num, 3, cells, cells, generator=generator)
        images += nn.functional.interpolate(noise, size, mode="bilinear", align_corners=False)
    return images


def structured_photos(*sizes: tuple[int, int], seed: int = 0) -> list[np.ndarray]:
    """Return a different (H, W, 3) uint8 BGR image of each size."""
    images = (_pixels(structured_images(1, size, seed + i)) for i, size in enumerate(sizes))
    return [image[0].permute(1, 2, 0).numpy().astype(np.uint8) for image in images]


def _pixels(images: Tensor) -> Tensor:
    """Return ``structured_images`` in 0 to 255."""
    return (images * 50 + 120).clamp(0, 255)


def _last_norm(block: nn.Module) -> Optional[nn.Module]:
    """Return the normalisation that ends the residual branch of a block of mmdet's ResNets, None for other modules.

    mmdet starts it at zero in some networks, which leaves nothing but shortcuts, and at one in others: then each
    block doubles the rounding errors of the one before, and nothing could be compared.
    """
    if not (hasattr(block, "conv1") and hasattr(block, "downsample")):
        return None
    return getattr(block, "norm3" if hasattr(block, "norm3_name") else "norm2", None)


def _network_images(model: nn.Module, size: tuple[int, int], seed: int) -> Tensor:
    """Return an image as the model gets them; without a division by std its values are fifty times as large."""
    pixels = _pixels(structured_images(1, size, seed)).to(next(model.parameters()).device)
    channels = _in_channels(model)
    pixels = pixels.repeat(1, -(-channels // pixels.shape[1]), 1, 1)[:, :channels]
    preprocessor = model.data_preprocessor
    if not getattr(preprocessor, "_enable_normalize", False) or len(preprocessor.mean) not in (1, channels):
        return pixels
    return (pixels - preprocessor.mean) / preprocessor.std


def _in_channels(model: nn.Module) -> int:
    """Return the channels of the images: those that the first convolution takes."""
    first = next((m for m in model.backbone.modules() if isinstance(m, nn.Conv2d)), None)
    return 3 if first is None else first.in_channels


def _calibrate_batch_norm(model: nn.Module, images: Tensor) -> None:
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = 1.0
        norm.training = True
    model.extract_feat(torch.cat([images, images.flip(-1)]))
    for norm in norms:
        norm.training = False
        norm.running_var.clamp_(min=MIN_VARIANCE)
