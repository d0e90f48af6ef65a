"""Which plan a model is built with: the one that is asked for, the one beside it, or its default."""

from pathlib import Path
from typing import TYPE_CHECKING, Optional

from runtime.graphs.load import graph_errors
from runtime.precision.geometry import default_plan
from runtime.precision.plan import PrecisionPlan, check_plan, plan_path

if TYPE_CHECKING:
    import onnx


def chosen_plan(onnx_path: Path, model: "onnx.ModelProto", asked: Optional[Path] = None) -> PrecisionPlan:
    """Return the plan in the file that is asked for, or in the one beside the ONNX, or else the graph's default.

    Raises:
        FileNotFoundError, ValueError: the file is not there, or no plan of this model; or the graph is not valid.
    """
    beside = plan_path(onnx_path)
    path = asked or (beside if beside.is_file() else None)
    if path is None:
        with graph_errors(onnx_path, model):
            return default_plan(model)
    plan = PrecisionPlan.load(path)
    try:
        check_plan(plan, model)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return plan
