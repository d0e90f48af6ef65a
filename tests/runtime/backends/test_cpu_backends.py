"""What the backends of an ONNX on a CPU share: the contract, and what they refuse in the same words."""

from pathlib import Path
from typing import Callable

import numpy as np
import onnx
import pytest

from runtime.contract import contract_inputs, contract_outputs
from runtime.host.preprocess import prepare
from runtime.metadata import KEY
from runtime.runner import Backend
from tests.runtime import fakes

Open = Callable[..., Backend]


@pytest.mark.parametrize("masks", ["crop", "full", "none"])
@pytest.mark.parametrize("size", [(64, 96), None])
def test_the_outputs_are_the_contracts(opened: Open, masks: str, size: object, tmp_path: Path) -> None:
    facts = fakes.metadata(masks=masks, size=size)
    backend = opened(fakes.save(tmp_path / "m.onnx", facts))
    assert backend.metadata == facts
    batch = prepare([fakes.random_image(60, 90), fakes.random_image(90, 60)], facts)
    outputs = backend.run(batch.images, batch.image_sizes)
    expected = contract_outputs(facts)
    assert set(outputs) == set(expected)
    for name, tensor in expected.items():
        assert str(outputs[name].dtype) == tensor.dtype
        assert len(outputs[name]) == 2
        assert outputs[name].ndim == len(tensor.shape)


def test_closing_twice_is_fine_and_running_afterwards_is_not(opened: Open, fake_model: Path) -> None:
    backend = opened(fake_model)
    backend.close()
    backend.close()
    with pytest.raises(RuntimeError, match="expected an open one, found it closed; make a new Detector"):
        backend.run(np.zeros((1, 3, 64, 96), np.float32), np.zeros((1, 2), np.float32))


