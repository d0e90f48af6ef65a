"""What mmdet itself finds in image files, recorded: its own reading, resizing, padding, network and pasting.

Nothing of ``runtime`` or ``patches`` touches pixels or results here (where mmcv was installed without its compiled
operators, NMS and RoIAlign are those of ``patches.mmcv_ops``). ``export.reference`` is the same with a size of its own
where a file has one.
"""

import patches  # isort: skip  # noqa: F401  makes mmdet importable without mmcv's compiled operators

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmdet.apis import inference_detector, init_detector
from mmdet.structures import DetDataSample
from mmdet.utils import get_test_pipeline_cfg
from mmengine.dataset import Compose, pseudo_collate
from torch import nn

from export.checkpoint import read_checkpoint
from export.config import load_config
from export.metadata import metadata_from_model
from export.model import LoadedModel
from export.recorded import WholeMasks
from runtime.comparison.recording import RecordingWriter
from runtime.console import tracked
from runtime.detections import Detections
from runtime.host.preprocess import BatchGeometry


def load_detector(config: str, checkpoint: Path) -> LoadedModel:
    """Load a model by ``mmdet.apis.init_detector``, on the CPU."""
    settings = load_config(config)
    model = init_detector(settings, str(checkpoint), device="cpu").requires_grad_(False)
    return LoadedModel(model, settings, Path(config).stem, read_checkpoint(checkpoint))


def infer(model: nn.Module, paths: Sequence[Path]) -> list[DetDataSample]:
    """Run image files as one batch, through the config's own test pipeline.

    One file goes through ``mmdet.apis.inference_detector``. That runs a list one by one; several files go through
    the same pipeline, and are collated and padded by mmengine and mmdet.
    """
    if len(paths) == 1:
        return [inference_detector(model, str(paths[0]))]
    pipeline = Compose(get_test_pipeline_cfg(model.cfg.copy()))
    with torch.no_grad():
        return model.test_step(pseudo_collate([pipeline({"img_path": str(p), "img_id": 0}) for p in paths]))


def record_inference(loaded: LoadedModel, batches: Sequence[Sequence[Path]], output: Path) -> None:
    """Record what ``infer`` finds in each batch, in original px with masks at original resolution.

    Args:
        loaded: of ``load_detector``.
        batches: image files that run together.
        output: the ``.npz`` (``runtime.comparison.recording``).
    """
    metadata = metadata_from_model(loaded, size=None, dynamic_size=True, masks="crop")
    source = f"mmdet.apis.inference_detector, PyTorch {torch.__version__}, {loaded.name}"
    with RecordingWriter(output, metadata, source=source, made_with=made_with(loaded, batches)) as writer:
        for paths in tracked(batches, len(batches), "mmdet"):
            for path, sample in zip(paths, infer(loaded.model, paths)):
                writer.add(path, detections_from_sample(sample, metadata.classes))


def made_with(loaded: LoadedModel, batches: Sequence[Sequence[Path]]) -> dict:
    """Return what the result depends on besides the checkpoint and the images."""
    metadata = metadata_from_model(loaded, size=None, dynamic_size=True, masks="crop")
    names = ("mmdet", "mmengine", "mmcv", "mmcv-lite", "torch")
    versions = {name: metadata.versions[name] for name in names if name in metadata.versions}
    return {**versions, "device": "cpu", "batch": max(map(len, batches))}


def data_samples(batch: BatchGeometry, padded: tuple[int, int]) -> list[DetDataSample]:
    """Return mmdet's description of images that were prepared by ``runtime.host.preprocess``, padded to a size, px."""
    samples = []
    for size, factors, original in zip(batch.image_sizes, batch.scale_factors, batch.original_sizes):
        meta = {
            "img_shape": (int(size[0]), int(size[1])),
            "ori_shape": tuple(original),
            "scale_factor": tuple(float(f) for f in factors),
            "batch_input_shape": padded,
            "pad_shape": padded,
        }
        samples.append(DetDataSample(metainfo=meta))
    return samples


def detections_from_sample(sample: DetDataSample, classes: tuple[str, ...]) -> Detections:
    """Return mmdet's result as the runtime's."""
    found = sample.pred_instances.numpy()
    masks = WholeMasks(found.masks.astype(bool, copy=False)) if "masks" in found else None
    return Detections(
        found.bboxes, found.scores, found.labels.astype(np.int32), tuple(sample.ori_shape), classes, masks
    )
