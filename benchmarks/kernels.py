"""Time the CUDA kernels next to their floors and to torchvision; writes JSON.

    python -m benchmarks.kernels --out benchmarks/results/kernels_h200.json

A kernel's time is that of replaying a CUDA graph of one call, launch gaps included: the median over groups of replays,
by CUDA events. torchvision's batched_nms waits for the GPU, so that it cannot be captured: it, and for comparison our
kernels, are also timed eagerly, from Python.
"""

import json
import math
import statistics
from pathlib import Path
from typing import Callable

import torch
import torchvision
from torch import Tensor

from runtime.cli import CommandParser
from tests.gpu.decode_detections.kernel import decode_detections
from tests.gpu.decode_proposals.kernel import decode_proposals
from tests.gpu.encode_masks.kernel import encode_masks
from tests.gpu.grouped_nms.kernel import grouped_nms
from tests.gpu.kernel_library import NCHW, NCHW32, NHWC, NHWC8, to_layout
from tests.gpu.multi_level_roi_align.kernel import multi_level_roi_align
from tests.gpu.padded_space_to_depth.kernel import padded_space_to_depth
from tests.gpu.paste_masks.kernel import paste_masks
from tests.gpu.prepare_images.kernel import prepare_images
from tests.gpu.select_masks.kernel import select_masks
from tests.gpu.select_top.kernel import select_top

NUM_WARMUP, NUM_GROUPS, NUM_PER_GROUP = 5, 15, 20
IMAGE = (800, 1216)
SCALES = (1 / 4, 1 / 8, 1 / 16, 1 / 32)
CHANNELS = 256


def event_ms(call: Callable[[], object], *, per_group: int = NUM_PER_GROUP) -> float:
    """Return the median time of a call in ms, over groups of calls between two events."""
    for _ in range(NUM_WARMUP):
        call()
    times = []
    for _ in range(NUM_GROUPS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(per_group):
            call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / per_group)
    return statistics.median(times)


def graph_ms(call: Callable[[], object]) -> float:
    """Return the time of a call replayed from a CUDA graph, in ms."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return event_ms(graph.replay)


def copy_bandwidth() -> float:
    """Return bytes read and written per ms by a copy of 2 GB."""
    source = torch.randint(0, 255, (2 << 30,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / event_ms(lambda: target.copy_(source), per_group=3)


def random_boxes(num_boxes: int) -> Tensor:
    """(num_boxes, 4): clusters around 30 objects and a third anywhere, as a detector's proposals."""
    height, width = IMAGE
    size = torch.tensor([width, height], device="cuda")
    sides = torch.exp(torch.empty((30, 2), device="cuda").uniform_(3, 6))
    objects = torch.cat([torch.rand((30, 2), device="cuda") * size, sides], dim=1)
    own = objects[torch.randint(0, 30, (num_boxes,), device="cuda")]
    centers = own[:, :2] + torch.randn((num_boxes, 2), device="cuda") * own[:, 2:] * 0.15
    sides = own[:, 2:] * torch.exp(torch.randn((num_boxes, 2), device="cuda") * 0.3)
    anywhere = torch.rand((num_boxes, 1), device="cuda") < 1 / 3
    centers = torch.where(anywhere, torch.rand((num_boxes, 2), device="cuda") * size, centers)
    boxes = torch.cat([centers - sides / 2, centers + sides / 2], dim=1)
    return torch.minimum(boxes.clamp(min=0), torch.cat([size, size]))


def rpn_inputs(batch: int) -> tuple[Tensor, Tensor, Tensor, dict]:
    """1000 boxes of P2 ... P5 each and all 741 of P6, IoU 0.7, 1000 kept."""
    per_level = [1000, 1000, 1000, 1000, 741]
    num_boxes = sum(per_level)
    boxes = torch.stack([random_boxes(num_boxes) for _ in range(batch)])
    scores = torch.sigmoid(torch.randn((batch, num_boxes), device="cuda") * 3 - 2)
    counts = torch.tensor(per_level, device="cuda")
    groups = torch.repeat_interleave(torch.arange(5, device="cuda", dtype=torch.int32), counts)[None]
    return boxes, scores, groups, {"iou_threshold": 0.7, "score_threshold": -0.5, "max_output": 1000}


