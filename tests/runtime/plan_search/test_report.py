import json
from pathlib import Path

import pytest

from runtime.plan_search.agreement import Agreement, AgreementTolerance
from runtime.plan_search.measure import TensorFigures
from runtime.plan_search.report import evaluation_line, search_report, search_table, summary_lines
from runtime.plan_search.search import Evaluation, FoundGroup, SearchResult
from runtime.precision import PrecisionGroup, PrecisionPlan

LARGE = TensorFigures("/a/Conv_output_0", "/a/Conv", "Conv", 1e5, float("inf"), float("inf"))
SMALL = TensorFigures("/b/Conv_output_0", "/b/Conv", "Conv", 12.0, 2e-3, 1e-3)
KEPT = TensorFigures("/Exp_output_0", "/Exp", "Exp", 1e9, None, None)
BEYOND = Evaluation(0, Agreement(10, 0, problem="output dets has NaN or Inf"), False, 0.25)
WITHIN = Evaluation(1, Agreement(10, 10, box_px=0.1), True, 0.5)
DEFAULT = PrecisionGroup("decoding", "coordinates", ("/Exp",))
FOUND = FoundGroup(PrecisionGroup("a", "overflows in FP16", ("/a/Conv",)), "overflow", LARGE)


def result(**changes: object) -> SearchResult:
    values = {
        "plan": PrecisionPlan((DEFAULT, FOUND.group)),
        "reached": True,
        "complete": True,
        "found": (FOUND,),
        "evaluations": (BEYOND, WITHIN),
        "figures": (LARGE, SMALL, KEPT),
    }
    return SearchResult(**{**values, **changes})


ENOUGH = {"plan": PrecisionPlan((DEFAULT,)), "found": (), "evaluations": (WITHIN,)}
LARGEST = "largest values that stay FP16, of at most 65504: "


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        (
            {},
            [
                "wrote p.json: 2 nodes stay FP32, 2 evaluations in 1 s",
                f"{LARGEST}12 in /b/Conv_output_0",
            ],
        ),
        (
            {"complete": False},
            [
                "wrote p.json: 2 nodes stay FP32, 2 evaluations in 1 s",
                "a smaller plan may exist: the evaluations were used up, see --max-evaluations",
                f"{LARGEST}12 in /b/Conv_output_0",
            ],
        ),
        (
            {**ENOUGH, "figures": (SMALL, KEPT)},
            [
                "wrote p.json: 1 nodes stay FP32, 1 evaluation in 0 s; the plan to start from is enough",
                f"{LARGEST}12 in /b/Conv_output_0",
            ],
        ),
        (
            ENOUGH,
            [
                "wrote p.json: 1 nodes stay FP32, 1 evaluation in 0 s; the plan to start from is enough",
                "/a/Conv_output_0 overflows in FP16 (1e+05), which does no harm in these images; "
                "to be sure, add /a/Conv and its readers to the plan",
                f"{LARGEST}1e+05 in /a/Conv_output_0, 12 in /b/Conv_output_0",
            ],
        ),
        (
            {"reached": False, "found": ()},
            [
                "no plan within the tolerance after 2 evaluations in 1 s; FP32 everywhere is 2 nodes. "
                "Widen the tolerance, or allow more with --max-evaluations"
            ],
        ),
    ],
)
def test_the_result_in_words(changes: dict, lines: list[str]) -> None:
    assert summary_lines(result(**changes), Path("p.json")) == lines


def test_an_evaluation_in_words() -> None:
    assert evaluation_line(BEYOND).split() == (
        [
            "0.2",
            "s",
            "0",
            "more",
            "nodes",
            "in",
            "FP32:",
            "output",
            "dets",
            "has",
            "NaN",
            "or",
            "Inf,",
            "beyond",
        ]
    )
    assert evaluation_line(WITHIN).split() == (
        ["0.5", "s", "1", "more", "nodes", "in", "FP32:", "10", "of", "10", "detections", "agree,", "within"]
    )


def test_the_table() -> None:
    table = search_table(result())
    rows = list(zip(*(column.cells for column in table.columns)))
    assert [[str(cell) for cell in row] for row in rows] == [
        ["decoding", "default", "1", "", "", ""],
        ["a", "overflow", "1", "1e+05", "inf", "inf"],
    ]


def test_the_report_is_json() -> None:
    report = search_report(result(), AgreementTolerance(), Path("out/m.onnx"), [Path("x/a.jpg")])
    content = json.loads(json.dumps(report, allow_nan=False))
    assert content["model"] == "m.onnx"
    assert content["images"] == ["a.jpg"]
    assert [group["why"] for group in content["groups"]] == ["default", "overflow"]
    assert content["groups"][1]["worst"]["error"] == "inf"
    assert [e["share"] for e in content["evaluations"]] == [0, 1]
    assert [(t["overflows"], t["error"]) for t in content["tensors"]] == [
        (True, "inf"),
        (False, 2e-3),
        (True, None),
    ]
