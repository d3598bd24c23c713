"""The CPU's linear layer against the product in fp64, with and without oneDNN's ops."""

import pytest
import torch

from octavo.kernels import cpu_linear as module

TOL = {torch.float32: 1e-5, torch.bfloat16: 1.6e-2}  # fp32: the order of the sum; bf16: two ulp


@pytest.mark.parametrize("dtype", TOL, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 8, 71])
@pytest.mark.parametrize("onednn", [True, False])
def test_cpu_linear(dtype, rows, onednn, monkeypatch):
    if not onednn:
        monkeypatch.setattr(module, "_onednn", lambda dtype: False)
    weight = (torch.randn(123, 60) / 60**0.5).to(dtype)
    x = torch.randn(rows, 2 * 60).to(dtype)[:, ::2]  # strided
    got = module.cpu_linear(x, module.arrange(weight.clone()))
    assert got.dtype == dtype and got.shape == (rows, 123)
    torch.testing.assert_close(got.double(), x.double() @ weight.double().T, atol=TOL[dtype], rtol=TOL[dtype])


def test_no_second_layout_is_kept():
    """What `arrange` returns holds the values once, in as many bytes."""
    weight = torch.randn(64, 32)
    arranged = module.arrange(weight)
    assert arranged.shape == weight.shape and arranged.nbytes == weight.nbytes and torch.equal(arranged, weight)
