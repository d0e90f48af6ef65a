"""Tiny models of mmdet's other two-stage families: what each changes in ``tests.models.tiny_config``."""

import copy
from collections.abc import Callable

from mmengine.config import Config
from torch import nn

from export.model import model_from_config
from export.random_weights import randomize
from tests.models import NUM_CLASSES, tiny_config

STDS = ([0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1])


def cascade(model: dict) -> None:
    """Two stages; class-agnostic boxes, as every shipped cascade but a few has them."""
    head = model["roi_head"]
    model["type"], head["type"] = "CascadeRCNN", "CascadeRoIHead"
    head["num_stages"], head["stage_loss_weights"] = 2, [1, 0.5]
    stages = [copy.deepcopy(head["bbox_head"]) for _ in STDS]
    for stage, stds in zip(stages, STDS):
        stage["reg_class_agnostic"] = True
        stage["bbox_coder"]["target_stds"] = stds
    head["bbox_head"] = stages


def cascade_box_per_class(model: dict) -> None:
    cascade(model)
    for stage in model["roi_head"]["bbox_head"]:
        stage["reg_class_agnostic"] = False


def seesaw(model: dict) -> None:
    _seesaw(model, model["roi_head"]["bbox_head"])


def cascade_seesaw(model: dict) -> None:
    cascade_box_per_class(model)
    _seesaw(model, *model["roi_head"]["bbox_head"])


def _seesaw(model: dict, *bbox_heads: dict) -> None:
    model["test_cfg"]["rcnn"]["score_thr"] = 1e-4  # as for LVIS
    for bbox_head in bbox_heads:
        bbox_head["cls_predictor_cfg"] = {"type": "NormedLinear", "tempearture": 20}  # mmdet's spelling
        bbox_head["loss_cls"] = {"type": "SeesawLoss", "num_classes": NUM_CLASSES}


def mask_scoring(model: dict) -> None:
    model["type"], model["roi_head"]["type"] = "MaskScoringRCNN", "MaskScoringRoIHead"
    model["roi_head"]["mask_iou_head"] = {
        "type": "MaskIoUHead",
        "num_convs": 1,
        "num_fcs": 1,
        "roi_feat_size": 14,
        "in_channels": 16,
        "conv_out_channels": 16,
        "fc_out_channels": 32,
        "num_classes": NUM_CLASSES,
    }


def groie(model: dict) -> None:
    for name in ("bbox_roi_extractor", "mask_roi_extractor"):
        extractor = model["roi_head"][name]
        extractor["type"] = "GenericRoIExtractor"
        extractor["roi_layer"]["sampling_ratio"] = 2
        extractor["pre_cfg"] = {
            "type": "ConvModule",
            "in_channels": 16,
            "out_channels": 16,
            "kernel_size": 5,
            "padding": 2,
            "inplace": False,
        }
        extractor["post_cfg"] = {
            "type": "GeneralizedAttention",
            "in_channels": 16,
            "spatial_range": -1,
            "num_heads": 2,
            "attention_type": "0100",
            "kv_stride": 2,
        }


def groie_concatenated(model: dict) -> None:
    for name in ("bbox_roi_extractor", "mask_roi_extractor"):
        model["roi_head"][name].update(type="GenericRoIExtractor", aggregation="concat", out_channels=64)
    model["roi_head"]["bbox_head"]["in_channels"] = 64
    model["roi_head"]["mask_head"]["in_channels"] = 64


def double_head(model: dict) -> None:
    head = model["roi_head"]
    head.update(type="DoubleHeadRoIHead", reg_roi_scale_factor=1.3)
    head["bbox_head"].update(
        type="DoubleConvFCBBoxHead", num_convs=1, num_fcs=1, conv_out_channels=32, fc_out_channels=32
    )


def swin(model: dict) -> None:
    """Windows of 7 divide neither 32 x 48 nor what follows."""
    model["backbone"] = {
        "type": "SwinTransformer",
        "embed_dims": 8,
        "depths": [2, 2, 2, 2],
        "num_heads": [1, 2, 2, 4],
        "window_size": 7,
        "convert_weights": False,
    }


def dcn(model: dict) -> None:
    model["neck"]["in_channels"] = [32, 64, 128, 256]
    model["backbone"].update(
        depth=50,  # basic blocks take no DCN
        dcn={"type": "DCN", "deform_groups": 2},
        stage_with_dcn=(False, True, True, True),
    )


def dcn_v2(model: dict) -> None:
    dcn(model)
    model["backbone"]["dcn"]["type"] = "DCNv2"


