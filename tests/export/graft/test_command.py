"""The command: proposals, refusals, names, a head of one's own, verification, and what it does not import."""

import json
import re
import subprocess
import sys
from dataclasses import MISSING, fields
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from export.graft import reference
from export.graft.__main__ import main
from export.graft.forms import FORMS
from export.graft.head import FOLDER, Head, ImageInput, head_names, load_head
from export.graft.match import fitting, proposal
from runtime import Detector
from tests.export.graft.networks import NETWORKS, Recipe
from tests.runtime.processes import SECONDS

ROOT = Path(__file__).parents[3]
LEFT_OUT = object()


@pytest.fixture
def network(tmp_path: Path) -> Path:
    path = tmp_path / "network.onnx"
    onnx.save(NETWORKS["yolov8"](Recipe(classes=2, score=-2.0)), path)
    return path


def test_without_a_head_it_says_which_fits(
    network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(network), "-o", str(tmp_path / "out.onnx")]) == 2
    said = capsys.readouterr().err
    assert "--head: expected one, found none" in said
    assert "if that is what it is, --head yolov8" in said
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("name", head_names())
def test_each_head_fits_its_network_alone(name: str, tmp_path: Path) -> None:
    from export.graft.api import _output_shapes
    from export.graft.free import network_input

    model = NETWORKS[name](Recipe(classes=1))
    given = network_input(model, name)
    shapes = _output_shapes(model, given, (64, 96), name)
    assert [head.name for head in fitting(shapes, (64, 96))] == [name]
    assert f"--head {name}" in proposal(shapes, (64, 96))


def test_a_wrong_head_is_refused_with_expected_and_found(
    network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(network), "--head", "yolov5", "-o", str(tmp_path / "out.onnx")]) == 2
    said = capsys.readouterr().err
    assert "head yolov5: expected the outputs rows (B, 378, F) at 64x96 px" in said
    assert "found output0 (B, 6, 126)" in said
    assert "--head yolov8" in said


