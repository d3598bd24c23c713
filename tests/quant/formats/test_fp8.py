"""Rows of 8-bit floats as compressed-tensors stores them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from octavo.quant.formats import fp8


def test_by_hand():
    w = torch.tensor([[448.0, -3.125, 0.3, 2.0**-9], [0.0, 0.0, 0.0, 0.0], [-0.875, 0.4375, 0.0, 0.125]])
    got = fp8.encode(w)
    assert got["weight"].dtype == torch.float8_e4m3fn and got["weight_scale"].dtype == torch.float32
    assert got["weight_scale"].tolist() == [[1.0], [1.0], [0.875 / 448]]
    # Three bits after the leading one, half to even, and the smallest subnormal.
    assert got["weight"].float().tolist() == [[448, -3, 0.3125, 2**-9], [0, 0, 0, 0], [-448, 224, 0, 64]]


def test_the_smallest_weights():
    w = torch.tensor([[627.0, -300.0]]) * 2.0**-149  # their scale is one subnormal step, and too small
    assert fp8.decode(fp8.encode(w), (1, 2)).dequantize().tolist() == [[448 * 2.0**-149, -288 * 2.0**-149]]


@given(seed=st.integers(0, 2**31), exponent=st.integers(-6, 6), half=st.booleans())
def test_round_trip(seed, exponent, half):
    w = torch.randn(5, 48, generator=torch.Generator().manual_seed(seed)) * 10.0**exponent
    w = w.bfloat16() if half else w
    tensors = fp8.encode(w)
    got = fp8.decode(tensors, (5, 48))
    assert got.group == 48 and got.offset is None and got.codes.dtype == torch.float8_e4m3fn
    w = w.float()
    # Half a unit in the last place of three bits; below 2^-6 of the scale, half of the smallest number.
    bound = torch.maximum(w.abs() / 16, tensors["weight_scale"] * 2.0**-10) * 1.0001
    assert ((got.dequantize() - w).abs() <= bound).all()  # no NaN either


def test_one_scale_for_a_whole_matrix():
    codes = torch.tensor([[1.0, 2.0], [-4.0, 0.5]]).to(torch.float8_e4m3fn)
    got = fp8.decode({"weight": codes, "weight_scale": torch.tensor(0.5, dtype=torch.bfloat16)}, (2, 2))
    assert got.dequantize().tolist() == [[0.5, 1.0], [-2.0, 0.25]]


def test_what_cannot_be_read():
    tensors = fp8.encode(torch.ones(3, 8))
    with pytest.raises(ValueError, match=r"float8_e4m3fn \(3, 16\) and 'weight_scale', .* \(3, 8\)"):
        fp8.decode(tensors, (3, 16))
    with pytest.raises(ValueError, match="not torch.uint8"):
        fp8.decode(tensors | {"weight": tensors["weight"].view(torch.uint8)}, (3, 8))
    with pytest.raises(ValueError, match=r"and \(2, 1\)"):
        fp8.decode(tensors | {"weight_scale": torch.ones(2, 1)}, (3, 8))
