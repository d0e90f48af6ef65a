"""The stand-in for mmcv._ext: what mmdet gets where mmcv has no compiled operators."""

import importlib.util
import inspect
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn

from patches import mmcv_ops
from tests.plugins.roi_align_oracle import roi_align_oracle
from tests.runtime.processes import SECONDS

if TYPE_CHECKING:
    from mmdet.structures import DetDataSample

ROOT = Path(__file__).parents[2]
# float16 keeps 11 bits, bfloat16 8, of values of about 1. float64 goes through float32.
ATOL_OF = {torch.float64: 1e-5, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}

# The tests of a fresh process load the file alone: the package `patches` also imports mmdet.
LOAD = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("mmcv_ops", {str(ROOT / "patches" / "mmcv_ops.py")!r})
mmcv_ops = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mmcv_ops)
"""


def run_fresh(code: str, *path: Path) -> str:
    """Run the code in a new interpreter with these folders first on sys.path, and return what it printed."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    result = subprocess.run(
        [sys.executable, "-c", LOAD + code],
        capture_output=True,
        text=True,
        env=env,
        cwd=ROOT.anchor,
        check=False,
        timeout=SECONDS,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def ext() -> ModuleType:
    """The stand-in, skipping where a compiled mmcv is installed."""
    if mmcv_ops.ensure_mmcv_ops() == "mmcv":
        pytest.skip("mmcv has its own compiled operators here")
    return sys.modules["mmcv._ext"]


def test_mmdet_imports_in_a_fresh_process() -> None:
    code = """
print(mmcv_ops.ensure_mmcv_ops())
import mmdet.models, mmdet.apis, mmcv.ops
print(mmcv_ops.ensure_mmcv_ops())
import torch
print(mmcv.ops.nms(torch.tensor([[0., 0, 9, 9], [0, 0, 9, 8]]), torch.tensor([0.5, 0.9]), 0.5)[1].tolist())
print(len(mmcv.ops.get_compiler_version()) > 0)
"""
    assert run_fresh(code, ROOT).split() == [mmcv_ops.ensure_mmcv_ops()] * 2 + ["[1]", "True"]


def test_compiled_mmcv_is_left_alone(tmp_path: Path) -> None:
    package = tmp_path / "mmcv"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "_ext.py").write_text("nms = 'the real one'")
    code = "print(mmcv_ops.ensure_mmcv_ops()); import mmcv._ext; print(mmcv._ext.nms)"
    assert run_fresh(code, tmp_path).splitlines() == ["mmcv", "the real one"]


def test_missing_mmcv_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mmcv._ext", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(
        RuntimeError, match=r"mmcv: expected .* found neither; `pip install mmcv-lite==2.1.0`"
    ):
        mmcv_ops.ensure_mmcv_ops()


def test_stand_in_looks_like_a_module(ext: ModuleType) -> None:
    import mmcv

    assert mmcv._ext is ext
    assert importlib.import_module("mmcv._ext") is ext
    assert importlib.util.find_spec("mmcv._ext") is ext.__spec__
    assert ext.__spec__.loader is not None  # what mmcv.utils.ext_loader.check_ops_exist looks at
    assert inspect.getmodule(ext.nms).__name__ == "patches.mmcv_ops"
    assert pickle.loads(pickle.dumps(ext.nms)) is ext.nms
    assert inspect.unwrap(ext.nms) is ext.nms
    assert not hasattr(ext, "__path__")
    assert not hasattr(ext, "__wrapped__")


def test_unknown_operator_names_itself(ext: ModuleType) -> None:
    assert ext.carafe_forward.__name__ == "carafe_forward"
    with pytest.raises(RuntimeError, match=r"carafe_forward: .*pip install mmcv==2.1.0"):
        ext.carafe_forward(1, stride=2)
    from mmcv.ops import soft_nms

    with pytest.raises(RuntimeError, match="softnms: needs mmcv's compiled operators"):
        soft_nms(torch.rand(3, 4), torch.rand(3))


