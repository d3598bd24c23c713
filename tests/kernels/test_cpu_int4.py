"""The CPU's 4-bit product against the dequantized weight in fp64, and who chooses it."""

from __future__ import annotations

import itertools

import pytest
import torch

from octavo.kernels import cpu_int4, cpu_packed
from octavo.kernels.cpu_int4 import CpuInt4, group_of
from octavo.kernels.cpu_int8 import CpuInt8, dequantize, has_byte_products
from octavo.kernels.cpu_packed import FEW, FewAndMany, pack_cpu
from octavo.kernels.linear import linear_ref

# Relative to the largest. fp16, bf16: x, y, S and Z are bf16. fp32: the order of the sum, with the weight that is held.
TOL = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-2}
bytes_only = pytest.mark.skipif(not has_byte_products(), reason="this processor has no fast products of bytes")


def matrix(OUT: int, IN: int, group: int, has_offset: bool = True) -> tuple[torch.Tensor, ...]:
    """As AWQ makes them: the zero point is a code."""
    codes = torch.randint(0, 16, (OUT, IN), dtype=torch.uint8)
    scale = (torch.rand(OUT, IN // group) + 0.5) / IN**0.5
    offset = -scale * torch.randint(4, 12, scale.shape) if has_offset else None
    return codes, scale, offset


def exact(codes: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor | None) -> torch.Tensor:
    G = scale.shape[1]
    each = codes.shape[1] // G
    W = codes.double() * scale.double().repeat_interleave(each, 1)
    return W if offset is None else W + offset.double().repeat_interleave(each, 1)


def close(got: torch.Tensor, want: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(got.double(), want, atol=tolerance * want.abs().max().item(), rtol=0)


@pytest.mark.parametrize("dtype", TOL, ids=str)
@pytest.mark.parametrize(
    "OUT, IN, group", [(64, 96, 32), (123, 192, 64), (16, 128, 128), (72, 256, 256), (65, 512, 512)]
)
@pytest.mark.parametrize("has_offset", [False, True])
def test_product(dtype, OUT, IN, group, has_offset, monkeypatch):
    monkeypatch.setattr(cpu_int4, "CHUNK", cpu_int4.BLOCK)
    parts = matrix(OUT, IN, group, has_offset)
    weight = CpuInt4(*parts)
    assert weight.shape == (OUT, IN) and weight.group == min(group, 256)
    W = weight.dense(torch.float64) if dtype == torch.float32 else exact(*parts)
    for N in (1, 2, 5, 16, 64):
        x = torch.randn(N, 2 * IN).to(dtype)[:, ::2]  # strided
        got = weight.linear(x)
        assert got.dtype == dtype and got.shape == (N, OUT)
        close(got, x.double() @ W.T, TOL[dtype])


def test_quantized_weights_as_the_formats_define_them():
    """AWQ, Q4_0, Q4_1, Q4_K: scale, offset -> S, Z, where both are whole powers of two and nothing is rounded."""
    codes, (d, m, z) = torch.arange(16, dtype=torch.uint8).repeat(64, 4), (0.5, -4.0, 3.0)
    for scale, offset, want in (
        (d, -z * d, (codes.double() - z) * d),
        (d, -8 * d, (codes.double() - 8) * d),
        (d, m, codes.double() * d + m),
        (3 * d, -5 * d, 3 * d * codes.double() - 5 * d),
    ):
        weight = CpuInt4(codes, torch.full((64, 2), scale), torch.full((64, 2), offset))
        assert torch.equal(weight.dense(torch.float64), want)


@pytest.mark.parametrize("dtype", TOL, ids=str)
@pytest.mark.parametrize("norm, residual, swiglu", list(itertools.product([False, True], repeat=3)))
def test_what_stands_around_the_product(dtype, norm, residual, swiglu):
    weight = CpuInt4(*matrix(96, 128, 32))
    x, g = torch.randn(3, 128).to(dtype), torch.rand(128) + 0.5  # fp32, whatever x is
    into = torch.randn(3, 96 >> swiglu).to(dtype)
    switches = {"norm": g if norm else None, "eps": 1e-6, "swiglu": swiglu}
    kept = into.clone()
    got = weight.linear(x, residual=into if residual else None, **switches)
    switches["norm"] = g.double() if norm else None
    W = weight.dense(torch.float64)
    want = linear_ref(x.double(), W, residual=kept.double() if residual else None, **switches)
    assert not residual or got is into
    close(got, want, 2 * TOL[dtype])


def test_dense_gives_the_weight_back():
    parts = matrix(80, 160, 32)
    weight = CpuInt4(*parts)
    close(weight.dense(torch.float32), exact(*parts), 2**-8)
    assert weight.dense(torch.bfloat16).dtype == torch.bfloat16
    assert weight.nbytes == 128 * 160 // 2 + 5 * 128 * 4  # 80 rows in blocks of 64


@pytest.mark.parametrize("group, want", [(32, 32), (96, 32), (384, 128), (768, 256), (16, None), (48, None)])
def test_groups(group, want):
    codes, scale = torch.zeros(2, 768, dtype=torch.uint8), torch.ones(2, 768 // group)
    assert group_of(codes, scale, None) == want
    assert group_of(codes.to(torch.int8), scale, None) is None and group_of(codes, scale, torch.zeros(16)) is None


@bytes_only
@pytest.mark.parametrize("N", [1, FEW, FEW + 1, 40])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_many_rows_take_the_bytes(N, dtype, monkeypatch):
    parts = matrix(64, 128, 32)
    weight = pack_cpu(*parts, None, dtype)
    assert isinstance(weight, FewAndMany) and weight.nbytes == weight.few.nbytes + weight.many.nbytes
    monkeypatch.setattr(CpuInt4 if N > FEW else CpuInt8, "linear", lambda *_, **__: pytest.fail("the other one"))
    x = torch.randn(N, 128).to(dtype)
    close(weight.linear(x), x.double() @ exact(*parts).T, 2e-2)  # the bytes are rounded once more


@bytes_only
def test_deterministic_rows_are_the_same_in_any_company():
    weight = pack_cpu(*matrix(80, 128, 32), None, torch.bfloat16)
    x = torch.randn(40, 128, dtype=torch.bfloat16)
    alone = [weight.linear(row, deterministic=True) for row in x.split(1)]
    assert torch.equal(torch.cat(alone), weight.linear(x, deterministic=True))
    assert torch.equal(weight.linear(x.float()), weight.few.linear(x.float()))  # and fp32 x is not rounded


@bytes_only
def test_fp32_stays_exact():
    """What would be rounded is left to plain numbers."""
    codes = torch.randint(-127, 128, (48, 64), dtype=torch.int8)
    assert isinstance(pack_cpu(codes, torch.ones(48, 1), None, None, torch.float32), CpuInt8)
    assert pack_cpu(codes, torch.ones(48, 2), None, None, torch.float32) is None
    assert pack_cpu(*matrix(64, 64, 32), None, torch.float32) is None


@bytes_only
def test_the_rest_is_held_in_bytes():
    codes, scale, offset = matrix(64, 96, 16)
    table = torch.randn(16)
    for parts in ((codes, scale, offset, None), (codes, scale, None, table), (codes.to(torch.int8), scale, None, None)):
        packed = pack_cpu(*parts, torch.bfloat16)
        assert isinstance(packed, CpuInt8)
        close(packed.dense(torch.float32), dequantize(*parts).double(), 0.51 / 127)


def test_without_products_of_bytes(monkeypatch):
    monkeypatch.setattr(cpu_packed, "has_byte_products", lambda: False)
    codes, scale, offset = matrix(64, 96, 32)
    assert isinstance(pack_cpu(codes, scale, offset, None, torch.bfloat16), CpuInt4)
    assert pack_cpu(codes.to(torch.int8), scale[:, :1], None, None, torch.bfloat16) is None
