"""Mask R-CNN's relatives in INT8: every layer with weights is quantized or named, and the files run."""

from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from export import quantize_model
from export.quantization.api import QuantizeOptions
from runtime.comparison.sources import load_batch
from runtime.graphs.load import load_onnx, metadata_of
from runtime.graphs.session import open_session
from tests.export.test_families import loaded
from tests.export.test_graph import SIZE, export_loaded
from tests.families import FAMILIES
from tests.models import structured_photos

# Layers with weights that stay float, by what their nodes are called; the last two normalise theirs in the graph.
LEFT_OUT = {
    "dcn": "DeformConv2d",
    "dcn_v2": "DeformConv2d",
    "sac": "DeformConv2d",
    "seesaw": "fc_cls",
    "cascade_seesaw": "fc_cls",
}
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / f"{index}.png" for index in range(2)]
    for path, photo in zip(paths, structured_photos((128, 192), (150, 100))):
        cv2.imwrite(str(path), photo)
    return paths


def weighted(model: onnx.ModelProto) -> set[str]:
    """Names of nodes whose weight is an initialiser, or for our own operator lies inside."""
    weights = {t.name for t in model.graph.initializer if len(t.dims) > 1}
    return {
        node.name
        for node in model.graph.node
        if node.op_type == "DeformConv2d" or (node.op_type in WEIGHTED and node.input[1] in weights)
    }


@pytest.mark.parametrize("activations", ["int8", "uint8"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family(name: str, activations: str, images: list[Path], tmp_path: Path) -> None:
    export_loaded(loaded(name), tmp_path / "m.onnx", size=SIZE)
    source = load_onnx(tmp_path / "m.onnx")
    result = quantize_model(
        tmp_path / "m.onnx",
        tmp_path / "q.onnx",
        images,
        options=QuantizeOptions(activations=activations),
        batch=2,
        threads=1,
    )
    left_out = dict(result.record.left_out)
    assert all(LEFT_OUT.get(name, "nothing") in layer for layer in left_out), left_out
    assert bool(left_out) == (name in LEFT_OUT)
    layers = weighted(source)
    assert result.num_nodes + len(layers.intersection(left_out)) == len(layers)
    batch = load_batch(images, metadata_of(source))
    with open_session(load_onnx(tmp_path / "q.onnx"), threads=1) as session:
        found = session.run({"images": batch.images, "image_sizes": batch.image_sizes})
    assert all(np.isfinite(value).all() for value in found.values())
    assert (found["num_dets"] > 0).all()
