"""Inputs of DecodeProposals. NumPy alone, Python 3.9: TensorRT's tests use them as well."""

from __future__ import annotations

import math

import numpy as np

RESNET_50_SIZES = [(200, 304), (100, 152), (50, 76), (25, 38), (13, 19)]  # of an image of 800 x 1216 px
RESNET_50_TOP = [1000, 1000, 1000, 1000, 741]
MAX_RATIO = abs(math.log(16 / 1000))  # mmdet's wh_ratio_clip


def logit_maps(rng: np.random.Generator, kind: str, shape: tuple) -> np.ndarray:
    """Return logits of which equal ones tie in any float32 sigmoid, and others do not unless they are saturated.

    They are multiples of 1/8: where neighbours' scores differ, they do by far more than exp's rounding. All of them
    are float16 numbers.
    """
    logits = {
        "rpn": lambda: rng.normal(-8, 3, shape),
        "saturated": lambda: rng.normal(16, 4, shape),  # from 16.75 on the score is 1
        "vanishing": lambda: rng.normal(-100, 10, shape),  # below -88.7 it is 0: exp overflows
        "equal": lambda: np.full(shape, 0.5),
        "special": lambda: rng.choice([np.nan, np.inf, -np.inf, 0.0, -0.0, 2.0, -200.0], shape),
    }[kind]()
    return (np.round(logits * 8) / 8).astype(np.float32)


def moved_priors(base: np.ndarray, sizes: list, strides: list) -> np.ndarray:
    """Return (N, 4) anchors of every place, from (L, A, 4) of the first: level after level, by y, x and anchor."""
    levels = []
    for own, (height, width), (x, y) in zip(base, sizes, zip(strides[::2], strides[1::2])):
        rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
        shift = np.stack([columns, rows] * 2, -1).astype(np.float32) * np.float32([x, y, x, y])
        levels.append((shift[:, :, None] + own).reshape(-1, 4))
    return np.concatenate(levels)


KINDS = ("rpn", "saturated", "vanishing", "equal", "special")


def proposals_case(
    rng: np.random.Generator, sizes: list, *, num_anchors: int, batch: int = 2, kind: str = "rpn"
) -> dict:
    """Return the inputs of images of different sizes. Every anchor has another box, so that a wrong one shows.

    Deltas are multiples of 1/64, and so float16 numbers, too.
    """
    num_priors = sum(height * width for height, width in sizes) * num_anchors
    centers = rng.uniform(-50, 1100, (num_priors, 2))
    sides = np.exp(rng.uniform(np.log(8), np.log(600), (num_priors, 2)))
    deltas = [rng.standard_normal((batch, num_anchors * 4, *size), np.float32) for size in sizes]
    return {
        "logits": [logit_maps(rng, kind, (batch, num_anchors, *size)) for size in sizes],
        "deltas": [np.round(maps * 32) / np.float32(64) for maps in deltas],
        "priors": np.hstack([centers - sides / 2, centers + sides / 2]).astype(np.float32),
        "image_sizes": rng.uniform(300, 1200, (batch, 2)).astype(np.float32),
    }
