"""The kernel of ``plugins/padded_space_to_depth`` against torch's padding and transposition: equal to the last bit."""

import pytest

from tests.gpu.kernel_library import NCHW, NCHW32, NHWC, NHWC8
from tests.gpu.kernel_testing import MARKS, torch
from tests.gpu.padded_space_to_depth.kernel import blocks_shape, padded_space_to_depth

pytestmark = MARKS

EVEN, ODD = (4, 4, 2, 2), (3, 3, 3, 3)
DTYPES = [torch.float32, torch.float16]


def expected_blocks(images: torch.Tensor, pads: tuple, dtype: torch.dtype, layout: int) -> torch.Tensor:
    """Return ONNX's Pad and SpaceToDepth, in the memory of a layout; what pads the channels is 0."""
    top, left, bottom, right = pads
    padded = torch.nn.functional.pad(images, (left, right, top, bottom))
    batch, channels, height, width = padded.shape
    parts = padded.reshape(batch, channels, height // 2, 2, width // 2, 2)
    blocks = parts.permute(0, 3, 5, 1, 2, 4).reshape(batch, 4 * channels, height // 2, width // 2).to(dtype)
    if layout == NCHW:
        return blocks.contiguous()
    if layout == NHWC8:
        blocks = torch.nn.functional.pad(blocks, (0, 0, 0, 0, 0, -4 * channels % 8))
    return blocks.permute(0, 2, 3, 1).contiguous()


def check_blocks(images: torch.Tensor, pads: tuple, dtype: torch.dtype, layout: int) -> None:
    expected = expected_blocks(images, pads, dtype, layout)
    assert expected.numel() > 0
    # What is not written stays NaN; so does what is written past the end.
    memory = torch.full((expected.numel() + 64,), float("nan"), dtype=dtype, device="cuda")
    found = padded_space_to_depth(images, pads, dtype=dtype, layout=layout, out=memory)
    torch.testing.assert_close(found[:-64].view(expected.shape), expected, rtol=0, atol=0, equal_nan=True)
    assert found[-64:].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("image_dtype", DTYPES)
@pytest.mark.parametrize("layout", [NCHW, NHWC, NHWC8])
@pytest.mark.parametrize("pads", [EVEN, ODD, (0, 0, 0, 0), (1, 2, 5, 4)])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 19])
def test_padded_space_to_depth(
    channels: int, pads: tuple, layout: int, image_dtype: torch.dtype, dtype: torch.dtype
) -> None:
    torch.manual_seed(channels)
    images = torch.randn((2, channels, 18, 270), device="cuda").to(image_dtype)
    check_blocks(images, pads, dtype, layout)


@pytest.mark.parametrize("pads", [EVEN, ODD])
@pytest.mark.parametrize(
    "size", [(2, 2), (2, 4), (64, 56), (64, 58), (64, 60), (64, 250), (64, 252), (6, 506), (800, 1216)]
)
def test_rows_of_any_length(size: tuple, pads: tuple) -> None:
    """Up to 31, 32 and 33, 128 and 129 and 256 blocks a row: warps and thread blocks that are full, and are not."""
    check_blocks(torch.randn((3, 3, *size), device="cuda"), pads, torch.float16, NHWC8)


@pytest.mark.parametrize(
    ("size", "pads"), [((5, 7), (3, 3, 2, 4)), ((1, 1), (0, 1, 1, 0)), ((3, 9), (1, 0, 0, 1))]
)
@pytest.mark.parametrize("layout", [NCHW, NHWC8])
def test_odd_images_that_are_even_with_the_pads(size: tuple, pads: tuple, layout: int) -> None:
    check_blocks(torch.randn((2, 3, *size), device="cuda"), pads, torch.float16, layout)


