"""Tiny models for tests."""

from pathlib import Path

from mmengine.config import Config
from torch import nn

from export.model import model_from_config
from export.random_weights import randomize, structured_images, structured_photos

__all__ = ["structured_images", "structured_photos", "tiny_config", "tiny_model", "write_config"]

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
    """Return ``tiny_config``'s model with random weights."""
    return randomize(model_from_config(tiny_config(**options)), seed=seed, size=(128, 192))
