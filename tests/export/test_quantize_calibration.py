"""Ranges against those of every activation, taken by NumPy; what the layers' figures say; leaving layers out."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from export import quantize_model
from export.quantization.accuracy import AccuracyRequest, fewest_left_out
from export.quantization.api import QuantizeOptions
from export.quantization.calibration import CalibrationRequest, calibrate
from export.quantization.layers import find_layers
from export.quantization.placement import Placement, place, quantized_model
from export.quantization.sensitivity import rank_layers
from runtime.comparison import evaluation
from runtime.comparison.average_precision import METRICS, CocoDataset, read_dataset
from runtime.comparison.sources import load_batch
from runtime.graphs.load import metadata_of
from runtime.graphs.session import open_session
from runtime.precision.geometry import default_plan


@pytest.fixture(scope="module")
def placement(embedded: onnx.ModelProto) -> Placement:
    plan = default_plan(embedded)
    return place(embedded, find_layers(embedded, plan), plan, "int8")


@pytest.fixture(scope="module")
def activations(embedded: onnx.ModelProto, placement: Placement, images: list[Path]) -> dict[str, np.ndarray]:
    """Every value of every tensor, over two images."""
    model = onnx.ModelProto()
    model.CopyFrom(embedded)
    del model.graph.output[:]
    names = [t for t in placement.tensors if t != "images"]
    model.graph.output.extend(helper.make_tensor_value_info(name, 1, None) for name in names)
    found: dict[str, list[np.ndarray]] = {}
    with open_session(model, threads=1) as session:
        for path in images:
            batch = load_batch([path], metadata_of(embedded))
            feeds = {"images": batch.images, "image_sizes": batch.image_sizes}
            for name, value in {**session.run(feeds), "images": batch.images}.items():
                found.setdefault(name, []).append(value.ravel())
    return {name: np.concatenate(values) for name, values in found.items()}


def ranges_of(
    model: onnx.ModelProto, placement: Placement, images: list[Path], **options: object
) -> dict[str, tuple[float, float]]:
    request = CalibrationRequest(images, threads=1, **options)
    return dict(calibrate(model, metadata_of(model), placement, request, "0" * 64).ranges)


def test_minmax(
    embedded: onnx.ModelProto, placement: Placement, images: list[Path], activations: dict[str, np.ndarray]
) -> None:
    found = ranges_of(embedded, placement, images, method="minmax")
    assert set(found) == set(activations)
    for name, values in activations.items():
        # The same model with fewer operators merged: sums may differ in the last bits.
        np.testing.assert_allclose(
            found[name], (values.min(), values.max()), rtol=1e-4, atol=1e-5, err_msg=name
        )


def test_average_is_the_mean_of_each_images_extremes(
    embedded: onnx.ModelProto, placement: Placement, images: list[Path]
) -> None:
    each = [ranges_of(embedded, placement, [image], method="minmax") for image in images]
    both = ranges_of(embedded, placement, images, method="average")
    assert len(each) == 2
    assert set(both) == set(each[0])
    for name, found in both.items():
        expected = [(each[0][name][i] + each[1][name][i]) / 2 for i in (0, 1)]
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6), name
    assert any(each[0][name] != each[1][name] for name in both)


def test_percentile_cuts_the_tail(
    embedded: onnx.ModelProto, placement: Placement, images: list[Path], activations: dict[str, np.ndarray]
) -> None:
    """Of a sample and in bins: within a tenth of the exact quantile."""
    found = ranges_of(embedded, placement, images, method="percentile", percentile=99.9)
    for name, values in activations.items():
        exact = np.quantile(np.abs(values), 0.999)
        assert max(map(abs, found[name])) == pytest.approx(exact, rel=0.1), name


def test_entropy_is_inside_minmax(
    embedded: onnx.ModelProto, placement: Placement, images: list[Path], activations: dict[str, np.ndarray]
) -> None:
    found = ranges_of(embedded, placement, images, method="entropy")
    assert set(found) == set(activations)
    for name, values in activations.items():
        assert 0 < max(map(abs, found[name])) <= np.abs(values).max() * 1.05, name


def test_a_damaged_layer_is_the_worst(
    embedded: onnx.ModelProto, placement: Placement, images: list[Path]
) -> None:
    """One weight a thousand times the others of its channel leaves them no levels."""
    broken = onnx.ModelProto()
    broken.CopyFrom(embedded)
    name = "/mask_head/convs.1/conv/Conv"
    (node,) = (n for n in broken.graph.node if n.name == name)
    (tensor,) = (t for t in broken.graph.initializer if t.name == node.input[1])
    weight = numpy_helper.to_array(tensor).copy()
    weight[:, 0, 0, 0] = 1000 * np.abs(weight).max()
    tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    layers = find_layers(broken, default_plan(broken))
    ranges = ranges_of(broken, placement, images[:1])
    # The damage is in the activations of the other layers too: only its own weight counts.
    ranges[node.input[0]] = (-1e-3, 1e-3)
    found = rank_layers(
        broken,
        quantized_model(broken, layers, placement, ranges),
        layers,
        metadata_of(broken),
        images[:1],
        threads=1,
    )
    assert found[0].layer == name
    assert found[0].snr_db < 15 < found[10].snr_db
    assert len(found) == len(layers.quantized)
    assert [f.snr_db for f in found] == sorted(f.snr_db for f in found)
    assert {f.layer: f.num_nodes for f in found}["/rpn_head/rpn_conv/Conv"] == 5


@pytest.fixture
def dataset(tmp_path: Path) -> CocoDataset:
    from examples.shapes import write_coco

    write_coco(tmp_path, num=1, seed=77, sizes=((448, 640),))
    return read_dataset(tmp_path / "annotations.json", tmp_path, None)


def _with_drops(
    monkeypatch: pytest.MonkeyPatch, drops: dict[int, float], model: onnx.ModelProto, dataset: CocoDataset
) -> tuple[int, list[int]]:
    """Search with these drops for so many layers left out, and 0 for the float model."""
    asked: list[int] = []

    def evaluated(path: Path, request: AccuracyRequest) -> evaluation.Evaluation:
        drop = drops[asked[-1]] if asked else 0.0
        values = {**dict.fromkeys(METRICS), "AP": 0.8 - drop}
        return evaluation.Evaluation("m", 1, 1, {"box": values, "mask": dict(values, AP=0.8)}, 0.0, 0.0, ())

    def build(count: int) -> onnx.ModelProto:
        asked.append(count)
        return model

    monkeypatch.setattr("export.quantization.accuracy._evaluated", evaluated)
    count, trials = fewest_left_out(Path("m.onnx"), 12, build, AccuracyRequest(dataset, 0.003))
    assert [trial.num_left_out for trial in trials] == asked
    return count, asked


@pytest.mark.parametrize(
    ("needed", "asked"), [(0, [0]), (1, [0, 1]), (3, [0, 1, 2, 4, 3]), (5, [0, 1, 2, 4, 8, 6, 5])]
)
def test_the_fewest_layers_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
    embedded: onnx.ModelProto,
    dataset: CocoDataset,
    needed: int,
    asked: list[int],
) -> None:
    drops = {count: 0.001 if count >= needed else 0.004 for count in range(13)}
    assert _with_drops(monkeypatch, drops, embedded, dataset) == (needed, asked)


def test_a_drop_that_no_layer_mends(
    monkeypatch: pytest.MonkeyPatch, embedded: onnx.ModelProto, dataset: CocoDataset
) -> None:
    with pytest.raises(
        ValueError, match="expected a model within it, found none; with 11 of 12 layers left out"
    ):
        _with_drops(monkeypatch, dict.fromkeys(range(13), 0.5), embedded, dataset)


def test_ap_drop(
    embedded_path: Path, calibration_images: list[Path], dataset: CocoDataset, tmp_path: Path
) -> None:
    """A drop of 1 is allowed: one trial, nothing left out. And what is evaluated may not be calibrated on."""
    options = QuantizeOptions(ap_drop=1.0, dataset=dataset.path)
    result = quantize_model(
        embedded_path, tmp_path / "q.onnx", calibration_images[:1], options=options, threads=1
    )
    assert [(t.num_left_out, t.within) for t in result.trials] == [(0, True)]
    assert set(result.trials[0].drops) == {"box", "mask"}
    assert len(result.ranking) == 41
    elsewhere = tmp_path / "elsewhere" / dataset.path.name
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(dataset.path.read_bytes())
    with pytest.raises(
        FileNotFoundError, match="missing: .*; --dataset takes a file of annotations that lies beside"
    ):
        quantize_model(
            embedded_path,
            tmp_path / "q.onnx",
            calibration_images[:1],
            options=replace(options, dataset=elsewhere),
            threads=1,
        )
    with pytest.raises(ValueError, match="expected images that are not calibration images"):
        quantize_model(
            embedded_path, tmp_path / "q.onnx", [dataset.images[0].path], options=options, threads=1
        )


def test_what_is_left_out_stays_float(
    embedded_path: Path, calibration_images: list[Path], tmp_path: Path
) -> None:
    name = "/neck/lateral_convs.0/conv/Conv"
    options = QuantizeOptions(leave_out=[name])
    result = quantize_model(
        embedded_path, tmp_path / "q.onnx", calibration_images[:1], options=options, threads=1
    )
    assert dict(result.record.left_out) == {name: "left out as asked"}
    (found,) = (n for n in onnx.load(result.path).graph.node if n.name == name)
    (source,) = (n for n in onnx.load(embedded_path).graph.node if n.name == name)
    assert found.input == source.input
