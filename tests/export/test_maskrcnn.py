"""The command line: what it refuses, what it writes, and that it never replaces a good file by a bad one."""

import ast
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch

import export
from export import VerificationError, api, export_model
from export.maskrcnn import EXIT_DIFFERENT, EXIT_FAILED, EXIT_REFUSED, main
from runtime.metadata import KEY, ModelMetadata
from runtime.precision import PrecisionPlan, check_plan
from tests.models import structured_photos, tiny_config, tiny_model, write_config
from tests.runtime.processes import SECONDS


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
    for step in ("load tiny", "compare pixels", "trace", "simplify", "check", "compare detections", "equal"):
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
    assert metadata.size is None
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
    trace = api.onnx_from_model

    def wrong(model, options, notes):
        graph = trace(model, options, notes)
        for tensor in graph.graph.initializer:
            if tensor.name.endswith("fc_reg.bias"):
                tensor.raw_data = (np.frombuffer(tensor.raw_data, np.float32) + 0.05).tobytes()
        return graph

    monkeypatch.setattr(api, "onnx_from_model", wrong)
    assert run(files, output) == EXIT_DIFFERENT
    assert output.read_bytes() == b"the good one"
    assert (tmp_path / "m.plan.json").read_bytes() == b"its plan"
    assert (tmp_path / "m.failed.onnx").is_file()
    shown = " ".join(capsys.readouterr().out.split())
    assert "differs" in shown
    assert "batch 1, image 0: " in shown or "batch 2, image 0: " in shown
    assert "box" in shown
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
        (["--size", "100", "100"], "--size: expected multiples of 32"),
        pytest.param(
            ["--device", "cuda"],
            "--device: expected a device that PyTorch sees, found cuda",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
        (["--device", "foo"], "--device: expected a device that PyTorch sees, found foo"),
        (["--device", "meta"], "--device: expected a device that PyTorch sees, found meta"),
        (
            ["--size", "64", "96", "--dynamic-size"],
            "--size, --dynamic-size: expected one of them, found both",
        ),
        (["-o", "m.engine"], "-o m.engine: expected a name that ends in .onnx, found '.engine'; give m.onnx"),
        (["-o", "model"], "-o model: expected a name that ends in .onnx, found 'no suffix'; give model.onnx"),
    ],
)
def test_wrong_options(files, capsys, options, message):
    assert message in refusal(capsys, files["config"], files["checkpoint"], "--no-verify", *options)


NUMBERS = {
    "--opset": ("16 to 20", ["15", "21", "1e6", "nan", "9" * 5000]),
    "--max-per-img": ("1 to 3000", ["0", "-1", "3001", "100000", "many"]),
    "--size": ("1 to 8192", ["0", "-32", "8193", "1e5", "9" * 5000]),
}


@pytest.mark.parametrize(("option", "value"), [(o, v) for o, (_, values) in NUMBERS.items() for v in values])
def test_numbers_outside_their_range(option, value, capsys):
    values = [value, "64"] if option == "--size" else [value]
    with pytest.raises(SystemExit) as error:
        main([option, *values])
    assert error.value.code == 2
    said = capsys.readouterr().err
    assert f"error: argument {option}: expected a whole number from {NUMBERS[option][0]}, found" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opset": 13}, "--opset: expected 16 to 20, found 13"),
        ({"max_per_img": 0}, "--max-per-img: expected 1 to 3000, found 0"),
        ({"size": (0, 64)}, "--size: expected at most 8192 px, and 1 at least, found 0 64"),
        ({"size": (64, 8224)}, "--size: expected at most 8192 px, and 1 at least, found 64 8224"),
        ({"device": "cuda:x"}, "--device: expected a device that PyTorch sees, found cuda:x"),
    ],
)
def test_the_function_refuses_the_same_before_anything_is_loaded(
    files, tmp_path, monkeypatch, options, message
):
    monkeypatch.setattr(api, "load_model", None)  # would be called next
    with pytest.raises(ValueError, match=message):
        export_model(files["config"], files["checkpoint"], tmp_path / "m.onnx", **options)


@pytest.mark.parametrize(
    "arguments",
    [
        ["export.maskrcnn", "--help"],
        ["export.maskrcnn", "--opset", "99"],
        ["export.maskrcnn", "--device", "foo"],
        ["export.maskrcnn", "config.py"],
        ["export.maskrcnn", "-o", "model.engine"],
        ["export.reference", "--max-per-img", "0"],
        ["export.reference", "--images", "gone.jpg"],
    ],
    ids=" ".join,
)
def test_mistakes_cost_no_import(arguments):
    """PyTorch and mmdet take seconds."""
    module, *rest = arguments
    program = f"""
import sys
from {module} import main
try:
    status = main({rest!r})
except SystemExit as error:
    status = error.code
assert not {{"torch", "mmdet", "mmcv", "mmengine", "onnx", "patches"}} & set(sys.modules)
sys.exit(status)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == (0 if "--help" in rest else 2), done.stderr


def test_mmdet_is_imported_after_patches():
    """Without mmcv's compiled operators it cannot be imported before."""
    for path in Path(export.__file__).parent.rglob("*.py"):
        body = ast.parse(path.read_text()).body
        imports = [node for node in body if isinstance(node, (ast.Import, ast.ImportFrom))]
        names = [getattr(node, "module", None) or node.names[0].name for node in imports]
        needing = [name for name in names if name.partition(".")[0] in ("mmdet", "mmcv")]
        assert not needing or names[0] == "patches", f"{path}: import patches before {needing[0]}"


