"""RMSNorm over the last dimension.

    y[..., d] = x[..., d] / sqrt(mean_d(x^2) + eps) * weight[d]

x: [..., D] fp32 or bf16    weight: [D], or [heads, D] for x: [..., heads, D]    ->    y: x's shape and dtype.
The mean is taken in fp32. The kernel takes x: [N, D] with strided rows, and weight [D].
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F

from .launch import jit, on_triton, tl, triton


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    if not on_triton(x):
        return rms_norm_ref(x, weight, eps)
    N, D = x.shape
    assert weight.shape == (D,) and x.stride(1) == weight.stride(0) == 1, (x.shape, x.stride(), weight.shape)
    y = torch.empty(N, D, device=x.device, dtype=x.dtype)
    _kernel[(N,)](x, weight, y, x.stride(0), D, eps, BLOCK_D=triton.next_power_of_2(D), num_warps=4)
    return y


@jit
def _kernel(x_ptr, w_ptr, y_ptr, stride_xn, D, eps, BLOCK_D: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    mask = d < D
    x = tl.load(x_ptr + n * stride_xn + d, mask=mask, other=0.0).to(tl.float32)
    w = tl.load(w_ptr + d, mask=mask, other=0.0).to(tl.float32)
    y = x * tl.rsqrt(tl.sum(x * x) / D + eps) * w
    tl.store(y_ptr + n * D + d, y.to(y_ptr.dtype.element_ty), mask=mask)


def rms_norm_ref(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    D = x.shape[-1]
    if x.device.type == "cpu" and x.dtype == torch.float32:
        # Between two large products every small op runs cold, and F.rms_norm is six of them here:
        # sqrt(rms^2 + eps) = hypot(rms, sqrt(eps)) makes do with five that work in place.
        rms = torch.linalg.vector_norm(x, 2, -1, True).mul_(D**-0.5)
        return (x / torch.hypot(rms, _root(eps))).mul_(weight)
    if weight.dim() == 1:
        return F.rms_norm(x, (D,), weight, eps)
    return F.rms_norm(x, (D,), None, eps) * weight


@cache
def _root(eps: float) -> torch.Tensor:
    return torch.tensor(eps).sqrt()
