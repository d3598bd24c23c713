"""Snake, the activation of the codec.

    y[..., c] = x[..., c] + sin(alpha[c] * x[..., c])^2 / (alpha[c] + 1e-9)

x: [..., C] fp64/fp32/fp16/bf16, any strides    alpha, reciprocal: [C] fp32 or fp64    ->    y: as x

`reciprocal` is 1 / (alpha + 1e-9), from `snake_reciprocal`. Half precision is computed in fp32: the sum alpha + 1e-9
is alpha itself there, and a reciprocal near zero overflows. The sine is the accurate one, with range reduction:
alpha * x is not bounded.
"""

import torch


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
