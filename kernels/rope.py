"""Rotary position embedding, half-split (NeoX) pairing over the whole head.

    y[d]        = x[d] cos[d] - x[d + D/2] sin[d]               d < D/2
    y[d + D/2]  = x[d + D/2] cos[d] + x[d] sin[d]

which is x * cos + roll(x, D/2) * sin with the first half of sin negated: `rope_table` stores it that way.
"""

import torch


def rope_table(
    length: int, head_dim: int, theta: float, device: torch.device | str, dtype: torch.dtype
) -> torch.Tensor:
    """[length, 2, head_dim]: cos and signed sin of every position, in `dtype`.

    Built in fp32 and rounded to bf16 whatever `dtype` is, because the model was trained with bf16 values; doing the
    powers in fp64 would move the final hidden state by 8e-5.
    """
    inverse = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angle = torch.arange(length, dtype=torch.float32)[:, None] * inverse
    cos, sin = angle.cos(), angle.sin()
    table = torch.stack((torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)), 1)
    return table.to(torch.bfloat16).to(device, dtype)


def rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """x: [N, heads, D]; cos, sin: [N, 1, D], rows of `rope_table` in x.dtype. Returns the rotated heads, in `out`."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin, out=out)