def test_it_verifies_lowers_the_threshold_where_nothing_is_found_and_writes(
    network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.onnx"
    assert main([str(network), "--head", "yolov8", "-o", str(output), "--score", "0.999"]) == 0
    printed = capsys.readouterr()
    assert "nothing is found at 0.999 in these images" in printed.err
    assert "class names are invented" in printed.err
    assert "head yolov8, batch dynamic, 64x96, 2 classes" in printed.out
    with Detector(output, "onnxruntime") as detector:
        assert detector.metadata.classes == ("class_0", "class_1")
        assert detector.metadata.score_threshold == 0.999


def test_a_dynamic_size_is_verified_at_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of images of one shape as well."""
    whole = reference.decode
    onnx.save(NETWORKS["scrfd"](Recipe(baked=False)), tmp_path / "network.onnx")
    for name, shape in (("wide", (60, 90)), ("high", (90, 60))):
        pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
        assert cv2.imwrite(str(tmp_path / f"{name}.png"), pixels)
        sizes = set()

        def seen(outputs: dict, head: object, size: tuple, sizes: set = sizes) -> reference.Found:
            sizes.add(tuple(size))
            return whole(outputs, head, size)

        with monkeypatch.context() as patched:
            patched.setattr(reference, "decode", seen)
            argv = [str(tmp_path / "network.onnx"), "--head", "scrfd", "--dynamic-size"]
            images = ["--images", str(tmp_path / f"{name}.png")]
            assert main([*argv, "-o", str(tmp_path / "out.onnx"), *images]) == 0
        printed = capsys.readouterr().out
        assert "size dynamic" in printed
        assert f"half of {name}.png" in printed
        # 3:2 and 3:1 in 640 px.
        assert {(max(s), min(s)) for s in sizes} >= {(640, 448), (640, 224)}


def test_a_file_that_differs_is_kept_under_another_name(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = reference.decode

    def shifted(outputs: dict, head: object, size: tuple) -> reference.Found:
        found = whole(outputs, head, size)
        return reference.Found(found.boxes + 1, found.scores, found.labels, found.keypoints, found.grids)

    monkeypatch.setattr(reference, "decode", shifted)
    assert main([str(network), "--head", "yolov8", "-o", str(tmp_path / "out.onnx")]) == 1
    assert "found a file that differs" in capsys.readouterr().err
    assert (tmp_path / "out.failed.onnx").is_file()
    assert not (tmp_path / "out.onnx").exists()


def test_names_of_classes(network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = onnx.load(network)
    onnx.helper.set_model_props(model, {"names": "{0: 'cat', 1: 'dog'}"})
    onnx.save(model, network)
    output = tmp_path / "out.onnx"
    base = [str(network), "--head", "yolov8", "-o", str(output), "--no-verify"]
    listed = tmp_path / "names.txt"
    listed.write_text("a\nb\n")
    for extra, expected in (([], ("cat", "dog")), (["--classes", "x,y"], ("x", "y"))):
        assert main([*base, *extra]) == 0
        with Detector(output, "onnxruntime") as detector:
            assert detector.metadata.classes == expected
    assert main([*base, "--classes", str(listed)]) == 0
    assert main([*base, "--classes", "one"]) == 2
    assert "--classes: expected 2 names, found 1" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["nothere.txt", "names/nothere", "NOTHERE.TXT"])
def test_a_file_of_classes_that_is_not_there(
    value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A network of one class has it for a name otherwise."""
    onnx.save(NETWORKS["yolov8"](Recipe(classes=1)), tmp_path / "network.onnx")
    argv = [
        str(tmp_path / "network.onnx"),
        "--head",
        "yolov8",
        "--no-verify",
        "-o",
        str(tmp_path / "out.onnx"),
    ]
    assert main([*argv, "--classes", value]) == 2
    said = capsys.readouterr().err
    assert (
        f"--classes {value}: expected a file with one name a line, found no such file; check the path" in said
    )
    assert not (tmp_path / "out.onnx").exists()
    assert main([*argv, "--classes", str(tmp_path) + "/"]) == 2
    assert "found a folder" in capsys.readouterr().err
    assert main([*argv, "--classes", "bolt"]) == 0


def test_names_in_a_file_are_data_and_never_run(network: Path, tmp_path: Path) -> None:
    model = onnx.load(network)
    onnx.helper.set_model_props(model, {"names": "__import__('os').abort()"})
    onnx.save(model, network)
    assert main([str(network), "--head", "yolov8", "-o", str(tmp_path / "out.onnx"), "--no-verify"]) == 0


def test_a_head_of_ones_own(tmp_path: Path) -> None:
    """Another threshold, other anchors per cell, and outputs by name; the form is a known one."""
    onnx.save(NETWORKS["scrfd"](Recipe(size=(64, 64))), tmp_path / "network.onnx")
    data = json.loads((FOLDER / "scrfd.json").read_text())
    data["score_threshold"] = 0.3
    data["names"] = {"boxes": ["bbox_8", "bbox_16", "bbox_32"]}
    (tmp_path / "mine.json").write_text(json.dumps(data))
    argv = [str(tmp_path / "network.onnx"), "--head", str(tmp_path / "mine.json")]
    assert main([*argv, "-o", str(tmp_path / "out.onnx")]) == 0
    with Detector(tmp_path / "out.onnx", "onnxruntime") as detector:
        assert detector.metadata.score_threshold == 0.3
        assert detector.metadata.config == "network.onnx with head mine"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoding": {"form": "magic"}}, "decoding.form: expected one of distances"),
        ({"decoding": {"form": "distances", "strides": []}}, "strides: expected numbers above 0"),
        (
            {"decoding": {"form": "distances", "strides": [8], "anchors": 2}},
            "decoding.anchors: expected one of",
        ),
        ({"score_threshold": 2}, "score_threshold: expected 0 to 1, found 2"),
        ({"pre_nms": 5000}, "pre_nms: expected 1 to 4096, found 5000"),
        ({"colour": "rgb"}, "colour: expected one of"),
        ({"input": None}, "input: expected an object"),
        ({"clip": 1}, "clip: expected true or false"),
        ({"skeleton": [[0, 9]]}, "skeleton"),
        ({"title": ["x"]}, "title: expected a text"),
        ({"decoding": {"form": ["x"]}}, "decoding.form: expected one of"),
        (
            {"decoding": {"form": "distances"}},
            "decoding.strides: expected a list of whole px.*, found no such",
        ),
        ({"decoding": {"form": "distances", "strides": [8], "center": "0"}}, "center: expected a number"),
        (
            {"decoding": {"form": "rows", "strides": [8], "has_objectness": 1}},
            "has_objectness: expected true",
        ),
        (
            {"input": {"size": [64, 64], "divisor": 32, "mean": [0, 0, 0]}},
            r"input.color_order: expected rgb or bgr, found no such field \(nor input.std\)",
        ),
        ({"names": ["score_8"]}, r"names: expected an object of lists by role \(scores, boxes, keypoints\)"),
        ({"names": {"score": ["a", "b", "c"]}}, "names.score: expected one of the roles scores, boxes, key"),
        ({"names": {"scores": ["a"]}}, "names.scores: expected 3 outputs"),
        ({"names": {"scores": "a"}}, "names.scores: expected a list"),
        ({"keypoints": [], "skeleton": [], "names": {"keypoints": []}}, "names.keypoints: expected one of"),
    ],
)
def test_a_bad_head_is_refused_with_the_place(change: dict, message: str, tmp_path: Path) -> None:
    data = {**json.loads((FOLDER / "scrfd.json").read_text()), **change}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=message):
        load_head(str(path))