def multi_class_inputs(batch: int) -> tuple[Tensor, Tensor, Tensor, dict]:
    """1000 RoIs x 80 classes with a box each, 1 % of the scores above 0.05, IoU 0.5, 100 kept."""
    boxes = torch.stack([random_boxes(1000) for _ in range(batch)])[:, :, None]
    boxes = (boxes + torch.randn((batch, 1000, 80, 4), device="cuda") * 3).reshape(batch, -1, 4).contiguous()
    scores = torch.rand((batch, 80000), device="cuda") * 0.05
    above = torch.rand((batch, 80000), device="cuda") < 0.01
    scores = torch.where(above, 0.05 + 0.95 * torch.rand((batch, 80000), device="cuda") ** 3, scores)
    groups = torch.arange(80, device="cuda", dtype=torch.int32).repeat(1000)[None].contiguous()
    return boxes, scores, groups, {"iou_threshold": 0.5, "score_threshold": 0.05, "max_output": 100}


def torchvision_nms(boxes: Tensor, scores: Tensor, groups: Tensor, settings: dict) -> None:
    for b in range(len(boxes)):
        found = scores[b] > settings["score_threshold"]
        own = boxes[b][found], scores[b][found], groups[0][found]
        torchvision.ops.batched_nms(*own, settings["iou_threshold"])[: settings["max_output"]]


def time_nms() -> list[dict]:
    rows = []
    for name, inputs, batches in (("rpn", rpn_inputs, (1, 8)), ("multi_class", multi_class_inputs, (1, 8))):
        for batch in batches:
            *tensors, settings = inputs(batch)

            def call(tensors=tensors, settings=settings):
                return grouped_nms(*tensors, **settings)

            rows.append(
                {
                    "op": "grouped_nms",
                    "case": name,
                    "batch": batch,
                    "kept": call()[1].tolist(),
                    "ms": graph_ms(call),
                    "eager_ms": event_ms(call),
                    "bar_ms": 0.15 if batch == 1 else 0.4,
                    "torchvision_batched_nms_eager_ms": event_ms(
                        lambda t=tensors, s=settings: torchvision_nms(*t, s), per_group=3
                    ),
                }
            )
    return rows


def roi_inputs(batch: int, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """FPN maps of an 800 x 1216 image, and 1000 RoIs per image."""
    features = [
        torch.randn((batch, CHANNELS, int(IMAGE[0] * s), int(IMAGE[1] * s)), device="cuda").to(dtype)
        for s in SCALES
    ]
    boxes = torch.cat([random_boxes(1000) for _ in range(batch)])
    image = torch.arange(batch, device="cuda").repeat_interleave(1000)[:, None].float()
    return features, torch.cat([image, boxes], dim=1)


def torchvision_roi_align(features: list[Tensor], rois_of_level: list[Tensor], bins: int) -> list[Tensor]:
    return [
        torchvision.ops.roi_align(feature, rois, (bins, bins), scale, -1, True)
        for feature, rois, scale in zip(features, rois_of_level, SCALES)
    ]


def levels_of(rois: Tensor) -> Tensor:
    size = ((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])).sqrt() / 56
    return torch.log2(size + 1e-6).floor().clamp(0, 3)


def time_roi_align(bandwidth: float) -> list[dict]:
    rows = []
    for batch, dtype, bins in [(b, d, 7) for b in (1, 8) for d in (torch.float16, torch.float32)] + [
        (1, torch.float16, 14)
    ]:
        features, rois = roi_inputs(batch, dtype)
        rois = rois[:100] if bins == 14 else rois
        item = features[0].element_size()
        output_bytes = len(rois) * CHANNELS * bins * bins * item
        num_bytes = sum(feature.numel() for feature in features) * item + output_bytes + rois.numel() * 4
        by_level = [rois[levels_of(rois) == level].to(dtype) for level in range(4)]
        row = {
            "op": "multi_level_roi_align",
            "batch": batch,
            "dtype": str(dtype).split(".")[1],
            "rois": len(rois),
            "bins": bins,
            "floor_ms": num_bytes / bandwidth,
            "floor": "every feature read once, the output written once",
            "output_floor_ms": output_bytes / bandwidth,
            "torchvision_roi_align_4_levels_graph_ms": graph_ms(
                lambda f=features, r=by_level, n=bins: torchvision_roi_align(f, r, n)
            ),
        }
        layouts = {"nchw": NCHW, "nhwc": NHWC8}
        for name, layout in layouts.items():
            stored = [to_layout(feature, layout) for feature in features]
            for output_name, output_layout in layouts.items():
                settings = {
                    "channels": CHANNELS,
                    "output_size": (bins, bins),
                    "spatial_scales": SCALES,
                    "layout": layout,
                    "output_layout": output_layout,
                }
                row[f"{name}_to_{output_name}_ms"] = graph_ms(
                    lambda f=stored, r=rois, s=settings: multi_level_roi_align(f, r, **s)
                )
        rows.append(row)
    return rows