def test_missing_reference_names_the_command(ext: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plugins._reference", None)
    with pytest.raises(RuntimeError, match=r"plugins._reference: .*`pip install \.` .*C\+\+17 compiler"):
        ext.nms(torch.zeros(1, 4), torch.zeros(1), iou_threshold=0.5, offset=0)


@pytest.mark.parametrize("dtype", list(ATOL_OF))
def test_nms_takes_every_float_type(ext: ModuleType, dtype: torch.dtype) -> None:
    boxes = torch.tensor([[0, 0, 10, 10], [50, 50, 60, 60], [0, 0, 10, 9]], dtype=dtype)
    kept = ext.nms(boxes, torch.tensor([0.5, 0.25, 0.75], dtype=dtype), iou_threshold=0.5, offset=0)
    assert (kept.dtype, kept.tolist()) == (torch.int64, [2, 1])


def test_nms_of_nothing(ext: ModuleType) -> None:
    kept = ext.nms(torch.zeros(0, 4), torch.zeros(0), iou_threshold=0.5, offset=0)
    assert (kept.dtype, kept.shape) == (torch.int64, (0,))


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("dtype", list(ATOL_OF))
def test_roi_align_and_its_gradient_equal_the_oracle(ext: ModuleType, dtype: torch.dtype, mode: str) -> None:
    from mmcv.ops import RoIAlign

    generator = torch.Generator().manual_seed(0)
    features = torch.randn((2, 3, 12, 10), generator=generator).to(dtype)
    rois = torch.tensor([[1, 2, 4, 30, 28], [0, 8, 0, 16, 40], [1, 0.5, 2, 9, 60]], dtype=dtype)
    ours = features.clone().requires_grad_()
    oracle = features.double().requires_grad_()
    # Channels last, as a network's features may be.
    channels_last = ours.contiguous(memory_format=torch.channels_last)
    out = RoIAlign((4, 5), 0.25, 0, mode)(channels_last, rois)
    expected = roi_align_oracle(oracle, rois.float().numpy(), (4, 5), spatial_scale=0.25, mode=mode)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=ATOL_OF[dtype])
    out.sum().backward()
    expected.sum().backward()
    # In half precision mmcv's argmax tensors round the position of a maximum: the gradient is the float types' test.
    if dtype in (torch.float32, torch.float64) or mode == "avg":
        gradient_size = float(oracle.grad.abs().max())
        torch.testing.assert_close(
            ours.grad.double(), oracle.grad, rtol=0, atol=ATOL_OF[dtype] * gradient_size
        )


def test_roi_align_of_no_rois(ext: ModuleType) -> None:
    from mmcv.ops import roi_align

    features = torch.rand((1, 3, 8, 8), requires_grad=True)
    out = roi_align(features, torch.zeros(0, 5), (7, 7), 0.25)
    assert out.shape == (0, 3, 7, 7)
    out.sum().backward()
    assert (features.grad == 0).all()


def on(device: str) -> SimpleNamespace:
    return SimpleNamespace(device=torch.device(device))


ROI_OPTIONS = {
    "aligned_height": 7,
    "aligned_width": 7,
    "spatial_scale": 1.0,
    "sampling_ratio": 0,
    "aligned": True,
}


def test_limits_on_other_devices_are_named(ext: ModuleType) -> None:
    with pytest.raises(RuntimeError, match="nms: expected offset 0 on CUDA"):
        ext.nms(on("cuda"), on("cuda"), iou_threshold=0.5, offset=1)
    for op in (ext.roi_align_forward, ext.roi_align_backward):
        with pytest.raises(RuntimeError, match=f"{op.__name__}: expected pool_mode 'avg' on CUDA"):
            op(on("cuda"), None, None, None, None, pool_mode=0, **ROI_OPTIONS)
    with pytest.raises(RuntimeError, match="nms: expected tensors on cpu or cuda, found mps"):
        ext.nms(on("mps"), on("mps"), iou_threshold=0.5, offset=0)