@pytest.mark.parametrize("place", ["", "decoding", "input"])
@pytest.mark.parametrize("name", ["scrfd", "retinaface", "centerface", "yolov8-seg", "yolov4-maps"])
def test_any_field_left_out_or_of_another_type(name: str, place: str, tmp_path: Path) -> None:
    """It is read, or the message has its name, what was expected and what was found."""
    whole = json.loads((FOLDER / f"{name}.json").read_text())
    path = tmp_path / "mine.json"
    refused = 0
    for key in whole[place] if place else whole:
        for value in (LEFT_OUT, None, 1, 1.5, "x", [], [1], [[1]], {}, {"a": 1}, True):
            data = json.loads(json.dumps(whole))
            part = data[place] if place else data
            part[key] = value
            if value is LEFT_OUT:
                del part[key]
            path.write_text(json.dumps(data))
            try:
                load_head(str(path))
            except ValueError as error:
                refused += 1
                said = str(error)
                # Key points are those of the skeleton beside them.
                assert key in said or (key == "keypoints" and "skeleton" in said), said
                assert "expected" in said, said
                assert "found" in said, said
                assert "correct the file" in said, said
    assert refused > 10


@pytest.mark.parametrize("place", ["nothere.json", "heads/nothere", "NOTHERE.JSON"])
def test_a_file_of_a_head_that_is_not_there(place: str) -> None:
    with pytest.raises(ValueError, match=f"--head {place}: expected a JSON file, found no such file; check"):
        load_head(place)


def test_a_folder_is_no_head(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a JSON file, found a folder"):
        load_head(str(tmp_path))


def test_the_documentation_has_every_field_and_its_default() -> None:
    page = (ROOT / "docs" / "detectors.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (?:`(\w+)`|the file) \| `(\w+)` \| (?:`([^`]*)` )?\|", page, re.MULTILINE)
    documented = {
        (place, field): json.loads(default) if default else LEFT_OUT for place, field, default in rows
    }
    assert len(documented) == len(rows)
    places = {"": Head, "input": ImageInput, **FORMS}
    expected = {("", "decoding"): LEFT_OUT}
    for place, kind in places.items():
        for field in fields(kind):
            if kind is Head and field.name in ("name", "form"):
                continue  # of the file's name, and of "decoding"
            value = LEFT_OUT if field.default is MISSING else field.default
            value = value if field.default_factory is MISSING else field.default_factory()
            expected[place, field.name] = list(value) if isinstance(value, tuple) else value
    assert documented == expected


def test_the_documented_head_is_one(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "detectors.md").read_text(encoding="utf-8")
    (tmp_path / "mine.json").write_text(re.search(r"```json\n(.*?)```", page, re.DOTALL)[1])
    assert load_head(str(tmp_path / "mine.json")).classes == ("bolt", "nut")


def test_no_such_head() -> None:
    with pytest.raises(
        ValueError, match="--head: expected one of centerface, .*, or a JSON file, found 'yolov9'"
    ):
        load_head("yolov9")


def test_it_needs_neither_pytorch_nor_mmdet(network: Path, tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'mmdet', 'mmcv', 'mmengine', 'onnxsim'])); "
    )
    program += (
        f"from export.graft import graft; graft({str(network)!r}, 'yolov8', {str(tmp_path / 'o.onnx')!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "o.onnx").is_file()


def test_the_output_must_be_another_file(network: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = network.read_bytes()
    assert main([str(network), "--head", "yolov8", "-o", str(network)]) == 2
    assert "expected a file that is not read" in capsys.readouterr().err
    assert network.read_bytes() == before
    assert main([str(network), "--head", "yolov8", "-o", str(network.with_suffix(".pb"))]) == 2


def test_infer_draws_what_a_graft_finds(network: Path, tmp_path: Path) -> None:
    from runtime.infer import main as infer

    output = tmp_path / "out.onnx"
    assert main([str(network), "--head", "yolov8", "-o", str(output), "--no-verify", "--score", "0.01"]) == 0
    assert infer(["--model", str(output), "--out", str(tmp_path / "seen"), "--score", "0.01"]) == 0
    rows = json.loads((tmp_path / "seen" / "results.json").read_text())
    assert np.isfinite([row["bbox"] for row in rows]).all()


@pytest.mark.parametrize(("name", "noted"), [("scrfd", True), ("yolov8", False)])
def test_what_has_no_place_for_key_points_says_so(
    name: str, noted: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from export.convert.__main__ import main as convert
    from runtime.infer import main as infer

    onnx.save(NETWORKS[name](Recipe()), tmp_path / "network.onnx")
    output = str(tmp_path / "out.onnx")
    assert main([str(tmp_path / "network.onnx"), "--head", name, "-o", output, "--no-verify"]) == 0
    commands = {
        "deepstream": lambda: convert(
            [output, "--for", "deepstream", "--input", "uint8", "-o", str(tmp_path / "ds")]
        ),
        "yolo": lambda: infer(["--model", output, "--out", str(tmp_path / "seen"), "--format", "yolo"]),
        "labelme": lambda: infer(["--model", output, "--out", str(tmp_path / "seen"), "--format", "labelme"]),
    }
    for what, run in commands.items():
        capsys.readouterr()
        assert run() == 0
        said = capsys.readouterr().err
        left_out = [line for line in said.splitlines() if "5 key points are left out" in line]
        assert len(left_out) == (noted and what != "labelme"), said
        assert all(line.startswith("note: ") for line in left_out)
    assert ("key points" in (tmp_path / "ds" / "README.md").read_text()) == noted