def exported_with(files, output, *images) -> str:
    arguments = [files["config"], files["checkpoint"], "-o", output, "--images", *images]
    assert main([str(a) for a in arguments]) == 0


def test_images_of_one_size_are_batched_with_another(files, tmp_path, capsys):
    for images in ([files["first"]], [files["first"], files["first"]]):
        exported_with(files, tmp_path / "m.onnx", *images)
        shown = capsys.readouterr().out
        assert "3 files" in shown
        assert {"first.png", "portrait.jpg"} <= set(shown.split())


def test_a_folder_of_images(files, tmp_path, capsys):
    exported_with(files, tmp_path / "m.onnx", files["first"].parent)
    assert {"first.png", "second.png"} <= set(capsys.readouterr().out.split())


def test_an_output_that_is_an_input_is_refused(files, tmp_path, capsys):
    """Whatever its name says; nothing is written."""
    for name in ("config", "checkpoint", "first"):
        link = tmp_path / f"{name}.onnx"
        link.symlink_to(files[name])
        before = files[name].read_bytes()
        message = refusal(
            capsys,
            files["config"],
            files["checkpoint"],
            "--images",
            files["first"],
            files["second"],
            "-o",
            link,
        )
        assert "expected a file that is not read, found the input" in message
        assert files[name].read_bytes() == before


def test_a_folder_for_an_output(files, tmp_path, capsys):
    message = refusal(capsys, files["config"], files["checkpoint"], "--no-verify", "-o", tmp_path)
    assert f"expected the name of a file, found a folder; give {tmp_path / 'model.onnx'}" in message


def config_with(tmp_path: Path, **rcnn: object) -> Path:
    config = tiny_config()
    config.model.test_cfg.rcnn.update(rcnn)
    return write_config(config, tmp_path / "changed.py")


def test_few_detections_are_compared_at_a_lower_score(files, tmp_path, capsys):
    """Of a model that is sure of nothing there is nothing to compare at its own threshold."""
    files = {**files, "config": config_with(tmp_path, score_thr=0.9999999)}
    assert run(files, tmp_path / "m.onnx") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "0 detections above 1" in shown
    assert "the same graph was also compared above 0.01" in shown
    assert "0 of 0" in shown
    metadata = {p.key: p.value for p in onnx.load(tmp_path / "m.onnx").metadata_props}[KEY]
    assert ModelMetadata.from_json(metadata).score_threshold == pytest.approx(0.9999999)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["changed.py", "m.onnx", "m.plan.json"]


def test_a_difference_below_the_threshold_is_found(files, tmp_path, monkeypatch):
    """Nothing is above the model's threshold on either side: it takes the lower one to see that the graph is wrong."""
    files = {**files, "config": config_with(tmp_path, score_thr=0.9999999)}
    trace = api.onnx_from_model

    def wrong(model, options, notes):
        graph = trace(model, options, notes)
        for tensor in graph.graph.initializer:
            if tensor.name.endswith("fc_cls.bias"):
                tensor.raw_data = (
                    (np.frombuffer(tensor.raw_data, np.float32) + [1, 0, 0, 0, 0, 0]).astype("f4").tobytes()
                )
        return graph

    monkeypatch.setattr(api, "onnx_from_model", wrong)
    assert run(files, tmp_path / "m.onnx") == EXIT_DIFFERENT
    assert not (tmp_path / "m.onnx").exists()


def test_nothing_found_at_any_score_proves_nothing(files, tmp_path, monkeypatch, capsys):
    config = tiny_config()
    config.model.test_cfg.rpn.min_bbox_size = 10**6  # no proposal is so large
    files = {**files, "config": write_config(config, tmp_path / "none.py")}
    assert run(files, tmp_path / "m.onnx") == EXIT_DIFFERENT
    assert "nothing was proven: neither mmdet nor the exported file finds anything" in " ".join(
        capsys.readouterr().out.split()
    )
    assert not (tmp_path / "m.onnx").exists()
    assert (tmp_path / "m.failed.onnx").is_file()


@pytest.mark.parametrize(
    ("value", "message"),
    [(float("nan"), "expected finite weights"), (0.0, "expected trained weights, found all")],
)
def test_weights_that_say_nothing_are_refused(files, tmp_path, capsys, value, message):
    weights = {
        k: torch.full_like(v, value) if v.is_floating_point() else v
        for k, v in tiny_model().state_dict().items()
    }
    torch.save({"state_dict": weights}, tmp_path / "bad.pth")
    assert message in refusal(capsys, files["config"], tmp_path / "bad.pth", "-o", tmp_path / "m.onnx")


