"""Rows of 8-bit integers as bitsandbytes stores them."""

import zlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from octavo.quant.formats import int8


def test_by_hand():
    w = torch.tensor([[127.0, -126.5, 0.5, 1.5], [0.0, 0.0, 0.0, 0.0], [-2.0, 1.0, 0.0, 2.0]])
    got = int8.encode(w)
    assert {name: tensor.dtype for name, tensor in got.items()} == {"weight": torch.int8, "SCB": torch.float32}
    assert got["weight"].tolist() == [[127, -126, 0, 2], [0, 0, 0, 0], [-127, 64, 0, 127]]  # half to even
    assert got["SCB"].tolist() == [127, 0, 2]


def test_bytes_of_bitsandbytes():
    """Checksums of what bitsandbytes 0.50.2 gives for these weights (int8_vectorwise_quant)."""
    i = torch.arange(17 * 1024)
    w = ((((37 * i + 11) % 101) - 50) / 50 * (1 + i // 64 % 7) / 100).view(17, 1024)
    got = int8.encode(w)
    assert f"{zlib.crc32(got['weight'].numpy().tobytes()):08x}" == "afa12e7f"
    assert f"{zlib.crc32(got['SCB'].numpy().tobytes()):08x}" == "bbffe2fd"


@given(seed=st.integers(0, 2**31), exponent=st.integers(-6, 6), half=st.booleans())
def test_round_trip(seed, exponent, half):
    w = torch.randn(5, 48, generator=torch.Generator().manual_seed(seed)) * 10.0**exponent
    w = w.bfloat16() if half else w
    got = int8.decode(int8.encode(w), (5, 48))
    assert got.shape == (5, 48) and got.group == 48 and got.offset is None
    step = w.float().abs().amax(1, keepdim=True) / 127
    assert ((got.dequantize() - w.float()).abs() <= 0.5001 * step).all()


def test_what_cannot_be_read():
    tensors = int8.encode(torch.ones(3, 8))
    with pytest.raises(ValueError, match=r"'weight' int8 \(3, 16\) and 'SCB', .* not torch.int8 \(3, 8\)"):
        int8.decode(tensors, (3, 16))
    with pytest.raises(ValueError, match="not torch.uint8"):
        int8.decode(tensors | {"weight": tensors["weight"].view(torch.uint8)}, (3, 8))
    with pytest.raises(ValueError, match=r"and \(2,\)"):
        int8.decode(tensors | {"SCB": torch.ones(2)}, (3, 8))
    with pytest.raises(ValueError, match=r"not torch.int8 \(24,\)"):
        int8.decode(tensors | {"weight": tensors["weight"].view(-1)}, (24,))
    assert int8.decode(tensors | {"weight_format": torch.tensor(0)}, (3, 8)).shape == (3, 8)
    with pytest.raises(ValueError, match="old GPU layouts"):
        int8.decode(tensors | {"weight_format": torch.tensor(1)}, (3, 8))
