"""AWQ's layout: published words, round trips, and AutoAWQ's own packer where it is installed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from octavo.quant.formats import awq
from octavo.quant.formats.grouped import Grouped


def words(*hexadecimal: str) -> torch.Tensor:
    return torch.tensor([int(word, 16) for word in hexadecimal]).to(torch.int32)


@pytest.fixture
def example() -> Grouped:
    """K = 16, N = 32, one group: q = (k + 3 n) mod 16, z = (5 + n) mod 16, s = (1 + n mod 4) / 8."""
    n, k = torch.arange(32)[:, None], torch.arange(16)
    scale = (1 + n % 4) / 8
    return Grouped(((k + 3 * n) % 16).to(torch.uint8), scale, -((5 + n) % 16) * scale)


@st.composite
def matrices(draw) -> Grouped:
    group, G, N = draw(st.sampled_from([1, 3, 16, 32])), draw(st.integers(1, 4)), 8 * draw(st.integers(1, 3))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    codes, zero = (torch.randint(0, 16, (N, c), generator=random) for c in (G * group, G))
    scale = (torch.rand(N, G, generator=random) + 2**-10).half().float()
    return Grouped(codes.to(torch.uint8), scale, -zero * scale)


def test_order_of_a_word():
    codes = torch.arange(8, dtype=torch.uint8)[:, None]
    tensors = awq.encode(Grouped(codes, torch.ones(8, 1)))
    assert torch.equal(tensors["qweight"], words("75316420")[None])


def test_published_words(example):
    tensors = awq.encode(example)
    assert {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()} == {
        "qweight": (torch.int32, (16, 4)),
        "qzeros": (torch.int32, (1, 4)),
        "scales": (torch.float16, (1, 32)),
    }
    assert torch.equal(tensors["qweight"][0], words("5f932c60", "d71ba4e8", "5f932c60", "d71ba4e8"))
    assert torch.equal(tensors["qweight"][1], words("60a43d71", "e82cb5f9", "60a43d71", "e82cb5f9"))
    assert torch.equal(tensors["qweight"][2, :2], words("71b54e82", "f93dc60a"))
    assert torch.equal(tensors["qzeros"][0], words("ca86b975", "420e31fd", "ca86b975", "420e31fd"))
    assert tensors["scales"][0].tolist() == [0.125, 0.25, 0.375, 0.5] * 8
    assert all(tensor.is_contiguous() for tensor in tensors.values())


def test_what_was_quantized_quantizes_to_itself(example):
    again = awq.quantize(example.dequantize(), 16)
    assert torch.equal(again.codes, example.codes)
    assert torch.equal(again.scale, example.scale) and torch.equal(again.offset, example.offset)


@given(matrices())
def test_round_trip(matrix):
    tensors = awq.encode(matrix)
    again = awq.decode(tensors, matrix.shape)
    assert torch.equal(again.codes, matrix.codes) and torch.equal(again.scale, matrix.scale)
    assert torch.equal(again.offset, matrix.offset)
    assert torch.equal(again.dequantize(), matrix.dequantize())


@given(st.integers(0, 2**31), st.sampled_from([-3.0, 0.0, 3.0]), st.sampled_from([1e-6, 1e-3, 1.0, 300.0]))
def test_no_value_is_further_than_a_step(seed, mean, size):
    """Also where zero is far outside of a group's values. Half a step for the code, half for the zero point where it
    cuts off the range's end, and 2^-11 of 15 steps."""
    weight = (torch.randn(8, 64, generator=torch.Generator().manual_seed(seed)) + mean) * size
    matrix = awq.quantize(weight, 32)
    far = (matrix.dequantize() - weight).abs().view(8, 2, 32).amax(-1)
    assert (far <= 1.02 * matrix.scale).all()


@pytest.mark.parametrize("group, error", [(32, 0.081), (64, 0.091), (128, 0.101)])
def test_rounding_error_of_normal_values(group, error):
    weight = torch.randn(256, 1024, generator=torch.Generator().manual_seed(0))
    matrix = awq.quantize(weight, group)
    assert ((matrix.dequantize() - weight).norm() / weight.norm()).item() == pytest.approx(error, rel=0.02)