def libra(model: dict) -> None:
    bfp = {"type": "BFP", "in_channels": 16, "num_levels": 5, "refine_level": 2, "refine_type": "non_local"}
    model["neck"] = [model["neck"], bfp]


def legacy(model: dict) -> None:
    """Coordinates of mmdet 1.x."""
    model["rpn_head"]["anchor_generator"].update(type="LegacyAnchorGenerator", center_offset=0.5)
    model["rpn_head"]["bbox_coder"]["type"] = "LegacyDeltaXYWHBBoxCoder"
    model["roi_head"]["bbox_head"]["bbox_coder"]["type"] = "LegacyDeltaXYWHBBoxCoder"
    for name in ("bbox_roi_extractor", "mask_roi_extractor"):
        model["roi_head"][name]["roi_layer"].update(sampling_ratio=2, aligned=False)


def attention(model: dict) -> None:
    """Empirical attention with all four of its terms, and GCNet's context."""
    terms = {
        "type": "GeneralizedAttention",
        "spatial_range": -1,
        "num_heads": 2,
        "attention_type": "1111",
        "kv_stride": 2,
    }
    model["neck"]["in_channels"] = [32, 64, 128, 256]
    model["backbone"].update(
        depth=50,  # basic blocks take no plugins
        plugins=[
            {"cfg": terms, "stages": (False, False, True, True), "position": "after_conv2"},
            {
                "cfg": {"type": "ContextBlock", "ratio": 1 / 4},
                "stages": (False, True, True, True),
                "position": "after_conv3",
            },
        ],
    )


def group_norm(model: dict) -> None:
    """Everywhere, as the configs of folder ``gn``."""
    norm = {"type": "GN", "num_groups": 4, "requires_grad": True}
    model["backbone"]["norm_cfg"] = norm
    model["neck"]["norm_cfg"] = norm
    model["roi_head"]["bbox_head"].update(
        type="Shared4Conv1FCBBoxHead", conv_out_channels=16, fc_out_channels=32, norm_cfg=norm
    )
    model["roi_head"]["mask_head"]["norm_cfg"] = norm


def resnest(model: dict) -> None:
    """Split attention: a global average pool in every block."""
    model["neck"]["in_channels"] = [32, 64, 128, 256]
    model["backbone"].update(
        type="ResNeSt", depth=50, stem_channels=8, radix=2, reduction_factor=4, avg_down_stride=True
    )


def sac(model: dict) -> None:
    """Switchable atrous convolutions, as DetectoRS has them."""
    model["neck"]["in_channels"] = [32, 64, 128, 256]
    model["backbone"].update(
        type="DetectoRS_ResNet",
        depth=50,  # basic blocks take no SAC
        conv_cfg={"type": "ConvAWS"},
        sac={"type": "SAC", "use_deform": True},
        stage_with_sac=(False, True, True, True),
    )


def c4(model: dict) -> None:
    """One map of stride 16, and a stage of the backbone as the head of every RoI."""
    head = model["roi_head"]
    del model["neck"], head["mask_roi_extractor"]
    model["backbone"].update(
        depth=50,
        base_channels=16,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(2,),
    )
    model["rpn_head"]["in_channels"] = 256
    model["rpn_head"]["anchor_generator"].update(strides=[16], scales=[2, 4, 8])
    head["shared_head"] = {"type": "ResLayer", "depth": 50, "stage": 1, "stride": 2, "style": "pytorch"}
    head["bbox_roi_extractor"].update(out_channels=256, featmap_strides=[16])
    head["bbox_roi_extractor"]["roi_layer"]["output_size"] = 14
    head["bbox_head"].update(type="BBoxHead", with_avg_pool=True, in_channels=512)
    del head["bbox_head"]["fc_out_channels"]
    head["mask_head"].update(in_channels=512, num_convs=0)


FAMILIES: dict[str, Callable[[dict], None]] = {
    f.__name__: f
    for f in (
        cascade,
        cascade_box_per_class,
        cascade_seesaw,
        seesaw,
        mask_scoring,
        groie,
        groie_concatenated,
        double_head,
        swin,
        dcn,
        dcn_v2,
        libra,
        legacy,
        attention,
        group_norm,
        resnest,
        sac,
        c4,
    )
}


def family_config(name: str) -> Config:
    """Return a family's config."""
    config = copy.deepcopy(tiny_config())
    FAMILIES[name](config.model)
    return config


def family_model(name: str) -> nn.Module:
    """Return a family's model with random weights."""
    return randomize(model_from_config(family_config(name)), seed=0, size=(128, 192))
