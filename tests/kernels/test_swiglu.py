"""SwiGLU against its equation in fp64."""

import pytest
import torch

from octavo.kernels.swiglu import swiglu, swiglu_ref

TOL = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}  # fp32: exp; 16 bits: two roundings


def equation(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.double().chunk(2, -1)
    return gate * torch.sigmoid(gate) * up


@pytest.mark.parametrize("dtype", TOL, ids=str)
def test_swiglu_of_this_device(dtype, device):
    gate_up = torch.randn(3, 2 * 77, device=device).to(dtype)
    torch.testing.assert_close(swiglu(gate_up).double(), equation(gate_up), atol=TOL[dtype], rtol=TOL[dtype])


@pytest.mark.parametrize("dtype", TOL, ids=str)
@pytest.mark.parametrize("N, F", [(1, 9728), (3, 1500), (17, 77)])
@pytest.mark.parametrize("strided", [False, True])
def test_the_kernel(N, F, dtype, strided, triton_device):
    torch.manual_seed(0)
    gate_up = torch.randn(N, 2 * F * (1 + strided), device=triton_device).to(dtype)[:, : 2 * F]
    got = swiglu(gate_up)
    assert got.dtype == dtype and got.shape == (N, F)
    torch.testing.assert_close(got.double(), equation(gate_up), atol=TOL[dtype], rtol=TOL[dtype])


@pytest.mark.filterwarnings("ignore:overflow")
def test_the_kernel_at_the_ends_of_the_numbers(triton_device):
    """exp overflows below -88; a gate of -inf is NaN in the reference too (inf * 0)."""
    gate = torch.tensor([[-3e38, -1000.0, -100.0, 0.0, 100.0, 1e30]], device=triton_device)
    gate_up = torch.cat((gate, torch.ones_like(gate)), 1)
    assert torch.equal(swiglu(gate_up), torch.tensor([[0.0, 0.0, 0.0, 0.0, 100.0, 1e30]], device=triton_device))
    torch.testing.assert_close(swiglu(gate_up), swiglu_ref(gate_up), atol=1e-37, rtol=1e-6)
