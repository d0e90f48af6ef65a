"""Two-stage detectors: Mask R-CNN and its relatives."""

from collections.abc import Mapping
from typing import Any, Optional, Union

from mmcv.ops import DeformConv2dPack, ModulatedDeformConv2dPack, RoIAlign, SAConv2d
from mmdet.models.backbones.resnest import SplitAttentionConv2d
from mmdet.models.backbones.swin import ShiftWindowMSA
from mmdet.models.dense_heads import RPNHead
from mmdet.models.detectors import TwoStageDetector
from mmdet.models.layers.transformer.utils import AdaptivePadding, PatchMerging
from mmdet.models.necks import BFP
from mmdet.models.roi_heads import CascadeRoIHead, MaskScoringRoIHead, StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.roi_heads.roi_extractors import GenericRoIExtractor, SingleRoIExtractor
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder, LegacyDeltaXYWHBBoxCoder
from mmdet.models.task_modules.prior_generators import AnchorGenerator
from torch import Tensor, nn

from patches import (
    adaptive_avg_pool,
    anchor_generator,
    base_roi_head,
    bbox_head,
    bfp,
    cascade_roi_head,
    deform_conv_pack,
    delta_xywh_bbox_coder,
    fcn_mask_head,
    generic_roi_extractor,
    group_norm,
    legacy_delta_xywh_bbox_coder,
    mask_scoring_roi_head,
    rpn_head,
    saconv,
    single_roi_extractor,
    standard_roi_head,
    swin,
    transformer_utils,
    two_stage_detector,
)
from patches.cascade_roi_head import stages
from patches.families.family import Facts, Family, UnsupportedModelError
from patches.families.random_heads import scale_roi_head, scale_rpn
from patches.patch import Patch

# Of a box and a score for every class of every proposal. LVIS has 1.2 million.
MAX_CANDIDATES = 3_000_000
# Anchors of a level that go on to NMS: a graph of dynamic size has room for so many on every level.
MAX_NMS_PRE = 100_000
# What mmdet calls from an image file to its results.
INFERENCE_METHODS = (
    "__call__",
    "test_step",
    "_run_forward",
    "forward",
    "predict",
    "add_pred_to_datasample",
    "eval",
)
# Layers that occur anywhere in a model.
LAYERS = (
    (BFP, bfp.PATCHES),
    (DeformConv2dPack, deform_conv_pack.VERSION_1),
    (ModulatedDeformConv2dPack, deform_conv_pack.VERSION_2),
    (ShiftWindowMSA, swin.PATCHES),
    (AdaptivePadding, transformer_utils.ADAPTIVE_PADDING),
    (PatchMerging, transformer_utils.PATCH_MERGING),
    (nn.GroupNorm, group_norm.PATCHES),
    ((nn.AdaptiveAvgPool2d, SplitAttentionConv2d, SAConv2d), adaptive_avg_pool.PATCHES),
)


COVERED_OPS = (RoIAlign, DeformConv2dPack, ModulatedDeformConv2dPack, SAConv2d)
CODERS = (
    (DeltaXYWHBBoxCoder, delta_xywh_bbox_coder.PATCHES),
    (LegacyDeltaXYWHBBoxCoder, legacy_delta_xywh_bbox_coder.PATCHES),
)


def _patches(model: nn.Module) -> tuple[Patch, ...]:
    return (
        *two_stage_detector.PATCHES,
        *anchor_generator.PATCHES,
        *rpn_head.PATCHES,
        *_coder_patches(model),
        *base_roi_head.PATCHES,
        *_roi_head_patches(model.roi_head),
        *bbox_head.PATCHES,
        *(patch for owner, patches in LAYERS if _has(model, owner) for patch in patches),
        *(saconv.PATCHES if any(saconv.uses_deform_conv(m) for m in model.modules()) else ()),
    )


def _has(model: nn.Module, owner: Union[type, tuple[type, ...]]) -> bool:
    return any(isinstance(module, owner) for module in model.modules())


def _coder_patches(model: nn.Module) -> tuple[Patch, ...]:
    coders = [model.rpn_head.bbox_coder, *(head.bbox_coder for head in stages(model.roi_head.bbox_head))]
    return tuple(
        patch
        for owner, patches in CODERS
        if any(isinstance(coder, owner) for coder in coders)
        for patch in patches
    )


def _roi_head_patches(head: nn.Module) -> tuple[Patch, ...]:
    """Return the patches of a RoI head, its mask branch and its extractors."""
    is_cascade = isinstance(head, CascadeRoIHead)
    patches = cascade_roi_head.PATCHES if is_cascade else standard_roi_head.PATCHES
    extractors = stages(head.bbox_roi_extractor)
    if head.with_mask:
        extractors += stages(head.mask_roi_extractor)
        if is_cascade:
            patches += cascade_roi_head.MASK_PATCHES
        elif isinstance(head, MaskScoringRoIHead):
            patches += mask_scoring_roi_head.MASK_PATCHES
        else:
            patches += (*standard_roi_head.MASK_PATCHES, *fcn_mask_head.PATCHES)
    if any(isinstance(each, SingleRoIExtractor) for each in extractors):
        patches += single_roi_extractor.PATCHES
    if any(isinstance(each, GenericRoIExtractor) for each in extractors):
        patches += generic_roi_extractor.PATCHES
    return patches