@pytest.mark.parametrize(
    ("images", "image_sizes", "message"),
    [
        (
            np.zeros((3, 64, 96), "f4"),
            np.zeros((1, 2), "f4"),
            r"images: expected float32 \(\?, 3, 64, 96\), found float32",
        ),
        (
            np.zeros((1, 3, 64, 96)),
            np.zeros((1, 2), "f4"),
            r"found float64 \(1, 3, 64, 96\); make it with .*prepare",
        ),
        (
            np.zeros((1, 1, 64, 96), "f4"),
            np.zeros((1, 2), "f4"),
            r"images: .* found float32 \(1, 1, 64, 96\)",
        ),
        (
            np.zeros((1, 3, 96, 64), "f4"),
            np.zeros((1, 2), "f4"),
            r"images: .* found float32 \(1, 3, 96, 64\)",
        ),
        (
            np.zeros((1, 3, 64, 96), "f4"),
            np.zeros((1, 2)),
            r"image_sizes: expected float32 \(\?, 2\), found float64",
        ),
        (
            np.zeros((2, 3, 64, 96), "f4"),
            np.zeros((1, 2), "f4"),
            "as many of each and at least one, found 2 and 1",
        ),
        (np.zeros((0, 3, 64, 96), "f4"), np.zeros((0, 2), "f4"), "at least one, found 0 and 0"),
    ],
)
def test_wrong_arrays_are_refused(
    opened: Open, images: np.ndarray, image_sizes: np.ndarray, message: str, fake_model: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        opened(fake_model).run(images, image_sizes)


def test_a_dynamic_model_wants_multiples_of_its_divisor(opened: Open, tmp_path: Path) -> None:
    backend = opened(fakes.save(tmp_path / "m.onnx", fakes.metadata(size=None)))
    with pytest.raises(ValueError, match="multiples of 32, found 64x97; pad at the bottom and right"):
        backend.run(np.zeros((1, 3, 64, 97), np.float32), np.zeros((1, 2), np.float32))


def test_a_missing_model_names_the_command_that_makes_it(opened: Open, tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"none.onnx: .*found nothing; make it with `python -m export.maskrcnn`"
    ):
        opened(tmp_path / "none.onnx")
    with pytest.raises(FileNotFoundError, match="expected a file, found a folder"):
        opened(tmp_path)


@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1\n", b"", b"\x00" * 100])
def test_what_is_not_an_onnx_is_refused(opened: Open, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model .*broken.onnx: .*`python -m export.maskrcnn`"):
        opened(path)


def test_an_operator_that_it_does_not_know_is_named(opened: Open, tmp_path: Path) -> None:
    proto = fakes.model()
    proto.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(proto, str(tmp_path / "m.onnx"))
    with pytest.raises(
        ValueError, match=r"(onnxruntime|OpenVINO) [\d.]+ cannot load it: .*NoSuchOperator.*; export it again"
    ):
        opened(tmp_path / "m.onnx")


def test_an_onnx_without_our_metadata_is_refused(opened: Open, tmp_path: Path) -> None:
    path = fakes.save(tmp_path / "m.onnx", with_metadata=False)
    message = (
        "expected the metadata key 'maskrcnn' that `python -m export.maskrcnn` and `python -m export.graft` write, "
        "found the keys: none; .*of another finished detector, `python -m export.graft` makes such a file"
    )
    with pytest.raises(ValueError, match=message):
        opened(path)


def test_damaged_metadata_is_refused_with_the_files_name(opened: Open, tmp_path: Path) -> None:
    proto = fakes.model(with_metadata=False)
    onnx.helper.set_model_props(proto, {KEY: '{"format": 3}'})
    onnx.save(proto, str(tmp_path / "m.onnx"))
    with pytest.raises(ValueError, match=r"m.onnx: model metadata: expected format 1 or 2, found 3"):
        opened(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("changes", "types", "message"),
    [
        (
            {},
            {"images": "float[1, 3, 64, 96]"},
            r"input images: expected .* with a dynamic batch, found float32 \(1, 3",
        ),
        ({"size": (96, 64)}, {"images": "float[B, 3, 64, 96]"}, r"expected float32 \(\?, 3, 96, 64\), found"),
        (
            {"max_per_img": 100},
            {},
            r"output dets: expected float32 \(\?, 100, 5\), found float32 \(\?, 4, 5\)",
        ),
    ],
)
def test_a_model_that_breaks_the_contract_is_refused(
    opened: Open, changes: dict, types: dict, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "m.onnx"
    with pytest.raises(ValueError, match=message + ".*; export it with this version"):
        opened(fakes.save(path, fakes.metadata(**changes), **types))


def test_missing_outputs_are_listed(opened: Open, tmp_path: Path) -> None:
    proto = fakes.model()
    del proto.graph.output[3]
    onnx.save(proto, str(tmp_path / "m.onnx"))
    message = "expected the outputs num_dets, dets, labels, masks, found num_dets, dets, labels; export it"
    with pytest.raises(ValueError, match=message):
        opened(tmp_path / "m.onnx")


def test_another_dtype_is_refused(opened: Open, tmp_path: Path) -> None:
    proto = fakes.model()
    proto.graph.node.append(onnx.helper.make_node("Cast", ["num_dets"], ["num64"], to=onnx.TensorProto.INT64))
    proto.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("num64", onnx.TensorProto.INT64, ["B"]))
    for node in proto.graph.node:
        node.output[:] = [
            "n32" if v == "num_dets" else "num_dets" if v == "num64" else v for v in node.output
        ]
        node.input[:] = ["n32" if v == "num_dets" else v for v in node.input]
    proto.graph.output[0].name = "num_dets"
    onnx.save(proto, str(tmp_path / "m.onnx"))
    with pytest.raises(ValueError, match=r"output num_dets: expected int32 \(\?\), found int64 \(\?\)"):
        opened(tmp_path / "m.onnx")


def test_the_contract_names_free_dimensions() -> None:
    assert str(contract_inputs(fakes.metadata(size=None))["images"]) == "float32 (?, 3, ?, ?)"
