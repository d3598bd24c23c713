"""RMSNorm over the last dimension.

    y[..., d] = x[..., d] / sqrt(mean_d(x^2) + eps) * weight[d]

x: [..., D] fp32 or bf16    weight: [D], or [heads, D] for x: [..., heads, D]    ->    y: x's shape and dtype.
The mean is taken in fp32.
"""

from functools import cache

import torch
import torch.nn.functional as F


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
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
