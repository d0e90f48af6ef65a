"""Divisions that would end the process are refused before a runtime gets the file."""

import subprocess
import sys
from pathlib import Path
from typing import Optional

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from runtime.graphs.divisors import check_divisors
from runtime.session import Session
from tests.runtime.processes import ROOT, SECONDS

LEAST = {dtype: int(np.iinfo(dtype).min) for dtype in ("int8", "int32", "int64")}
FORMS = ("raw", "list", "value", "value_ints")
PLACES = ("graph", "branch", "outer", "function")


def constant(name: str, values: list, dtype: str, form: str) -> "tuple[list, list]":
    """Return nodes and initializers that make a constant, in one of the forms that ONNX has for it."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    if form == "raw":
        return [], [numpy_helper.from_array(np.array(values, dtype), name)]
    if form == "list":
        return [], [helper.make_tensor(name, kind, [len(values)], values)]
    if form == "value":
        tensor = helper.make_tensor("", kind, [len(values)], values)
        return [helper.make_node("Constant", [], [name], value=tensor)], []
    return [helper.make_node("Constant", [], [name], value_ints=values)], []


def divided(
    operator: str,
    dtype: str,
    by: list,
    of: Optional[list] = None,
    *,
    form: str = "raw",
    place: str = "graph",
) -> onnx.ModelProto:
    """Return a model that divides ``x`` or a constant by a constant; in a function all are Constant nodes."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    form = "value" if place == "function" and form in ("raw", "list") else form
    nodes, weights = constant("by", by, dtype, form)
    if of is not None:
        more, others = constant("of", of, dtype, form)
        nodes, weights = nodes + more, weights + others
    division = helper.make_node(operator, ["x" if of is None else "of", "by"], ["y"], name="n")
    x, c = helper.make_tensor_value_info("x", kind, ["n"]), helper.make_tensor_value_info("c", 9, [])
    y = helper.make_tensor_value_info("y", kind, None)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    functions: list = []
    if place in ("branch", "outer"):
        inside = (nodes, weights) if place == "branch" else ([], [])
        branch = helper.make_graph([*inside[0], division], "branch", [], [y], inside[1])
        outside = [] if place == "branch" else nodes
        weights = [] if place == "branch" else weights
        nodes = [*outside, helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch)]
        y = helper.make_tensor_value_info("z", kind, None)
    elif place == "function":
        functions = [helper.make_function("own", "F", ["x"], ["y"], [*nodes, division], opsets)]
        nodes = [helper.make_node("F", ["x"], ["y"], domain="own")]
    else:
        nodes = [*nodes, division]
    graph = helper.make_graph(nodes, "g", [x, c], [y], weights)
    return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=8)


def saved(folder: Path, model: onnx.ModelProto) -> Path:
    onnx.save(model, folder / "m.onnx")
    return folder / "m.onnx"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("operator", ["Div", "Mod"])
def test_a_division_that_ends_the_process_is_refused(
    operator: str, form: str, place: str, tmp_path: Path
) -> None:
    dtypes = ["int64"] if form == "value_ints" else ["int8", "int32", "int64"]
    for dtype in dtypes:
        path = saved(tmp_path, divided(operator, dtype, [3, 0], form=form, place=place))
        with pytest.raises(
            ValueError, match=f"{operator} n: expected no division of {dtype} by 0, found one"
        ):
            check_divisors(path)
        least = LEAST[dtype]
        path = saved(tmp_path, divided(operator, dtype, [2, -1], [5, least], form=form, place=place))
        message = (
            f"m.onnx: {operator} n: expected quotients that {dtype} holds, found {least} by -1, which ends"
        )
        with pytest.raises(ValueError, match=message):
            check_divisors(path)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("form", FORMS)
def test_other_divisions_pass(form: str, place: str, tmp_path: Path) -> None:
    for by, of in (([3, -2], None), ([-1], None), ([-1], [5]), ([1], [LEAST["int64"]])):
        check_divisors(saved(tmp_path, divided("Div", "int64", by, of, form=form, place=place)))
    if form != "value_ints":
        check_divisors(
            saved(tmp_path, divided("Div", "float32", [0.0, -1.0], [1.0, 2.0], form=form, place=place))
        )
        check_divisors(saved(tmp_path, divided("Div", "uint8", [255], [0], form=form, place=place)))
        with pytest.raises(ValueError, match="by 0"):
            check_divisors(saved(tmp_path, divided("Div", "uint64", [0], form=form, place=place)))
    check_divisors(saved(tmp_path, divided("Mul", "int64", [0], form=form, place=place)))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_every_backend_looks_first(backend: str, tmp_path: Path) -> None:
    """The process that is asked lives on: it is one of its own, in case."""
    pytest.importorskip(backend)
    path = saved(tmp_path, divided("Div", "int64", [-1], [LEAST["int64"]]))
    done = subprocess.run(
        [sys.executable, "-m", "runtime.run", str(path), "--random", "1", "--backend", backend],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 2, done.stderr
    assert "expected quotients that int64 holds, found -9223372036854775808 by -1" in done.stderr


def test_without_the_look_onnxruntime_ends_the_process(tmp_path: Path) -> None:
    """What it is for: where this fails, it may go."""
    path = saved(tmp_path, divided("Div", "int64", [-1], [LEAST["int64"]]))
    program = (
        f"import onnxruntime\nonnxruntime.InferenceSession({str(path)!r}, providers=['CPUExecutionProvider'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=SECONDS)
    assert done.returncode < 0


def test_a_model_that_is_none_is_left_alone(tmp_path: Path) -> None:
    data = divided("Div", "int64", [0]).SerializeToString()
    for other in (b"", b"\xff" * 40, data[:40], b"text"):
        (tmp_path / "other").write_bytes(other)
        check_divisors(tmp_path / "other")


def test_a_session_says_it(tmp_path: Path) -> None:
    path = saved(tmp_path, divided("Mod", "int32", [0]))
    with pytest.raises(ValueError, match="Mod n: expected no division of int32 by 0"):
        Session(path, "onnxruntime", threads=1)
