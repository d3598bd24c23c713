"""Whether a product with a packed weight is as exact as separate operations with the same weight dense."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from octavo.kernels.launch import INTERPRETED
from octavo.kernels.swiglu import swiglu_ref

EPS = 1e-6
PARTS = [{}, {"residual": True}, {"norm": True, "residual": True, "swiglu": True}]


def operands(N, IN, OUT, dtype, device, norm=False, residual=False, swiglu=False):
    """x and the named operands of `linear` on odd strides; the norm's weight is fp32, whatever x is."""
    random = torch.Generator().manual_seed(1)

    def normal(columns):
        wide = torch.randn(N, columns + 24, generator=random).to(device, dtype)
        return wide[:, 8 : columns + 8]

    named = {"swiglu": swiglu}
    if norm:
        named |= {"norm": torch.randn(IN, generator=random).to(device), "eps": EPS}
    if residual:
        named["residual"] = normal(OUT)
    return normal(IN), named


def one_by_one(x, weight, swiglu=False, norm=None, eps=0.0, residual=None):
    if norm is not None:
        x = F.rms_norm(x, norm.shape, norm.to(x.dtype), eps)
    y = F.linear(x, weight)
    y = swiglu_ref(y) if swiglu else y
    return y if residual is None else residual + y


def check(packed, exact, N, dtype, device, deterministic=False, slack=1.3, **parts):
    """exact: W in fp64. We are no further from what follows of it than separate operations with W in x's dtype."""
    ROWS, IN = exact.shape
    OUT = ROWS // (1 + parts.get("swiglu", False))
    x, named = operands(N, IN, OUT, dtype, device, **parts)
    kept = named["residual"].clone() if "residual" in named else None
    got = packed.linear(x, **named, deterministic=deterministic)
    assert got.dtype == dtype and got.shape == (N, OUT)
    if kept is not None:
        assert got is named["residual"]
        got, named["residual"] = got.clone(), kept
    in_double = {name: v.double() if isinstance(v, torch.Tensor) else v for name, v in named.items()}
    truth = one_by_one(x.double(), exact.to(device), **in_double)
    separate = one_by_one(x, exact.to(device, dtype), **named)
    ours, theirs = ((y.double() - truth).norm() / truth.norm() for y in (got, separate))
    if INTERPRETED.value and dtype == torch.bfloat16:
        slack = max(6, slack)  # its cast to bf16 drops bits where the GPU rounds
    assert ours <= theirs * slack + (2e-6 if dtype == torch.float32 else 0), (ours, theirs)
