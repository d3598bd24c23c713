"""Snake, the activation of the codec.

    y[..., c] = x[..., c] + sin(alpha[c] * x[..., c])^2 / (alpha[c] + 1e-9)

x: [..., C] fp64/fp32/fp16/bf16, any strides    alpha, reciprocal: [C] fp32 or fp64    ->    y: as x

`reciprocal` is 1 / (alpha + 1e-9), from `snake_reciprocal`. Half precision is computed in fp32: the sum alpha + 1e-9
is alpha itself there, and a reciprocal near zero overflows. The sine is the accurate one, with range reduction:
alpha * x is not bounded. The codec's kernels apply `snake_of` where they load, so Snake has no launch of its own.
"""

from __future__ import annotations

import torch

from .launch import constexpr, jit, tl

INV_PI = constexpr(0.3183098861837907)
ROUND = constexpr(12582912.0)  # 1.5 * 2^23: adding it leaves no room for a fraction


def snake_reciprocal(alpha: torch.Tensor) -> torch.Tensor:
    """1 / (alpha + 1e-9) in fp32, or in fp64 for fp64. alpha: [C]."""
    return (alpha.to(torch.promote_types(alpha.dtype, torch.float32)) + 1e-9).reciprocal()


def snake(
    x: torch.Tensor, alpha: torch.Tensor, reciprocal: torch.Tensor, out: torch.Tensor | None = None
) -> torch.Tensor:
    """The equation above. `out` may be `x` itself: then nothing but one intermediate of its size is allocated."""
    C = x.shape[-1]
    assert alpha.shape == reciprocal.shape == (C,), (x.shape, alpha.shape, reciprocal.shape)
    if x.dtype.itemsize < 4:
        y = snake(x.float(), alpha, reciprocal)
        return y.to(x.dtype) if out is None else out.copy_(y)
    u = (x * alpha).sin_().square_()
    return torch.addcmul(x, u, reciprocal, out=u if out is None else out)


@jit
def snake_of(x, alpha, reciprocal):
    """Snake of fp32 values, by arithmetic alone: the fast sine of the hardware is wrong far from zero, and the accurate
    one branches. sin(a)^2 has the period pi: with u = a / pi less the nearest whole number it is a polynomial in u^2,
    within 2e-7 of it; the rest is the rounding of alpha * x, as it is for any fp32 sine.
    """
    u = x * (alpha * INV_PI)
    u -= (u + ROUND) - ROUND
    v = tl.minimum(u * u, 0.25)  # more only where u has no fraction left, beyond 2^22
    p = -3.2729320526123047 * v + 12.990720748901367
    p = p * v - 30.08595085144043
    p = p * v + 42.72538375854492
    p = p * v - 32.469581604003906
    p = p * v + 9.869603157043457
    return x + reciprocal * (p * v)
