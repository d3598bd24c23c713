"""Searches for the scales of block types: the grid of small integers q that fits a group of weights x best, by the sum
of omega * error^2. The algorithms of ggml's K-quants, for many groups at once.

A group is a column: x and omega are [n, B] fp32 for B groups of n weights, so that sums run over the first dimension
and all else is contiguous. The integers stay fp32 here. Rounding is half to even.

A group without any width has no grid: its sums are NaN, no fit is better than that, and its scale stays zero.
"""

from __future__ import annotations

import torch


def affine(
    x: torch.Tensor, omega: torch.Tensor, levels: int, first: float, step: float, steps: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """x ~ scale * q - minimum with q in 0..levels, and minimum >= 0. Returns scale and minimum, [B] each.

    Tries the grids of `levels + first + i * step` steps between the smallest and the largest weight, i = 0..steps,
    each followed by weighted least squares for both. As in ggml, a fit that is kept also moves the lower end from which
    later grids start.
    """
    low, high = x.amin(0).clamp_(max=0), x.amax(0)
    weighted = omega * x
    sum_w, sum_x = omega.sum(0), weighted.sum(0)
    grid, product = torch.empty_like(x), torch.empty_like(x)

    def sums(factor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Sums over each group of omega times q, q^2 and x q, q = round(factor * (x - low))."""
        torch.addcmul(-low * factor, x, factor, out=grid).round_().clamp_(0, levels)
        sum_q = torch.mul(grid, omega, out=product).sum(0)
        sum_qq = product.mul_(grid).sum(0)
        return sum_q, sum_qq, torch.mul(weighted, grid, out=product).sum(0)

    def gain_of(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """By how much the error of a * q + b is below that of zero, the sum of omega x^2."""
        return 2 * (a * sum_xq + b * sum_x) - (a * (a * sum_qq + 2 * b * sum_q) + b * b * sum_w)

    scale = (high - low) / levels
    sum_q, sum_qq, sum_xq = sums(1 / scale)
    best = gain_of(scale, low)
    for i in range(steps + 1):
        sum_q, sum_qq, sum_xq = sums((levels + first + i * step) / (high - low))
        determinant = sum_w * sum_qq - sum_q**2
        a = (sum_w * sum_xq - sum_x * sum_q) / determinant
        b = (sum_qq * sum_x - sum_q * sum_xq) / determinant
        a = torch.where(b > 0, sum_xq / sum_qq, a)
        b = b.clamp_(max=0)
        gain = gain_of(a, b)
        # Where all weights have one integer, the determinant is zero but for rounding, and the fit is noise.
        better = (gain > best) & (determinant > 1e-5 * sum_w * sum_qq)
        scale, low, best = _keep(better, (a, b, gain), (scale, low, best))
    return scale, -low


def symmetric(x: torch.Tensor, omega: torch.Tensor, levels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x ~ scale * q with q in -levels..levels-1. Returns scale and the grid's 1 / step, q = round(x / step), [B] each.

    Tries the grids on which the weight of largest magnitude gets -levels, and up to 0.9 less or more, each followed by
    weighted least squares for the scale; the best fit has the largest (sum omega x q)^2 / sum omega q^2.
    """
    largest = x.gather(0, x.abs().argmax(0, keepdim=True))[0]
    weighted = omega * x
    grid, product = torch.empty_like(x), torch.empty_like(x)
    best = scale = factor = torch.zeros_like(largest)
    for i in (0, *range(-9, 0), *range(1, 10)):
        candidate = -(levels + 0.1 * i) / largest
        torch.mul(x, candidate, out=grid).round_().clamp_(-levels, levels - 1)
        sum_xq = torch.mul(weighted, grid, out=product).sum(0)
        sum_qq = torch.mul(grid, omega, out=product).mul_(grid).sum(0)
        better = sum_xq**2 > best * sum_qq
        fitted = sum_xq / sum_qq
        best, scale, factor = _keep(better, (fitted * sum_xq, fitted, candidate), (best, scale, factor))
    return scale, factor


def positive(x: torch.Tensor, omega: torch.Tensor, levels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x ~ scale * q with x >= 0 and q in 0..levels. Returns scale [B] and q [n, B].

    The best of nine grids by squared error, then up to five rounds that move one integer at a time to where it fits the
    others' scale, if that raises (sum omega x q)^2 / sum omega q^2.
    """
    largest = x.amax(0)
    least, factor = torch.full_like(largest, torch.inf), torch.zeros_like(largest)
    for i in (0, *range(-4, 0), *range(1, 5)):
        candidate = (levels + 0.1 * i) / largest
        q = (x * candidate).round_().clamp_(max=levels)
        error = (omega * (x - q / candidate) ** 2).sum(0)
        least, factor = _keep(error < least, (error, candidate), (least, factor))
    q = (x * factor).round_().clamp_(max=levels)
    sum_xq, sum_qq = (omega * x * q).sum(0), (omega * q * q).sum(0)
    for _ in range(5):
        before = q.clone()
        for i in range(len(x)):
            others_xq, others_qq = sum_xq - omega[i] * x[i] * q[i], sum_qq - omega[i] * q[i] ** 2
            moved = (x[i] * others_qq / others_xq).round_().clamp_(max=levels)
            new_xq, new_qq = others_xq + omega[i] * x[i] * moved, others_qq + omega[i] * moved**2
            better = (others_xq > 0) & (others_qq > 0) & (new_xq**2 * sum_qq > sum_xq**2 * new_qq)
            q[i], sum_xq, sum_qq = _keep(better, (moved, new_xq, new_qq), (q[i], sum_xq, sum_qq))
        if torch.equal(q, before):
            break
    return torch.where(sum_qq > 0, sum_xq / sum_qq, 0), q


def _keep(better: torch.Tensor, new: tuple[torch.Tensor, ...], old: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    return [torch.where(better, n, o) for n, o in zip(new, old, strict=True)]
