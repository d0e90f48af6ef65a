"""The command line: what it writes, prints and refuses."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from runtime import Detector
from runtime.images import read_image
from runtime.precision import PrecisionPlan, default_plan, plan_path
from runtime.precision.__main__ import main
from tests.runtime import fakes
from tests.runtime.precision.graphs import model, random
from tests.runtime.processes import SECONDS

ROOT = Path(__file__).parents[3]


@pytest.fixture
def tiny_path(tiny: onnx.ModelProto, tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    onnx.save(tiny, path)
    return path


def words(text: str) -> str:
    return " ".join(text.split())


def test_plan_prints_json(tiny: onnx.ModelProto, tiny_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["plan", str(tiny_path)]) == 0
    assert PrecisionPlan.from_json(capsys.readouterr().out) == default_plan(tiny)
    assert list(tiny_path.parent.iterdir()) == [tiny_path]


def test_plan_writes_a_file(tiny: onnx.ModelProto, tiny_path: Path, capsys: pytest.CaptureFixture) -> None:
    output = plan_path(tiny_path)
    assert main(["plan", str(tiny_path), "-o", str(output)]) == 0
    assert PrecisionPlan.load(output) == default_plan(tiny)
    shown = capsys.readouterr().out
    assert "RoI coordinates" in shown
    assert f"wrote {output}: {len(default_plan(tiny).nodes)} nodes stay FP32" in shown


def test_convert_takes_the_plan_beside_the_model(tiny_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["convert", str(tiny_path)]) == 0
    output = tiny_path.with_name("m.fp16.onnx")
    with_default = onnx.load(output)
    assert f"wrote {output}: 0." in capsys.readouterr().out
    PrecisionPlan(()).save(plan_path(tiny_path))
    assert main(["convert", str(tiny_path)]) == 0
    assert "FP16 but for 0 nodes" in capsys.readouterr().out
    assert onnx.load(output) != with_default
    assert main(["convert", str(tiny_path), "--plan", "gone.json"]) == 2
    other = tiny_path.with_name("other.onnx")
    (tiny_path.with_name("p.json")).write_text(PrecisionPlan(()).to_json())
    assert (
        main(["convert", str(tiny_path), "--plan", str(tiny_path.with_name("p.json")), "-o", str(other)]) == 0
    )
    assert onnx.load(other) == onnx.load(output)


def detector(scale: float) -> onnx.ModelProto:
    """The runtime's fake detector, its scores multiplied by what three layers make of the image.

    The first layer's values are ``scale`` times as large as they need be, and the second takes that back.
    """
    proto = fakes.model()
    nodes = onnx.parser.parse_graph(
        """g (float[B, 3, 64, 96] images, float[B, 4, 1] all_scores) => (float[B, 4, 1] scaled) {
            conv1 = Conv(images, w1)
            relu = LeakyRelu(conv1)
            conv2 = Conv(relu, w2)
            conv3 = Conv(conv2, w3)
            mean = ReduceMean<axes = [1, 2, 3]>(conv3)
            gain = Sigmoid(mean)
            column = Squeeze(gain, fourth)
            scaled = Mul(all_scores, column)
        }"""
    ).node
    for name, node in zip(("/net/first", "/net/first", "/net/second", "/net/third"), nodes):
        node.name = f"{name}/{node.output[0]}/{node.op_type}"
    rows = next(node for node in proto.graph.node if node.op_type == "Concat" and "boxes" in node.input)
    rows.input[1] = "scaled"
    index = list(proto.graph.node).index(rows)
    before, after = list(proto.graph.node)[:index], list(proto.graph.node)[index:]
    del proto.graph.node[:]
    proto.graph.node.extend([*before, *nodes, *after])
    for node in proto.graph.node:
        node.name = node.name or node.output[0]
    weights = {
        "w1": random(8, 3, 1, 1) * np.float32(scale),
        "w2": np.abs(random(8, 8, 1, 1, seed=1)) / np.float32(scale),
        "w3": np.abs(random(1, 8, 1, 1, seed=2)),
        "fourth": np.array([3], np.int64),
    }
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(v, name) for name, v in weights.items())
    onnx.checker.check_model(proto)
    return proto


@pytest.fixture
def overflowing(tmp_path: Path) -> Path:
    return _write(tmp_path / "m.onnx", detector(2.0**19))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    cv2.imwrite(str(path), fakes.random_image(64, 96))
    return path


FOUND = {"/net/first/conv1/Conv", "/net/first/relu/LeakyRelu", "/net/second/conv2/Conv"}


def test_search_writes_plan_and_report(
    overflowing: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    report = tmp_path / "r.json"
    arguments = ["search", overflowing, "--images", image, "--json", report, "--min-score", "0.1"]
    assert main([str(a) for a in arguments]) == 0
    shown = words(capsys.readouterr().out)
    assert "0 more nodes in FP32: output dets has NaN or Inf, beyond" in shown
    assert "3 more nodes in FP32: 3 of 3 detections agree, within" in shown
    assert "net/first │ overflow │ 2 │" in shown
    assert "net/second │ overflow │ 1 │" in shown
    assert f"wrote {plan_path(overflowing)}:" in shown
    assert "largest values that stay FP16, of at most 65504: " in shown
    plan = PrecisionPlan.load(plan_path(overflowing))
    assert plan.nodes - default_plan(onnx.load(overflowing)).nodes == FOUND
    content = json.loads(report.read_text())
    assert (content["reached"], content["complete"]) == (True, True)
    assert content["model"] == "m.onnx"
    assert content["images"] == ["image.png"]
    assert content["tolerance"]["min_score"] == 0.1
    assert [g["why"] for g in content["groups"]][-2:] == ["overflow", "overflow"]
    assert {g["why"] for g in content["groups"][:-2]} == {"default"}
    assert [tuple(g["nodes"]) for g in content["groups"]] == [g.nodes for g in plan.groups]
    assert content["groups"][-1]["worst"]["max_abs"] > 65504
    assert content["groups"][-2]["worst"]["own_error"] == "inf"
    assert content["evaluations"][0]["share"] == 0
    assert {t["tensor"] for t in content["tensors"] if t["overflows"]} == {"conv1", "relu"}


def test_search_starts_from_a_plan(
    overflowing: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """What the search found is enough the next time."""
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    base = ["search", str(overflowing), "--images", str(image)]
    assert main([*base, "-o", str(first)]) == 0
    assert not plan_path(overflowing).exists()
    capsys.readouterr()
    assert main([*base, "--plan", str(first), "-o", str(second)]) == 0
    assert "1 evaluation in 0 s; the plan to start from is enough" in capsys.readouterr().out
    assert second.read_text() == first.read_text()


def test_search_fails_and_leaves_the_plan_that_was_there(
    overflowing: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    output = tmp_path / "p.json"
    output.write_text("the old one")
    arguments = ["search", overflowing, "--images", image, "--max-evaluations", "1", "-o", output]
    assert main([str(a) for a in arguments]) == 1
    assert "no plan within the tolerance after 1 evaluation" in words(capsys.readouterr().out)
    assert output.read_text() == "the old one"


def test_what_was_found_runs_in_fp16(overflowing: Path, image: Path, tmp_path: Path) -> None:
    assert main(["search", str(overflowing), "--images", str(image)]) == 0
    assert main(["convert", str(overflowing)]) == 0
    (expected,), (found,) = (
        Detector(path)([read_image(image)]) for path in (overflowing, tmp_path / "m.fp16.onnx")
    )
    np.testing.assert_allclose(found.scores, expected.scores, atol=2e-3)
    np.testing.assert_array_equal(found.boxes, expected.boxes)


def _write(path: Path, proto: onnx.ModelProto) -> Path:
    onnx.save(proto, path)
    return path


def test_refusals(tiny_path: Path, images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "noise.onnx").write_bytes(b"\x12\xff\xff")
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "bad.json").write_text("{}")
    other = _write(tmp_path / "other.onnx", model("(float[4] x) => (float[4] y)", "y = Relu(x)"))
    plan = tmp_path / "other.plan.json"
    assert main(["plan", str(tiny_path), "-o", str(plan)]) == 0
    fake = fakes.save(tmp_path / "fake.onnx")
    cases = [
        (["plan", "gone.onnx"], "model gone.onnx: expected a file, found nothing"),
        (["plan", tmp_path / "noise.onnx"], "noise.onnx: expected an ONNX file, found something else"),
        (["plan", tmp_path / "empty.onnx"], "empty.onnx: expected an ONNX file, found one without nodes"),
        (
            ["plan", tiny_path, "-o", tmp_path / "noise.onnx" / "p.json"],
            "cannot write, name another folder: ",
        ),
        (
            ["convert", tiny_path, "--plan", tmp_path / "bad.json"],
            "bad.json: precision plan: expected an object",
        ),
        (["convert", other], "precision plan: expected names of the model's 1 nodes, found"),
        (["search", tiny_path, "--images", images[0]], "expected the metadata key 'maskrcnn'"),
        (
            ["search", tiny_path, "--images", "gone.jpg"],
            "gone.jpg: expected an image, a folder or a glob pattern",
        ),
        (["search", fake, "--images", images[0], "--plan", plan], "the plan is another model's"),
    ]
    for arguments, message in cases:
        capsys.readouterr()
        assert main([str(a) for a in arguments]) == 2, arguments
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert message in error


def test_a_model_without_a_metadata_key_can_still_be_planned(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    proto = model(
        "(float[1, 3, 8, 8] images) => (float[1, 4, 8, 8] y)",
        "h = Conv(images, w)\ny = Exp(h)",
        {"w": random(4, 3, 1, 1)},
    )
    path = _write(tmp_path / "any.onnx", proto)
    assert main(["convert", str(path)]) == 0
    assert "FP16 but for 1 nodes" in capsys.readouterr().out


@pytest.mark.parametrize("argument", [["--share", "1.5"], ["--box", "-1"], ["--max-evaluations", "0"]])
def test_wrong_options(argument: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["search", "m.onnx", *argument])
    assert stopped.value.code == 2
    assert f"argument {argument[0]}: expected" in capsys.readouterr().err


def test_importing_loads_no_framework() -> None:
    """A box that only runs engines has neither onnx nor onnxruntime, and loads plans."""
    program = (
        "import runtime.precision, sys\n"
        "assert not {'onnx', 'onnxruntime', 'torch', 'mmdet', 'export', 'patches'} & set(sys.modules)\n"
        "import runtime.precision.typed, runtime.plan_search.search, runtime.plan_search.measure\n"
        "import runtime.plan_search.emulation, runtime.precision.geometry, runtime.precision.__main__\n"
        "assert not {'onnx', 'onnxruntime', 'torch', 'mmdet', 'export', 'patches'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=SECONDS)


def test_it_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "runtime.precision", "plan", "gone.onnx"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: model gone.onnx: expected a file, found nothing")
