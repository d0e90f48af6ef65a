"""Trains the embedded model on images rendered on the fly, for a fixed time.

python -m examples.train --minutes 8.3 --device cuda --workers 13
python -m examples.train --max-iterations 2 --batch 2 --device cpu --workers 0 --out /tmp/tiny.pth
"""

from __future__ import annotations

import patches  # isort: skip  # noqa: F401  makes mmdet importable without mmcv's compiled operators

import argparse
import math
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.logging import MMLogger
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, IterableDataset

from examples import CHECKPOINT_PATH, CONFIG_PATH
from examples.losses import Targets, losses
from examples.shapes import CLASSES, Rng, Scene, index_from_masks, render, scene_from_index

TRAIN_SIZES = ((448, 640), (640, 448), (512, 512))
"""(height, width) in px of the training batches, in turn."""

TRAIN_SIZE_RANGE = (0.03, 0.65)
"""Wider than the renderer's default, so that its smallest and largest objects are not borderline."""


@dataclass(frozen=True)
class TrainConfig:
    """What one training run depends on; `minutes` and `max_iterations` both end it.

    Every rendered batch is trained on about `uses` times, each time flipped or transposed anew; the last
    `pool` of them stay on the device (37 MB each).
    """

    minutes: float = 8.3
    max_iterations: int | None = None
    batch: int = 32
    uses: int = 3
    pool: int = 240
    workers: int = 13
    device: str = "cuda"
    learning_rate: float = 1e-3
    weight_decay: float = 0.02
    warmup_iterations: int = 300
    clip_norm: float = 5.0
    seed: int = 7


@dataclass(frozen=True)
class Progress:
    """How far a run came."""

    iterations: int
    images: int
    minutes: float


@dataclass(frozen=True)
class RenderedBatch:
    """images: (B, H, W, 3) uint8 BGR. index: (B, H, W) uint8, 0 or 1 + object. boxes, labels: per image."""

    images: Tensor
    index: Tensor
    boxes: list[Tensor]
    labels: list[Tensor]


class RenderedBatches(IterableDataset):
    """Endless batches of fresh scenes; every DataLoader worker renders batches of its own."""

    def __init__(self, batch: int, seed: int) -> None:
        self.batch, self.seed = batch, seed

    def __iter__(self) -> Iterator[RenderedBatch]:
        info = torch.utils.data.get_worker_info()
        worker = 0 if info is None else info.id
        if info is not None:
            cv2.setNumThreads(1)
        rng = np.random.default_rng((self.seed, worker))
        for step in range(worker, 1 << 62):
            size = TRAIN_SIZES[step % len(TRAIN_SIZES)]
            yield _batch_from_scenes([training_scene(rng, *size) for _ in range(self.batch)])


def training_scene(rng: Rng, height: int, width: int) -> Scene:
    """Render a scene, often at another size and scaled to (height, width) px, sometimes through JPEG."""
    scale = rng.choice((1.0, 1.0, 1.0, 0.85, 1.3, 1.7))
    big = render(rng, round(height * scale), round(width * scale), size_range=TRAIN_SIZE_RANGE)
    image, index = big.image, index_from_masks(big.masks)
    if scale != 1.0:
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        index = cv2.resize(index, (width, height), interpolation=cv2.INTER_NEAREST)
    if rng.random() < 0.35:
        quality = int(rng.integers(60, 98))
        image = cv2.imdecode(
            cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, quality))[1], cv2.IMREAD_COLOR
        )
    return scene_from_index(image, index, big.labels)


def _batch_from_scenes(scenes: list[Scene]) -> RenderedBatch:
    return RenderedBatch(
        images=torch.from_numpy(np.stack([scene.image for scene in scenes])),
        index=torch.from_numpy(np.stack([index_from_masks(scene.masks) for scene in scenes])),
        boxes=[torch.from_numpy(scene.boxes) for scene in scenes],
        labels=[torch.from_numpy(scene.labels) for scene in scenes],
    )


def model_from_config(path: Path = CONFIG_PATH) -> nn.Module:
    """Build the detector of the config at `path` with fresh weights."""
    register_all_modules(init_default_scope=True)
    model = MODELS.build(Config.fromfile(path).model)
    model.init_weights()
    return model


def to_device(batch: RenderedBatch, device: str) -> tuple[Tensor, Targets]:
    """Images (B, 3, H, W) uint8 BGR and their targets, on `device`."""
    images = batch.images.to(device).permute(0, 3, 1, 2).contiguous()
    counts = torch.tensor([len(labels) for labels in batch.labels])
    valid = torch.arange(max(int(counts.max()), 1)) < counts[:, None]
    boxes, labels = pad_sequence(batch.boxes, batch_first=True), pad_sequence(batch.labels, batch_first=True)
    return images, Targets(boxes.to(device), labels.to(device), valid.to(device), batch.index.to(device))


def turned(images: Tensor, targets: Targets, symmetry: int) -> tuple[Tensor, Targets]:
    """Apply one of the 8 symmetries of the square: bit 0 mirrors x, bit 1 mirrors y, bit 2 transposes."""
    index, (x1, y1, x2, y2) = targets.index, targets.boxes.unbind(-1)
    if symmetry & 1:
        images, index = images.flip(-1), index.flip(-1)
        x1, x2 = images.shape[-1] - x2, images.shape[-1] - x1
    if symmetry & 2:
        images, index = images.flip(-2), index.flip(-2)
        y1, y2 = images.shape[-2] - y2, images.shape[-2] - y1
    if symmetry & 4:
        images, index = images.transpose(-1, -2), index.transpose(-1, -2)
        x1, y1, x2, y2 = y1, x1, y2, x2
    return images, Targets(torch.stack((x1, y1, x2, y2), -1), targets.labels, targets.valid, index)


