"""Run the kernels on garbage: NaN, Inf, huge and tiny numbers, any index. For compute-sanitizer, and for a test.

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck python -m tests.gpu.fuzz_kernels

Without torch's memory pool every tensor is an allocation of its own, so that a read or write past its end is seen.
"""

import sys
from typing import Callable

import numpy as np
import torch
from torch import Tensor

from plugins import kernels

SPECIAL = np.array(
    [np.nan, np.inf, -np.inf, 0, -0.0, 1, -1, 1e-45, 3e38, -3e38, 1e9, -1e9, 1e5, 16777217, 2**31, 0.5, 100],
    np.float32,
)
NUM_ROUNDS = 5


def garbage(rng: np.random.Generator, shape: tuple, *, special: float = 0.5) -> Tensor:
    values = (rng.standard_normal(shape) * 10.0 ** rng.integers(-2, 4, shape)).astype(np.float32)
    mask = rng.random(shape) < special
    values[mask] = rng.choice(SPECIAL, int(mask.sum()))
    return torch.from_numpy(values).cuda()


def fuzz_grouped_nms(rng: np.random.Generator) -> None:
    batch, num_boxes = int(rng.integers(1, 4)), int(rng.choice([1, 33, 513, 1500]))
    groups = rng.integers(-(2**31), 2**31, (batch, num_boxes)) // int(rng.choice([1, 2**30]))
    kernels.grouped_nms(
        garbage(rng, (batch, num_boxes, 4)),
        garbage(rng, (batch, num_boxes), special=0.1),
        torch.from_numpy(groups.astype(np.int32)).cuda(),
        iou_threshold=float(rng.choice([-1, 0, 0.5, 1])),
        score_threshold=float(rng.choice([-np.inf, np.nan, 0, 1])),
        max_output=int(rng.choice([1, 100, 2000])),
        shift_groups=bool(rng.random() < 0.5),
    )


def fuzz_multi_level_roi_align(rng: np.random.Generator) -> None:
    channels, layout, output_layout = int(rng.choice([3, 8, 20])), *rng.integers(0, 3, 2).tolist()
    dtype = torch.float16 if rng.random() < 0.5 else torch.float32
    sizes = rng.integers(1, 40, (3, 2)).tolist()
    features = [garbage(rng, (2, channels, *size), special=0.01).to(dtype) for size in sizes]
    kernels.multi_level_roi_align(
        [kernels.to_layout(feature, layout) for feature in features],
        garbage(rng, (40, 5), special=0.3),
        channels=channels,
        output_size=(int(rng.integers(1, 9)), int(rng.choice([1, 7, 70]))),
        spatial_scales=(0.25, 0.125, 1.0),
        sampling_ratio=int(rng.choice([0, 2, 40])),
        mode=str(rng.choice(["avg", "max"])),
        aligned=bool(rng.random() < 0.5),
        layout=layout,
        output_layout=output_layout,
    )


def fuzz_paste_masks(rng: np.random.Generator) -> None:
    num_masks, (height, width) = 20, rng.choice([1, 16, 33, 64], 2).tolist()
    dtype = torch.float16 if rng.random() < 0.5 else torch.float32
    mask_size = rng.choice([1, 28, 400, 6500], 2, p=[0.2, 0.6, 0.1, 0.1]).tolist()
    mask_size = mask_size if mask_size[0] * mask_size[1] < 300000 else [28, 28]
    kernels.paste_masks(
        garbage(rng, (1, num_masks, *mask_size), special=0.1).to(dtype),
        garbage(rng, (1, num_masks, 4), special=0.3),
        (height, width),
        threshold=float(rng.choice([0, 0.5, 1])),
        dtype=[torch.uint8, torch.float16, torch.float32][int(rng.integers(0, 3))],
    )


def fuzz_grid_sample(rng: np.random.Generator) -> None:
    spatial = rng.integers(1, 12, int(rng.integers(2, 4))).tolist()
    modes = ["bilinear", "nearest", "bicubic"][: 5 - len(spatial)]
    dtype = torch.float16 if rng.random() < 0.5 else torch.float32
    kernels.grid_sample(
        garbage(rng, (2, 19, *spatial), special=0.01).to(dtype),
        garbage(rng, (2, *spatial[::-1], len(spatial))).to(dtype),
        mode=str(rng.choice(modes)),
        padding_mode=str(rng.choice(["zeros", "border", "reflection"])),
        align_corners=bool(rng.random() < 0.5),
    )


def fuzz_select_top(rng: np.random.Generator) -> None:
    k = int(rng.choice([1, 33, 1000, 4096]))
    shape = (int(rng.integers(1, 4)), k + int(rng.choice([0, 1, 7000, 50000])))
    kernels.select_top(garbage(rng, shape), k)