def _check(model: nn.Module) -> None:
    if not (model.with_rpn and model.with_roi_head):
        raise UnsupportedModelError(
            f"{type(model).__name__}: expected an RPN and a RoI head, found a model without "
            f"{'an RPN, whose proposals come from elsewhere' if not model.with_rpn else 'a RoI head'}."
        )
    for name in INFERENCE_METHODS:
        _check_uses(model, TwoStageDetector, name, type(model).__name__)
    _check_test_cfg(model)
    _check_rpn(model)
    _check_roi_head(model)
    for name, module in model.named_modules():
        _check_layer(module, name)


def _check_test_cfg(model: nn.Module) -> None:
    """What mmdet reads at inference must be there."""
    needed = {
        "rpn": {"nms": dict, "max_per_img": int},
        "rcnn": {"score_thr": (int, float), "nms": dict, "max_per_img": int},
    }
    if getattr(getattr(model, "roi_head", None), "with_mask", False):
        needed["rcnn"]["mask_thr_binary"] = (int, float)
    for part, keys in needed.items():
        cfg = (model.test_cfg or {}).get(part)
        if not isinstance(cfg, Mapping):
            found = "none" if cfg is None else repr(cfg)
            raise UnsupportedModelError(
                f"test_cfg: expected settings for {part}, found {found}; add test_cfg.{part}."
            )
        for key, kind in keys.items():
            value = cfg.get(key)
            if not isinstance(value, kind) or isinstance(value, bool) or value != value:
                raise UnsupportedModelError(
                    f"test_cfg.{part}.{key}: expected {'a dict' if kind is dict else 'a number'}, found {value!r}; "
                    "mmdet cannot run without it."
                )


def _check_layer(module: nn.Module, name: str) -> None:
    if type(module).__module__.startswith("mmcv.ops.") and not isinstance(module, COVERED_OPS):
        raise UnsupportedModelError(
            f"{name}: expected none of mmcv's compiled operators but {', '.join(op.__name__ for op in COVERED_OPS)}, "
            f"found {type(module).__name__}."
        )
    if isinstance(module, PatchMerging) and not transformer_utils.merges_whole_patches(module):
        raise UnsupportedModelError(
            f"{name}: expected a PatchMerging whose stride is its kernel's size, found {module.sampler}."
        )


def _check_rpn(model: nn.Module) -> None:
    head = model.rpn_head
    _check_uses(head, RPNHead, "predict_by_feat", "rpn_head")
    _check_uses(
        head.prior_generator, AnchorGenerator, "single_level_grid_priors", "rpn_head.anchor_generator"
    )
    _check_coder(head.bbox_coder, "rpn_head.bbox_coder")
    _check_nms(model.test_cfg.rpn, "test_cfg.rpn")
    nms_pre = model.test_cfg.rpn.get("nms_pre", -1)
    if not isinstance(nms_pre, int) or nms_pre > MAX_NMS_PRE:
        raise UnsupportedModelError(
            f"test_cfg.rpn.nms_pre: expected a whole number of at most {MAX_NMS_PRE:,}, found {nms_pre!r}; leave it "
            "out to keep every anchor."
        )


def _check_roi_head(model: nn.Module) -> None:
    head = model.roi_head
    owner = CascadeRoIHead if isinstance(head, CascadeRoIHead) else StandardRoIHead
    for name in ("predict", "predict_bbox"):
        _check_uses(head, owner, name, "roi_head")
    if not head.with_bbox:
        raise UnsupportedModelError("roi_head: expected a bbox_head, found none; give a config with one.")
    for extractor in stages(head.bbox_roi_extractor):
        _check_extractor(extractor, "roi_head.bbox_roi_extractor")
    for each in stages(head.bbox_head):
        _check_bbox_head(each)
    _check_nms(model.test_cfg.rcnn, "test_cfg.rcnn")
    _check_candidates(model.test_cfg.rpn.max_per_img, stages(head.bbox_head)[-1].num_classes)
    if not head.with_mask:
        return
    _check_uses(
        head,
        MaskScoringRoIHead if isinstance(head, MaskScoringRoIHead) else owner,
        "predict_mask",
        "roi_head",
    )
    for extractor in stages(head.mask_roi_extractor):
        _check_extractor(extractor, "roi_head.mask_roi_extractor")
    for mask_head in stages(head.mask_head):
        _check_uses(mask_head, FCNMaskHead, "predict_by_feat", "roi_head.mask_head")
        _check_uses(mask_head, FCNMaskHead, "_predict_by_feat_single", "roi_head.mask_head")
    if not 0 <= model.test_cfg.rcnn.mask_thr_binary <= 1:
        raise UnsupportedModelError(
            "test_cfg.rcnn.mask_thr_binary: expected a threshold of 0 to 1, "
            f"found {model.test_cfg.rcnn.mask_thr_binary}."
        )


