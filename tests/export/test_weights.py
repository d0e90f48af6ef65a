"""Models of more than 2 GB, in small: weights in a file of their own beside the ONNX."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch

from export import api
from export.api import VerificationError, export_model
from runtime import Detector
from runtime.images import read_image
from tests.models import structured_photos, tiny_config, tiny_model, write_config
from tests.runtime.processes import ROOT, first_line


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> "dict[str, Path]":
    folder = tmp_path_factory.mktemp("files")
    torch.save({"state_dict": tiny_model().state_dict()}, folder / "m.pth")
    found = {"config": write_config(tiny_config(), folder / "m.py"), "checkpoint": folder / "m.pth"}
    for name, photo in zip(("wide", "tall"), structured_photos((128, 192), (150, 100))):
        found[name] = folder / f"{name}.png"
        cv2.imwrite(str(found[name]), photo)
    return found


@pytest.fixture
def all_weights_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a model whose weights no protobuf message holds; PyTorch writes them into files above 1 KB each."""
    monkeypatch.setattr(api, "MOST_BYTES", 0)
    trace = api.detached_onnx_from_model

    def traced(model, options, folder, notes):
        graph = api.onnx_from_model(model, options, notes)
        onnx.save(
            graph,
            folder / "m.onnx",
            save_as_external_data=True,
            all_tensors_to_one_file=False,
            size_threshold=0,
            convert_attribute=True,  # as PyTorch does
        )
        del graph
        graph = onnx.load(folder / "m.onnx", load_external_data=False)
        return graph, api_detach(graph, folder)

    from export.weights import detach as api_detach

    monkeypatch.setattr(api, "detached_onnx_from_model", traced)
    assert trace is not traced


def test_it_finds_what_the_file_in_one_piece_finds(files, tmp_path, monkeypatch, all_weights_apart):
    images = [files["wide"], files["tall"]]
    result = export_model(files["config"], files["checkpoint"], tmp_path / "apart" / "m.onnx", images=images)
    assert sorted(p.name for p in (tmp_path / "apart").iterdir()) == ["m.onnx", "m.onnx.data", "m.plan.json"]
    assert all(case.difference.matched > 3 for case in result.cases)
    monkeypatch.setattr(api, "MOST_BYTES", 1 << 40)
    whole = export_model(files["config"], files["checkpoint"], tmp_path / "m.onnx", verify=False)
    assert result.plan == whole.plan
    graph = onnx.load(tmp_path / "apart" / "m.onnx", load_external_data=False)
    assert {i.name for i in graph.graph.input} == {"images", "image_sizes"}
    assert (tmp_path / "apart" / "m.onnx").stat().st_size < (tmp_path / "m.onnx").stat().st_size
    for path in images:
        found = []
        for model in (tmp_path / "apart" / "m.onnx", tmp_path / "m.onnx"):
            with Detector(model, "onnxruntime", threads=1) as detector:
                found += detector([read_image(path)])
        np.testing.assert_allclose(found[0].boxes, found[1].boxes, atol=1e-3)


def test_another_weight_is_another_onnx(files, tmp_path, all_weights_apart):
    """An engine knows its ONNX by its hash."""
    export_model(files["config"], files["checkpoint"], tmp_path / "a.onnx", verify=False)
    first = (tmp_path / "a.onnx").read_bytes()
    weights = tiny_model().state_dict()
    weights["roi_head.bbox_head.shared_fcs.0.weight"][0, 0] += 1
    torch.save({"state_dict": weights}, tmp_path / "other.pth")
    export_model(files["config"], tmp_path / "other.pth", tmp_path / "a.onnx", verify=False)
    assert _checksums(tmp_path / "a.onnx") != _checksums_of(first)


def _checksums(path: Path) -> set:
    return _checksums_of(path.read_bytes())


def _checksums_of(data: bytes) -> set:
    graph = onnx.load_from_string(data)
    return {e.value for t in graph.graph.initializer for e in t.external_data if e.key == "checksum"}


def test_a_difference_leaves_what_was_there(files, tmp_path, monkeypatch, all_weights_apart):
    for name in ("m.onnx", "m.onnx.data", "m.plan.json"):
        (tmp_path / name).write_bytes(b"the good one")
    monkeypatch.setattr(api._Run, "_agree", lambda self: False)
    with pytest.raises(VerificationError, match="differs from mmdet"):
        export_model(
            files["config"], files["checkpoint"], tmp_path / "m.onnx", images=[files["wide"], files["tall"]]
        )
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == dict.fromkeys(
        ("m.onnx", "m.onnx.data", "m.plan.json"), b"the good one"
    )


_KILLED = """
import os, signal, sys, time
from pathlib import Path
import tests.export.test_weights as here
from export import api

api.detached_onnx_from_model = lambda model, options, folder, notes: (
    (folder / "weights").write_bytes(b"half"), print(folder, flush=True), time.sleep(60)
)
api.MOST_BYTES = 0
with api.ExitStack() as stack:
    model = here.tiny_model()
    api._traced(type("Loaded", (), {"model": model}), None, Path(sys.argv[1]), stack, [])
"""


def test_what_a_killed_export_worked_in_goes_with_the_next(files, tmp_path, all_weights_apart):
    command = [sys.executable, "-c", _KILLED, str(tmp_path / "m.onnx")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        folder = Path(first_line(process).strip())
        process.kill()
    assert folder.parent == tmp_path
    assert (folder / "weights").exists()
    export_model(files["config"], files["checkpoint"], tmp_path / "m.onnx", verify=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data", "m.plan.json"]


def test_no_onnx_is_beside_weights_of_another(files, tmp_path, monkeypatch, all_weights_apart):
    """Looked at whenever a file takes its name: there the process may be killed."""
    path, data = tmp_path / "m.onnx", tmp_path / "m.onnx.data"
    seen, replace = [], os.replace

    def look() -> None:
        if not path.exists():
            seen.append("none")
            return
        graph = onnx.load(path, load_external_data=False)
        content = data.read_bytes()
        for tensor in graph.graph.initializer:
            entries = {e.key: e.value for e in tensor.external_data}
            if entries:
                at, length = int(entries["offset"]), int(entries["length"])
                assert hashlib.sha1(content[at : at + length]).hexdigest() == entries["checksum"]
        seen.append("whole")

    def replaced(source, target):
        look()
        replace(source, target)
        look()

    export_model(files["config"], files["checkpoint"], path, verify=False)
    weights = tiny_model().state_dict()
    weights["roi_head.bbox_head.shared_fcs.0.weight"][0, 0] += 1
    torch.save({"state_dict": weights}, tmp_path / "other.pth")
    monkeypatch.setattr(os, "replace", replaced)
    export_model(files["config"], tmp_path / "other.pth", path, verify=False)
    assert {"none", "whole"} == set(seen)
