"""The real parser and builder of TensorRT-RTX, which need no GPU, on grafted graphs: all but the NMS, a plugin of ours.

``SelectTop`` is a plugin too; its body, TopK, stands for it.
"""

import importlib.util
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from export.graft.api import grafted
from export.graft.head import head_names
from runtime.engine.builder import build_engine
from runtime.engine.config import EngineConfig
from runtime.engine.library import open_library
from tests.export.graft.networks import FACES, NETWORKS, Recipe

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt_rtx is not installed: `pip install tensorrt-rtx` (Linux, x86-64)",
)


def without_nms(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with what the NMS returns as inputs."""
    (nms,) = [node for node in model.graph.node if node.op_type == "GroupedNMS"]
    rows = next(a.i for a in nms.attribute if a.name == "max_output")
    model.graph.node.remove(nms)
    for name, shape in zip(nms.output, (["batch", rows], ["batch"])):
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT32, shape))
    # What only the NMS read would be left over.
    model.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in nms.input[:2]
    )
    return model


@pytest.mark.parametrize("name", head_names())
def test_it_parses_and_builds(name: str, tmp_path: Path) -> None:
    path = tmp_path / "network.onnx"
    onnx.save(NETWORKS[name](Recipe(classes=1 if name in FACES else 3)), path)
    model = without_nms(grafted(path, name, max_per_img=20).model)
    library = open_library("tensorrt_rtx")
    built = build_engine(model, EngineConfig(batch=(1, 2, 4), precision="fp32"), library=library)
    assert built.warnings == ()


def test_a_dynamic_size_builds(tmp_path: Path) -> None:
    path = tmp_path / "network.onnx"
    onnx.save(NETWORKS["retinaface"](Recipe(baked=False)), path)
    model = without_nms(grafted(path, "retinaface", dynamic_size=True, max_per_img=20).model)
    config = EngineConfig(batch=(1, 2, 4), height=(64, 96, 128), width=(64, 96, 128), precision="fp32")
    assert build_engine(model, config, library=open_library("tensorrt_rtx")).data
