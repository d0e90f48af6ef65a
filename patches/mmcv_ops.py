"""The compiled operators of mmcv that two-stage detectors need, where mmcv was installed without them (``mmcv-lite``).

mmdet imports ``mmcv.ops``, and that needs the compiled module ``mmcv._ext``. Where it is missing,
``ensure_mmcv_ops`` registers a stand-in: ``nms`` and RoIAlign from ``plugins._reference`` on the CPU and from
torchvision on CUDA, deformable convolution in PyTorch from ``patches.deform_conv``; every other operator can be
imported and raises, naming itself, when it is called.

Half precision and float64 tensors on the CPU are computed in float32 and cast back.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any

_NAME = "mmcv._ext"
_POOL_MODES = ("max", "avg")  # in the order of mmcv's integer codes


class MissingOperatorError(RuntimeError):
    """A compiled operator of mmcv was called that is not installed, and that nothing stands in for."""


def ensure_mmcv_ops() -> str:
    """Make ``mmcv.ops`` importable, and say whose operators it has: ``"mmcv"`` or ``"stand-in"``.

    A compiled ``mmcv._ext`` is left alone. May be called again at any time. RuntimeError if there is no mmcv at all.
    """
    if isinstance(sys.modules.get(_NAME), _StandIn):
        return "stand-in"
    if importlib.util.find_spec("mmcv") is None:
        raise RuntimeError(
            "mmcv: expected mmcv-lite or mmcv >= 2.0, found neither; `pip install mmcv-lite==2.1.0` (its compiled"
            " operators are not needed), or a compiled mmcv"
        )
    if importlib.util.find_spec(_NAME) is not None:
        return "mmcv"
    module = _StandIn()
    sys.modules[_NAME] = module
    importlib.import_module("mmcv")._ext = module
    return "stand-in"


class _Loader(importlib.abc.Loader):
    """What the stand-in's ``__spec__`` names as its loader: tools ask whether there is one."""


class _StandIn(types.ModuleType):
    """``mmcv._ext`` without compiled code: any public attribute is an operator, most of which only raise."""

    def __init__(self) -> None:
        super().__init__(_NAME, "Stand-in for mmcv's compiled operators, from maskrcnn-deploy.")
        self.__spec__ = importlib.machinery.ModuleSpec(
            _NAME, _Loader(), origin="maskrcnn-deploy, patches/mmcv_ops.py"
        )
        self.__loader__ = self.__spec__.loader
        self.__package__ = "mmcv"
        self.nms = nms
        self.roi_align_forward = roi_align_forward
        self.roi_align_backward = roi_align_backward
        self.deform_conv_forward = _deferred("deform_conv_forward")
        self.modulated_deform_conv_forward = _deferred("modulated_deform_conv_forward")
        # Printed by collect_env(), which must not fail.
        self.get_compiler_version = self.get_compiling_cuda_version = _no_compiler

    def __getattr__(self, name: str) -> Callable[..., Any]:
        # A normal module lacks such names (__path__, __wrapped__, __file__); inspect, pickle and torch ask for them.
        if name.startswith("_"):
            raise AttributeError(f"module {_NAME!r} has no attribute {name!r}")
        return _missing_op(name)


def _deferred(name: str) -> Callable[..., Any]:
    """Return an operator of ``patches.deform_conv``, which imports torch."""

    def operator(*args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module("patches.deform_conv"), name)(*args, **kwargs)

    operator.__name__ = operator.__qualname__ = name
    return operator


def _no_compiler() -> str:
    return "n/a (mmcv has no compiled operators, maskrcnn-deploy stands in)"


def _missing_op(name: str) -> Callable[..., Any]:
    def missing(*_args: Any, **_kwargs: Any) -> Any:
        raise MissingOperatorError(
            f"{name}: needs mmcv's compiled operators, which are not installed; maskrcnn-deploy stands in for nms,"
            " deform_conv and roi_align only. Install a compiled mmcv: a prebuilt wheel for this PyTorch and CUDA, or"
            " `pip uninstall mmcv-lite` and `pip install mmcv==2.1.0`, which compiles it from source"
        )

    missing.__name__ = missing.__qualname__ = name
    return missing


