"""RMSNorm, rope and the embedding of a row, each against its equation in fp64."""

import math

import pytest
import torch

from octavo.kernels.rms_norm import rms_norm
from octavo.kernels.rope import rope, rope_table

TOL = {torch.float32: 1e-5, torch.bfloat16: 1.6e-2}  # fp32: the order of the sum; bf16: two ulp


@pytest.mark.parametrize("dtype", TOL, ids=str)
@pytest.mark.parametrize("strided", [False, True])
def test_rms_norm(dtype, strided, device):
    x = torch.randn(7, 123 * (1 + strided), device=device).to(dtype)[:, :123]
    weight = torch.randn(123, device=device).to(dtype)
    exact = x.double()
    want = exact / (exact.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double()
    torch.testing.assert_close(rms_norm(x, weight, 1e-6).double(), want, atol=TOL[dtype], rtol=TOL[dtype])


@pytest.mark.parametrize("dtype", TOL, ids=str)
def test_rms_norm_of_heads_with_a_weight_each_and_of_tiny_values(dtype, device):
    """Where the mean is not far above eps, eps counts."""
    x = (torch.randn(5, 3, 64, device=device) * torch.tensor([1e-3, 1.0, 0.0], device=device)[:, None]).to(dtype)
    weight = torch.randn(3, 64, device=device).to(dtype)
    exact = x.double()
    want = exact / (exact.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double()
    torch.testing.assert_close(rms_norm(x, weight, 1e-6).double(), want, atol=TOL[dtype], rtol=TOL[dtype])


@pytest.mark.parametrize("dtype", TOL, ids=str)
def test_rope_turns_each_pair_by_its_angle(dtype, device):
    """Pair d is (x[d], x[d + D/2]), turned by position * theta^(-2d/D): as complex numbers, independently."""
    D, theta, position = 64, 1e6, 37
    x = torch.randn(5, 3, D, device=device).to(dtype)
    table = rope_table(50, D, theta, device, dtype)
    cos, sin = table[torch.full((5,), position, device=device)].split(1, 1)
    angles = torch.tensor([position * theta ** (-2 * d / D) for d in range(D // 2)], dtype=torch.float64)
    turn = torch.complex(angles.cos().bfloat16().double(), angles.sin().bfloat16().double()).to(device)
    turned = torch.complex(x[..., : D // 2].double(), x[..., D // 2 :].double()) * turn
    want = torch.cat((turned.real, turned.imag), -1)
    torch.testing.assert_close(rope(x, cos, sin).double(), want, atol=2 * TOL[dtype], rtol=2 * TOL[dtype])


def test_rope_table_holds_bf16_values(device):
    table = rope_table(300, 128, 1e6, device, torch.float32)
    assert torch.equal(table, table.bfloat16().float())
    assert table[299, 0, 1].item() == pytest.approx(math.cos(299 * 1e6 ** (-1 / 64)), abs=4e-3)
