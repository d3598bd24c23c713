"""RMSNorm over the last dimension.

    y[..., d] = x[..., d] / sqrt(mean_d(x^2) + eps) * weight[d]

x: [..., D] fp32 or bf16    weight: [D], or [heads, D] for x: [..., heads, D]    ->    y: x's shape and dtype.
The mean is taken in fp32.
"""

import torch
import torch.nn.functional as F


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    if weight.dim() == 1:
        return F.rms_norm(x, weight.shape, weight, eps)
    return F.rms_norm(x, weight.shape[-1:], None, eps) * weight
