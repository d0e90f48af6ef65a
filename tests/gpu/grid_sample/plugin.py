"""mmcv 1.x's grid_sampler in TensorRT: inputs, the oracle, and the cases that ``plugin_cases`` gathers."""

from __future__ import annotations

import numpy as np

from tests.gpu import numpy_oracles as oracles
from tests.gpu import trt_harness as harness
from tests.gpu.tolerances import (
    FLOAT_TOLERANCE,
    HALF_TOLERANCE,
)
from tests.gpu.trt_harness import Input

OPS = ["grid_sampler"]
OUTPUTS = ["out"]


def case_grid_sampler() -> dict:
    rng = np.random.default_rng(0)
    errors = {}
    cases = [
        (4, 0, 1, np.float32),
        (4, 1, 0, np.float32),
        (5, 0, 0, np.float32),
        (4, 0, 1, np.float16),
        (5, 1, 0, np.float16),
    ]
    for rank, padding, align_corners, dtype in cases:
        half = dtype == np.float16
        shapes = ((2, 3, 5, 9, 11), (2, 4, 6, 7, 3)) if rank == 5 else ((2, 3, 9, 11), (2, 6, 7, 2))
        image, grid = rng.standard_normal(shapes[0]), rng.uniform(-1.2, 1.2, shapes[1])
        feeds = {"input": image.astype(dtype), "grid": grid.astype(dtype)}
        inputs = [Input(name, dtype, (array.shape,)) for name, array in feeds.items()]
        attributes = {"interpolation_mode": 0, "padding_mode": padding, "align_corners": align_corners}
        engine = harness.engine_from(harness.plan_of("grid_sampler", attributes, inputs, ["out"], fp16=half))
        named = {"padding": ("zeros", "border")[padding], "align_corners": align_corners == 1}
        expected = oracles.grid_sample(*(array.astype(np.float32) for array in feeds.values()), **named)
        name = f"{rank}-D {named['padding']} align_corners={align_corners} {np.dtype(dtype).name}"
        tolerance = HALF_TOLERANCE if half else FLOAT_TOLERANCE
        errors[name] = harness.check_close(
            harness.run_once(engine, feeds)["out"], expected, harness.largest(image), tolerance
        )
    return {"errors": errors}


REFUSED = [
    # creator, attributes, words of the message
    ("grid_sampler", {"interpolation_mode": 3}, "interpolation_mode"),
]

CASES = (case_grid_sampler,)