def time_int8_roi_align(bandwidth: float) -> list[dict]:
    """INT8 output of INT8 maps, as quantized engines run it, and of FP16 maps beside it.

    Engines want the box head's features in order, the mask head's in blocks of channels.
    """
    rows = []
    for batch, bins in ((1, 7), (8, 7), (1, 14), (8, 14)):
        features, rois = roi_inputs(batch, torch.float16)
        rois = rois[:: 1 if bins == 7 else 10].contiguous()
        steps = [feature.abs().max().item() / 127 for feature in features]
        int8 = [(feature / step).round().to(torch.int8) for feature, step in zip(features, steps)]
        output_bytes = len(rois) * CHANNELS * bins * bins
        num_bytes = sum(feature.numel() for feature in features) + output_bytes + rois.numel() * 4
        row = {
            "op": "multi_level_roi_align_int8",
            "batch": batch,
            "rois": len(rois),
            "bins": bins,
            "floor_ms": num_bytes / bandwidth,
            "floor": "every INT8 feature read once, the output written once",
        }
        for name, maps, layout in (("fp16", features, NHWC8), ("int8", int8, NCHW32)):
            stored = [to_layout(feature, layout) for feature in maps]
            for output_name, output_layout in (("nchw", NCHW), ("nchw32", NCHW32)):
                settings = {
                    "channels": CHANNELS,
                    "output_size": (bins, bins),
                    "spatial_scales": SCALES,
                    "layout": layout,
                    "output_layout": output_layout,
                    "output_dtype": torch.int8,
                    "output_scale": 0.02,
                    "feature_scales": steps,
                }
                row[f"{name}_to_{output_name}_ms"] = graph_ms(
                    lambda f=stored, r=rois, s=settings: multi_level_roi_align(f, r, **s)
                )
        rows.append(row)
    return rows


def time_paste_masks(bandwidth: float) -> list[dict]:
    rows = []
    for batch, large in ((1, False), (1, True), (8, False), (8, True)):
        masks = torch.rand((batch, 100, 28, 28), device="cuda")
        boxes = torch.stack([random_boxes(100) for _ in range(batch)])
        if large:  # a fifth of all pixels
            corners = torch.rand((batch, 100, 2, 2), device="cuda") * 0.25 + torch.tensor(
                [0.1, 0.5], device="cuda"
            )
            size = torch.tensor([IMAGE[1], IMAGE[0]], device="cuda")
            boxes = (corners.transpose(2, 3) * size).flatten(2).contiguous()
        output = torch.empty((batch, 100, *IMAGE), dtype=torch.uint8, device="cuda")
        sides = boxes[..., 2:] - boxes[..., :2]
        fill_ms = graph_ms(lambda o=output: o.fill_(1))
        ms = graph_ms(lambda m=masks, b=boxes: paste_masks(m, b, IMAGE))
        rows.append(
            {
                "op": "paste_masks",
                "batch": batch,
                "masks": 100,
                "size": IMAGE,
                "share_of_pixels_in_boxes": (sides.prod(-1).mean() / (IMAGE[0] * IMAGE[1])).item(),
                "ms": ms,
                "write_output_ms": fill_ms,
                "times_write": ms / fill_ms,
                "bar_times_write": 2,
                "floor_ms": output.numel() / bandwidth,
            }
        )
    return rows


def rpn_scores(batch: int) -> list[Tensor]:
    """Objectness of P2 ... P5: nearly all of it far below 0.5."""
    sizes = [3 * int(IMAGE[0] * s) * int(IMAGE[1] * s) for s in SCALES]
    return [torch.sigmoid(torch.randn((batch, size), device="cuda") * 3 - 8) for size in sizes]