def training_batches(config: TrainConfig) -> Iterator[tuple[Tensor, Targets]]:
    """Endless batches on the device: every new one once, then others from the pool, turned at random."""
    rng = np.random.default_rng(config.seed)
    pool: deque[tuple[Tensor, Targets]] = deque(maxlen=config.pool)
    for batch in _loader(config):
        pool.append(to_device(batch, config.device))
        for use in range(config.uses):
            chosen = len(pool) - 1 if use == 0 else int(rng.integers(len(pool)))
            yield turned(*pool[chosen], int(rng.integers(8)))


def learning_rate_at(config: TrainConfig, iteration: int, share_done: float) -> float:
    """Linear warm-up by iteration, then a cosine over the share of the run that is done (0 to 1)."""
    warmup = min(1.0, (iteration + 1) / config.warmup_iterations)
    return config.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * min(share_done, 1.0)))


def train(model: nn.Module, config: TrainConfig) -> Progress:
    """Train `model` in place until the time or the iterations are used up; prints losses as it goes.

    FP32 with TF32 matrix multiplications rather than autocast: mmdet gives anchors and RoIs the type of
    the feature maps, and bfloat16 coordinates of some hundred pixels move by 2 px.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.manual_seed(config.seed)
    model.to(config.device).train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay)
    iteration, start = 0, time.monotonic()
    for images, targets in training_batches(config):
        share = _share_done(config, iteration, time.monotonic() - start)
        if share >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(config, iteration, share)
        parts = _step(model, optimizer, images, targets, config)
        if iteration % 100 == 0:
            _log(iteration, time.monotonic() - start, parts)
        iteration += 1
    return Progress(iteration, iteration * config.batch, (time.monotonic() - start) / 60)


def _loader(config: TrainConfig) -> DataLoader:
    dataset = RenderedBatches(config.batch, config.seed)
    prefetch = 2 if config.workers else None
    return DataLoader(dataset, batch_size=None, num_workers=config.workers, prefetch_factor=prefetch)


def _share_done(config: TrainConfig, iteration: int, seconds: float) -> float:
    by_clock = seconds / (60 * config.minutes)
    by_count = iteration / config.max_iterations if config.max_iterations else 0.0
    return max(by_clock, by_count)


def _step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, targets: Targets, config: TrainConfig
) -> dict[str, Tensor]:
    inputs = model.data_preprocessor({"inputs": images, "data_samples": None}, training=True)["inputs"]
    parts = losses(model, inputs, targets)
    total = sum(value for name, value in parts.items() if name.startswith("loss"))
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
    optimizer.step()
    return {"loss": total, **parts}


def _log(iteration: int, seconds: float, parts: dict[str, Tensor]) -> None:
    values = {name: float(value.detach()) for name, value in parts.items()}
    if not math.isfinite(values["loss"]):
        raise RuntimeError(f"the loss is {values['loss']} at iteration {iteration}; lower --learning-rate")
    print(
        f"{iteration:6d} {seconds:6.0f} s  " + "  ".join(f"{k} {v:.3f}" for k, v in values.items()),
        flush=True,
    )


def save_checkpoint(model: nn.Module, path: Path, training: dict) -> None:
    """Write the weights as FP16 with the class names; `torch.load(path, weights_only=True)` reads it.

    `training` (numbers and strings) is kept as `meta["training"]`.
    """
    state = {name: t.half() if t.is_floating_point() else t for name, t in model.state_dict().items()}
    state = {name: t.detach().cpu().contiguous() for name, t in state.items()}
    bad = [name for name, t in state.items() if not torch.isfinite(t).all()]
    if bad:
        raise RuntimeError(
            f"not finite in FP16: {', '.join(bad)}; the training diverged, nothing was written"
        )
    meta = {"dataset_meta": {"classes": list(CLASSES)}, "training": training}
    torch.save({"meta": meta, "state_dict": state}, path)


def main(argv: list[str] | None = None) -> None:
    config, out = _parse(argv)
    torch.manual_seed(config.seed)
    MMLogger.get_current_instance().setLevel("WARNING")  # init_weights() would log every parameter
    model = model_from_config()
    progress = train(model, config)
    training = {
        "iterations": progress.iterations,
        "images": progress.images,
        "minutes": round(progress.minutes, 2),
        "batch": config.batch,
        "uses_of_a_batch": config.uses,
        "learning_rate": config.learning_rate,
        "seed": config.seed,
        "device": torch.cuda.get_device_name() if config.device.startswith("cuda") else "cpu",
        "torch": str(torch.__version__),
        "opencv": cv2.__version__,
    }
    save_checkpoint(model, out, training)
    print(f"wrote {out} ({out.stat().st_size / 1e6:.2f} MB): {training}")


def _parse(argv: list[str] | None) -> tuple[TrainConfig, Path]:
    default = TrainConfig()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--minutes", type=float, default=default.minutes, help="time to train (default %(default)s)"
    )
    parser.add_argument("--max-iterations", type=int, help="stop after so many batches even if time is left")
    parser.add_argument(
        "--batch", type=int, default=default.batch, help="images a batch (default %(default)s)"
    )
    parser.add_argument(
        "--uses", type=int, default=default.uses, help="times a batch is used (default %(default)s)"
    )
    parser.add_argument("--pool", type=int, default=default.pool, help="batches kept (default %(default)s)")
    parser.add_argument("--workers", type=int, default=default.workers, help="rendering processes, 0: none")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--learning-rate", type=float, default=default.learning_rate)
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--out", type=Path, default=CHECKPOINT_PATH, help="checkpoint (default %(default)s)")
    args = vars(parser.parse_args(argv))
    out = args.pop("out")
    return TrainConfig(**args), out


if __name__ == "__main__":
    main()
