"""Garbage for the kernel of ``plugins/multi_level_roi_align``."""

import numpy as np
import torch

from tests.gpu.fuzzing import garbage
from tests.gpu.kernel_library import NCHW, NCHW32, NHWC, to_layout
from tests.gpu.multi_level_roi_align.kernel import multi_level_roi_align


def fuzz(rng: np.random.Generator) -> None:
    channels, layout, output_layout = int(rng.choice([3, 8, 20])), *rng.integers(0, 3, 2).tolist()
    dtype = torch.float16 if rng.random() < 0.5 else torch.float32
    sizes = rng.integers(1, 40, (3, 2)).tolist()
    features = [garbage(rng, (2, channels, *size), special=0.01).to(dtype) for size in sizes]
    is_quantized = rng.random() < 0.4
    if is_quantized and rng.random() < 0.5:
        features = [
            torch.randint(-128, 128, feature.shape, dtype=torch.int8, device="cuda") for feature in features
        ]
        layout = int(rng.choice([NCHW, NHWC, NCHW32]))
    multi_level_roi_align(
        [to_layout(feature, layout) for feature in features],
        garbage(rng, (40, 5), special=0.3),
        channels=channels,
        output_size=(int(rng.integers(1, 9)), int(rng.choice([1, 7, 70]))),
        spatial_scales=(0.25, 0.125, 1.0),
        sampling_ratio=int(rng.choice([0, 2, 40])),
        mode=str(rng.choice(["avg", "max"])),
        aligned=bool(rng.random() < 0.5),
        layout=layout,
        output_layout=int(rng.choice([NCHW, NCHW32])) if is_quantized else output_layout,
        output_dtype=torch.int8 if is_quantized else None,
        output_scale=0.01,
        feature_scales=(0.02, 0.1, 3.0),
    )