def time_select_top() -> list[dict]:
    """The best 1000 of each of RPN's four levels, one after the other."""
    rows = []
    for batch in (1, 8):
        levels = rpn_scores(batch)
        rows.append(
            {
                "op": "select_top",
                "batch": batch,
                "sizes": [level.shape[1] for level in levels],
                "ms": graph_ms(lambda v=levels: [select_top(scores, 1000) for scores in v]),
                "ms_by_level": [graph_ms(lambda s=scores: select_top(s, 1000)) for scores in levels],
                "torch_topk_ms": graph_ms(lambda v=levels: [scores.topk(1000, dim=1) for scores in v]),
                "bar_ms": 0.1 if batch == 1 else 0.2,
            }
        )
    return rows


def time_decode_proposals(bandwidth: float) -> list[dict]:
    """The best 1000 of each of RPN's levels, all 741 of the last."""
    rows = []
    sizes = [tuple(math.ceil(side * scale) for side in IMAGE) for scale in (*SCALES, 1 / 64)]
    num_priors = 3 * sum(height * width for height, width in sizes)
    for batch, dtype in [(b, d) for b in (1, 8) for d in (torch.float16, torch.float32)]:
        logits = [(torch.randn((batch, 3, *size), device="cuda") * 3 - 8).to(dtype) for size in sizes]
        deltas = [(torch.randn((batch, 12, *size), device="cuda") * 0.3).to(dtype) for size in sizes]
        settings = {
            "priors": random_boxes(num_priors),
            "image_sizes": torch.tensor([IMAGE] * batch, dtype=torch.float32, device="cuda"),
            "top": [min(1000, 3 * height * width) for height, width in sizes],
            "num_anchors": 3,
            "max_ratio": MAX_RATIO,
        }
        row = {
            "op": "decode_proposals",
            "batch": batch,
            "dtype": str(dtype).split(".")[1],
            "sizes": sizes,
            "rows": sum(settings["top"]),
            "bar_ms": 0.08 if batch == 1 else 0.12,
            "floor_ms": sum(level.numel() for level in logits) * dtype.itemsize / bandwidth,
            "floor": "every logit read once; all of it may be in the GPU's cache",
        }
        last = NHWC8 if dtype == torch.float16 else NHWC
        for name, layout in (("nchw", NCHW), ("nhwc", last)):
            maps = [[to_layout(level, layout) for level in kind] for kind in (logits, deltas)]
            row[f"{name}_ms"] = graph_ms(
                lambda m=maps, s=settings, n=layout: decode_proposals(*m, **s, layout=n)
            )
        rows.append(row)
    return rows


NUM_PROPOSALS, NUM_CLASSES, NUM_DETECTIONS, MASK_SIZE = 1000, 80, 100, (28, 28)
STDS, MAX_RATIO = (0.1, 0.1, 0.2, 0.2), 4.135166556742356  # of R-CNN's box head


def torch_decode_detections(
    logits: Tensor, deltas: Tensor, proposals: Tensor, count: Tensor, image_sizes: Tensor
) -> tuple[Tensor, Tensor]:
    """Do what ``decode_detections`` does with torch's operators, such as a CUDA graph can capture."""
    missing = torch.arange(logits.shape[1], device="cuda") >= count[:, None]
    scores = logits.float().softmax(-1)[..., :-1].masked_fill(missing[..., None], -1.0)
    shift, scale = deltas.float().unflatten(2, (-1, 4)).split(2, dim=-1)
    low, high = proposals[:, :, None].split(2, dim=-1)
    center = (low + high) * 0.5 + (high - low) * (shift * STDS[0])
    half = (high - low) * (scale * STDS[2]).clamp(-MAX_RATIO, MAX_RATIO).exp() * 0.5
    limit = image_sizes.flip(-1).repeat(1, 2)[:, None, None]
    boxes = torch.minimum(torch.cat([center - half, center + half], dim=-1).clamp(min=0), limit)
    return boxes.flatten(1, 2), scores.flatten(1)


