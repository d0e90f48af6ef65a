"""Exported files in OpenVINO against unpatched PyTorch: stock Mask R-CNN, and relatives of each kind."""

import itertools
from pathlib import Path

import onnx
import pytest

from export import export_model
from export.api import INLINED
from export.model import LoadedModel
from export.verify import verify
from runtime.comparison.difference import Tolerance
from runtime.graphs.inlining import inlined
from tests.export.test_families import TOLERANCE, loaded
from tests.export.test_graph import PHOTOS, SIZE, assert_equal, export_loaded, mmdet_inference, saved, scored
from tests.families import FAMILIES
from tests.models import tiny_config, tiny_model

openvino = pytest.importorskip("openvino", reason="openvino is not installed")

VARIANTS = tuple(itertools.product(("crop", "full"), (False, True)))
# One of each kind of operator, and each with another kind of file; the others are slow.
SAMPLE = dict(zip(("cascade", "groie", "swin", "dcn_v2", "mask_scoring", "c4"), itertools.cycle(VARIANTS)))


@pytest.mark.parametrize(("masks", "dynamic"), VARIANTS)
def test_stock(tmp_path: Path, masks: str, dynamic: bool) -> None:
    check(LoadedModel(tiny_model(), tiny_config(), "tiny", None), tmp_path, masks, dynamic, Tolerance())


@pytest.mark.parametrize("name", SAMPLE)
def test_families(tmp_path: Path, name: str) -> None:
    check(loaded(name), tmp_path, *SAMPLE[name], TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize(("masks", "dynamic"), VARIANTS)
@pytest.mark.parametrize("name", FAMILIES)
def test_all_families(tmp_path: Path, name: str, masks: str, dynamic: bool) -> None:
    check(loaded(name), tmp_path, masks, dynamic, TOLERANCE)


def check(model: LoadedModel, folder: Path, masks: str, dynamic: bool, tolerance: Tolerance) -> None:
    """At batch 1, 2 and 3; portrait and landscape together."""
    path = folder / "m.onnx"
    export_loaded(model, path, masks=masks, size=None if dynamic else SIZE, dynamic_size=dynamic)
    batches = (PHOTOS[:1], PHOTOS[1:], PHOTOS)
    cases = assert_equal(path, model.model, *batches, tolerance=tolerance, backend="openvino")
    assert min(case.difference.found for case in cases) > 3


@pytest.mark.parametrize("name", ["cascade", "mask_scoring"])
def test_no_detections(tmp_path: Path, name: str) -> None:
    model = loaded(name)
    scored(model.model, threshold=0.9999999)
    export_loaded(model, tmp_path / "m.onnx", size=SIZE)
    cases = assert_equal(tmp_path / "m.onnx", model.model, PHOTOS, backend="openvino")
    assert [case.difference.found for case in cases] == [0, 0, 0]


def test_a_file_for_openvino_is_read_by_its_own_tools(tmp_path: Path) -> None:
    """With our metadata still, so that our runtime takes it too; on another file OpenVINO ends the process."""
    path = tmp_path / "m.onnx"
    result = export_model(output=path, for_backend="openvino", verify=False)
    assert INLINED in result.notes
    model = onnx.load(path)
    assert not model.functions
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    names = [next(iter(port.get_names())) for port in openvino.Core().read_model(path).inputs]
    assert names == ["images", "image_sizes"]


def test_a_file_for_openvino_is_exact(tmp_path: Path) -> None:
    model = tiny_model()
    export_loaded(LoadedModel(model, tiny_config(), "tiny", None), tmp_path / "m.onnx", dynamic_size=True)

    onnx.save(inlined(onnx.load(tmp_path / "m.onnx")), tmp_path / "inlined.onnx")
    mmdet = mmdet_inference(model, tmp_path / "inlined.onnx")
    for backend in ("onnxruntime", "openvino"):
        for case in verify(tmp_path / "inlined.onnx", mmdet, [saved(tmp_path, PHOTOS)], backend=backend):
            assert case.within(Tolerance())
            assert case.difference.matched > 3


def test_another_backend_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--for: expected one of openvino, found ncnn; leave it out"):
        export_model(output=tmp_path / "m.onnx", for_backend="ncnn")
