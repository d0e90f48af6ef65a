import json
from pathlib import Path

import pytest

from runtime.precision import PrecisionGroup, PrecisionPlan, check_plan, plan_path
from tests.runtime.precision.graphs import model

PLAN = PrecisionPlan(
    (
        PrecisionGroup("box scores", "for the order", ("/Softmax", "/Slice_5")),
        PrecisionGroup("pasting", "for ‘contours’", ("/PasteMasks",)),
    )
)


def test_nodes_are_those_of_all_groups() -> None:
    assert PLAN.nodes == {"/Softmax", "/Slice_5", "/PasteMasks"}
    assert PrecisionPlan(()).nodes == frozenset()


@pytest.mark.parametrize("plan", [PLAN, PrecisionPlan(())])
def test_a_file_holds_the_plan(plan: PrecisionPlan, tmp_path: Path) -> None:
    path = tmp_path / "m.plan.json"
    path.write_text("an older one")
    plan.save(path)
    assert PrecisionPlan.load(path) == plan
    assert list(tmp_path.iterdir()) == [path]


def test_the_format_is_plain_json() -> None:
    assert json.loads(PLAN.to_json()) == {
        "format": 1,
        "groups": [
            {"name": "box scores", "reason": "for the order", "nodes": ["/Softmax", "/Slice_5"]},
            {"name": "pasting", "reason": "for ‘contours’", "nodes": ["/PasteMasks"]},
        ],
    }


def test_a_failed_save_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.plan.json"
    PLAN.save(path)

    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("runtime.files.os.replace", full)
    with pytest.raises(OSError, match="disk full"):
        PrecisionPlan(()).save(path)
    assert PrecisionPlan.load(path) == PLAN
    assert list(tmp_path.iterdir()) == [path]


GROUP = {"name": "a", "reason": "b", "nodes": ["c"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected JSON, found ''"),
        ("{", "expected JSON, found '{'"),
        ("[]", "expected an object of format 1, found format None"),
        ("{}", "expected an object of format 1, found format None"),
        (json.dumps({"format": 2, "groups": []}), "expected an object of format 1, found format 2"),
        (json.dumps({"format": 1}), "the plan: expected a field 'groups' that is a list, found None"),
        (
            json.dumps({"format": 1, "groups": {}}),
            "the plan: expected a field 'groups' that is a list, found {}",
        ),
        (
            json.dumps({"format": 1, "groups": ["a"]}),
            "group 0: expected a field 'nodes' that is a list, found None",
        ),
        (
            json.dumps({"format": 1, "groups": [GROUP, {**GROUP, "name": 3}]}),
            "group 1: expected a field 'name' that is a str, found 3",
        ),
        (
            json.dumps({"format": 1, "groups": [{"name": "a", "nodes": []}]}),
            "group 0: expected a field 'reason' that is a str, found None",
        ),
        (
            json.dumps({"format": 1, "groups": [{**GROUP, "nodes": ["c", ""]}]}),
            r"group 0, nodes: expected names, found \['c', ''\]",
        ),
        (
            json.dumps({"format": 1, "groups": [{**GROUP, "nodes": [1]}]}),
            r"group 0, nodes: expected names, found \[1\]",
        ),
        (
            json.dumps({"format": 1, "groups": [GROUP, {**GROUP, "name": "z"}]}),
            "expected nodes to be in it once, found c more than once",
        ),
        (
            json.dumps({"format": 1, "groups": [GROUP, {**GROUP, "nodes": []}]}),
            "expected group names to be in it once, found a more than once",
        ),
    ],
)
def test_what_is_no_plan_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "m.plan.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as refused:
        PrecisionPlan.load(path)
    assert str(refused.value).startswith(f"{path}: precision plan: ")
    assert "python -m runtime.precision plan MODEL.onnx" in str(refused.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match="gone.json: expected a file, found nothing there; make one with"
    ):
        PrecisionPlan.load(tmp_path / "gone.json")


@pytest.mark.parametrize(
    ("model_path", "expected"),
    [
        ("out/maskrcnn.onnx", "out/maskrcnn.plan.json"),
        ("a.b/m.v2.onnx", "a.b/m.v2.plan.json"),
        (Path("m.onnx"), "m.plan.json"),
    ],
)
def test_the_plan_lies_beside_the_model(model_path: object, expected: str) -> None:
    assert plan_path(model_path) == Path(expected)


def small():
    return model("(float[4] x) => (float[4] z)", "y = Relu(x)\nz = Exp(y)")


def test_a_plan_of_this_model() -> None:
    check_plan(PrecisionPlan(()), small())
    check_plan(PrecisionPlan((PrecisionGroup("a", "", ("y", "z")),)), small())


def test_a_plan_of_another_model() -> None:
    plan = PrecisionPlan((PrecisionGroup("a", "", ("y", "f", "e")), PrecisionGroup("b", "", ("d", "c"))))
    message = "expected names of the model's 2 nodes, found 4 others: f, e, d and 1 more; the plan is another model's"
    with pytest.raises(ValueError, match=message):
        check_plan(plan, small())


def test_a_plan_for_nodes_of_one_name() -> None:
    proto = small()
    proto.graph.node[1].name = "y"
    with pytest.raises(ValueError, match="expected nodes with names of their own, found several called y"):
        check_plan(PrecisionPlan((PrecisionGroup("a", "", ("y",)),)), proto)