def time_decode_detections(bandwidth: float) -> list[dict]:
    """Every class of 1000 proposals."""
    rows = []
    for batch, dtype in [(b, d) for b in (1, 8) for d in (torch.float16, torch.float32)]:
        shape = (batch, NUM_PROPOSALS)
        arguments = (
            (torch.randn((*shape, NUM_CLASSES + 1), device="cuda") * 4).to(dtype),
            torch.randn((*shape, 4 * NUM_CLASSES), device="cuda").to(dtype),
            torch.stack([random_boxes(NUM_PROPOSALS) for _ in range(batch)]),
            torch.full((batch,), NUM_PROPOSALS, dtype=torch.int32, device="cuda"),
            torch.tensor([IMAGE] * batch, dtype=torch.float32, device="cuda"),
        )

        def call(arguments: tuple = arguments) -> tuple:
            return decode_detections(*arguments, max_ratio=MAX_RATIO, stds=STDS)

        num_bytes = sum(t.numel() * t.element_size() for t in (*arguments, *call()))
        rows.append(
            {
                "op": "decode_detections",
                "batch": batch,
                "dtype": str(dtype).split(".")[1],
                "proposals": NUM_PROPOSALS,
                "classes": NUM_CLASSES,
                "ms": graph_ms(call),
                "bar_ms": 0.008 if batch == 1 else 0.02,
                "floor_ms": num_bytes / bandwidth,
                "floor": "every input read once, the outputs written once; all of it may be in the GPU's cache",
                "torch_ms": graph_ms(lambda a=arguments: torch_decode_detections(*a)),
            }
        )
    return rows


def torch_select_masks(logits: Tensor, labels: Tensor) -> Tensor:
    """Do what ``select_masks`` does with torch's operators. logits: (B * K, C, h, w)."""
    own = logits[torch.arange(len(logits), device="cuda"), labels.flatten().clamp(min=0).long()]
    masks = own.float().sigmoid().view(*labels.shape, *MASK_SIZE)
    return masks.masked_fill((labels < 0)[..., None, None], 0.0)


def time_select_masks() -> list[dict]:
    """100 masks per image, of 80 classes each."""
    rows = []
    for batch, dtype in [(b, d) for b in (1, 8) for d in (torch.float16, torch.float32)]:
        logits = torch.randn((batch * NUM_DETECTIONS, NUM_CLASSES, *MASK_SIZE), device="cuda").to(dtype)
        labels = torch.randint(0, NUM_CLASSES, (batch, NUM_DETECTIONS), dtype=torch.int32, device="cuda")
        row = {
            "op": "select_masks",
            "batch": batch,
            "dtype": str(dtype).split(".")[1],
            "masks": NUM_DETECTIONS,
            "classes": NUM_CLASSES,
            "size": MASK_SIZE,
            "bar_ms": 0.03 if batch == 8 and dtype == torch.float16 else None,
        }
        # 80 channels are a multiple of 8: the two channels-last layouts are the same.
        for name, layout in (("nchw", NCHW), ("nhwc", NHWC8)):
            stored = to_layout(logits, layout)
            row[f"{name}_ms"] = graph_ms(
                lambda s=stored, y=labels, n=layout: select_masks(s, y, channels=NUM_CLASSES, layout=n)
            )
        row["torch_nchw_ms"] = graph_ms(lambda s=logits, y=labels: torch_select_masks(s, y))
        rows.append(row)
    return rows


def torch_blocks(images: Tensor, pads: tuple) -> Tensor:
    """Do what ``padded_space_to_depth`` does with torch's operators, in FP16 and channels last."""
    top, left, bottom, right = pads
    padded = torch.nn.functional.pad(images.half(), (left, right, top, bottom))
    # pixel_unshuffle has another order of channels, of as many bytes.
    return torch.nn.functional.pixel_unshuffle(padded, 2).contiguous(memory_format=torch.channels_last)


def time_blocks(bandwidth: float) -> list[dict]:
    """float32 images to FP16 blocks, with the pads of the engines and with those of a 7 x 7 kernel."""
    rows = []
    for batch, pads in [(b, p) for b in (1, 8) for p in ((4, 4, 2, 2), (3, 3, 3, 3))]:
        images = torch.randn((batch, 3, *IMAGE), device="cuda")
        settings = {"dtype": torch.float16, "layout": NHWC8}
        num_bytes = images.numel() * 4 + padded_space_to_depth(images, pads, **settings).numel() * 2
        rows.append(
            {
                "op": "padded_space_to_depth",
                "batch": batch,
                "pads": pads,
                "size": IMAGE,
                "ms": graph_ms(lambda i=images, p=pads, s=settings: padded_space_to_depth(i, p, **s)),
                "nchw_ms": graph_ms(
                    lambda i=images, p=pads: padded_space_to_depth(i, p, dtype=torch.float16)
                ),
                "torch_ms": graph_ms(lambda i=images, p=pads: torch_blocks(i, p)),
                "floor_ms": num_bytes / bandwidth,
                "floor": "the images read once, the blocks written once",
            }
        )
    return rows


