import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from runtime.engine.config import EngineConfig
from runtime.engine.sidecar import Provenance, Sidecar, sidecar_path
from runtime.files import sha256_of, write_whole
from tests.runtime import fakes as models

PROVENANCE = Provenance("aa" * 32, "bb" * 32, "TensorRT 8.5.3.1", "NVIDIA H200", "9.0")
SIDECAR = Sidecar(
    engine_sha256="cc" * 32,
    onnx="m.onnx",
    provenance=PROVENANCE,
    config=EngineConfig(batch=(1, 2, 4), height=(64, 96, 128), tactic_sources=()),
    plan_sha256="dd" * 32,
    metadata=models.metadata(size=None),
    build={"seconds": 1.5, "bytes": 1000, "warnings": ["old cuDNN"]},
)


def test_the_sidecar_lies_beside_the_engine() -> None:
    assert sidecar_path("out/model.engine") == Path("out/model.engine.json")
    assert sidecar_path(Path("model.v2.plan")) == Path("model.v2.plan.json")


@pytest.mark.parametrize(
    "changes", [{}, {"plan_sha256": None}, {"metadata": None}, {"build": {"seconds": 2, "bytes": 0}}]
)
def test_what_is_saved_is_loaded(changes: dict, tmp_path: Path) -> None:
    sidecar = replace(SIDECAR, **changes)
    sidecar.save(tmp_path / "m.engine")
    assert Sidecar.load(tmp_path / "m.engine") == sidecar
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.engine.json"]


def test_it_is_json_that_people_can_read(tmp_path: Path) -> None:
    SIDECAR.save(tmp_path / "m.engine")
    content = json.loads((tmp_path / "m.engine.json").read_text())
    assert content["format"] == 1
    assert content["provenance"]["gpu"] == "NVIDIA H200"
    assert content["config"]["batch"] == [1, 2, 4]
    assert content["metadata"]["classes"] == list(models.CLASSES)


def test_a_missing_sidecar_is_said(tmp_path: Path) -> None:
    message = (
        "engine .*m.engine: expected m.engine.json beside it, found nothing; it holds what the engine was built from: "
        "build again with `python -m runtime.build`"
    )
    with pytest.raises(FileNotFoundError, match=message):
        Sidecar.load(tmp_path / "m.engine")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"format": 2}, "format 2"),
        ({"format": None}, "format None"),
        ({"provenance": None}, ""),
        ({"provenance": {"gpu": "x"}}, "onnx_sha256"),
        ({"config": None}, ""),
        ({"config": {"batch": [4, 2, 1]}}, "batch: expected three numbers"),
        ({"metadata": {"format": 9}}, "model metadata: expected format 1 or 2, found 9"),
        ({"build": None}, "build: expected dict, found None"),
        ({"build": {"bytes": 5}}, "seconds: expected int or float, found none"),
        ({"build": {"seconds": 1, "bytes": [1]}}, r"bytes: expected int, found \[1\]"),
        (
            {"build": {"seconds": 1, "bytes": 5, "layers_by_precision": [1]}},
            "layers_by_precision: expected dict",
        ),
        (
            {"build": {"seconds": 1, "bytes": 5, "dense_flops_share": {"fp16": "x"}}},
            "dense_flops_share: expected num",
        ),
        ({"engine_sha256": None}, "engine_sha256: expected str, found None"),
        ({"config": {"batch": [1, 2, float("inf")]}}, "batch: expected three numbers"),
        ({"config": {"batch": [1, 2, 2.5]}}, "batch: expected three numbers"),
        (
            {"config": {"tactic_sources": [1]}},
            r"config.tactic_sources: expected a list of strings or null, found \[1\]",
        ),
        ({"config": {"shapes": [["a", [[1], [2], ["x"]]]]}}, "--shape a: expected shapes of whole numbers"),
        ({"config": {"shapes": 5}}, "config.shapes: expected a list of names and shapes, found 5"),
    ],
)
def test_another_format_is_refused(change: dict, found: str, tmp_path: Path) -> None:
    SIDECAR.save(tmp_path / "m.engine")
    path = tmp_path / "m.engine.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    message = rf"m.engine.json: expected a sidecar of format 1, found something else \(.*{found}.*\); build the engine"
    with pytest.raises(ValueError, match=message):
        Sidecar.load(tmp_path / "m.engine")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"text"', b"\xff\xfe\x00", b'{"format": 1}'])
def test_what_is_no_sidecar_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.engine.json").write_bytes(content)
    with pytest.raises(ValueError, match="expected a sidecar of format 1, found something else"):
        Sidecar.load(tmp_path / "m.engine")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"onnx_sha256": "ee"}, f"ONNX (SHA-256): expected {'aa' * 32}, found ee"),
        ({"plugins_sha256": None}, f"plugin library (SHA-256): expected {'bb' * 32}, found None"),
        ({"tensorrt": "TensorRT 8.6.0"}, "TensorRT: expected TensorRT 8.5.3.1, found TensorRT 8.6.0"),
        ({"gpu": "NVIDIA A10"}, "GPU: expected NVIDIA H200, found NVIDIA A10"),
        ({"compute_capability": "8.6"}, "compute capability: expected 9.0, found 8.6"),
    ],
)
def test_a_difference_is_named(change: dict, text: str) -> None:
    assert PROVENANCE.differences(replace(PROVENANCE, **change)) == [text]


def test_all_differences_are_named() -> None:
    other = Provenance("1", None, "2", "3", "4")
    assert len(PROVENANCE.differences(other)) == 5
    assert PROVENANCE.differences(PROVENANCE) == []


@pytest.mark.parametrize("size", [0, 10, (1 << 24) + 5])
def test_files_are_hashed_whole(size: int, tmp_path: Path) -> None:
    content = (b"0123456789" * (size // 10 + 1))[:size]
    (tmp_path / "file").write_bytes(content)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_a_file_is_written_whole_into_a_new_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file"
    write_whole(path, b"one")
    write_whole(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_who_reads_while_it_is_written_reads_what_was_there(tmp_path: Path) -> None:
    write_whole(tmp_path / "file", b"before")
    with open(tmp_path / "file", "rb", buffering=0) as reader:
        assert reader.read(3) == b"bef"
        write_whole(tmp_path / "file", b"after, and longer")
        assert reader.read() == b"ore"


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "file"
    write_whole(path, b"before")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, b"after")
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
