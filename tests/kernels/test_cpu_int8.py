"""Products of bytes against the dequantized weight in fp64."""

from __future__ import annotations

import itertools

import pytest
import torch

from octavo.kernels import cpu_int8
from octavo.kernels.cpu_int8 import CpuInt8, dequantize, has_byte_products
from octavo.kernels.linear import linear_ref

if not has_byte_products():
    pytest.skip("this processor has no fast products of bytes", allow_module_level=True)

# What x and y are rounded to, relative to the largest: codes with one scale a row are not rounded at all.
TOL = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 5e-3}
SWITCHES = list(itertools.product([False, True], repeat=3))


def matrix(OUT: int, IN: int) -> tuple[torch.Tensor, torch.Tensor]:
    codes = torch.randint(-127, 128, (OUT, IN), dtype=torch.int8)
    return codes, torch.rand(OUT, 1) / IN**0.5 / 64


def close(got: torch.Tensor, want: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(got.double(), want, atol=tolerance * want.abs().max().item(), rtol=0)


@pytest.mark.parametrize("dtype", TOL, ids=str)
@pytest.mark.parametrize("OUT, IN", [(48, 64), (41, 123), (1, 5), (320, 96)])
def test_product(dtype, OUT, IN):
    codes, scale = matrix(OUT, IN)
    weight = CpuInt8.pack(codes, scale)
    assert weight.shape == (OUT, IN) and weight.nbytes == OUT * IN + 8 * OUT
    for N in (1, 2, 3, 5, 16, 64):
        x = torch.randn(N, 2 * IN).to(dtype)[:, ::2]  # strided
        got = weight.linear(x)
        assert got.dtype == dtype and got.shape == (N, OUT)
        close(got, x.double() @ (codes.double() * scale).T, TOL[dtype])


@pytest.mark.parametrize("dtype", TOL, ids=str)
@pytest.mark.parametrize("norm, residual, swiglu", SWITCHES)
def test_what_stands_around_the_product(dtype, norm, residual, swiglu):
    codes, scale = matrix(64, 96)
    x, g = torch.randn(3, 96).to(dtype), torch.rand(96) + 0.5  # fp32, whatever x is
    into = torch.randn(3, 64 >> swiglu).to(dtype)
    switches = {"norm": g if norm else None, "eps": 1e-6, "swiglu": swiglu}
    kept = into.clone()
    got = CpuInt8.pack(codes, scale).linear(x, residual=into if residual else None, **switches)
    switches["norm"] = g.double() if norm else None
    want = linear_ref(x.double(), codes.double() * scale, residual=kept.double() if residual else None, **switches)
    assert not residual or got is into
    close(got, want, 2 * TOL[dtype])


def test_channels_far_larger_than_the_rest():
    """One channel 300 times the others: a byte of x would keep nothing of them."""
    codes, scale = matrix(64, 256)
    x = torch.randn(2, 256, dtype=torch.bfloat16)
    x[:, 7] *= 300
    codes[:, 7] = 0  # so that it does not hide the rest in the result either
    close(CpuInt8.pack(codes, scale).linear(x), x.double() @ (codes.double() * scale).T, TOL[torch.bfloat16])


def test_a_row_is_the_same_in_any_company():
    weight = CpuInt8.pack(*matrix(80, 96))
    x = torch.randn(7, 96, dtype=torch.bfloat16)
    together = weight.linear(x)
    for deterministic in (False, True):
        alone = [weight.linear(row, deterministic=deterministic) for row in x.split(1)]
        assert torch.equal(torch.cat(alone), together)


def test_other_processors_are_not_tried(monkeypatch):
    monkeypatch.setattr(cpu_int8.platform, "machine", lambda: "aarch64")
    assert not has_byte_products.__wrapped__()


def test_sums_that_are_cut_off_are_noticed(monkeypatch):
    product = CpuInt8._product
    monkeypatch.setattr(CpuInt8, "_product", lambda self, x, parts: product(self, x, parts).clamp(max=2**15))
    assert not has_byte_products.__wrapped__()


def test_rows_of_zeros_and_of_nan():
    weight = CpuInt8.pack(*matrix(16, 64))
    x = torch.randn(3, 64, dtype=torch.bfloat16)
    alone = weight.linear(x[2:])
    x[0], x[1, 5] = 0, torch.nan
    y = weight.linear(x)
    assert (y[0] == 0).all() and y[1].isnan().all() and torch.equal(y[2:], alone)


def test_dense_gives_the_weight_back():
    codes, scale = matrix(41, 64)
    weight = CpuInt8.pack(codes, scale)
    assert torch.equal(weight.dense(torch.float32), codes * scale)
    assert weight.dense(torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["int8", "uint8", "levels", "fp8"])
@pytest.mark.parametrize("group", [16, 32, 48])
@pytest.mark.parametrize("has_offset", [False, True])
def test_other_matrices_are_rounded_to_one_scale_a_row(kind, group, has_offset, monkeypatch):
    monkeypatch.setattr(cpu_int8, "CHUNK", 24)  # the last one is not full
    OUT, IN = 40, 96
    shape = (OUT, IN // group)
    codes = torch.randint(0, 16, (OUT, IN), dtype=torch.uint8)
    if kind == "int8":
        codes = codes.to(torch.int8) * 17 - 127
    if kind == "fp8":
        codes = torch.randn(OUT, IN).to(torch.float8_e4m3fn)
    levels = torch.randn(16).sort().values if kind == "levels" else None
    scale, offset = torch.rand(shape), torch.randn(shape) if has_offset else None
    weight = CpuInt8.pack(codes, scale, offset, levels)
    values = codes.float() if levels is None else levels[codes.int()]
    want = values * scale.repeat_interleave(group, 1)
    want += 0 if offset is None else offset.repeat_interleave(group, 1)
    assert torch.equal(dequantize(codes, scale, offset, levels), want)
    moved = (weight.dense(torch.float32) - want).abs().amax(1)
    assert (moved <= want.abs().amax(1) / 127 * 0.51).all() and moved.any()
    x = torch.randn(3, IN)
    close(weight.linear(x), x.double() @ weight.dense(torch.float64).T, TOL[torch.float32])


def test_a_row_of_zeros_in_the_weight():
    codes = torch.zeros(16, 64, dtype=torch.uint8)
    weight = CpuInt8.pack(codes, torch.ones(16, 2))
    assert (weight.dense(torch.float32) == 0).all() and (weight.linear(torch.randn(1, 64)) == 0).all()
