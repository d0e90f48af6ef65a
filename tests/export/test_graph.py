"""The exported graph against the unpatched model: any batch, any number of detections, both kinds of masks."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import cv2
import numpy as np
import onnx
import pytest
import torch
from torch import nn

from export.arguments import MAX_OPSET, MIN_OPSET
from export.graph import (
    GraphOptions,
    num_nodes,
    onnx_from_model,
    simplified,
    with_metadata,
)
from export.metadata import metadata_from_model
from export.model import LoadedModel, model_from_config
from export.random_weights import randomize
from export.verify import MmdetInference, verify
from patches.operators import MAX_TOP
from runtime.comparison.difference import Tolerance
from runtime.metadata import KEY, ModelMetadata
from tests.models import structured_photos, tiny_config, tiny_model

SIZE = (128, 192)
TOLERANCE = Tolerance()


def export(
    model: nn.Module, path: Path, *, size: tuple[int, int] = SIZE, **options: object
) -> onnx.ModelProto:
    """Export a tiny model to ``path`` and return what was written."""
    return export_loaded(LoadedModel(model, tiny_config(), "tiny", None), path, size=size, **options)


def export_loaded(
    loaded: LoadedModel,
    path: Path,
    *,
    masks: str = "crop",
    size: Optional[tuple[int, int]] = None,
    dynamic_size: bool = False,
    opset: int = MIN_OPSET,
    simplify: bool = True,
) -> onnx.ModelProto:
    """Export to ``path`` and return what was written."""
    metadata = metadata_from_model(
        loaded, size=None if dynamic_size else size, dynamic_size=dynamic_size, masks=masks
    )
    traced_at = size or metadata.size or SIZE
    settings = GraphOptions(
        size=traced_at,
        dynamic_size=metadata.size is None,
        masks=metadata.masks,
        opset=opset,
        channels=metadata.channels,
    )
    graph = onnx_from_model(loaded.model, settings)
    if simplify:
        graph = simplified(graph)
    graph = with_metadata(graph, metadata)
    onnx.checker.check_model(graph, full_check=True)
    onnx.save(graph, str(path))
    return graph


def mmdet_inference(model: nn.Module, exported: Path) -> MmdetInference:
    """Return mmdet's side of a tiny model, for the file that was exported from it."""
    metadata = ModelMetadata.from_json(
        {p.key: p.value for p in onnx.load(exported, load_external_data=False).metadata_props}[KEY]
    )
    return MmdetInference(LoadedModel(model, tiny_config(), "tiny", None), metadata)


def saved(folder: Path, photos: Sequence[np.ndarray]) -> list[Path]:
    """Write photos as PNG files, named by their content."""
    paths = []
    for photo in photos:
        digest = hashlib.sha256(photo.tobytes() + str(photo.shape).encode()).hexdigest()[:16]
        paths.append(folder / f"{digest}.png")
        cv2.imwrite(str(paths[-1]), photo)
    return paths


def assert_equal(
    path: Path,
    model: nn.Module,
    *batches: list[np.ndarray],
    tolerance: Tolerance = TOLERANCE,
    backend: str = "onnxruntime",
) -> list:
    """Hold the file against mmdet on image files; ``batches`` are photos that run together."""
    files = [saved(path.parent, batch) for batch in batches]
    cases = verify(path, mmdet_inference(model, path), files, backend=backend)
    assert len(cases) == sum(map(len, batches)) > 0
    for case in cases:
        d = case.difference
        assert case.within(tolerance), (
            f"{d.matched} of {d.expected}, {d.found}; {d.box_px} {d.score} {d.mask} {d.worst}"
        )
    return cases


PHOTOS = structured_photos((128, 192), (150, 100), (64, 200))


