"""plugins._reference.padded_space_to_depth against ONNX's own Pad and SpaceToDepth, and by hand."""

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from plugins import _reference


def blocks_of_onnx(images: np.ndarray, pads: tuple) -> np.ndarray:
    top, left, bottom, right = pads
    amounts = np.array([0, 0, top, left, 0, 0, bottom, right], np.int64)
    nodes = [
        helper.make_node("Pad", ["images", "pads"], ["padded"]),
        helper.make_node("SpaceToDepth", ["padded"], ["blocks"], blocksize=2),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4) for name in ("images", "blocks")
    ]
    graph = helper.make_graph(
        nodes, "blocks", values[:1], values[1:], [numpy_helper.from_array(amounts, "pads")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})[0]


@pytest.mark.parametrize(
    ("shape", "pads"),
    [
        ((2, 3, 64, 96), (4, 4, 2, 2)),
        ((2, 3, 64, 96), (3, 3, 3, 3)),
        ((1, 1, 2, 2), (0, 0, 0, 0)),
        ((3, 5, 7, 9), (0, 1, 3, 2)),
        ((2, 4, 1, 1), (9, 0, 0, 7)),
    ],
)
def test_blocks_are_those_of_onnx(shape: tuple, pads: tuple) -> None:
    images = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    found = _reference.padded_space_to_depth(images, pads)
    expected = blocks_of_onnx(images, pads)
    assert found.dtype == np.float32
    assert expected.size > 0
    np.testing.assert_array_equal(found, expected, strict=True)


def test_channels_are_by_row_column_and_channel() -> None:
    images = np.arange(12, dtype=np.float32).reshape(1, 3, 2, 2)  # channel, row, column
    assert _reference.padded_space_to_depth(images, (0, 0, 0, 0)).ravel().tolist() == [
        *(0, 4, 8),
        *(1, 5, 9),
        *(2, 6, 10),
        *(3, 7, 11),
    ]


def test_padding_is_zero_whatever_the_image_holds() -> None:
    images = np.full((1, 1, 2, 2), np.nan, np.float32)
    found = _reference.padded_space_to_depth(images, (1, 1, 1, 1))
    assert found.shape == (1, 4, 2, 2)
    for corner in range(4):
        nan = np.isnan(found[0, 3 - corner].ravel())
        assert np.flatnonzero(nan).tolist() == [corner]
        assert (found[0, 3 - corner].ravel()[~nan] == 0).all()


@pytest.mark.parametrize(
    ("shape", "blocks"),
    [
        ((0, 3, 4, 4), (0, 12, 5, 5)),
        ((2, 0, 4, 4), (2, 0, 5, 5)),
        ((2, 3, 0, 4), (2, 12, 3, 5)),
        ((2, 3, 4, 0), (2, 12, 5, 3)),
    ],
)
def test_images_without_pixels(shape: tuple, blocks: tuple) -> None:
    found = _reference.padded_space_to_depth(np.zeros(shape, np.float32), (4, 4, 2, 2))
    assert found.shape == blocks
    assert (found == 0).all()


IMAGES = np.zeros((1, 3, 4, 4), np.float32)


@pytest.mark.parametrize(
    ("images", "pads", "message"),
    [
        (IMAGES[0], (0, 0, 0, 0), r"images: expected .*\(\*, \*, \*, \*\), found float32 \(3, 4, 4\)"),
        (IMAGES.astype(np.float64), (0, 0, 0, 0), "images: expected .*float32.*found float64"),
        (IMAGES[:, :, ::2], (0, 0, 0, 0), "images: .*not C-contiguous"),
        (
            IMAGES,
            (1, 0, 0, 0),
            "images: expected height and width that are even with the pads, found 5 and 4",
        ),
        (IMAGES, (1, 1, 1, 2), "found 6 and 7"),
        (IMAGES, (-1, 0, 1, 0), "pads: expected 0 to 32767, found -1"),
        (IMAGES, (0, 0, 0, 32768), "pads: expected 0 to 32767, found 32768"),
    ],
)
def test_wrong_arguments_are_named(images: np.ndarray, pads: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _reference.padded_space_to_depth(images, pads)