def fuzz_decode_proposals(rng: np.random.Generator) -> None:
    """Garbage, and maps whose padding would show a read past their end."""
    batch, num_anchors = int(rng.integers(1, 4)), int(rng.choice([1, 3, 8, 11]))
    sizes = [
        tuple(rng.integers(1, rng.choice([3, 30, 120]), 2).tolist()) for _ in range(int(rng.integers(1, 9)))
    ]
    dtype, layout = torch.float16 if rng.random() < 0.5 else torch.float32, int(rng.integers(0, 3))
    logits, deltas = (
        [kernels.to_layout(garbage(rng, (batch, channels, *s)).to(dtype), layout) for s in sizes]
        for channels in (num_anchors, 4 * num_anchors)
    )
    kernels.decode_proposals(
        logits,
        deltas,
        garbage(rng, (sum(h * w for h, w in sizes) * num_anchors, 4)),
        garbage(rng, (batch, 2)),
        top=rng.choice([1, 33, 1000, 4096], len(sizes)).tolist(),
        num_anchors=num_anchors,
        max_ratio=float(rng.choice([0, 4, 3e38])),
        clip=bool(rng.random() < 0.5),
        min_size=float(rng.choice([-1, 0, 10])),
        layout=layout,
    )


def fuzz_decode_detections(rng: np.random.Generator) -> None:
    batch, num_proposals = int(rng.integers(1, 4)), int(rng.choice([1, 5, 300]))
    num_classes = int(rng.choice([1, 3, 80, 131]))
    dtypes = [torch.float16 if rng.random() < 0.5 else torch.float32 for _ in range(2)]
    num_deltas = 4 if rng.random() < 0.5 else 4 * num_classes
    count = rng.choice([-(2**31), -1, 0, 2, num_proposals, 2**31 - 1], batch).astype(np.int32)
    kernels.decode_detections(
        garbage(rng, (batch, num_proposals, num_classes + 1), special=0.1).to(dtypes[0]),
        garbage(rng, (batch, num_proposals, num_deltas)).to(dtypes[1]),
        garbage(rng, (batch, num_proposals, 4)),
        torch.from_numpy(count).cuda(),
        garbage(rng, (batch, 2)),
        max_ratio=float(rng.choice([0, 4, 3e38])),
        clip=bool(rng.random() < 0.5),
    )


def fuzz_select_masks(rng: np.random.Generator) -> None:
    batch, num_masks, channels = 2, int(rng.choice([1, 9])), int(rng.choice([1, 3, 8, 21]))
    layout = int(rng.integers(0, 3))
    dtype = torch.float16 if rng.random() < 0.5 else torch.float32
    size = rng.choice([1, 7, 28, 40], 2).tolist()
    labels = rng.choice([-(2**31), -1, 0, 1, channels, 2**31 - 1], (batch, num_masks)).astype(np.int32)
    logits = garbage(rng, (batch * num_masks, channels, *size), special=0.1).to(dtype)
    kernels.select_masks(
        kernels.to_layout(logits, layout), torch.from_numpy(labels).cuda(), channels=channels, layout=layout
    )


def fuzz_encode_masks(rng: np.random.Generator) -> None:
    batch, num_dets = int(rng.integers(1, 4)), 20
    sizes = rng.choice([0, 1, 33, 700], (batch, 2)).tolist()
    mask_size = [(28, 28), (1, 1), (1024, 3), (3, 1024), (65, 64)][int(rng.integers(0, 5))]
    kernels.encode_masks(
        garbage(rng, (batch, num_dets, *mask_size), special=0.1),
        garbage(rng, (batch, num_dets, 5), special=0.3),
        torch.from_numpy(rng.choice([-1, 0, 5, 20, 2**31 - 1], batch).astype(np.int32)).cuda(),
        sizes=sizes,
        scales=rng.choice(SPECIAL, (batch, 2)).tolist() if rng.random() < 0.3 else [(1, 0.7)] * batch,
        capacity=int(rng.choice([0, 100, 1 << 20])),
        threshold=float(rng.choice([np.nan, 0, 0.5, -np.inf])),
        min_score=float(rng.choice([-np.inf, 0, np.nan])),
    )


def fuzz_prepare_images(rng: np.random.Generator) -> None:
    """Any bytes, and sizes at which a read past either end of an image would leave its allocation."""
    num_images = int(rng.choice([1, 3, 40]))
    height, width = rng.integers(1, 100, 2).tolist()
    images = [
        torch.from_numpy(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).cuda()
        for size in rng.choice([1, 2, 3, 5, 31, 64, 131], (num_images, 2)).tolist()
    ]
    sizes = [(int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))) for _ in images]
    kernels.prepare_images(
        images,
        sizes,
        (height, width),
        tables=garbage(rng, (3, 256)),
        reverse_channels=bool(rng.random() < 0.5),
    )


OPS: "dict[str, Callable[[np.random.Generator], None]]" = {
    "grouped_nms": fuzz_grouped_nms,
    "multi_level_roi_align": fuzz_multi_level_roi_align,
    "paste_masks": fuzz_paste_masks,
    "grid_sample": fuzz_grid_sample,
    "select_top": fuzz_select_top,
    "decode_proposals": fuzz_decode_proposals,
    "decode_detections": fuzz_decode_detections,
    "select_masks": fuzz_select_masks,
    "prepare_images": fuzz_prepare_images,
    "encode_masks": fuzz_encode_masks,
}


def run(op: str, *, num_rounds: int) -> None:
    """Call an operator on garbage, each round with another seed; raises where a launch fails."""
    with np.errstate(all="ignore"):
        for seed in range(num_rounds):
            OPS[op](np.random.default_rng(seed))
    torch.cuda.synchronize()


if __name__ == "__main__":
    for name in sys.argv[1:] or OPS:
        run(name, num_rounds=NUM_ROUNDS)
        print(f"{name}: {NUM_ROUNDS} rounds")
