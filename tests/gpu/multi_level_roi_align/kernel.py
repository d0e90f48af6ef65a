"""The kernel of ``plugins/multi_level_roi_align`` on torch tensors."""

from collections.abc import Sequence
from ctypes import Structure, c_bool, c_float, c_int, c_int64, c_void_p

import torch
from torch import Tensor

from tests.gpu.kernel_library import (
    ELEMENT_TYPES,
    MAX_LEVELS,
    NCHW,
    NCHW32,
    NHWC8,
    check,
    launch,
)


class FeatureLevel(Structure):
    _fields_ = [
        ("data", c_void_p),
        ("height", c_int),
        ("width", c_int),
        ("spatial_scale", c_float),
        ("feature_scale", c_float),
    ]


class MultiLevelRoiAlignArguments(Structure):
    _fields_ = [
        ("levels", FeatureLevel * MAX_LEVELS),
        ("num_levels", c_int),
        ("batch", c_int64),
        ("channels", c_int64),
        ("feature_type", c_int),
        ("feature_layout", c_int),
        ("rois", c_void_p),
        ("num_rois", c_int64),
        ("output", c_void_p),
        ("output_type", c_int),
        ("output_layout", c_int),
        ("output_height", c_int),
        ("output_width", c_int),
        ("sampling_ratio", c_int),
        ("mode", c_int),
        ("aligned", c_bool),
        ("finest_scale", c_float),
        ("output_scale", c_float),
    ]


def multi_level_roi_align(
    features: Sequence[Tensor],
    rois: Tensor,
    *,
    channels: int,
    output_size: tuple[int, int],
    spatial_scales: Sequence[float],
    finest_scale: float = 56.0,
    sampling_ratio: int = 0,
    mode: str = "avg",
    aligned: bool = True,
    layout: int = NCHW,
    output_layout: int = NCHW,
    output_dtype: "torch.dtype | None" = None,
    output_scale: float = 0.0,
    feature_scales: Sequence[float] = (),
) -> Tensor:
    """RoIAlign from the level that fits each RoI; see ``multi_level_roi_align_kernel.h``.

    features: L float32, float16 or int8 tensors in ``layout`` (see ``to_layout``), of ``channels`` channels.
    rois: (R, 5) float32. output_scale: of an ``output_dtype`` of int8. feature_scales: of each level, of int8.
    Returns (R, C, *output_size), in a channels-last layout (R, *output_size, C), in NCHW32
    (R, blocks, *output_size, 32).
    """
    check("rois", rois, [torch.float32])
    for feature in features:
        check("features", feature, [features[0].dtype] if features[0].dtype in ELEMENT_TYPES else [])
    dtype = output_dtype or features[0].dtype
    stored = -(-channels // 8) * 8 if output_layout == NHWC8 else channels
    num_rois = rois.shape[0]
    shapes = {
        NCHW: (num_rois, channels, *output_size),
        NCHW32: (num_rois, -(-channels // 32), *output_size, 32),
    }
    shape = shapes.get(output_layout, (num_rois, *output_size, stored))
    output = torch.empty(shape, dtype=dtype, device=rois.device)
    levels = (FeatureLevel * MAX_LEVELS)()
    for i, (feature, scale) in enumerate(zip(features, spatial_scales)):
        first = {NCHW: 2, NCHW32: 2}.get(layout, 1)
        height, width = feature.shape[first : first + 2]
        step = feature_scales[i] if feature_scales else 0.0
        levels[i] = FeatureLevel(feature.data_ptr(), height, width, scale, step)
    arguments = MultiLevelRoiAlignArguments(
        levels,
        len(features),
        features[0].shape[0],
        channels,
        ELEMENT_TYPES[features[0].dtype],
        layout,
        rois.data_ptr(),
        num_rois,
        output.data_ptr(),
        ELEMENT_TYPES[dtype],
        output_layout,
        *output_size,
        sampling_ratio,
        {"max": 0, "avg": 1}[mode],
        aligned,
        finest_scale,
        output_scale,
    )
    launch("multi_level_roi_align", arguments)
    return output