@pytest.mark.parametrize("masks", ["crop", "full"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_batches_of_different_images(tmp_path, masks, dynamic):
    """Traced at batch 1; run at 1, 2 and 3, portrait and landscape together."""
    model = tiny_model()
    export(model, tmp_path / "m.onnx", masks=masks, dynamic_size=dynamic)
    cases = assert_equal(tmp_path / "m.onnx", model, PHOTOS[:1], PHOTOS[1:], PHOTOS)
    assert all(case.difference.matched > 3 for case in cases)


def test_dynamic_size_takes_sizes_it_was_not_traced_at(tmp_path):
    model = tiny_model()
    export(model, tmp_path / "m.onnx", dynamic_size=True, size=(64, 64))
    cases = assert_equal(
        tmp_path / "m.onnx", model, *[[p] for p in structured_photos((40, 40), (300, 70), (90, 400), seed=7)]
    )
    assert len({case.size for case in cases}) == 3


@pytest.mark.parametrize("options", [{"masks": False}, {"class_agnostic": True}, {"sigmoid_rpn": False}])
def test_variants(tmp_path, options):
    model = tiny_model(**options)
    graph = export(model, tmp_path / "m.onnx")
    assert [o.name for o in graph.graph.output][3:] == ([] if "masks" in options else ["masks"])
    assert_equal(tmp_path / "m.onnx", model, PHOTOS[:1], PHOTOS[1:])


def test_boxes_that_are_not_clipped(tmp_path):
    """As in tracking: nothing reads the images' sizes, which stay an input."""
    config = tiny_config(masks=False)
    for head in (config.model.rpn_head, config.model.roi_head.bbox_head):
        head.bbox_coder.clip_border = False
    model = randomize(model_from_config(config), seed=0, size=SIZE)
    graph = export_loaded(LoadedModel(model, config, "tiny", None), tmp_path / "m.onnx", size=SIZE)
    assert [i.name for i in graph.graph.input] == ["images", "image_sizes"]
    cases = assert_equal(tmp_path / "m.onnx", model, PHOTOS[:1], PHOTOS[1:])
    assert all(case.difference.matched > 3 for case in cases)


@pytest.mark.parametrize("opset", [17, 18, MAX_OPSET])
def test_other_opsets(tmp_path, opset):
    model = tiny_model()
    graph = export(model, tmp_path / "m.onnx", opset=opset)
    assert {o.domain: o.version for o in graph.opset_import}[""] == opset
    assert_equal(tmp_path / "m.onnx", model, PHOTOS[:2])


def test_without_simplification(tmp_path):
    model = tiny_model()
    export(model, tmp_path / "m.onnx", simplify=False)
    assert_equal(tmp_path / "m.onnx", model, PHOTOS[:2])


def scored(model: nn.Module, *, threshold: float, rows: int = 100) -> nn.Module:
    for cfg in (model.test_cfg.rcnn, model.roi_head.test_cfg):
        cfg.score_thr = threshold
        cfg.max_per_img = rows
    return model


@pytest.mark.parametrize("masks", ["crop", "full"])
@pytest.mark.parametrize(("threshold", "rows", "expected"), [(0.9999999, 100, 0), (0.05, 1, 1), (0.05, 7, 7)])
def test_no_one_and_k_detections(tmp_path, masks, threshold, rows, expected):
    model = scored(tiny_model(), threshold=threshold, rows=rows)
    export(model, tmp_path / "m.onnx", masks=masks)
    cases = assert_equal(tmp_path / "m.onnx", model, PHOTOS)
    assert [case.difference.found for case in cases] == [expected] * 3


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> onnx.ModelProto:
    return export(tiny_model(), tmp_path_factory.mktemp("graph") / "m.onnx", masks="full")


def test_the_operators_are_nodes_with_bodies(graph):
    expected = {
        "DecodeProposals": 1,
        "GroupedNMS": 2,
        "MultiLevelRoiAlign": 2,
        "DecodeDetections": 1,
        "SelectMasks": 1,
        "PasteMasks": 1,
    }
    assert {f.name for f in graph.functions} == set(expected)
    assert {name: num_nodes(graph, name) for name in expected} == expected
    assert not {node.op_type for node in graph.graph.node} & {"TopK", "Sigmoid", "Softmax", "Exp"}


def attributes_of(graph: onnx.ModelProto, op_type: str) -> dict:
    (node,) = (node for node in graph.graph.node if node.op_type == op_type)
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


@pytest.mark.parametrize("dynamic", [False, True])
def test_decoding_has_the_coders_attributes(tmp_path, dynamic):
    """Three of the five levels have more than ``nms_pre`` anchors; a dynamic size may have as many on any."""
    graph = export(tiny_model(), tmp_path / "m.onnx", dynamic_size=dynamic)
    proposals = attributes_of(graph, "DecodeProposals")
    assert proposals["top"] == ([200] * 5 if dynamic else [200, 200, 200, 72, 18])
    assert (proposals["min_size"], proposals["clip"]) == (0.0, 1)
    assert (proposals["means"], proposals["stds"]) == ([0.0] * 4, [1.0] * 4)
    detections = attributes_of(graph, "DecodeDetections")
    assert detections["stds"] == pytest.approx([0.1, 0.1, 0.2, 0.2])
    assert detections["max_ratio"] == proposals["max_ratio"] == pytest.approx(4.135166556742356)


def step_by_step(**options: object) -> nn.Module:
    """A model whose RPN the fused operator has not: two channels, softmax."""
    return tiny_model(sigmoid_rpn=False, **options)


@pytest.mark.parametrize("simplify", [False, True])
@pytest.mark.parametrize("dynamic", [False, True])
def test_select_top_returns_values_and_int32_indices(tmp_path, simplify, dynamic):
    """With a dynamic size every level is padded, and cut to the same number."""
    graph = export(step_by_step(), tmp_path / "m.onnx", dynamic_size=dynamic, simplify=simplify)
    nodes = [node for node in graph.graph.node if node.op_type == "SelectTop"]
    assert len(nodes) == (5 if dynamic else 3)
    assert {(a.name, a.i) for node in nodes for a in node.attribute} == {("k", 200)}
    inferred = onnx.shape_inference.infer_shapes(graph, data_prop=True)
    types = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    for node in nodes:
        assert [types[name] for name in (*node.input, *node.output)] == [
            onnx.TensorProto.FLOAT,
            onnx.TensorProto.FLOAT,
            onnx.TensorProto.INT32,
        ]


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_k_beyond_the_plugin_is_topk(tmp_path, dynamic):
    """The plugins would refuse it, and TensorRT takes the plugin for every node of that name."""
    size = (256, 256)  # 12288 anchors on the finest level, 3072 on the next
    num = 5 if dynamic else 1
    expected = {
        tiny_model: {MAX_TOP: (1, 0, 0), MAX_TOP + 1: (0, 0, num)},
        step_by_step: {MAX_TOP: (0, num, 0), MAX_TOP + 1: (0, 0, num)},
    }
    for make, counts in expected.items():
        model = make()
        for nms_pre, nodes in counts.items():
            model.rpn_head.test_cfg.nms_pre = nms_pre
            graph = export(model, tmp_path / "m.onnx", size=size, dynamic_size=dynamic, simplify=False)
            found = [num_nodes(graph, op) for op in ("DecodeProposals", "SelectTop", "TopK")]
            assert (make, nms_pre, *found) == (make, nms_pre, *nodes)
        if not dynamic:
            assert_equal(tmp_path / "m.onnx", model, structured_photos(size))


def test_the_contract(graph):
    def described(values) -> dict:
        return {
            v.name: (
                onnx.TensorProto.DataType.Name(v.type.tensor_type.elem_type),
                [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim],
            )
            for v in values
        }

    assert described(graph.graph.input) == {
        "images": ("FLOAT", ["batch", 3, *SIZE]),
        "image_sizes": ("FLOAT", ["batch", 2]),
    }
    assert described(graph.graph.output) == {
        "num_dets": ("INT32", ["batch"]),
        "dets": ("FLOAT", ["batch", 100, 5]),
        "labels": ("INT32", ["batch", 100]),
        "masks": ("UINT8", ["batch", 100, *SIZE]),
    }


def test_no_shape_depends_on_data_outside_the_bodies(graph):
    """TensorRT with the plugins then never waits for the host."""
    data_dependent = {"NonZero", "NonMaxSuppression", "Unique", "Compress", "Loop", "If", "Scan", "TopK"}
    assert not {node.op_type for node in graph.graph.node} & data_dependent


def test_shapes_are_known_but_for_the_batch(graph):
    """In the main graph of a fixed size every intermediate has a rank, and only batch-sized dimensions are free."""
    inferred = onnx.shape_inference.infer_shapes(graph, data_prop=True)
    known = {v.name: v for v in [*inferred.graph.value_info, *inferred.graph.output]}
    for node in inferred.graph.node:
        for name in node.output:
            assert not name or known[name].type.tensor_type.HasField("shape"), (
                f"{node.op_type} {name} has no rank"
            )


@pytest.mark.parametrize("opset", [MIN_OPSET - 1, MAX_OPSET + 1])
def test_an_opset_out_of_range_is_refused(opset):
    with pytest.raises(ValueError, match=f"--opset: expected {MIN_OPSET} to {MAX_OPSET}, found {opset}"):
        GraphOptions(size=SIZE, opset=opset)


def test_the_model_is_as_it_was(tmp_path):
    """Its batch normalisation too: mmdet's ResNet holds it in evaluation mode only where norm_eval says so."""
    model = tiny_model()
    model.backbone.norm_eval = False
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export(model, tmp_path / "m.onnx")
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert_equal(tmp_path / "m.onnx", model, PHOTOS[:1])