@pytest.mark.parametrize("group", [0, 3, 128])
def test_a_group_that_does_not_divide_is_refused(group):
    with pytest.raises(ValueError, match="do not divide rows of 64"):
        awq.quantize(torch.ones(8, 64), group)


@pytest.mark.parametrize(
    "matrix, message",
    [
        (Grouped(torch.zeros(8, 4, dtype=torch.int8), torch.ones(8, 1)), "4-bit codes"),
        (Grouped(torch.zeros(8, 4, dtype=torch.uint8), torch.ones(8, 1), None, torch.arange(16.0)), "evenly spread"),
        (Grouped(torch.zeros(12, 4, dtype=torch.uint8), torch.ones(12, 1)), "12 outputs do not fill"),
        (Grouped(torch.zeros(8, 4, dtype=torch.uint8), torch.full((8, 1), 0.1)), "steps in fp16"),
        (Grouped(torch.zeros(8, 4, dtype=torch.uint8), torch.ones(8, 1), torch.full((8, 1), 0.5)), "zero points"),
        (Grouped(torch.zeros(8, 4, dtype=torch.uint8), torch.ones(8, 1), torch.full((8, 1), -16.0)), "zero points"),
    ],
    ids=["8 bits", "levels", "outputs", "steps", "offsets", "zeros"],
)
def test_what_the_layout_cannot_hold_is_refused(matrix, message):
    with pytest.raises(ValueError, match=message):
        awq.encode(matrix)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"qweight": torch.zeros(16, 4, dtype=torch.int64)}, "int32, int32 and fp16"),
        ({"scales": torch.zeros(1, 32, dtype=torch.int32)}, "int32, int32 and fp16"),
        ({"qweight": torch.zeros(16, 5, dtype=torch.int32)}, r"\[16, 5\], \[1, 4\], \[1, 32\]"),
        ({"qzeros": torch.zeros(2, 4, dtype=torch.int32)}, r"\[2, 4\]"),
        ({"scales": torch.zeros(3, 32), "qzeros": torch.zeros(3, 4, dtype=torch.int32)}, r"\[3, 32\]"),
        ({"scales": torch.zeros(0, 32), "qzeros": torch.zeros(0, 4, dtype=torch.int32)}, r"\[0, 32\]"),
        ({"scales": torch.zeros(32)}, r"not \[16, 4\], \[1, 4\], \[32\]"),
    ],
)
def test_tensors_that_do_not_belong_together_are_refused(example, change, message):
    with pytest.raises(ValueError, match=message):
        awq.decode(awq.encode(example) | change, (32, 16))


def test_another_shape_is_refused(example):
    with pytest.raises(ValueError, match=r"\[32, 16\] values where \[16, 32\]"):
        awq.decode(awq.encode(example), (16, 32))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("group", [32, 64, 128])
def test_autoawq_packs_the_same_words(group):
    gemm = pytest.importorskip("awq.modules.linear.gemm")
    matrix = awq.quantize(torch.randn(96, 256, generator=torch.Generator().manual_seed(group)), group)
    linear = torch.nn.Linear(256, 96, bias=False)
    linear.weight.data = matrix.dequantize()
    scales, zeros = matrix.scale.t().contiguous(), (-matrix.offset / matrix.scale).round().t().contiguous()
    theirs = gemm.WQLinear_GEMM.from_linear(linear, 4, group, scales=scales, zeros=zeros)
    for suffix, tensor in awq.encode(matrix).items():
        assert torch.equal(tensor, getattr(theirs, suffix)), suffix


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_autoawq_reads_the_same_values():
    packing = pytest.importorskip("awq.utils.packing_utils")
    matrix = awq.quantize(torch.randn(96, 256, generator=torch.Generator().manual_seed(1)), 64)
    t = awq.encode(matrix)
    theirs = packing.dequantize_gemm(t["qweight"], t["qzeros"], t["scales"].float(), 4, 64)
    assert torch.equal(theirs.t(), matrix.dequantize())
