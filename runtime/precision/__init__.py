"""FP16 with selective FP32: which nodes of a model stay FP32, and models that are typed so.

Importing this package loads neither onnx nor onnxruntime; the functions that need them do.
"""

from runtime.precision.geometry import default_plan
from runtime.precision.plan import PrecisionGroup, PrecisionPlan, check_plan, plan_path

__all__ = ["PrecisionGroup", "PrecisionPlan", "check_plan", "default_plan", "plan_path"]