@pytest.mark.parametrize("image_dtype", DTYPES)
@pytest.mark.parametrize("skipped", [(1, 0), (0, 1), (1, 1), (2, 8)], ids=str)
def test_at_any_address(skipped: tuple, image_dtype: torch.dtype) -> None:
    """Images and blocks begin in the middle of what is read and written at once."""
    images = torch.randn((2 * 3 * 6 * 8 + 8,), device="cuda").to(image_dtype)
    images = images[skipped[0] :][: 2 * 3 * 6 * 8].view(2, 3, 6, 8)
    expected = expected_blocks(images, EVEN, torch.float16, NHWC8)
    memory = torch.empty((expected.numel() + 8,), dtype=torch.float16, device="cuda")
    out = memory[skipped[1] :][: expected.numel()].view(expected.shape)
    padded_space_to_depth(images, EVEN, dtype=torch.float16, layout=NHWC8, out=out)
    assert torch.equal(out, expected)


def test_values_are_kept_or_rounded_as_torch_rounds() -> None:
    values = [
        0.0,
        -0.0,
        65504.0,
        65520.0,
        -1e30,
        1e-8,
        6e-8,
        1.00048828125,
        float("inf"),
        float("nan"),
        2.0,
        3.0,
    ]
    images = torch.tensor(values, device="cuda").view(1, 3, 2, 2)
    for dtype in DTYPES:
        check_blocks(images, EVEN, dtype, NHWC8)


@pytest.mark.parametrize("size", [(0, 8), (8, 0), (0, 0)])
def test_images_without_pixels_are_padding(size: tuple) -> None:
    check_blocks(torch.zeros((2, 3, *size), device="cuda"), EVEN, torch.float16, NHWC8)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4)])
def test_nothing_to_write(shape: tuple) -> None:
    images = torch.zeros(shape, device="cuda")
    found = padded_space_to_depth(images, EVEN, dtype=torch.float16)
    assert found.shape == blocks_shape(shape, EVEN, NCHW)


@pytest.mark.parametrize("layout", [NCHW, NHWC8])
def test_past_32_bits(layout: int) -> None:
    """2^31 elements and more of the output: the last image is compared."""
    shape = (45, 3, 4000, 4096)
    try:
        images = torch.zeros(shape, dtype=torch.float16, device="cuda")
        images[-1].normal_()
        found = padded_space_to_depth(images, EVEN, dtype=torch.float16, layout=layout)
    except torch.cuda.OutOfMemoryError:
        pytest.skip("needs 12 GB of GPU memory")
    assert found.numel() > 2**31
    assert torch.equal(found[-1:], expected_blocks(images[-1:], EVEN, torch.float16, layout))


def test_more_rows_and_images_than_a_grid_has() -> None:
    check_blocks(torch.randn((1, 3, 2**17 + 6, 2), device="cuda"), EVEN, torch.float16, NHWC8)
    check_blocks(torch.randn((2**16 + 3, 1, 2, 2), device="cuda"), EVEN, torch.float16, NHWC8)


@pytest.mark.parametrize("pads", [(4, 4, 2, 1), (1, 4, 2, 2), (-2, 4, 2, 2), (4, 4, 2, -2)])
def test_odd_sizes_and_negative_pads_are_refused(pads: tuple) -> None:
    out = torch.empty((1 << 12,), dtype=torch.float16, device="cuda")
    with pytest.raises(RuntimeError, match="padded_space_to_depth: invalid argument"):
        padded_space_to_depth(torch.zeros((1, 3, 8, 8), device="cuda"), pads, dtype=torch.float16, out=out)


def test_the_layout_of_int8_is_refused() -> None:
    out = torch.empty((1 << 12,), dtype=torch.float16, device="cuda")
    with pytest.raises(RuntimeError, match="padded_space_to_depth: invalid argument"):
        padded_space_to_depth(
            torch.zeros((1, 3, 8, 8), device="cuda"), EVEN, dtype=torch.float16, layout=NCHW32, out=out
        )


def test_it_is_captured_in_a_graph() -> None:
    images = torch.randn((2, 3, 64, 96), device="cuda")
    settings = {"dtype": torch.float16, "layout": NHWC8}
    padded_space_to_depth(images, EVEN, **settings)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = padded_space_to_depth(images, EVEN, **settings)
    for _ in range(3):
        images.normal_()
        graph.replay()
        assert torch.equal(captured, expected_blocks(images, EVEN, torch.float16, NHWC8))
