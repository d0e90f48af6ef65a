"""DeformConv2d: the function body in onnxruntime and the stand-in's PyTorch against sums in float64 NumPy."""

from functools import lru_cache

import numpy as np
import onnxruntime
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from export.functions import DOMAIN
from patches.deform_conv import deform_conv2d
from tests.export.test_functions import session_for
from tests.properties.strategies import floats

ATOL = 1e-4  # float32 sums; GridSample's normalised coordinates cost a few more bits of a position


@lru_cache(None)
def session(stride, padding, dilation, groups, deform_groups, modulated) -> onnxruntime.InferenceSession:
    names = ["features", "offset", "weight", *(["mask"] if modulated else [])]
    node = helper.make_node(
        "DeformConv2d",
        names,
        ["output"],
        domain=DOMAIN,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        deform_groups=deform_groups,
    )
    four = (TensorProto.FLOAT, [None] * 4)
    return session_for(node, dict.fromkeys(names, four), {"output": four})


@st.composite
def geometries(draw: st.DrawFn) -> dict:
    """Return stride, padding and dilation (vertical, horizontal), groups and deform_groups."""
    pair = st.tuples(st.integers(1, 2), st.integers(1, 2))
    return {
        "stride": draw(pair),
        "padding": draw(st.tuples(st.integers(0, 2), st.integers(0, 2))),
        "dilation": draw(pair),
        "groups": draw(st.sampled_from([1, 2])),
        "deform_groups": draw(st.sampled_from([1, 2, 4])),
    }


def sampled(image: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return bilinear samples of (C, H, W) at (h, w) positions in px, (C, h, w); outside there is zero."""
    rows, columns = np.arange(image.shape[1]), np.arange(image.shape[2])
    weights_y = np.clip(1 - np.abs(y[..., None] - rows), 0, 1)
    weights_x = np.clip(1 - np.abs(x[..., None] - columns), 0, 1)
    return np.einsum("hwr,crk,hwk->chw", weights_y, image, weights_x)


def oracle(features, offset, weight, mask, *, stride, padding, dilation, groups, deform_groups) -> np.ndarray:
    """Dai et al. 2017, equation 2, tap by tap; Zhu et al. 2019 with a mask."""
    features, offset, weight, mask = (v.astype(np.float64) for v in (features, offset, weight, mask))
    batch, channels = features.shape[:2]
    height, width = offset.shape[2:]
    taps = list(np.ndindex(*weight.shape[2:]))
    offset = offset.reshape(batch, deform_groups, len(taps), 2, height, width)
    mask = mask.reshape(batch, deform_groups, len(taps), height, width)
    columns = np.zeros((batch, channels, len(taps), height, width))
    per_group = channels // deform_groups
    for n, g, (tap, (ky, kx)) in (
        (n, g, t) for n in range(batch) for g in range(deform_groups) for t in enumerate(taps)
    ):
        y = (np.arange(height) * stride[0] - padding[0] + ky * dilation[0])[:, None] + offset[n, g, tap, 0]
        x = (np.arange(width) * stride[1] - padding[1] + kx * dilation[1])[None, :] + offset[n, g, tap, 1]
        own = slice(g * per_group, (g + 1) * per_group)
        columns[n, own, tap] = sampled(features[n, own], y, x) * mask[n, g, tap]
    parts = zip(np.split(columns, groups, axis=1), np.split(weight, groups))
    return np.concatenate(
        [np.einsum("ncthw,oct->nohw", own, kernel.reshape(*kernel.shape[:2], -1)) for own, kernel in parts],
        axis=1,
    )


@given(
    geometries(),
    st.integers(1, 2),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(5, 12), st.integers(5, 12)),
    st.sampled_from([0.0, 0.5, 4.0, 30.0]),
    st.booleans(),
    st.integers(0, 2**16),
)
def test_all_convolve_the_same(geometry, batch, kernel, size, offset_px, modulated, seed):
    channels, outputs = 4, 6
    axes = (size, *(geometry[name] for name in ("padding", "dilation")), kernel, geometry["stride"])
    out_size = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in zip(*axes)]
    taps = geometry["deform_groups"] * kernel[0] * kernel[1]
    features = floats(seed, batch, channels, *size)
    weight = floats(seed + 1, outputs, channels // geometry["groups"], *kernel)
    offset = floats(seed + 2, batch, taps * 2, *out_size) * np.float32(offset_px)
    mask = (
        np.abs(floats(seed + 3, batch, taps, *out_size)) if modulated else np.ones((batch, taps, *out_size))
    )
    mask = mask.astype(np.float32)
    feeds = {
        "features": features,
        "offset": offset,
        "weight": weight,
        **({"mask": mask} if modulated else {}),
    }
    (found,) = session(*geometry.values(), modulated).run(None, feeds)
    tensors = {name: torch.from_numpy(value) for name, value in feeds.items()}
    expected = oracle(features, offset, weight, mask, **geometry)
    for values in (found, deform_conv2d(**tensors, **geometry).numpy()):
        np.testing.assert_allclose(values, expected, rtol=1e-4, atol=ATOL)