def test_missing_torchvision_is_named(ext: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(RuntimeError, match="torchvision: expected it for nms on CUDA"):
        ext.nms(on("cuda"), on("cuda"), iou_threshold=0.5, offset=0)


# The signatures that torchvision registers (torchvision/csrc/ops/*.cpp), without its kernels.
TORCHVISION = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align": "(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width,"
    " int sampling_ratio, bool aligned) -> Tensor",
    "_roi_align_backward": "(Tensor grad, Tensor rois, float spatial_scale, SymInt pooled_height,"
    " SymInt pooled_width, SymInt batch_size, SymInt channels, SymInt height, SymInt width, int sampling_ratio,"
    " bool aligned) -> Tensor",
}


@pytest.fixture
def torchvision_calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """Send every call to "CUDA"; return the list that receives its arguments, by torchvision's names for them."""
    calls = []

    def op_of(name: str) -> Callable[..., torch.Tensor]:
        schema = torch._C.parse_schema(f"torchvision::{name}{TORCHVISION[name]}")

        def op(*arguments: object) -> torch.Tensor:
            names = [argument.name for argument in schema.arguments]
            assert len(arguments) == len(names)
            calls.append(dict(zip(names, arguments)))
            return torch.full((2, 3, 8, 9), 4.0)

        return op

    monkeypatch.setattr(mmcv_ops, "_is_on_cpu", lambda _op, _tensor: False)
    monkeypatch.setattr(mmcv_ops, "_torchvision_op", op_of)
    return calls


CUDA_OPTIONS = {
    "aligned_height": 5,
    "aligned_width": 7,
    "spatial_scale": 0.25,
    "sampling_ratio": 2,
    "aligned": False,
}
CUDA_EXPECTED = {
    "spatial_scale": 0.25,
    "pooled_height": 5,
    "pooled_width": 7,
    "sampling_ratio": 2,
    "aligned": False,
}


def test_forward_on_cuda_fits_torchvision(ext: ModuleType, torchvision_calls: list) -> None:
    features, rois, output = torch.ones(2, 3, 8, 9), torch.ones(1, 5), torch.zeros(2, 3, 8, 9)
    ext.roi_align_forward(features, rois, output, None, None, pool_mode=1, **CUDA_OPTIONS)
    assert torchvision_calls == [{"input": features, "rois": rois, **CUDA_EXPECTED}]
    assert (output == 4).all()


def test_backward_on_cuda_fits_torchvision(ext: ModuleType, torchvision_calls: list) -> None:
    grad_output, rois, grad_input = torch.ones(1, 3, 5, 7), torch.ones(1, 5), torch.zeros(2, 3, 8, 9)
    ext.roi_align_backward(grad_output, rois, None, None, grad_input, pool_mode=1, **CUDA_OPTIONS)
    sizes = {"batch_size": 2, "channels": 3, "height": 8, "width": 9}
    assert torchvision_calls == [{"grad": grad_output, "rois": rois, **CUDA_EXPECTED, **sizes}]
    assert (grad_input == 4).all()


def test_nms_on_cuda_fits_torchvision(ext: ModuleType, torchvision_calls: list) -> None:
    boxes, scores = torch.ones(3, 4), torch.ones(3)
    ext.nms(boxes, scores, iou_threshold=0.5, offset=0)
    assert torchvision_calls == [{"dets": boxes, "scores": scores, "iou_threshold": 0.5}]


@pytest.fixture(scope="module")
def mask_rcnn() -> nn.Module:
    """Stock Mask R-CNN with ResNet-18 and few channels, random weights."""
    mmcv_ops.ensure_mmcv_ops()
    import mmdet
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules
    from mmengine.config import Config

    register_all_modules()
    path = Path(mmdet.__file__).parent / ".mim" / "configs" / "_base_" / "models" / "mask-rcnn_r50_fpn.py"
    config = Config.fromfile(path).model
    config.backbone.update(depth=18, init_cfg=None, base_channels=16, frozen_stages=-1)
    config.neck.update(in_channels=[16, 32, 64, 128], out_channels=16)
    config.rpn_head.update(in_channels=16, feat_channels=16)
    heads = config.roi_head
    heads.bbox_roi_extractor.out_channels = heads.mask_roi_extractor.out_channels = 16
    heads.bbox_head.update(in_channels=16, fc_out_channels=16, num_classes=3)
    heads.mask_head.update(in_channels=16, conv_out_channels=16, num_convs=1, num_classes=3)
    config.test_cfg.rcnn.score_thr = 0.0
    torch.manual_seed(0)
    return MODELS.build(config)


def sample(height: int, width: int) -> "DetDataSample":
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    boxes = torch.tensor([[8.0, 8, 60, 50], [20, 4, 90, 60]])
    masks = BitmapMasks([np.ones((height, width), np.uint8)] * 2, height, width)
    instances = InstanceData(bboxes=boxes, labels=torch.tensor([0, 2]), masks=masks)
    shape = {"img_shape": (height, width), "ori_shape": (height, width), "scale_factor": (1.0, 1.0)}
    padded = {"batch_input_shape": (64, 96), "pad_shape": (64, 96)}
    return DetDataSample(metainfo={**shape, **padded}, gt_instances=instances)


def test_mask_rcnn_predicts(mask_rcnn: nn.Module) -> None:
    mask_rcnn.eval()
    with torch.no_grad():
        results = mask_rcnn.predict(torch.randn(2, 3, 64, 96), [sample(64, 96), sample(60, 90)])
    for result, size in zip(results, [(64, 96), (60, 90)]):
        found = result.pred_instances
        assert len(found) > 0
        assert found.masks.shape == (len(found), *size)


def test_mask_rcnn_trains(mask_rcnn: nn.Module) -> None:
    mask_rcnn.train()
    losses = mask_rcnn.loss(torch.randn(2, 3, 64, 96), [sample(64, 96), sample(60, 90)])
    total = sum(
        sum(value) if isinstance(value, list) else value for key, value in losses.items() if "loss" in key
    )
    total.backward()
    gradient = mask_rcnn.backbone.layer1[0].conv1.weight.grad
    assert torch.isfinite(gradient).all()
    assert (gradient != 0).any()
