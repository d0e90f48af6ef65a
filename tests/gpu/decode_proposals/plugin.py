"""DecodeProposals in TensorRT: inputs, the oracle, and the cases that ``plugin_cases`` gathers."""

from __future__ import annotations

import numpy as np
import tensorrt as trt

from tests.gpu import numpy_oracles as oracles
from tests.gpu import trt_harness as harness
from tests.gpu.decode_proposals import inputs as proposals
from tests.gpu.tolerances import (
    BOX_TOLERANCE,
    PROBABILITY_TOLERANCE,
)
from tests.gpu.trt_harness import Input

OPS = ["DecodeProposals"]
OUTPUTS = ["boxes", "scores"]

ATTRIBUTES = {"top": [300, 300, 100], "max_ratio": proposals.MAX_RATIO, "min_size": 10.0}


def proposal_sizes(size: int, num_levels: int) -> list:
    """Heights and widths of an image of `size` x 5/4 `size` px at strides 8, 16, ..."""
    return [
        (-(-size // stride), -(-size * 5 // 4 // stride)) for stride in (8 << i for i in range(num_levels))
    ]


def make_feeds(batch=2, size=400, seed=0, dtype=np.float32, sizes=None) -> dict:
    """Inputs by name; float16 holds the maps as well, so that the type in which the plugin reads them is no matter."""
    sizes = sizes or proposal_sizes(size, 3)
    rng = np.random.default_rng(seed)
    case = proposals.proposals_case(
        rng, sizes, num_anchors=3, batch=batch, kind="saturated" if seed % 2 else "rpn"
    )
    feeds = {
        f"{kind}_{level}": case[kind][level].astype(dtype)
        for kind in ("logits", "deltas")
        for level in range(len(sizes))
    }
    return {**feeds, "priors": case["priors"], "image_sizes": case["image_sizes"]}


def make_inputs(dtype=np.float32) -> list[Input]:
    limits = [(1, 64), (2, 400), (8, 1200)]  # batch, size
    sizes = [(batch, proposal_sizes(size, 3)) for batch, size in limits]
    maps = [
        Input(f"{kind}_{level}", dtype, tuple((batch, channels, *own[level]) for batch, own in sizes))
        for kind, channels in (("logits", 3), ("deltas", 12))
        for level in range(3)
    ]
    num_priors = [3 * sum(height * width for height, width in own) for _, own in sizes]
    return [
        *maps,
        Input("priors", np.float32, tuple((num, 4) for num in num_priors)),
        Input("image_sizes", np.float32, tuple((batch, 2) for batch, _ in limits)),
    ]


def check_with(result: dict, feeds: dict, attributes: dict) -> int:
    """Return how many proposals there are."""
    maps = {
        kind: [feeds[f"{kind}_{level}"] for level in range(len(attributes["top"]))]
        for kind in ("logits", "deltas")
    }
    others = {name: feeds[name] for name in ("priors", "image_sizes")}
    boxes, scores = oracles.decode_proposals(**maps, **others, **attributes)
    assert {array.dtype for array in result.values()} == {np.dtype(np.float32)}
    np.testing.assert_allclose(result["scores"], scores, rtol=0, atol=PROBABILITY_TOLERANCE)
    np.testing.assert_array_equal(result["scores"] == -1, scores == -1)
    np.testing.assert_allclose(result["boxes"], boxes, **BOX_TOLERANCE)
    return int((scores >= 0).sum())


def case_decode_proposals() -> dict:
    """One engine for several batches and sizes: priors of another number, levels with fewer anchors than rows."""
    found = {}
    free = {**ATTRIBUTES, "min_size": -1.0, "clip": 0, "stds": [0.5, 0.5, 0.25, 0.25]}
    for dtype, fp16, attributes in [
        (np.float32, False, ATTRIBUTES),
        (np.float32, True, ATTRIBUTES),
        (np.float16, True, ATTRIBUTES),
        (np.float32, False, {**free, "means": [0.125, -0.25, 0.0, 0.5]}),
    ]:
        plan = harness.plan_of(
            "DecodeProposals", attributes, make_inputs(dtype), ["boxes", "scores"], fp16=fp16
        )
        engine = harness.engine_from(plan)
        for batch, size in [(1, 64), (2, 400), (3, 333), (8, 1200)]:
            feeds = make_feeds(batch, size, seed=batch, dtype=dtype)
            name = (
                f"{np.dtype(dtype).name} fp16={fp16} clip={attributes.get('clip', 1)} B={batch} size={size}"
            )
            found[name] = check_with(harness.run_once(engine, feeds), feeds, attributes)
    return {"equal_to_oracle": True, "proposals": found}


def case_decode_proposals_of_base_anchors() -> dict:
    """Strides: as many priors as anchors of a place, whatever the maps' size."""
    strides = [8.0, 8.0, 16.0, 16.0, 32.0, 32.0]
    attributes = {**ATTRIBUTES, "strides": strides}
    inputs = [
        Input("priors", np.float32, ((9, 4),) * 3) if each.name == "priors" else each
        for each in make_inputs()
    ]
    engine = harness.engine_from(
        harness.plan_of("DecodeProposals", attributes, inputs, ["boxes", "scores"], fp16=False)
    )
    found = {}
    for batch, size in [(1, 64), (2, 400), (8, 1200)]:
        feeds = make_feeds(batch, size, seed=batch)
        feeds["priors"] = feeds["priors"][:9]
        priors = proposals.moved_priors(feeds["priors"].reshape(3, 3, 4), proposal_sizes(size, 3), strides)
        result = harness.run_once(engine, feeds)
        found[f"B={batch} size={size}"] = check_with(result, {**feeds, "priors": priors}, ATTRIBUTES)
    return {"equal_to_oracle": True, "proposals": found}


def case_decode_proposals_after_convolutions() -> dict:
    """FP16 convolutions -> DecodeProposals, 3 and 12 channels: which formats TensorRT picks, how many reformats."""
    sizes, attributes = [(50, 76), (25, 38)], {**ATTRIBUTES, "top": [1000, 500]}
    feeds = make_feeds(2, sizes=sizes, seed=1)
    net = harness.new_network(fp16=True)
    stacked = {}  # the maps of a level side by side: convolutions of 1 x 1 take them apart again, exactly
    for level in range(2):
        maps = [feeds[f"{kind}_{level}"] for kind in ("logits", "deltas")]
        stacked[f"map_{level}"] = np.concatenate([*maps, maps[0][:, :1]], axis=1)
    others = {"image_sizes": feeds["image_sizes"]}
    specs = [Input(name, np.float32, (array.shape,)) for name, array in {**stacked, **others}.items()]
    *maps, image_sizes = harness.add_inputs(net, specs)
    # Anchors are a constant, as in an exported graph of fixed size: rounded to FP16 they would be half a pixel off.
    keep: list[np.ndarray] = [np.ascontiguousarray(feeds["priors"])]
    constant = net.network.add_constant(keep[0].shape, trt.Weights(keep[0]))
    constant.set_output_type(0, trt.float32)
    priors = constant.get_output(0)

    def channels(tensor, first: int, count: int):
        weights = np.ascontiguousarray(np.eye(16, dtype=np.float32)[first : first + count])
        keep.append(weights)
        return net.network.add_convolution_nd(tensor, count, (1, 1), trt.Weights(weights)).get_output(0)

    split = [channels(tensor, 0, 3) for tensor in maps] + [channels(tensor, 3, 12) for tensor in maps]
    layer = harness.add_plugin(net, [*split, priors, image_sizes], "DecodeProposals", attributes)
    harness.mark_outputs(net, layer, ["boxes", "scores"])
    engine = harness.engine_from(harness.serialized(net))
    found = check_with(harness.run_once(engine, {**stacked, **others}), feeds, attributes)
    layers = harness.layer_formats(engine)
    return {
        "proposals": found,
        "plugin": [text for text in layers if "PluginV" in text],
        "reformats": [text for text in layers if "eformat" in text],
    }


REFUSED = [
    # creator, attributes, words of the message
    ("DecodeProposals", {"top": [100]}, "max_ratio"),
    ("DecodeProposals", {"max_ratio": 4.0}, "top"),
    ("DecodeProposals", {"max_ratio": 4.0, "top": [1] * 9}, "1 to 8 integers"),
    ("DecodeProposals", {"max_ratio": 4.0, "top": [1, 0]}, "from 1 to 4096"),
    ("DecodeProposals", {"max_ratio": 4.0, "top": [4097]}, "from 1 to 4096"),
    ("DecodeProposals", {**ATTRIBUTES, "stds": [1.0] * 5}, "4 numbers"),
    ("DecodeProposals", {**ATTRIBUTES, "min_size": float("nan")}, "min_size"),
    ("DecodeProposals", {**ATTRIBUTES, "clip": -1}, "from 0 to 1"),
    ("DecodeProposals", {**ATTRIBUTES, "strides": [4.0] * 5}, "6 numbers"),
    ("DecodeProposals", {**ATTRIBUTES, "strides": [4.0] * 5 + [0.0]}, "above 0"),
]

BAD_NETWORKS = [
    # what is wrong, attributes, inputs, words of the message
    (
        "fewer levels than top",
        ATTRIBUTES,
        [*make_inputs()[:2], *make_inputs()[3:5], *make_inputs()[6:]],
        "expected 8 inputs, found 6",
    ),
    (
        "anchors of another number",
        {"top": [5], "max_ratio": 4.0},
        [
            Input("logits_0", np.float32, ((2, 3, 4, 5),)),
            Input("deltas_0", np.float32, ((2, 12, 4, 5),)),
            Input("priors", np.float32, ((59, 4),)),
            Input("image_sizes", np.float32, ((2, 2),)),
        ],
        "input priors of shape (60, 4)",
    ),
    (
        "deltas of other anchors",
        {"top": [5], "max_ratio": 4.0},
        [
            Input("logits_0", np.float32, ((2, 3, 4, 5),)),
            Input("deltas_0", np.float32, ((2, 9, 4, 5),)),
            Input("priors", np.float32, ((60, 4),)),
            Input("image_sizes", np.float32, ((2, 2),)),
        ],
        "input deltas_0 of shape (2, 12, 4, 5)",
    ),
]

TIMED = [("decode_proposals", 1, np.float16), ("decode_proposals", 8, np.float16)]


def check(result: dict, feeds: dict) -> int:
    return check_with(result, feeds, ATTRIBUTES)


def timed_case(kind: str, batch: int, dtype: type) -> tuple:
    """Return attributes and feeds of an 800 x 1216 image: linear; benchmarks.kernels has the channels-last ones."""
    attributes = {"top": proposals.RESNET_50_TOP, "max_ratio": proposals.MAX_RATIO}
    return attributes, make_feeds(batch, dtype=dtype, sizes=proposals.RESNET_50_SIZES)


# Of two contexts at once: batch and size of each.
CONTEXT_SIZES = ((2, 400), (3, 900))
ONNX_FILES = (("decode_proposals", check),)
CASES = (
    case_decode_proposals,
    case_decode_proposals_of_base_anchors,
    case_decode_proposals_after_convolutions,
)
