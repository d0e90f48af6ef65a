"""The layers of a whole exported model: the changed node is named, before NMS and behind it."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from runtime.comparison.layer_table import LayerOptions, compare_files
from tests.export.test_graph import export
from tests.models import structured_photos, tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An exported file, and an image beside it."""
    import cv2

    path = tmp_path_factory.mktemp("layers") / "m.onnx"
    export(tiny_model(), path)
    cv2.imwrite(str(path.with_suffix(".png")), structured_photos((128, 192))[0])
    return path


@pytest.mark.parametrize(
    "node",
    [
        "/backbone/conv1/Conv",
        "/backbone/layer3/layer3.1/conv2/Conv",
        "/neck/lateral_convs.2/conv/Conv",
        "/bbox_head/shared_fcs.1/Gemm",
        "/mask_head/convs.0/conv/Conv",
    ],
)
def test_exactly_the_changed_node_is_named(model, tmp_path, node):
    graph = onnx.load(model)
    weight = next(n for n in graph.graph.node if n.name == node).input[1]
    tensor = next(t for t in graph.graph.initializer if t.name == weight)
    array = numpy_helper.to_array(tensor).copy()
    array[0] += np.abs(array).max()
    tensor.CopyFrom(numpy_helper.from_array(array, weight))
    onnx.save(graph, tmp_path / "changed.onnx")
    report = compare_files(
        model, tmp_path / "changed.onnx", [model.with_suffix(".png")], LayerOptions(threads=1)
    )
    assert report.first.node == node
    assert report.first.ordered_by == ""
    assert bool(report.same_order) == ("head" in node)
    assert report.num_marked <= report.num_tensors / 2
    assert report.num_runs <= 14
