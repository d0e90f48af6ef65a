"""FP16 with selective FP32: which nodes of a model stay FP32, and models that are typed so.

Importing this package loads neither NumPy, onnx nor onnxruntime; each name here is loaded when it is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime.precision.geometry import default_plan
    from runtime.precision.plan import PrecisionGroup, PrecisionPlan, check_plan, plan_path

__all__ = ["PrecisionGroup", "PrecisionPlan", "check_plan", "default_plan", "plan_path"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "geometry" if name == "default_plan" else "plan"
    return getattr(importlib.import_module(f"runtime.precision.{module}"), name)
