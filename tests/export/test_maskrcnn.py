"""The command line: what it refuses, what it writes, and that it never replaces a good file by a bad one."""

from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch

from export import maskrcnn
from export.maskrcnn import EXIT_DIFFERENT, EXIT_REFUSED, main
from runtime.metadata import KEY, ModelMetadata
from runtime.precision import PrecisionPlan, check_plan
from tests.models import structured_photos, tiny_config, tiny_model, write_config


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """A tiny model's config and checkpoint, and two images of different size."""
    folder = tmp_path_factory.mktemp("files")
    found = {
        "config": write_config(tiny_config(), folder / "tiny.py"),
        "checkpoint": folder / "tiny.pth",
    }
    torch.save({"state_dict": tiny_model().state_dict()}, found["checkpoint"])
    for name, image in zip(("first", "second"), structured_photos((128, 192), (150, 100))):
        found[name] = folder / f"{name}.png"
        cv2.imwrite(str(found[name]), image)
    return found


def run(files: dict[str, Path], output: Path, *options: object) -> int:
    images = ["--images", files["first"], files["second"]]
    arguments = [files["config"], files["checkpoint"], "-o", output, *images, *options]
    return main([str(a) for a in arguments])


def refusal(capsys, *arguments: object) -> str:
    """Run the command, which must refuse, and return its message in one line."""
    assert main([str(a) for a in arguments]) == EXIT_REFUSED
    return " ".join(capsys.readouterr().out.split())


def test_export_writes_a_verified_file(files, tmp_path, capsys):
    output = tmp_path / "deep" / "m.onnx"
    output.parent.mkdir()
    (output.parent / "m.failed.onnx").write_bytes(b"of an earlier run")
    assert run(files, output) == 0
    shown = capsys.readouterr().out
    for step in ("load tiny", "trace", "simplify", "check", "verify", "equal"):
        assert step in shown
    assert sorted(p.name for p in output.parent.iterdir()) == ["m.onnx", "m.plan.json"]
    model = onnx.load(output)
    plan = PrecisionPlan.load(output.parent / "m.plan.json")
    check_plan(plan, model)
    assert "RoI coordinates" in {group.name for group in plan.groups}
    assert "m.plan.json" in shown
    assert f"{len(plan.nodes)} nodes that stay FP32" in shown
    metadata = ModelMetadata.from_json({p.key: p.value for p in model.metadata_props}[KEY])
    assert metadata.config == "tiny"
    assert metadata.size == (128, 192)
    assert len(metadata.checkpoint_sha256) == 64
    assert metadata.versions["torch"]


@pytest.mark.parametrize(
    ("options", "check"),
    [
        (["--max-per-img", "7"], lambda m: m.max_per_img == 7),
        (["--size", "64", "96"], lambda m: m.size == (64, 96)),
        (["--dynamic-size"], lambda m: m.size is None),
        (["--masks", "full", "--no-simplify"], lambda m: m.masks == "full"),
    ],
)
def test_options(files, tmp_path, options, check):
    output = tmp_path / "m.onnx"
    assert run(files, output, *options) == 0
    model = onnx.load(output)
    assert check(ModelMetadata.from_json({p.key: p.value for p in model.metadata_props}[KEY]))


def test_a_difference_exits_1_and_keeps_what_was_there(files, tmp_path, monkeypatch, capsys):
    """The traced weights are changed behind the verification's back."""
    output = tmp_path / "m.onnx"
    output.write_bytes(b"the good one")
    (tmp_path / "m.plan.json").write_bytes(b"its plan")
    trace = maskrcnn.onnx_from_model

    def wrong(model, options):
        graph = trace(model, options)
        for tensor in graph.graph.initializer:
            if tensor.name.endswith("fc_reg.bias"):
                tensor.raw_data = (np.frombuffer(tensor.raw_data, np.float32) + 0.05).tobytes()
        return graph

    monkeypatch.setattr(maskrcnn, "onnx_from_model", wrong)
    assert run(files, output) == EXIT_DIFFERENT
    assert output.read_bytes() == b"the good one"
    assert (tmp_path / "m.plan.json").read_bytes() == b"its plan"
    assert (tmp_path / "m.failed.onnx").is_file()
    shown = " ".join(capsys.readouterr().out.split())
    assert "differs" in shown
    assert "batch 1, image 0: " in shown
    assert "m.failed.onnx" in shown


def test_a_missing_checkpoint_argument(files, capsys):
    assert "expected CONFIG and CHECKPOINT, found only" in refusal(capsys, files["config"])


def test_a_wrong_path(files, capsys):
    assert "checkpoint: expected a file, found nothing" in refusal(
        capsys, files["config"], "gone.pth", "--no-verify"
    )
    assert "which is neither" in refusal(capsys, "gone.py", files["checkpoint"], "--no-verify")


def test_a_one_stage_model(capsys):
    message = refusal(capsys, "retinanet_r50_fpn_1x_coco", "none", "--no-verify")
    assert "expected a two-stage detector such as Mask R-CNN or Faster R-CNN, found RetinaNet" in message


def test_a_checkpoint_of_another_model(files, tmp_path, capsys):
    other = tmp_path / "other.pth"
    torch.save({"state_dict": {"backbone.conv1.weight": torch.ones(1)}}, other)
    message = refusal(capsys, files["config"], other, "--no-verify")
    assert "checkpoint and config do not belong together" in message
    assert "missing in the checkpoint" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--opset", "13"], "--opset: expected 16 to 20, found 13"),
        (["--size", "100", "100"], "--size: expected multiples of 32"),
        pytest.param(
            ["--device", "cuda"],
            "--device: expected a device that PyTorch sees, found cuda",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
        (["--max-per-img", "0"], "--max-per-img: expected at least 1, found 0"),
    ],
)
def test_wrong_options(files, capsys, options, message):
    assert message in refusal(capsys, files["config"], files["checkpoint"], "--no-verify", *options)


def test_images_of_one_size(files, capsys):
    message = refusal(
        capsys, files["config"], files["checkpoint"], "--images", files["first"], files["first"]
    )
    assert "expected two images of different size to verify a batch with" in message
