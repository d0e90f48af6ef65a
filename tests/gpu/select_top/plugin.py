"""SelectTop in TensorRT: inputs, the oracle, and the cases that ``plugin_cases`` gathers."""

from __future__ import annotations

import numpy as np

from tests.gpu import numpy_oracles as oracles
from tests.gpu import trt_harness as harness
from tests.gpu.trt_harness import Input

OPS = ["SelectTop"]
OUTPUTS = ["values", "indices"]

ATTRIBUTES = {"k": 100}


def make_feeds(batch=2, num_scores=20000, seed=0) -> dict:
    rng = np.random.default_rng(seed)
    scores = 1 / (1 + np.exp(-rng.normal(12, 5, (batch, num_scores)).astype(np.float32)))  # ties at 1
    scores[:, ::31] = np.nan
    return {"scores": scores.astype(np.float32)}


def make_inputs() -> list[Input]:
    return [Input("scores", np.float32, ((1, 100), (2, 20000), (8, 182400)))]


def check_with(result: dict, feeds: dict, attributes: dict) -> int:
    expected = oracles.select_top(feeds["scores"], attributes["k"])
    np.testing.assert_array_equal(result["indices"], expected)
    assert result["values"].dtype == np.float32
    np.testing.assert_array_equal(result["values"], np.take_along_axis(feeds["scores"], expected, axis=1))
    return expected.size


def case_select_top() -> dict:
    """One engine for several batches and row lengths; with the FP16 flag scores stay float32, and so do ties."""
    taken = {}
    for fp16 in (False, True):
        for k in (100, 1000):
            low = make_inputs()[0].shapes[0][1] if k == 100 else k
            shapes = ((1, low), *make_inputs()[0].shapes[1:])
            inputs = [Input("scores", np.float32, shapes)]
            plan = harness.plan_of("SelectTop", {"k": k}, inputs, ["values", "indices"], fp16=fp16)
            engine = harness.engine_from(plan)
            for batch, num_scores in [(1, low), (2, 20000), (3, 8193), (1, 182400), (8, 182400)]:
                feeds = make_feeds(batch, num_scores, seed=num_scores)
                name = f"fp16={fp16} k={k} B={batch} N={num_scores}"
                taken[name] = check_with(harness.run_once(engine, feeds), feeds, {"k": k})
    return {"equal_to_oracle": True, "taken": taken}


REFUSED = [
    # creator, attributes, words of the message
    ("SelectTop", {"k": 0}, "from 1 to 4096"),
    ("SelectTop", {"k": 4097}, "from 1 to 4096"),
    ("SelectTop", {}, "k"),
]

BAD_NETWORKS = [
    # what is wrong, attributes, inputs, words of the message
    (
        "rows shorter than k",
        ATTRIBUTES,
        [Input("scores", np.float32, ((2, 99),))],
        "rows of k = 100 to",
    ),
]

TIMED = [("select_top", 1, None), ("select_top", 8, None)]


def check(result: dict, feeds: dict) -> int:
    return check_with(result, feeds, ATTRIBUTES)


def timed_case(kind: str, batch: int, dtype: None) -> tuple:
    """Return attributes and feeds at the size of an 800 x 1216 image: RPN's finest level."""
    rng = np.random.default_rng(0)
    scores = 1 / (1 + np.exp(-rng.normal(-8, 3, (batch, 182400)).astype(np.float32)))
    return {"k": 1000}, {"scores": scores}


# Of two contexts at once: batch and scores of each.
CONTEXT_SIZES = ((2, 400), (3, 900))
ONNX_FILES = (("select_top", check),)
CASES = (case_select_top,)