def nms(boxes: Any, scores: Any, iou_threshold: float, offset: int) -> Any:
    """Return the indices of the boxes that greedy NMS keeps, best first: (K,) int64 on the boxes' device.

    boxes: (M, 4) in px, scores: (M,); float tensors on CPU or CUDA. offset: 0, or 1 where x2 and y2 are the last pixel
    inside (not on CUDA, RuntimeError). M = 0 gives (0,).
    """
    if _is_on_cpu("nms", boxes):
        import torch

        return torch.from_numpy(_reference().nms(_array(boxes), _array(scores), iou_threshold, offset))
    if offset != 0:
        raise RuntimeError(f"nms: expected offset 0 on CUDA (torchvision), found {offset}; {_REMEDY}")
    return _torchvision_op("nms")(boxes, scores, iou_threshold)


def roi_align_forward(
    input: Any,  # mmcv's name
    rois: Any,
    output: Any,
    argmax_y: Any,
    argmax_x: Any,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write RoIAlign of ``input`` into ``output``; the argmax tensors too where pool_mode is 0 (max; 1 is average).

    input: (N, C, H, W). rois: (R, 5), [batch_index, x1, y1, x2, y2] in input px. output: (R, C, aligned_height,
    aligned_width), as are argmax_y and argmax_x in max mode. RuntimeError for max mode on CUDA.
    """
    size = (aligned_height, aligned_width)
    if not _is_on_cpu("roi_align_forward", input):
        _check_average("roi_align_forward", pool_mode)
        op = _torchvision_op("roi_align")
        output.copy_(op(input, rois.to(input.dtype), spatial_scale, *size, sampling_ratio, aligned))
        return
    results = _reference().roi_align_forward(
        _array(input), _array(rois), *size, spatial_scale, sampling_ratio, _POOL_MODES[pool_mode], aligned
    )
    # In average mode the argmax tensors are empty on both sides.
    for target, result in zip((output, argmax_y, argmax_x), results):
        _write(target, result)


def roi_align_backward(
    grad_output: Any,
    rois: Any,
    argmax_y: Any,
    argmax_x: Any,
    grad_input: Any,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the gradient of RoIAlign's input into ``grad_input`` (N, C, H, W), which holds zeros.

    grad_output: (R, C, aligned_height, aligned_width); the rest as in ``roi_align_forward``.
    """
    if not _is_on_cpu("roi_align_backward", grad_output):
        _check_average("roi_align_backward", pool_mode)
        op = _torchvision_op("_roi_align_backward")
        sizes = (aligned_height, aligned_width, *grad_input.shape)
        rois = rois.to(grad_output.dtype)
        grad_input.copy_(op(grad_output, rois, spatial_scale, *sizes, sampling_ratio, aligned))
        return
    arrays = (_array(tensor) for tensor in (grad_output, rois, argmax_y, argmax_x))
    mode = _POOL_MODES[pool_mode]
    gradient = _reference().roi_align_backward(
        *arrays, *grad_input.shape, spatial_scale, sampling_ratio, mode, aligned
    )
    _write(grad_input, gradient)


_REMEDY = "move the tensors to the CPU, or install a compiled mmcv"


def _is_on_cpu(op: str, tensor: Any) -> bool:
    if tensor.device.type not in ("cpu", "cuda"):
        raise RuntimeError(f"{op}: expected tensors on cpu or cuda, found {tensor.device}; {_REMEDY}")
    return tensor.device.type == "cpu"


def _check_average(op: str, pool_mode: int) -> None:
    if _POOL_MODES[pool_mode] != "avg":
        raise RuntimeError(f"{op}: expected pool_mode 'avg' on CUDA (torchvision), found 'max'; {_REMEDY}")


def _array(tensor: Any) -> Any:
    """Return the tensor as a C-contiguous float32 array, without a copy where it is one already."""
    return tensor.detach().float().contiguous().numpy()


def _write(target: Any, result: Any) -> None:
    import torch

    target.copy_(torch.from_numpy(result))


def _reference() -> types.ModuleType:
    try:
        return importlib.import_module("plugins._reference")
    except ImportError as error:
        raise RuntimeError(
            "plugins._reference: expected the compiled CPU operators, found none that can be imported"
            f" ({error}); run `pip install .` in the repository, which needs a C++17 compiler"
        ) from error


def _torchvision_op(name: str) -> Callable[..., Any]:
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another PyTorch
        raise RuntimeError(
            f"torchvision: expected it for {name} on CUDA, found none that can be imported ({error});"
            f" install the torchvision that belongs to this PyTorch, or {_REMEDY}"
        ) from error
    import torch

    return getattr(torch.ops.torchvision, name)
