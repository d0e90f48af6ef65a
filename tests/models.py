"""Models for tests: tiny ones, and random weights under which scores spread and NMS has work to do."""

from pathlib import Path

import torch
from mmengine.config import Config
from torch import Tensor, nn

import patches  # noqa: F401  (first: makes mmdet importable)
from export.model import model_from_config

NUM_CLASSES = 5


def tiny_config(*, masks: bool = True, class_agnostic: bool = False, sigmoid_rpn: bool = True) -> Config:
    """Return stock Mask R-CNN with every channel count cut down."""
    extractor = {
        "type": "SingleRoIExtractor",
        "roi_layer": {"type": "RoIAlign", "output_size": 7, "sampling_ratio": 0},
        "out_channels": 16,
        "featmap_strides": [4, 8, 16, 32],
    }
    coder = {"type": "DeltaXYWHBBoxCoder", "target_means": [0.0] * 4}
    roi_head = {
        "type": "StandardRoIHead",
        "bbox_roi_extractor": extractor,
        "bbox_head": {
            "type": "Shared2FCBBoxHead",
            "in_channels": 16,
            "fc_out_channels": 32,
            "roi_feat_size": 7,
            "num_classes": NUM_CLASSES,
            "bbox_coder": {**coder, "target_stds": [0.1, 0.1, 0.2, 0.2]},
            "reg_class_agnostic": class_agnostic,
        },
    }
    if masks:
        roi_head["mask_roi_extractor"] = {
            **extractor,
            "roi_layer": {**extractor["roi_layer"], "output_size": 14},
        }
        roi_head["mask_head"] = {
            "type": "FCNMaskHead",
            "num_convs": 1,
            "in_channels": 16,
            "conv_out_channels": 16,
            "num_classes": NUM_CLASSES,
            "class_agnostic": class_agnostic,
        }
    rcnn = {"score_thr": 0.05, "nms": {"type": "nms", "iou_threshold": 0.5}, "max_per_img": 100}
    model = {
        "type": "MaskRCNN" if masks else "FasterRCNN",
        "data_preprocessor": {
            "type": "DetDataPreprocessor",
            "mean": [123.675, 116.28, 103.53],
            "std": [58.395, 57.12, 57.375],
            "bgr_to_rgb": True,
            "pad_size_divisor": 32,
        },
        "backbone": {
            "type": "ResNet",
            "depth": 18,
            "base_channels": 8,
            "norm_eval": True,
            "style": "pytorch",
        },
        "neck": {"type": "FPN", "in_channels": [8, 16, 32, 64], "out_channels": 16, "num_outs": 5},
        "rpn_head": {
            "type": "RPNHead",
            "in_channels": 16,
            "feat_channels": 16,
            "anchor_generator": {
                "type": "AnchorGenerator",
                "scales": [8],
                "ratios": [0.5, 1.0, 2.0],
                "strides": [4, 8, 16, 32, 64],
            },
            "bbox_coder": {**coder, "target_stds": [1.0] * 4},
            "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": sigmoid_rpn},
        },
        "roi_head": roi_head,
        "train_cfg": None,
        "test_cfg": {
            "rpn": {
                "nms_pre": 200,
                "max_per_img": 100,
                "nms": {"type": "nms", "iou_threshold": 0.7},
                "min_bbox_size": 0,
            },
            "rcnn": {**rcnn, "mask_thr_binary": 0.5},
        },
    }
    pipeline = [
        {"type": "LoadImageFromFile"},
        {"type": "Resize", "scale": (192, 128), "keep_ratio": True},
        {"type": "PackDetInputs"},
    ]
    dataset = {
        "type": "CocoDataset",
        "pipeline": pipeline,
        "metainfo": {"classes": ("a", "b", "c", "d", "e")},
    }
    return Config({"model": model, "test_dataloader": {"dataset": dataset}})


def write_config(config: Config, path: Path) -> Path:
    """Write the config as a Python file that mmengine reads back."""
    path.write_text(config.pretty_text)
    return path


def tiny_model(seed: int = 0, **options: bool) -> nn.Module:
    """Return ``tiny_config``'s model with well-behaved random weights."""
    return well_behaved(model_from_config(tiny_config(**options)), seed=seed, size=(128, 192))


def well_behaved(model: nn.Module, *, seed: int, size: tuple[int, int]) -> nn.Module:
    """Give a model random weights like a trained one's in what matters here: the spread of its outputs.

    Batch statistics are those of a random image, and the last layers are scaled so that objectness, class scores,
    deltas and mask logits vary.
    """
    torch.manual_seed(seed)
    # mmdet starts residual branches at zero, which would leave a network of shortcuts.
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    images = structured_images(1, size, seed)
    with torch.no_grad():
        _calibrate_batch_norm(model, images)
        features = model.extract_feat(images)
        _scale_rpn(model.rpn_head, features)
        _scale_roi_head(model.roi_head, features)
    return model.eval()


def structured_images(num: int, size: tuple[int, int], seed: int) -> Tensor:
    """Return (num, 3, H, W) normalised images with structure at several scales, no two alike."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(num, 3, *size)
    for cells in (3, 8, 24):
        noise = torch.randn(num, 3, cells, cells, generator=generator)
        images += nn.functional.interpolate(noise, size, mode="bilinear", align_corners=False)
    return images


def _calibrate_batch_norm(model: nn.Module, images: Tensor) -> None:
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = 1.0
        norm.training = True
    model.extract_feat(torch.cat([images, images.flip(-1)]))
    for norm in norms:
        norm.training = False


def _scale_rpn(head: nn.Module, features: tuple[Tensor, ...]) -> None:
    scores, deltas = head(features)
    _rescale(head.rpn_cls, scores, 2.0)
    _rescale(head.rpn_reg, deltas, 0.4)


def _scale_roi_head(head: nn.Module, features: tuple[Tensor, ...]) -> None:
    centers = torch.rand(200, 2) * torch.tensor([features[0].shape[3] * 4.0, features[0].shape[2] * 4.0])
    sizes = torch.rand(200, 2) * 90 + 6
    rois = torch.cat([torch.zeros(200, 1), centers - sizes / 2, centers + sizes / 2], dim=1)
    outputs = head._bbox_forward(features, rois)
    _rescale(head.bbox_head.fc_cls, [outputs["cls_score"]], 2.5)
    _rescale(head.bbox_head.fc_reg, [outputs["bbox_pred"]], 0.7)
    if head.with_mask:
        _rescale(head.mask_head.conv_logits, [head._mask_forward(features, rois)["mask_preds"]], 3.0)


def _rescale(layer: nn.Module, outputs: list[Tensor], spread: float) -> None:
    values = torch.cat([o.flatten() for o in outputs])
    layer.weight.mul_(spread / values.std().clamp(min=1e-6))
    if layer.bias is not None:
        layer.bias.mul_(0)