def test_an_error_of_its_own_exits_3_and_says_how_to_report_it(files, tmp_path, monkeypatch, capsys):
    def broken(model):
        raise KeyError("a defect")

    monkeypatch.setattr(api, "simplified", broken)
    assert run(files, tmp_path / "m.onnx") == EXIT_FAILED
    captured = capsys.readouterr()
    assert "the exporter itself failed: KeyError: 'a defect' Please report" in " ".join(captured.out.split())
    assert "Traceback" in captured.err
    assert not (tmp_path / "m.onnx").exists()


def test_as_a_function(files, tmp_path):
    result = export_model(
        files["config"],
        files["checkpoint"],
        tmp_path / "m.onnx",
        size=(64, 96),
        images=[files["first"], files["second"]],
        max_per_img=7,
    )
    assert result.path == tmp_path / "m.onnx"
    assert result.plan_path.is_file()
    assert (result.metadata.size, result.metadata.max_per_img) == ((64, 96), 7)
    assert {case.path.name for case in result.cases} == {"first.png", "second.png"}
    assert {case.batch for case in result.cases} == {1, 2}
    assert set(result.seconds) >= {"trace", "simplify", "check"}
    assert any("a portrait photograph" in note for note in result.notes)


def test_the_function_raises_what_the_command_prints(files, tmp_path, monkeypatch):
    config = tiny_config()
    config.model.test_cfg.rpn.min_bbox_size = 10**6
    arguments = (write_config(config, tmp_path / "none.py"), files["checkpoint"], tmp_path / "m.onnx")
    with pytest.raises(VerificationError, match="nothing was proven") as caught:
        export_model(*arguments, images=[files["first"], files["second"]])
    assert caught.value.result.path == tmp_path / "m.failed.onnx"
    assert len(caught.value.result.cases) >= 3
    with pytest.raises(ValueError, match="--size, --dynamic-size"):
        export_model(*arguments, size=(64, 96), dynamic_size=True)


def test_images_that_would_be_waited_for_are_refused(files, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.jpg")
    for image, kind in ((tmp_path / "pipe.jpg", "named pipe"), ("/dev/zero", "device")):
        message = refusal(capsys, files["config"], files["checkpoint"], "--images", image)
        assert f"{image}: expected an image, a folder or a glob pattern, found a {kind}" in message


def test_images_without_verification_are_a_contradiction(files, capsys):
    message = refusal(capsys, files["config"], files["checkpoint"], "--no-verify", "--images", files["first"])
    assert "--images, --no-verify: expected one of them, found both" in message


def test_an_output_that_cannot_be_written_is_refused_before_the_work(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(api, "load_model", None)  # would be called next
    (tmp_path / "file").write_bytes(b"")
    assert "cannot write" in refusal(
        capsys, files["config"], files["checkpoint"], "-o", tmp_path / "file" / "m.onnx"
    )
    message = refusal(capsys, files["config"], files["checkpoint"], "-o", "/dev/null")
    assert "expected a regular file or a new name, found a device or pipe" in message


@pytest.mark.parametrize("threshold", [1.5, -1, float("nan")])
def test_an_nms_threshold_that_no_backend_takes(files, tmp_path, capsys, threshold):
    config = config_with(tmp_path, nms={"type": "nms", "iou_threshold": threshold})
    text = config.read_text().replace("=nan", "=float('nan')")
    config.write_text(text)
    message = refusal(capsys, config, files["checkpoint"], "-o", tmp_path / "m.onnx")
    assert f"test_cfg.rcnn.nms.iou_threshold: expected 0 to 1, found {threshold}" in message


def test_names_that_do_not_fit_are_noted(files, tmp_path, capsys):
    content = {"state_dict": tiny_model().state_dict(), "meta": {"dataset_meta": {"classes": ("x", "y")}}}
    torch.save(content, tmp_path / "m.pth")
    assert run({**files, "checkpoint": tmp_path / "m.pth"}, tmp_path / "m.onnx") == 0
    assert "the checkpoint names 2 classes, the model has 5: the names are from" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("swallowed", [False, True])
def test_a_signal_leaves_what_was_there_and_nothing_else(
    files, tmp_path, monkeypatch, capsys, number, swallowed
):
    """Also where native code loses the exception."""

    def simplified(model):
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        except KeyboardInterrupt:
            if not swallowed:
                raise
        return model

    monkeypatch.setattr(api, "simplified", simplified)
    (tmp_path / "m.onnx").write_bytes(b"the good one")
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
    assert run(files, tmp_path / "m.onnx") == 128 + number
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)] == handlers
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"m.onnx": b"the good one"}
    assert f"interrupted by {number.name}; nothing was written" in capsys.readouterr().out


class Broken(io.StringIO):
    """A pipe that nobody reads."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


@pytest.mark.parametrize("stream", [None, Broken()])
def test_standard_output_never_ends_an_export(files, tmp_path, monkeypatch, stream):
    monkeypatch.setattr("sys.stdout", stream)
    assert run(files, tmp_path / "m.onnx") == 0
    assert (tmp_path / "m.onnx").is_file()
