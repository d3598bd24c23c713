"""The RMSNorm kernel against its reference, on odd shapes and strided rows."""

import pytest
import torch

from octavo.kernels.rms_norm import rms_norm, rms_norm_ref

# fp32: the order of a sum; bf16: two roundings apart
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("N, D", [(1, 2560), (3, 256), (7, 123)])
@pytest.mark.parametrize("strided", [False, True])
def test_rms_norm(N, D, dtype, strided, triton_device):
    torch.manual_seed(0)
    x = torch.randn(N, D * (1 + strided), device=triton_device).to(dtype)[:, :D]
    weight = torch.randn(D, device=triton_device).to(dtype)
    got, want = rms_norm(x, weight, 1e-6), rms_norm_ref(x, weight, 1e-6)
    torch.testing.assert_close(got, want, atol=TOLERANCES[dtype], rtol=TOLERANCES[dtype])