def object_masks(batch: int, num_masks: int) -> Tensor:
    """(batch, num_masks, 28, 28): smooth outlines around the middle, as a mask head's."""
    coarse = torch.rand((batch * num_masks, 1, 5, 5), device="cuda") * 0.6
    coarse[:, :, 1:4, 1:4] += 0.4
    masks = torch.nn.functional.interpolate(coarse, size=(28, 28), mode="bicubic").clamp(0, 1)
    return masks.view(batch, num_masks, 28, 28)


def time_encode_masks() -> list[dict]:
    """100 masks of 1080 x 1920 images, and next to it what it saves: writing the pixels."""
    height, width = 1080, 1920
    rows = []
    for batch, share in ((1, 0.05), (8, 0.05), (1, 0.5), (8, 0.5)):
        masks = object_masks(batch, 100)
        aspects = torch.exp(torch.empty((batch, 100, 1), device="cuda").uniform_(-0.5, 0.5))
        sides = share**0.5 * torch.cat([width * aspects, height / aspects], dim=2)
        size = torch.tensor([width, height], device="cuda")
        sides = torch.minimum(sides, size)
        corners = torch.rand((batch, 100, 2), device="cuda") * (size - sides)
        boxes = torch.cat([corners, corners + sides], dim=2)
        dets = torch.cat([boxes, torch.ones_like(aspects)], dim=2)
        num_dets = torch.full((batch,), 100, dtype=torch.int32, device="cuda")
        settings = {
            "sizes": [(height, width)] * batch,
            "scales": [(1.0, 1.0)] * batch,
            "capacity": batch * 100 * 16384,
        }

        def call(tensors=(masks, dets, num_dets), settings=settings):
            return encode_masks(*tensors, **settings)

        rows.append(
            {
                "op": "encode_masks",
                "batch": batch,
                "masks": 100,
                "size": (height, width),
                "share_of_pixels_in_boxes": (sides.prod(-1).mean() / (height * width)).item(),
                "bytes": call()[3].item(),
                "ms": graph_ms(call),
                "bar_ms": {1: 0.15, 8: 0.4}[batch] if share < 0.1 else None,
                "paste_masks_ms": graph_ms(lambda m=masks, b=boxes: paste_masks(m, b, (height, width))),
            }
        )
    return rows


def time_prepare_images(bandwidth: float) -> list[dict]:
    """Full HD images into an 800 x 1216 batch, aspect ratio kept."""
    rows = []
    height, width = 1080, 1920
    resized = (int(height * IMAGE[1] / width + 0.5), IMAGE[1])
    tables = torch.randn((3, 256), device="cuda")
    for batch in (1, 8):
        # Other images in every call of the row, so that they are not in the GPU's cache beforehand.
        sets = [
            list(torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8, device="cuda"))
            for _ in range(max(1, 32 // batch))
        ]

        def call(sets: list[list[Tensor]] = sets, batch: int = batch) -> None:
            for images in sets:
                prepare_images(images, [resized] * batch, IMAGE, tables=tables, reverse_channels=True)

        output_bytes = batch * 3 * IMAGE[0] * IMAGE[1] * 4
        rows.append(
            {
                "op": "prepare_images",
                "batch": batch,
                "from": (height, width),
                "to": resized,
                "size": IMAGE,
                "ms": graph_ms(call) / len(sets),
                "floor_ms": (output_bytes + batch * height * width * 3) / bandwidth,
                "floor": "every image read once, the output written once",
            }
        )
    return rows


def main() -> None:
    parser = CommandParser(doc=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/kernels_h200.json"))
    args = parser.parse_args()
    torch.manual_seed(0)
    bandwidth = copy_bandwidth()
    result = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "copy_bandwidth_tb_per_s": bandwidth / 1e9,
        "rows": [
            *time_nms(),
            *time_select_top(),
            *time_decode_proposals(bandwidth),
            *time_decode_detections(bandwidth),
            *time_select_masks(),
            *time_roi_align(bandwidth),
            *time_int8_roi_align(bandwidth),
            *time_paste_masks(bandwidth),
            *time_prepare_images(bandwidth),
            *time_encode_masks(),
            *time_blocks(bandwidth),
        ],
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    for row in result["rows"]:
        print({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})


if __name__ == "__main__":
    main()