def _check_bbox_head(head: nn.Module) -> None:
    for name in ("predict_by_feat", "_predict_by_feat_single"):
        _check_uses(head, BBoxHead, name, "roi_head.bbox_head")
    _check_coder(head.bbox_coder, "roi_head.bbox_head.bbox_coder")


def _check_candidates(num_proposals: int, num_classes: int) -> None:
    if num_proposals * num_classes > MAX_CANDIDATES:
        raise UnsupportedModelError(
            f"NMS: expected at most {MAX_CANDIDATES:,} candidates per image, found {num_proposals} proposals x "
            f"{num_classes} classes, gigabytes of boxes; lower test_cfg.rpn.max_per_img."
        )


def _check_coder(coder: object, where: str) -> None:
    is_legacy = isinstance(coder, LegacyDeltaXYWHBBoxCoder)
    _check_uses(coder, LegacyDeltaXYWHBBoxCoder if is_legacy else DeltaXYWHBBoxCoder, "decode", where)


def _check_extractor(extractor: nn.Module, where: str) -> None:
    owner = GenericRoIExtractor if isinstance(extractor, GenericRoIExtractor) else SingleRoIExtractor
    _check_uses(extractor, owner, "forward", where)
    layer = extractor.roi_layers[0]
    if type(layer) is not RoIAlign:
        raise UnsupportedModelError(f"{where}.roi_layer: expected RoIAlign, found {type(layer).__name__}.")
    if layer.pool_mode != "avg":
        raise UnsupportedModelError(
            f"{where}.roi_layer.pool_mode: expected avg, found {layer.pool_mode}: "
            "onnxruntime's maximum is taken over other samples than mmcv's."
        )


def _check_uses(part: object, owner: type, name: str, where: str) -> None:
    """The part must get ``name`` from the class that is patched, not from a subclass that overrides it."""
    found = type(part)
    if isinstance(part, owner) and getattr(found, name) is getattr(owner, name):
        return
    raise UnsupportedModelError(
        f"{where}: expected {owner.__name__} (or a subclass that keeps its {name}), found {found.__name__}."
    )


def _check_nms(cfg: dict, where: str) -> None:
    """Only plain NMS, with the settings that the operator has."""
    nms = dict(cfg.nms)
    kind = nms.pop("type", "nms")
    unknown = set(nms) - {"iou_threshold", "iou_thr", "class_agnostic", "split_thr"}
    if kind not in ("nms",) or unknown or "iou_threshold" not in nms:
        raise UnsupportedModelError(
            f"{where}.nms: expected dict(type='nms', iou_threshold=...), found {dict(cfg.nms)}; other kinds and "
            "settings of NMS are outside this tool's scope: leave them out."
        )
    threshold = nms["iou_threshold"]
    if not isinstance(threshold, (int, float)) or not 0 <= threshold <= 1:
        raise UnsupportedModelError(
            f"{where}.nms.iou_threshold: expected 0 to 1, found {threshold!r}; correct it in the config."
        )
    if cfg.max_per_img < 1:
        raise UnsupportedModelError(
            f"{where}.max_per_img: expected at least 1, found {cfg.max_per_img}: the file has rows for so many; "
            + ("give --max-per-img K." if where.endswith("rcnn") else "set it in the config.")
        )


def _facts(model: nn.Module) -> Facts:
    rcnn = model.test_cfg.rcnn
    return Facts(
        num_classes=stages(model.roi_head.bbox_head)[-1].num_classes,
        has_masks=model.roi_head.with_mask,
        score_threshold=float(rcnn.score_thr),
        mask_threshold=float(rcnn.get("mask_thr_binary", 0.5)),
        max_per_img=int(rcnn.max_per_img),
    )


def _nms_settings(model: nn.Module) -> dict[str, Any]:
    return {"rpn": model.rpn_head.test_cfg, "rcnn": model.roi_head.test_cfg}


def _limit(test_cfg: dict, max_per_img: Optional[int], max_proposals: Optional[int]) -> None:
    for part, most in (("rcnn", max_per_img), ("rpn", max_proposals)):
        if most is not None and test_cfg.get(part):
            test_cfg[part].max_per_img = most


def _spread_heads(model: nn.Module, features: tuple[Tensor, ...]) -> None:
    scale_rpn(model.rpn_head, features)
    scale_roi_head(model.roi_head, features)


TWO_STAGE = Family(
    name="a two-stage detector such as Mask R-CNN or Faster R-CNN",
    owner=TwoStageDetector,
    check=_check,
    patches=_patches,
    facts=_facts,
    nms_settings=_nms_settings,
    score_settings=lambda model: model.roi_head.test_cfg,
    limit=_limit,
    spread_heads=_spread_heads,
)
