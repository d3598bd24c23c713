"""Philox 4x32-10, a counter-based random generator: (seed, counter) -> number, with no state in between.

Salmon, Moraes, Dror, Shaw: Parallel Random Numbers: As Easy as 1, 2, 3 (SC 2011). The 64-bit seed is the key, the
counter's other words are 0, and the first of the four output words is used; Triton's `tl.randint` computes the same.
"""

from __future__ import annotations

import torch

from .launch import jit, tl

_MASK = 0xFFFFFFFF


def philox(seed: torch.Tensor | int, counter: torch.Tensor) -> torch.Tensor:
    """seed: int64, broadcasts against counter: int64 [...], 0 <= counter < 2^32. Returns int64 [...] in 0..2^32-1."""
    key0, key1 = seed & _MASK, (seed >> 32) & _MASK
    c0, c1, c2, c3 = counter, torch.zeros_like(counter), torch.zeros_like(counter), torch.zeros_like(counter)
    for _ in range(10):
        # int64 products wrap modulo 2^64, which keeps both 32-bit halves right
        product0, product2 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (
            ((product2 >> 32) & _MASK) ^ c1 ^ key0,
            product2 & _MASK,
            ((product0 >> 32) & _MASK) ^ c3 ^ key1,
            product0 & _MASK,
        )
        key0, key1 = (key0 + 0x9E3779B9) & _MASK, (key1 + 0xBB67AE85) & _MASK
    return c0


def uniform(seed: torch.Tensor | int, counter: torch.Tensor) -> torch.Tensor:
    """fp32 [...] in [0, 1), a multiple of 2^-23: below 1 even after a rounded multiplication."""
    return (philox(seed, counter) >> 9).to(torch.float32) * 2.0**-23


@jit
def uniform_in_kernel(seed, counter):
    """`uniform` for kernels. seed: int64; counter: int32, never negative."""
    return (tl.randint(seed, counter) >> 9).to(tl.float32) * 1.1920928955078125e-07  # 2^-23
